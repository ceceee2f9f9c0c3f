//! A JSON document whose fields are not known beforehand: each level is read once, and only when it
//! is asked for. Numbers stay as they stand in the payload, and no key may stand twice.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashSet;
use std::fmt;

use penstock_crds::mapping::Pointer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json;
use super::reject::Reject;

/// The fields of an object, in their order.
#[derive(Debug)]
pub struct Object<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Object<'a> {
    /// A field's value.
    pub fn get(&self, key: &str) -> json::Raw<'a> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
        while let Some(Key(key)) = map.next_key()? {
            fields.push((key, map.next_value()?));
        }
        let mut seen = HashSet::with_capacity(fields.len());
        for (key, _) in &fields {
            if !seen.insert(&**key) {
                return Err(A::Error::custom(format_args!("the key '{key}' stands twice")));
            }
        }
        Ok(Object(fields))
    }
}

/// A key, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A value of the document, and what it holds as far as that was asked for.
#[derive(Debug)]
pub struct Node<'a> {
    raw: &'a RawValue,
    children: OnceCell<Children<'a>>,
}

/// What a value holds.
#[derive(Debug)]
pub enum Children<'a> {
    /// The fields of an object.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
    /// The items of an array.
    Array(Vec<Node<'a>>),
    /// Nothing: it is a plain value.
    None,
}

impl<'a> Node<'a> {
    /// A value of the document.
    pub fn new(raw: &'a RawValue) -> Self {
        Self { raw, children: OnceCell::new() }
    }

    /// The value as it stands in the payload.
    pub fn raw(&self) -> &'a RawValue {
        self.raw
    }

    /// What the value holds, read when first asked for.
    pub fn children(&self) -> Result<&Children<'a>, Reject> {
        if let Some(children) = self.children.get() {
            return Ok(children);
        }
        let text = self.raw.get();
        let children = if text.starts_with('{') {
            let Object(fields) = json::parse(text)?;
            Children::Object(fields.into_iter().map(|(key, value)| (key, Self::new(value))).collect())
        } else if text.starts_with('[') {
            let items: Vec<&'a RawValue> = json::parse(text)?;
            Children::Array(items.into_iter().map(Self::new).collect())
        } else {
            Children::None
        };
        Ok(self.children.get_or_init(|| children))
    }

    /// The value at the pointer, if there is one.
    pub fn at(&self, pointer: &Pointer) -> Result<Option<&Self>, Reject> {
        let mut node = self;
        for level in pointer.levels() {
            let next = match node.children()? {
                Children::Object(fields) => fields.iter().find(|(key, _)| key == level).map(|(_, node)| node),
                Children::Array(items) => index(level).and_then(|index| items.get(index)),
                Children::None => None,
            };
            match next {
                Some(next) => node = next,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// The value at the pointer as it stands in the payload; `None` where there is none.
    pub fn raw_at(&self, pointer: &Pointer) -> Result<json::Raw<'a>, Reject> {
        Ok(self.at(pointer)?.map(Self::raw))
    }
}

/// An array's index: digits without leading zeros (RFC 6901 §4).
fn index(level: &str) -> Option<usize> {
    let digits = level.bytes().all(|byte| byte.is_ascii_digit());
    (digits && (level == "0" || !level.starts_with('0'))).then(|| level.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Reason;

    #[test]
    fn the_examples_of_rfc_6901_are_found() {
        let text =
            r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
        let root = Node::new(serde_json::from_str(text).unwrap());
        for (pointer, found) in [
            ("", Some(text)),
            ("/foo", Some(r#"["bar","baz"]"#)),
            ("/foo/0", Some(r#""bar""#)),
            ("/", Some("0")),
            ("/a~1b", Some("1")),
            ("/i\\j", Some("5")),
            ("/k\"l", Some("6")),
            ("/ ", Some("7")),
            ("/m~0n", Some("8")),
            ("/foo/00", None),
            ("/foo/-", None),
            ("/foo/2", None),
            ("/foo/0/x", None),
            ("/nothing", None),
        ] {
            let raw = root.raw_at(&pointer.parse().unwrap()).unwrap();
            assert_eq!(raw.map(RawValue::get), found, "{pointer}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_an_error_however_it_is_written() {
        for text in [r#"{"a":1,"a":2}"#, r#"{"a":1,"\u0061":2}"#] {
            assert_eq!(json::parse::<Object<'_>>(text).unwrap_err().reason, Reason::InvalidField);
        }
    }
}
