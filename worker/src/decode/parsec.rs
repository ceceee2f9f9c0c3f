//! `parsec_v1`, in all its spellings:
//!
//! - `{"di1": 1, "di2": 0, "rssi": -67, "fw": "1.2", "ts": "2026-11-24T05:10:53Z"}`
//! - `{"schema": "parsec_v1", "ts": …, "DI1": 1, "DI2": 0, "rssi": -67}`
//! - `{"timestamp": 1795497053, "DI1": 1, "DI2": 0, "AI1": 22.5}`
//!
//! Input 1 is RUN or STOP, input 2 a fault, and FAULT wins. Nothing is assumed of an input that is missing.

use std::borrow::Cow;

use penstock_crds::mapping::TimeUnit;

use super::json::{self, Raw};
use super::reject::{Reason, Reject};
use super::tree::Object;
use super::{Content, Message, Metadata, Value, value};

pub fn decode<'a>(message: &Message<'a>, content: &mut Content<'a>) -> Result<(), Reject> {
    let object: Object<'a> = json::parse(message.text)?;
    let schema = object.get("schema");
    if !json::is_null(schema) && json::string(schema).as_deref() != Some("parsec_v1") {
        return Err(Reject::whole(Reason::UnknownSchema, "the schema is not \"parsec_v1\""));
    }
    let (di1, di2) = (either(&object, "di1")?, either(&object, "di2")?);
    let (rssi, fw) = (either(&object, "rssi")?, either(&object, "fw")?);
    let analog = analog_inputs(&object)?;
    let has_inputs = di1.is_some() || di2.is_some();
    if !has_inputs && json::is_null(rssi) && analog.is_empty() {
        return Err(Reject::whole(Reason::InvalidField, "the message has no DI1, DI2, AI1, … and no rssi"));
    }
    let ts = match (object.get("ts"), object.get("timestamp")) {
        (Some(_), Some(_)) => {
            return Err(Reject::whole(Reason::InvalidField, "'ts' and 'timestamp' are both there"));
        }
        (ts, timestamp) => message.accept(message.time(ts.or(timestamp), TimeUnit::Seconds)?)?,
    };
    if has_inputs {
        let fault = value::bit(di2, "DI2");
        content.put(ts, "status", None, status(di1, &fault));
        content.put(ts, "fault", None, fault.map(Value::Bool));
    }
    if !json::is_null(rssi) {
        let rssi = value::number(json::get(rssi), "rssi").map(Value::Num);
        content.put(ts, "rssi", Some("dBm"), rssi);
    }
    for (name, raw) in analog {
        let number = value::number(json::get(raw), &name).map(Value::Num);
        content.put(ts, name, None, number);
    }
    if !json::is_null(fw) {
        match json::text(fw, "fw", value::MAX_TEXT) {
            Ok(_) => {
                let document = Cow::Owned(format!(r#"{{"fw":{}}}"#, json::get(fw)));
                content.metadata = Some(Metadata { ts, document });
            }
            Err(reject) => content.rejects.push(reject),
        }
    }
    Ok(())
}

/// RUN or STOP, or FAULT, which wins.
fn status<'a>(di1: Raw<'_>, fault: &Result<bool, Reject>) -> Result<Value<'a>, Reject> {
    let text = match (fault.clone()?, di1) {
        (true, _) => "FAULT",
        (false, di1) if value::bit(di1, "DI1")? => "RUN",
        _ => "STOP",
    };
    Ok(Value::Text(text.into()))
}

/// A field in lower or upper case.
fn either<'a>(object: &Object<'a>, name: &str) -> Result<Raw<'a>, Reject> {
    let (lower, upper) = (object.get(name), object.get(&name.to_ascii_uppercase()));
    if lower.is_some() && upper.is_some() {
        return Err(Reject::whole(Reason::InvalidField, &format!("'{name}' is there in both cases")));
    }
    Ok(lower.or(upper))
}

/// `AI1`, `AI2` and so on, under their names in lower case.
fn analog_inputs<'a>(object: &Object<'a>) -> Result<Vec<(String, Raw<'a>)>, Reject> {
    let mut inputs: Vec<(String, Raw<'a>)> = Vec::new();
    for (key, raw) in &object.0 {
        let number = key.strip_prefix("AI").or_else(|| key.strip_prefix("ai")).unwrap_or_default();
        if (1..=3).contains(&number.len()) && number.bytes().all(|digit| digit.is_ascii_digit()) {
            let name = format!("ai{number}");
            if inputs.iter().any(|(other, _)| *other == name) {
                return Err(Reject::whole(Reason::InvalidField, &format!("'{name}' is there in both cases")));
            }
            inputs.push((name, Some(raw)));
        }
    }
    Ok(inputs)
}
