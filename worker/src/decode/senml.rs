//! SenML (RFC 8428): records resolved one after the other, from JSON or CBOR.
//!
//! `vd` is kept as its base64url text. A sum is a point of its own, `<name>#sum`, whose unit is the
//! record's times seconds; `#` is in no SenML name. A time below 2^28 s is relative to the receipt.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::reject::{Reason, Reject};
use super::senml_cbor;
use super::tree::Object;
use super::{Content, MAX_NAME, Message, Micros, Sample, Value, json, time, value};

/// The version of SenML that is understood.
const VERSION: i128 = 10;
/// Times below this many seconds are relative.
const RELATIVE: i128 = 1 << 28;
/// Times are added up in units of 10^-12 s.
const PICOS: i32 = 12;
const PICOS_OF_SECOND: i128 = 1_000_000_000_000;
const PICOS_OF_MICRO: i128 = 1_000_000;

/// What a label holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Field<'a> {
    /// A number, as decimal text.
    Number(Cow<'a, str>),
    Text(Cow<'a, str>),
    Bool(bool),
    /// Binary data as base64url.
    Data(Cow<'a, str>),
    /// Nothing that SenML has.
    Other,
}

/// One record, as it was sent.
#[derive(Debug, Default)]
pub(super) struct Record<'a> {
    fields: Vec<(Label, Field<'a>)>,
    /// A label that whoever reads the record must understand.
    must_understand: Option<String>,
}

/// The labels of RFC 8428 §4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    BaseName,
    BaseTime,
    BaseUnit,
    BaseValue,
    BaseSum,
    BaseVersion,
    Name,
    Unit,
    Value,
    StringValue,
    BoolValue,
    DataValue,
    Sum,
    Time,
    UpdateTime,
}

impl Label {
    /// The labels by their names in JSON and their numbers in CBOR.
    pub(super) const ALL: [(Self, &'static str, i128); 15] = [
        (Self::BaseVersion, "bver", -1),
        (Self::BaseName, "bn", -2),
        (Self::BaseTime, "bt", -3),
        (Self::BaseUnit, "bu", -4),
        (Self::BaseValue, "bv", -5),
        (Self::BaseSum, "bs", -6),
        (Self::Name, "n", 0),
        (Self::Unit, "u", 1),
        (Self::Value, "v", 2),
        (Self::StringValue, "vs", 3),
        (Self::BoolValue, "vb", 4),
        (Self::Sum, "s", 5),
        (Self::Time, "t", 6),
        (Self::UpdateTime, "ut", 7),
        (Self::DataValue, "vd", 8),
    ];

    fn text(self) -> &'static str {
        Self::ALL.iter().find(|(label, ..)| *label == self).map_or("", |(_, text, _)| text)
    }
}

impl<'a> Record<'a> {
    /// Takes in a field by its name. One that is not known is ignored, unless it must be understood.
    pub(super) fn named(&mut self, name: &str, field: Field<'a>) -> Result<(), Reject> {
        if let Some((label, ..)) = Label::ALL.iter().find(|(_, text, _)| *text == name) {
            return self.labelled(*label, field);
        }
        if name.ends_with('_') {
            self.must_understand = Some(name.to_owned());
        }
        Ok(())
    }

    /// Takes in a field.
    pub(super) fn labelled(&mut self, label: Label, field: Field<'a>) -> Result<(), Reject> {
        if self.get(label).is_some() {
            return Err(invalid(&format!("'{}' stands twice in a record", label.text())));
        }
        self.fields.push((label, field));
        Ok(())
    }

    fn get(&self, label: Label) -> Option<&Field<'a>> {
        self.fields.iter().find(|(other, _)| *other == label).map(|(_, field)| field)
    }

    fn number(&self, label: Label) -> Result<Option<&Cow<'a, str>>, Reject> {
        match self.get(label) {
            None => Ok(None),
            Some(Field::Number(number)) => Ok(Some(number)),
            Some(_) => Err(invalid(&format!("'{}' is no number", label.text()))),
        }
    }

    fn text(&self, label: Label) -> Result<Option<&Cow<'a, str>>, Reject> {
        match self.get(label) {
            None => Ok(None),
            Some(Field::Text(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(&format!("'{}' is no string", label.text()))),
        }
    }

    /// Whether it holds base fields alone, and so no entry.
    fn is_base(&self) -> bool {
        use Label::{BaseName, BaseSum, BaseTime, BaseUnit, BaseValue, BaseVersion};
        let base = [BaseName, BaseSum, BaseTime, BaseUnit, BaseValue, BaseVersion];
        !self.fields.is_empty() && self.fields.iter().all(|(label, _)| base.contains(label))
    }
}

fn invalid(detail: &str) -> Reject {
    Reject::whole(Reason::InvalidField, detail)
}

/// Whether the payload is an array in CBOR. No text in UTF-8 begins so.
pub fn is_cbor(payload: &[u8]) -> bool {
    matches!(payload.first(), Some(0x80..=0x9b | 0x9f))
}

