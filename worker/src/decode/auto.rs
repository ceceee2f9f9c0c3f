//! `format: Auto`: which format a payload has by its own marks, in this order:
//!
//! 1. an array of CBOR, or a JSON array whose first record has `bn` or `n`: SenML
//! 2. `"schema": "v1"`; where the topic has no kind also `cmd_id`, `event_type` or `points`: V1
//! 3. `DATA` or `INFO`: JE02
//! 4. `"schema": "parsec_v1"`, or `DI1` or `DI2`: Parsec
//! 5. `sensors`: Sensors
//!
//! Nothing else is guessed. V1 is read at once; the marks are looked for where it was none.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::json::{self, Raw};
use super::reject::{Reason, Reject};
use super::{Content, Decode, Message, ack_v1, event_v1, je02, parsec, senml, sensors, telemetry_v1};

#[derive(Deserialize)]
struct Marks<'a> {
    #[serde(borrow)]
    schema: Raw<'a>,
    cmd_id: Option<IgnoredAny>,
    event_type: Option<IgnoredAny>,
    points: Option<IgnoredAny>,
    #[serde(rename = "DATA")]
    data: Option<IgnoredAny>,
    #[serde(rename = "INFO")]
    info: Option<IgnoredAny>,
    #[serde(alias = "DI1")]
    di1: Option<IgnoredAny>,
    #[serde(alias = "DI2")]
    di2: Option<IgnoredAny>,
    sensors: Option<IgnoredAny>,
}

/// A message whose topic says that it is telemetry.
pub fn telemetry<'a>(message: &Message<'a>, content: &mut Content<'a>) -> Result<(), Reject> {
    let not_v1 = match telemetry_v1::decode(message, content) {
        Err(reject) if matches!(reject.reason, Reason::UnknownSchema | Reason::InvalidField) => reject,
        other => return other,
    };
    match by_marks(message.text, false)? {
        Some(decode) => decode(message, content),
        None => Err(not_v1),
    }
}

/// A message whose topic does not tell its kind.
pub fn any<'a>(message: &Message<'a>, content: &mut Content<'a>) -> Result<(), Reject> {
    let decode = by_marks(message.text, true)?.ok_or_else(|| {
        let detail =
            "the payload has no mark of a format that is detected; name its format in the subscription";
        Reject::whole(Reason::UnknownSchema, detail)
    })?;
    decode(message, content)
}

/// The decoder that the payload's marks ask for.
fn by_marks(text: &str, with_v1: bool) -> Result<Option<Decode>, Reject> {
    if text.trim_start().starts_with('[') && senml::is_json(text)? {
        return Ok(Some(senml::decode));
    }
    let marks: Marks<'_> = json::object(text)?;
    let schema = json::string(marks.schema);
    Ok(match (schema.as_deref(), marks) {
        (_, Marks { cmd_id: Some(_), .. }) if with_v1 => Some(ack_v1::decode),
        (_, Marks { event_type: Some(_), .. }) if with_v1 => Some(event_v1::decode),
        (Some("v1"), _) => with_v1.then_some(telemetry_v1::decode),
        (_, Marks { data: Some(_), .. } | Marks { info: Some(_), .. }) => Some(je02::decode),
        (Some("parsec_v1"), _) | (_, Marks { di1: Some(_), .. } | Marks { di2: Some(_), .. }) => {
            Some(parsec::decode)
        }
        (_, Marks { sensors: Some(_), .. }) => Some(sensors::decode),
        (_, Marks { points: Some(_), .. }) if with_v1 => Some(telemetry_v1::decode),
        _ => None,
    })
}
