//! A plain JSON object: one field is the time, each other one a point.

use penstock_crds::mapping::TimeUnit;

use super::json;
use super::reject::{Reason, Reject};
use super::tree::Object;
use super::{Content, Message, Micros, Sample, Value, value};

pub fn decode<'a>(
    message: &Message<'a>,
    time_field: &str,
    unit: TimeUnit,
    content: &mut Content<'a>,
) -> Result<(), Reject> {
    let object: Object<'a> = json::parse(message.text)?;
    let ts = message.accept(message.time_in(object.get(time_field), unit, time_field)?)?;
    let fields: Vec<_> = object.0.into_iter().filter(|(key, _)| key != time_field).collect();
    if fields.is_empty() {
        return Err(Reject::whole(Reason::InvalidField, "the message has no field beside its time"));
    }
    for (part, (key, raw)) in (0u32..).zip(fields) {
        let value = value::plain(Some(raw), &key);
        let named = value::name(key, "field's name");
        content.add(part, value.and_then(|value| Ok(sample(part, named?, ts, value))));
    }
    Ok(())
}

fn sample<'a>(part: u32, point: std::borrow::Cow<'a, str>, ts: Micros, value: Value<'a>) -> Sample<'a> {
    Sample { part, point, ts, value, unit: None, quality: 0 }
}