/// Whether the first item of a JSON array has a SenML name.
pub fn is_json(text: &str) -> Result<bool, Reject> {
    let items: Vec<&RawValue> = json::parse(text)?;
    let record = items.first().and_then(|first| json::parse::<Object<'_>>(first.get()).ok());
    Ok(record.is_some_and(|record| record.get("bn").is_some() || record.get("n").is_some()))
}

/// Decodes a pack in JSON.
pub fn decode<'a>(message: &Message<'a>, content: &mut Content<'a>) -> Result<(), Reject> {
    let items: Vec<&'a RawValue> = json::parse(message.text)?;
    let records: Result<Vec<_>, _> = items.into_iter().map(|item| record(item.get())).collect();
    resolve(message, &records?, content)
}

/// Decodes a pack in CBOR.
pub fn decode_cbor<'a>(message: &Message<'a>, content: &mut Content<'a>) -> Result<(), Reject> {
    resolve(message, &senml_cbor::records(message.input.payload)?, content)
}

fn record(text: &str) -> Result<Record<'_>, Reject> {
    let object: Object<'_> = json::parse(text)?;
    let mut record = Record::default();
    for (key, raw) in object.0 {
        let field = match raw.get() {
            "true" => Field::Bool(true),
            "false" => Field::Bool(false),
            text if text.starts_with('"') => json::string(Some(raw)).map_or(Field::Other, Field::Text),
            text if text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => Field::Number(text.into()),
            _ => Field::Other,
        };
        record.named(&key, field)?;
    }
    Ok(record)
}

/// What the records so far say of those to come.
#[derive(Debug, Default)]
struct Base<'a> {
    name: Cow<'a, str>,
    /// In 10^-12 s.
    time: i128,
    unit: Option<Cow<'a, str>>,
    value: Option<Addend>,
    sum: Option<Addend>,
}

/// A base value or sum, read once however many records it is added to.
#[derive(Debug)]
struct Addend {
    /// Where it is an integer.
    exact: Option<i64>,
    /// A fault is that of the records it is added to.
    double: Result<f64, Reject>,
}

impl Addend {
    fn new(number: &str, field: &str) -> Self {
        Self { exact: number.parse().ok(), double: value::number(number, field) }
    }
}

impl<'a> Base<'a> {
    /// A fault here would falsify every record that follows, so it rejects the pack.
    fn take(&mut self, record: &Record<'a>) -> Result<(), Reject> {
        let unknown = |detail: &str| Err(Reject::whole(Reason::UnknownSchema, detail));
        if let Some(label) = &record.must_understand {
            return unknown(&format!("the label '{label}' must be understood, and is not"));
        }
        if let Some(version) = record.number(Label::BaseVersion)? {
            match version.parse::<i128>() {
                Ok(1..=VERSION) => {}
                _ => {
                    return unknown(&format!(
                        "SenML of version {version} is not known, only up to {VERSION}"
                    ));
                }
            }
        }
        if let Some(name) = record.text(Label::BaseName)? {
            self.name.clone_from(name);
        }
        if let Some(time) = record.number(Label::BaseTime)? {
            self.time = picos(time)?;
        }
        if let Some(unit) = record.text(Label::BaseUnit)? {
            self.unit = Some(unit.clone());
        }
        if let Some(value) = record.number(Label::BaseValue)? {
            self.value = Some(Addend::new(value, "v"));
        }
        if let Some(sum) = record.number(Label::BaseSum)? {
            self.sum = Some(Addend::new(sum, "s"));
        }
        Ok(())
    }
}

fn resolve<'a>(
    message: &Message<'a>,
    records: &[Record<'a>],
    content: &mut Content<'a>,
) -> Result<(), Reject> {
    let mut base = Base::default();
    for (part, record) in (0u32..).zip(records) {
        base.take(record)?;
        if record.is_base() {
            continue;
        }
        match entry(message, part, record, &base) {
            Ok(samples) => content.samples.extend(samples.into_iter().flatten()),
            Err(reject) => content.rejects.push(Reject { part: Some(part), ..reject }),
        }
    }
    if content.samples.is_empty() && content.rejects.is_empty() {
        return Err(invalid("no record of the pack holds a value"));
    }
    Ok(())
}

