//! Something that happened on a device: `{"schema": "v1", "event_id", "event_type", "ts", "data": {}}`.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{self, Raw};
use super::reject::{Reason, Reject};
use super::telemetry_v1::require_v1;
use super::{Content, Event, Message, time};

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    schema: Raw<'a>,
    #[serde(borrow)]
    event_id: Raw<'a>,
    #[serde(borrow)]
    event_type: Raw<'a>,
    #[serde(borrow)]
    ts: Raw<'a>,
    #[serde(borrow)]
    data: Raw<'a>,
}

pub fn decode<'a>(message: &Message<'a>, content: &mut Content<'a>) -> Result<(), Reject> {
    let document: Document<'a> = json::object(message.text)?;
    require_v1(document.schema)?;
    let ts = json::string(document.ts).ok_or_else(|| {
        let reason = if json::is_null(document.ts) { Reason::MissingTime } else { Reason::InvalidTime };
        Reject::whole(reason, "an event needs a 'ts' such as \"2026-11-24T05:10:53.123Z\"")
    })?;
    let data = document.data.filter(|_| !json::is_null(document.data));
    content.events.push(Event {
        event_id: if json::is_null(document.event_id) {
            None
        } else {
            Some(json::name(document.event_id, "event_id")?)
        },
        event_type: json::name(document.event_type, "event_type")?,
        ts: message.accept(time::instant(&ts)?)?,
        data: data.map(|data| json::document(RawValue::get(data), "data")).transpose()?,
    });
    Ok(())
}
