//! Foreign JSON, by the mapping in the manifest.

use std::borrow::Cow;

use penstock_crds::mapping::{Each, Mapping, Pointer, TimeAt, ValueType};
use serde_json::value::RawValue;

use super::json::{self, Raw};
use super::reject::{Reason, Reject};
use super::tree::{Children, Node};
use super::{Claims, Content, Message, Micros, Sample, Value, value};

pub fn decode<'a>(message: &Message<'a>, mapping: &Mapping, content: &mut Content<'a>) -> Result<(), Reject> {
    let root: Node<'a> = Node::new(json::parse(message.text)?);
    content.claims = Claims {
        tenant: mapping.tenant.as_ref().map(|at| claimed(&root, at, "tenant")).transpose()?,
        device: mapping.device.as_ref().map(|at| claimed(&root, at, "device")).transpose()?,
    };
    let own_time = |each: &Each| each.time.is_some();
    let ts = if mapping.points.is_empty() && mapping.each.as_ref().is_some_and(own_time) {
        None
    } else {
        Some(time(message, &root, mapping.time.as_ref())?)
    };
    let mut part = 0;
    for point in &mapping.points {
        let raw = root.raw_at(&point.pointer)?;
        if raw.is_none() {
            continue;
        }
        let value = typed(raw, point.value_type, point.scale, point.offset, &point.pointer);
        content.add(
            part,
            value.map(|value| Sample {
                part,
                point: Cow::Owned(point.name.clone()),
                ts: ts.unwrap_or_default(),
                value,
                unit: point.unit.clone().map(Cow::Owned),
                quality: 0,
            }),
        );
        part += 1;
    }
    if let Some(each) = &mapping.each {
        for (key, item) in items(&root, each)? {
            content.add(part, sample(message, part, key, item, each, ts));
            part += 1;
        }
    }
    if part == 0 {
        return Err(Reject::whole(Reason::InvalidField, "the message has nothing where the mapping looks"));
    }
    Ok(())
}

/// A name that the message gives instead of the topic.
fn claimed<'a>(root: &Node<'a>, at: &Pointer, what: &str) -> Result<Cow<'a, str>, Reject> {
    json::name(root.raw_at(at)?, &format!("{what} at {at}"))
}

/// The time at the place, or of the receipt where that is allowed.
fn time(message: &Message<'_>, node: &Node<'_>, at: Option<&TimeAt>) -> Result<Micros, Reject> {
    let ts = match at {
        Some(at) => message.time_in(node.raw_at(&at.pointer)?, at.unit, &at.pointer.to_string())?,
        None => message.time_in(None, penstock_crds::mapping::TimeUnit::default(), "time")?,
    };
    message.accept(ts)
}

/// Items with their keys, where they have some.
type Items<'n, 'a> = Vec<(Option<&'n Cow<'a, str>>, &'n Node<'a>)>;

/// The items to iterate.
fn items<'n, 'a>(root: &'n Node<'a>, each: &Each) -> Result<Items<'n, 'a>, Reject> {
    let wrong = |what: &str| Err(Reject::whole(Reason::InvalidField, &format!("'{}' {what}", each.pointer)));
    let Some(node) = root.at(&each.pointer)? else { return Ok(Vec::new()) };
    match node.children()? {
        Children::Object(fields) => Ok(fields.iter().map(|(key, node)| (Some(key), node)).collect()),
        Children::Array(items) => Ok(items.iter().map(|node| (None, node)).collect()),
        Children::None => wrong("is neither an array nor an object"),
    }
}

fn sample<'a>(
    message: &Message<'a>,
    part: u32,
    key: Option<&Cow<'a, str>>,
    item: &Node<'a>,
    each: &Each,
    ts: Option<Micros>,
) -> Result<Sample<'a>, Reject> {
    let point = match (&each.name, key) {
        (Some(at), _) => json::name(item.raw_at(at)?, &at.to_string())?,
        (None, Some(key)) => value::name(key.clone(), "key")?,
        (None, None) => {
            let detail = "an item of an array has no name; write 'each.name' in the mapping";
            return Err(Reject::whole(Reason::InvalidField, detail));
        }
    };
    let unit = match &each.unit {
        Some(at) => value::unit(item.raw_at(at)?, &at.to_string())?,
        None => None,
    };
    let ts = match (&each.time, ts) {
        (None, Some(ts)) => ts,
        (at, _) => time(message, item, at.as_ref())?,
    };
    let value = typed(item.raw_at(&each.value)?, each.value_type, each.scale, each.offset, &each.value)?;
    Ok(Sample { part, point, ts, value, unit, quality: 0 })
}

/// A value that is of the declared type, scaled.
fn typed<'a>(
    raw: Raw<'a>,
    declared: Option<ValueType>,
    scale: Option<f64>,
    offset: Option<f64>,
    at: &Pointer,
) -> Result<Value<'a>, Reject> {
    let place = at.to_string();
    let number =
        raw.map(RawValue::get).is_some_and(|text| text.starts_with(|c: char| c == '-' || c.is_ascii_digit()));
    let value = match declared {
        Some(ValueType::Bool) if number => Value::Bool(value::bit(raw, &place)?),
        _ => value::plain(raw, &place)?,
    };
    let wrong = |what: &str| Err(Reject::whole(Reason::InvalidValue, &format!("'{place}' is no {what}")));
    match (value, declared) {
        (Value::Num(number), None | Some(ValueType::Number)) => {
            let scaled = number * scale.unwrap_or(1.0) + offset.unwrap_or(0.0);
            if scaled.is_finite() { Ok(Value::Num(scaled)) } else { wrong("finite number once scaled") }
        }
        (_, None) if scale.is_some() || offset.is_some() => wrong("number, which the mapping scales"),
        (value, None)
        | (value @ Value::Bool(_), Some(ValueType::Bool))
        | (value @ Value::Text(_), Some(ValueType::Text)) => Ok(value),
        (_, Some(ValueType::Number)) => wrong("number"),
        (_, Some(ValueType::Bool)) => wrong("truth value"),
        (_, Some(ValueType::Text)) => wrong("string"),
    }
}
