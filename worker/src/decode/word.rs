//! A field of JSON that ought to be text, taken in the same pass that reads the document.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::json::{self, Raw};

/// What a field holds that ought to be text. Another type is no fault of the document: only the part that
/// needed the text is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Word<'a> {
    /// The field is missing or null.
    #[default]
    Nothing,
    /// Text, borrowed where it has no escapes.
    Text(Cow<'a, str>),
    /// Anything else.
    Other,
}

impl<'a> From<Raw<'a>> for Word<'a> {
    fn from(raw: Raw<'a>) -> Self {
        if json::is_null(raw) { Self::Nothing } else { json::string(raw).map_or(Self::Other, Self::Text) }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Word<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyType)
    }
}

struct AnyType;

impl<'de> Visitor<'de> for AnyType {
    type Value = Word<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value of any type")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Word<'de>, E> {
        Ok(Word::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Word<'de>, E> {
        Ok(Word::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Word<'de>, E> {
        Ok(Word::Nothing)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Word<'de>, E> {
        Ok(Word::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Word<'de>, E> {
        Ok(Word::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Word<'de>, E> {
        Ok(Word::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Word<'de>, E> {
        Ok(Word::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Word<'de>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Word::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Word<'de>, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Word::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct AtOnce<'a> {
        #[serde(borrow, default)]
        field: Word<'a>,
    }

    #[derive(serde::Deserialize)]
    struct AsRaw<'a> {
        #[serde(borrow)]
        field: Raw<'a>,
    }

    #[test]
    fn a_field_is_the_same_read_at_once_or_from_its_raw_text() {
        let text = |text: &'static str| Word::Text(Cow::Borrowed(text));
        for (document, expected) in [
            ("{}", Word::Nothing),
            (r#"{"field": null}"#, Word::Nothing),
            (r#"{"field": "temperature"}"#, text("temperature")),
            (r#"{"field": ""}"#, text("")),
            (r#"{"field": "\u00b0C\n"}"#, text("°C\n")),
            (r#"{"field": -1.5e3}"#, Word::Other),
            (r#"{"field": 18446744073709551615}"#, Word::Other),
            (r#"{"field": true}"#, Word::Other),
            (r#"{"field": ["a", {"b": []}]}"#, Word::Other),
            (r#"{"field": {"a": "b"}}"#, Word::Other),
        ] {
            let at_once = serde_json::from_str::<AtOnce<'_>>(document).unwrap().field;
            let raw = serde_json::from_str::<AsRaw<'_>>(document).unwrap().field;
            assert_eq!((&at_once, &Word::from(raw)), (&expected, &expected), "{document}");
        }
    }
}
