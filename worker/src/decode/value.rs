//! Values as formats have them whose JSON tells the type.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::json::{self, Raw};
use super::reject::{Reason, Reject};
use super::word::Word;
use super::{MAX_NAME, Value};

/// Longest text value, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;
/// Longest unit, in bytes.
pub const MAX_UNIT: usize = 64;

/// A value of the type that JSON says it has.
pub fn plain<'a>(raw: Raw<'a>, field: &str) -> Result<Value<'a>, Reject> {
    let wrong = |what: &str| Reject::whole(Reason::InvalidValue, &format!("'{field}' {what}"));
    match raw.map(RawValue::get).ok_or_else(|| wrong("is missing"))? {
        "true" => Ok(Value::Bool(true)),
        "false" => Ok(Value::Bool(false)),
        "null" => Err(wrong("is null")),
        text if text.starts_with('"') => json::text(raw, field, MAX_TEXT).map(Value::Text),
        text if text.starts_with(['{', '[']) => Err(wrong("is an array or object, not one value")),
        text => number(text, field).map(Value::Num),
    }
}

/// A number that a double holds.
pub fn number(text: &str, field: &str) -> Result<f64, Reject> {
    if !text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return Err(Reject::whole(Reason::InvalidValue, &format!("'{field}' is no number")));
    }
    json::number(text).map_err(|(reason, what)| Reject::whole(reason, &format!("'{field}' {what}")))
}

/// An input that is on or off: 1 or 0, true or false.
pub fn bit(raw: Raw<'_>, field: &str) -> Result<bool, Reject> {
    match raw.map(RawValue::get) {
        Some("1" | "true") => Ok(true),
        Some("0" | "false") => Ok(false),
        None => Err(Reject::whole(Reason::InvalidField, &format!("'{field}' is missing"))),
        Some(_) => Err(Reject::whole(Reason::InvalidValue, &format!("'{field}' is neither 0 nor 1"))),
    }
}

/// A unit, where there is one.
pub fn unit<'a>(word: impl Into<Word<'a>>, field: &str) -> Result<Option<Cow<'a, str>>, Reject> {
    match word.into() {
        Word::Nothing => Ok(None),
        word => json::text(word, field, MAX_UNIT).map(Some),
    }
}

/// A name that did not come as a JSON string: not empty, not long, without control characters.
pub fn name<'a>(name: Cow<'a, str>, what: &str) -> Result<Cow<'a, str>, Reject> {
    name_length(name.len(), what)?;
    if name.is_empty() || name.chars().any(char::is_control) {
        let detail = format!("the {what} is empty or holds a control character");
        return Err(Reject::whole(Reason::InvalidField, &detail));
    }
    Ok(name)
}

/// Refuses so many bytes for a name: where it is put together, before that is done.
pub fn name_length(bytes: usize, what: &str) -> Result<(), Reject> {
    if bytes > MAX_NAME {
        let detail = format!("the {what} has {bytes} bytes; {MAX_NAME} are allowed");
        return Err(Reject::whole(Reason::TooLong, &detail));
    }
    Ok(())
}
