//! Normalized telemetry: `{"schema": "v1", "ts": …, "points": [{"name", "t", "v", "u"}], "meta": {}}`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{self, Fields, Raw};
use super::reject::{Reason, Reject};
use super::value::{self, MAX_TEXT};
use super::word::Word;
use super::{Content, Message, Metadata, Micros, Sample, Value, time};

#[derive(Deserialize)]
struct Document<'a, P> {
    #[serde(borrow)]
    schema: Raw<'a>,
    #[serde(borrow)]
    ts: Raw<'a>,
    points: Option<Vec<P>>,
    #[serde(borrow)]
    meta: Raw<'a>,
}

#[derive(Deserialize)]
struct Point<'a> {
    #[serde(borrow, default)]
    name: Word<'a>,
    #[serde(borrow, default)]
    t: Word<'a>,
    #[serde(borrow)]
    v: Raw<'a>,
    #[serde(borrow, default)]
    u: Word<'a>,
}

pub fn decode<'a>(message: &Message<'a>, content: &mut Content<'a>) -> Result<(), Reject> {
    // Read once where every point is one; a wrong one must not cost the others.
    if let Ok(document) = json::object::<Document<'a, Fields<Point<'a>>>>(message.text) {
        return read(message, document, content, |Fields(point)| Ok(point));
    }
    let document = json::object::<Document<'a, &'a RawValue>>(message.text)?;
    read(message, document, content, |raw| json::object(raw.get()))
}

fn read<'a, P>(
    message: &Message<'a>,
    document: Document<'a, P>,
    content: &mut Content<'a>,
    point: impl Fn(P) -> Result<Point<'a>, Reject>,
) -> Result<(), Reject> {
    require_v1(document.schema)?;
    let ts = message.accept(ts(message, document.ts)?)?;
    let points = document.points.unwrap_or_default();
    if points.is_empty() && json::is_null(document.meta) {
        return Err(Reject::whole(Reason::InvalidField, "the message has neither points nor meta"));
    }
    content.samples.reserve(points.len());
    for (part, found) in (0u32..).zip(points) {
        content.add(part, point(found).and_then(|point| sample(part, ts, point)));
    }
    if let Some(meta) = document.meta.filter(|_| !json::is_null(document.meta)) {
        match metadata(ts, meta) {
            Ok(metadata) => content.metadata = Some(metadata),
            Err(reject) => content.rejects.push(reject),
        }
    }
    Ok(())
}

/// Refuses a document that does not say that it is normalized.
pub fn require_v1(schema: Raw<'_>) -> Result<(), Reject> {
    if json::string(schema).as_deref() == Some("v1") {
        return Ok(());
    }
    let found = schema.map_or("none", RawValue::get);
    Err(Reject::whole(Reason::UnknownSchema, &format!("the schema is {found}; \"v1\" is known")))
}

fn ts(message: &Message<'_>, raw: Raw<'_>) -> Result<Micros, Reject> {
    match json::string(raw) {
        Some(text) => time::instant(&text),
        None if json::is_null(raw) => message.receipt("the message has no 'ts'"),
        None => Err(Reject::whole(
            Reason::InvalidTime,
            "'ts' is no string; write it as \"2026-11-24T05:10:53.123Z\"",
        )),
    }
}

fn sample<'a>(part: u32, ts: Micros, point: Point<'a>) -> Result<Sample<'a>, Reject> {
    let name = json::name(point.name, "name")?;
    let unit = value::unit(point.u, "u")?;
    Ok(Sample { part, point: name, ts, value: typed(point.t, point.v)?, unit, quality: 0 })
}

/// The value, if it is of its declared type.
fn typed<'a>(declared: Word<'a>, raw: Raw<'a>) -> Result<Value<'a>, Reject> {
    let declared = match declared {
        Word::Nothing => Cow::Borrowed("num"),
        declared => json::text(declared, "t", 16)?,
    };
    let wrong =
        |what: &str| Reject::whole(Reason::InvalidValue, &format!("'v' {what} (its 't' is {declared})"));
    let text = raw.map(RawValue::get).ok_or_else(|| wrong("is missing"))?;
    match &*declared {
        "num" | "float" if text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => json::number(text)
            .map(Value::Num)
            .map_err(|(reason, what)| Reject::whole(reason, &format!("'v' {what}"))),
        "num" | "float" => Err(wrong("is no number")),
        "bool" => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err(wrong("is neither true nor false")),
        },
        "enum" | "text" if text.starts_with('"') => json::text(raw, "v", MAX_TEXT).map(Value::Text),
        "enum" | "text" => Err(wrong("is no string")),
        _ => Err(Reject::whole(
            Reason::InvalidField,
            &format!("'t' is '{declared}'; known are float, num, bool, enum and text"),
        )),
    }
}

fn metadata(ts: Micros, raw: &RawValue) -> Result<Metadata<'_>, Reject> {
    if !raw.get().starts_with('{') {
        return Err(Reject::whole(Reason::InvalidField, "'meta' is no object"));
    }
    Ok(Metadata { ts, document: json::document(raw.get(), "meta")? })
}
