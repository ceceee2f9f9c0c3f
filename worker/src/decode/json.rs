//! JSON as devices send it, read without guessing.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value as Json;
use serde_json::value::RawValue;

use super::MAX_NAME;
use super::reject::{Reason, Reject};
use super::word::Word;

/// Deepest nesting of a stored document.
const MAX_DEPTH: usize = 32;
/// Largest stored document, in bytes.
const MAX_DOCUMENT: usize = 256 * 1024;

/// A part of a message as it stands in the payload.
pub type Raw<'a> = Option<&'a RawValue>;

/// Fields that stand in an object. What serde derives for a struct takes an array too, and its items for
/// the fields in their order.
pub struct Fields<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Fields<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
            type Value = Fields<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Fields)
            }
        }
        deserializer.deserialize_map(Object(PhantomData))
    }
}

/// Reads an object with these fields. A key that stands twice is an error.
pub fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Reject> {
    parse(text).map(|Fields(fields)| fields)
}

/// Reads a whole message. A key that stands twice is an error.
pub fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Reject> {
    serde_json::from_str(text).map_err(|error| {
        // Its category tells a wrong document from a wrong field.
        let reason = if error.is_data() { Reason::InvalidField } else { Reason::ParseError };
        Reject::whole(reason, &format!("not the JSON document that is needed: {error}"))
    })
}

/// Whether the field is missing or null.
pub fn is_null(raw: Raw<'_>) -> bool {
    raw.is_none_or(|raw| raw.get() == "null")
}

/// The field as it stands in the payload; nothing where it is missing.
pub fn get(raw: Raw<'_>) -> &str {
    raw.map(RawValue::get).unwrap_or_default()
}

/// A JSON string, borrowed where it has no escapes. `None` where it is none.
pub fn string<'a>(raw: Raw<'a>) -> Option<Cow<'a, str>> {
    let quoted = raw?.get();
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(quoted).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// A name, id or type: text that is not empty and not long.
pub fn name<'a>(word: impl Into<Word<'a>>, field: &str) -> Result<Cow<'a, str>, Reject> {
    let text = text(word, field, MAX_NAME)?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(Reject::whole(
            Reason::InvalidField,
            &format!("'{field}' is empty or holds a control character"),
        ));
    }
    Ok(text)
}

/// Text of at most so many bytes, without NUL.
pub fn text<'a>(word: impl Into<Word<'a>>, field: &str, max: usize) -> Result<Cow<'a, str>, Reject> {
    let Word::Text(text) = word.into() else {
        return Err(Reject::whole(Reason::InvalidField, &format!("'{field}' is missing or no string")));
    };
    if text.len() > max {
        return Err(Reject::whole(
            Reason::TooLong,
            &format!("'{field}' has {} bytes; {max} are allowed", text.len()),
        ));
    }
    if text.contains('\0') {
        return Err(Reject::whole(
            Reason::InvalidEncoding,
            &format!("'{field}' holds NUL, which a database cannot store"),
        ));
    }
    Ok(text)
}

/// A document as a `jsonb` column takes it: bounded, without NUL and lone surrogates.
pub fn document<'a>(raw: &'a str, field: &str) -> Result<Cow<'a, str>, Reject> {
    if raw.len() > MAX_DOCUMENT {
        return Err(Reject::whole(
            Reason::TooLong,
            &format!("'{field}' has {} bytes; {MAX_DOCUMENT} are allowed", raw.len()),
        ));
    }
    let value: Json = serde_json::from_str(raw).map_err(|error| {
        Reject::whole(Reason::ParseError, &format!("'{field}' cannot be stored as JSON: {error}"))
    })?;
    check(&value, 0).map_err(|(reason, what)| Reject::whole(reason, &format!("'{field}' {what}")))?;
    Ok(Cow::Borrowed(raw))
}

fn check(value: &Json, depth: usize) -> Result<(), (Reason, &'static str)> {
    let nul = |text: &str| {
        if text.contains('\0') {
            Err((Reason::InvalidEncoding, "holds NUL, which a database cannot store"))
        } else {
            Ok(())
        }
    };
    if depth > MAX_DEPTH {
        return Err((Reason::ParseError, "is nested too deeply"));
    }
    match value {
        Json::String(text) => nul(text),
        Json::Array(items) => items.iter().try_for_each(|item| check(item, depth + 1)),
        Json::Object(fields) => fields.iter().try_for_each(|(key, item)| {
            nul(key)?;
            check(item, depth + 1)
        }),
        Json::Null | Json::Bool(_) | Json::Number(_) => Ok(()),
    }
}

/// A number as a double, if a double holds it: integers exactly, decimals as near as can be.
pub fn number(text: &str) -> Result<f64, (Reason, &'static str)> {
    let value: f64 = text.parse().map_err(|_| (Reason::InvalidValue, "is no number"))?;
    if !value.is_finite() {
        return Err((Reason::InvalidValue, "is too large for a double"));
    }
    let is_integer = !text.contains(['.', 'e', 'E']);
    // 15 digits always fit.
    if is_integer && text.len() > 15 && text.parse::<i128>() != Ok(value as i128) {
        return Err((Reason::OutOfRange, "is an integer that a double cannot hold exactly; send it as text"));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_exact_or_refused() {
        assert_eq!(number("9007199254740992"), Ok(9_007_199_254_740_992.0));
        assert_eq!(number("9007199254740993").unwrap_err().0, Reason::OutOfRange);
        assert_eq!(number("-9007199254740993").unwrap_err().0, Reason::OutOfRange);
        assert_eq!(number("1152921504606846976"), Ok(2f64.powi(60)));
        assert_eq!(number(&"9".repeat(60)).unwrap_err().0, Reason::OutOfRange);
        assert_eq!(number("1e400").unwrap_err().0, Reason::InvalidValue);
        assert_eq!(number("-0.5"), Ok(-0.5));
    }

    #[test]
    fn a_stored_document_holds_nothing_that_jsonb_refuses() {
        assert!(document(r#"{"a":[1,{"b":"\\u0000"}]}"#, "meta").is_ok());
        assert_eq!(document(r#"{"a":"\u0000"}"#, "meta").unwrap_err().reason, Reason::InvalidEncoding);
        assert_eq!(document(r#"{"\u0000":1}"#, "meta").unwrap_err().reason, Reason::InvalidEncoding);
        assert_eq!(document(r#""\ud800""#, "meta").unwrap_err().reason, Reason::ParseError);
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        assert_eq!(document(&deep, "meta").unwrap_err().reason, Reason::ParseError);
    }
}