/// The value and the sum of a record, of which at least one must be there.
fn entry<'a>(
    message: &Message<'a>,
    part: u32,
    record: &Record<'a>,
    base: &Base<'a>,
) -> Result<[Option<Sample<'a>>; 2], Reject> {
    let point = name(record, base)?;
    let unit = record.text(Label::Unit)?.or(base.unit.as_ref());
    if unit.is_some_and(|unit| unit.len() + "*s".len() > value::MAX_UNIT) {
        return Err(Reject::whole(Reason::TooLong, "the unit is too long"));
    }
    if unit.is_some_and(|unit| unit.contains('\0')) {
        return Err(Reject::whole(
            Reason::InvalidEncoding,
            "the unit holds NUL, which a database cannot store",
        ));
    }
    let value = entry_value(record, base)?;
    let sum = record.number(Label::Sum)?.map(|sum| add(sum, base.sum.as_ref(), "s")).transpose()?;
    if value.is_none() && sum.is_none() {
        return Err(Reject::whole(Reason::InvalidField, "the record has no value: none of v, vs, vb, vd, s"));
    }
    let ts = instant(message, record, base)?;
    let sample = |point, value, unit| Sample { part, point, ts, value, unit, quality: 0 };
    Ok([
        sum.map(|sum| {
            let unit = unit.map(|unit| Cow::Owned(format!("{unit}*s")));
            sample(Cow::Owned(format!("{point}#sum")), Value::Num(sum), unit)
        }),
        value.map(|value| sample(point.clone(), value, unit.cloned())),
    ])
}

/// The name as RFC 8428 §4.5.1 allows it.
fn name<'a>(record: &Record<'a>, base: &Base<'a>) -> Result<Cow<'a, str>, Reject> {
    let own = record.text(Label::Name)?;
    // Before it is put together: a base name that is too long may stand before every record's own.
    let bytes = base.name.len() + own.map_or(0, |name| name.len());
    if bytes + "#sum".len() > MAX_NAME {
        return Err(Reject::whole(Reason::TooLong, &format!("the name has {bytes} bytes")));
    }
    let name = match own {
        None => base.name.clone(),
        Some(name) if base.name.is_empty() => name.clone(),
        Some(name) => Cow::Owned(format!("{}{name}", base.name)),
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-:./_".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(allowed) {
        return Err(invalid(&format!(
            "'{name}' is no SenML name: letters, digits and -:./_, first a letter or digit"
        )));
    }
    Ok(name)
}

fn entry_value<'a>(record: &Record<'a>, base: &Base<'a>) -> Result<Option<Value<'a>>, Reject> {
    use Label::{BoolValue, DataValue, StringValue, Value as NumberValue};
    let mut found = [NumberValue, StringValue, BoolValue, DataValue]
        .into_iter()
        .filter_map(|label| record.get(label).map(|field| (label, field)));
    let Some((label, field)) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(invalid("the record has two values"));
    }
    match (label, field) {
        (NumberValue, Field::Number(number)) => add(number, base.value.as_ref(), "v").map(Value::Num),
        (BoolValue, Field::Bool(truth)) => Ok(Value::Bool(*truth)),
        (StringValue, Field::Text(text)) | (DataValue, Field::Data(text) | Field::Text(text)) => {
            if text.len() > value::MAX_TEXT {
                return Err(Reject::whole(
                    Reason::TooLong,
                    &format!("'{}' has {} bytes", label.text(), text.len()),
                ));
            }
            if text.contains('\0') {
                return Err(Reject::whole(
                    Reason::InvalidEncoding,
                    "'vs' holds NUL, which a database cannot store",
                ));
            }
            Ok(Value::Text(text.clone()))
        }
        _ => Err(Reject::whole(Reason::InvalidValue, &format!("'{}' is not of its type", label.text()))),
    }
    .map(Some)
}

/// The sum of a number and its base: exact where both are integers.
fn add(number: &str, base: Option<&Addend>, field: &str) -> Result<f64, Reject> {
    let Some(base) = base else { return value::number(number, field) };
    if let (Ok(a), Some(b)) = (number.parse::<i64>(), base.exact) {
        return value::number(&(i128::from(a) + i128::from(b)).to_string(), field);
    }
    let sum = value::number(number, field)? + base.double.clone()?;
    let infinite = || Reject::whole(Reason::InvalidValue, &format!("'{field}' and its base are too large"));
    sum.is_finite().then_some(sum).ok_or_else(infinite)
}

fn picos(number: &str) -> Result<i128, Reject> {
    time::scaled(number, PICOS)
        .filter(|picos| picos.abs() < PICOS_OF_SECOND << 48)
        .ok_or_else(|| Reject::whole(Reason::InvalidTime, &format!("'{number}' is no number of seconds")))
}

fn instant(message: &Message<'_>, record: &Record<'_>, base: &Base<'_>) -> Result<Micros, Reject> {
    let own = record.number(Label::Time)?.map_or(Ok(0), |time| picos(time))?;
    let picos = base.time + own;
    let micros = i64::try_from(picos.div_euclid(PICOS_OF_MICRO)).unwrap_or(i64::MAX);
    if picos >= RELATIVE * PICOS_OF_SECOND {
        return message.accept(time::bounded(micros)?);
    }
    if !message.rules.receive_time {
        return Err(Reject::whole(
            Reason::MissingTime,
            "the time is relative to its receipt; send 'bt' in Unix seconds, or set spec.accept.receiveTime: Allow",
        ));
    }
    message.accept(time::bounded(message.input.received_at.saturating_add(micros))?)
}
