//! JE02: `{"DATA": {"TS": 1795497053, "INPUT1": 1, …}}`, and `{"INFO": {…}}`, which is kept as metadata.
//!
//! INPUT1 is RUN or STOP, INPUT2 a fault, and FAULT wins. Each field that is wrong or missing is a dead
//! letter of its own. INFO has no time: that of DATA in the same message, else 1970-01-01, so that the
//! same INFO is one row however often it comes.

use std::borrow::Cow;

use penstock_crds::mapping::TimeUnit;
use serde::Deserialize;

use super::json::{self, Raw};
use super::reject::{Reason, Reject};
use super::tree::Object;
use super::{Content, Message, Metadata, Micros, Value, value};

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow, rename = "DATA")]
    data: Raw<'a>,
    #[serde(borrow, rename = "INFO")]
    info: Raw<'a>,
}

/// The numbers: field, point, unit, and what the number is to be divided by.
const NUMBERS: [(&str, &str, Option<&str>, f64); 5] = [
    ("WRSSI", "rssi", Some("dBm"), 1.0),
    ("UPTIME", "uptime", Some("s"), 1.0),
    ("CNTSERR", "cntserr", None, 1.0),
    ("VAR0", "var0", Some("celsius"), 10.0),
    ("VAR1", "var1", Some("%"), 10.0),
];

pub fn decode<'a>(message: &Message<'a>, content: &mut Content<'a>) -> Result<(), Reject> {
    let document: Document<'a> = json::object(message.text)?;
    let mut ts = None;
    if !json::is_null(document.data) {
        ts = Some(data(message, document.data, content)?);
    }
    if !json::is_null(document.info) {
        match info(document.info, ts.unwrap_or_default()) {
            Ok(metadata) => content.metadata = Some(metadata),
            Err(reject) => content.rejects.push(reject),
        }
    } else if ts.is_none() {
        return Err(Reject::whole(Reason::InvalidField, "the message has neither DATA nor INFO"));
    }
    Ok(())
}

fn data<'a>(message: &Message<'a>, raw: Raw<'a>, content: &mut Content<'a>) -> Result<Micros, Reject> {
    let data: Object<'a> = json::parse(json::get(raw))?;
    let ts = message.accept(message.time(data.get("TS"), TimeUnit::Seconds)?)?;
    let fault = value::bit(data.get("INPUT2"), "INPUT2");
    let status = fault.clone().and_then(|fault| {
        let running = fault || value::bit(data.get("INPUT1"), "INPUT1")?;
        Ok(Value::Text(
            if fault {
                "FAULT"
            } else if running {
                "RUN"
            } else {
                "STOP"
            }
            .into(),
        ))
    });
    content.put(ts, "status", None, status);
    content.put(ts, "fault", None, fault.map(Value::Bool));
    for (field, point, unit, divisor) in NUMBERS {
        let number = match data.get(field) {
            None => Err(Reject::whole(Reason::InvalidField, &format!("'{field}' is missing"))),
            raw => value::number(json::get(raw), field),
        };
        content.put(ts, point, unit, number.map(|number| Value::Num(number / divisor)));
    }
    content.put(ts, "rele", None, value::bit(data.get("RELE"), "RELE").map(Value::Bool));
    Ok(ts)
}

fn info(raw: Raw<'_>, ts: Micros) -> Result<Metadata<'_>, Reject> {
    let text = json::get(raw);
    if !text.starts_with('{') {
        return Err(Reject::whole(Reason::InvalidField, "'INFO' is no object"));
    }
    let document: Cow<'_, str> = json::document(text, "INFO")?;
    Ok(Metadata { ts, document })
}
