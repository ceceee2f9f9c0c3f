//! How foreign JSON becomes samples: JSON pointers (RFC 6901) to times, values and names.

use std::fmt;
use std::str::FromStr;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rules;
use crate::source::Subscription;
use crate::validate::Errors;

/// Most levels of a pointer: a message is read once for each.
const MAX_LEVELS: usize = 16;
/// Longest pointer, in characters, as the API server counts.
const MAX_POINTER: usize = 500;
/// Longest name of a point and longest unit, likewise.
const MAX_NAME: usize = 255;
const MAX_UNIT: usize = 64;

/// A place in a JSON document, as RFC 6901 writes it: `/data/0/value`, or nothing for the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    levels: Vec<String>,
}

impl Pointer {
    /// The keys and indices to follow, without escapes.
    pub fn levels(&self) -> &[String] {
        &self.levels
    }
}

impl FromStr for Pointer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |remedy: &str| Err(format!("'{text}' is not a JSON pointer; {remedy}"));
        if text.is_empty() {
            return Ok(Self { text: String::new(), levels: Vec::new() });
        }
        let Some(rest) = text.strip_prefix('/') else {
            return wrong(&format!("write /{text}, or nothing for the whole message"));
        };
        let escapes = text.match_indices('~').map(|(at, _)| text.as_bytes().get(at + 1));
        if !escapes.into_iter().all(|next| matches!(next, Some(b'0' | b'1'))) {
            return wrong("write ~0 for '~' and ~1 for '/' within a key");
        }
        let levels: Vec<String> =
            rest.split('/').map(|level| level.replace("~1", "/").replace("~0", "~")).collect();
        if text.chars().count() > MAX_POINTER || levels.len() > MAX_LEVELS {
            return wrong(&format!("write at most {MAX_POINTER} characters and {MAX_LEVELS} levels"));
        }
        Ok(Self { text: text.to_owned(), levels })
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Pointer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Pointer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Pointer {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Pointer".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let pattern = format!("^(/([^~/]|~[01])*){{0,{MAX_LEVELS}}}$");
        json_schema!({ "type": "string", "pattern": pattern, "maxLength": MAX_POINTER })
    }
}

/// How foreign JSON becomes samples. At least one of `each` and `points` is needed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = rules::mapping_names_values())]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mapping {
    /// The message's time. May be left out where each item has its own, or `accept.receiveTime` is `Allow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeAt>,
    /// Where the tenant's name is, instead of in the topic. A device that can write here can store for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Pointer>,
    /// Where the device's name is, instead of in the topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Pointer>,
    /// An array or object, each item of which is a sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub each: Option<Each>,
    /// Values at fixed places. One that is missing from a message is no fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub points: Vec<Point>,
}

/// Where a time is, and what it is written in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimeAt {
    /// Where.
    pub pointer: Pointer,
    /// In what.
    #[serde(default)]
    pub unit: TimeUnit,
}

/// What a time is written in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TimeUnit {
    /// Text such as `2026-11-24T05:10:53.123Z`.
    #[default]
    Rfc3339,
    /// Unix seconds, whole or decimal.
    Seconds,
    /// Unix milliseconds.
    Milliseconds,
    /// Unix microseconds.
    Microseconds,
    /// Unix nanoseconds.
    Nanoseconds,
}

/// Samples from the items of an array or object. The pointers within start at the item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = rules::only_numbers_are_scaled())]
#[x_kube(validation = rules::scale_is_not_zero())]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Each {
    /// Where the array or object is.
    pub pointer: Pointer,
    /// Where the point's name is in the item. Needed for an array; an object's keys are names by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Pointer>,
    /// Where the value is in the item; by default the item is the value.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub value: Pointer,
    /// Where the unit is in the item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Pointer>,
    /// Where the item's own time is; the message's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeAt>,
    /// What the values must be; by default what JSON says they are.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub value_type: Option<ValueType>,
    /// Numbers are multiplied by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Then this is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<f64>,
}

fn whole() -> Pointer {
    Pointer { text: String::new(), levels: Vec::new() }
}

fn is_whole(pointer: &Pointer) -> bool {
    pointer.levels.is_empty()
}

/// A value at a fixed place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = rules::only_numbers_are_scaled())]
#[x_kube(validation = rules::scale_is_not_zero())]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Point {
    /// The point's name.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^\P{Cc}+$"))]
    pub name: String,
    /// Where the value is.
    pub pointer: Pointer,
    /// Its unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[^\x00]+$"))]
    pub unit: Option<String>,
    /// What the value must be; by default what JSON says it is.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub value_type: Option<ValueType>,
    /// A number is multiplied by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Then this is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<f64>,
}

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ValueType {
    /// A JSON number.
    Number,
    /// `true` or `false`, or 1 or 0.
    Bool,
    /// A JSON string.
    Text,
}

/// Whether a name or unit is there and no longer than that.
fn fits(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.chars().count())
}

/// What is wrong with a mapping. `receive_time`: a message without a time is stored.
pub(crate) fn check(mapping: &Mapping, receive_time: bool, path: &str, errors: &mut Errors) {
    let at = |field: &str| format!("{path}.{field}");
    if mapping.each.is_none() && mapping.points.is_empty() {
        errors.add(
            path,
            "names no values",
            "write 'each' for an array or object, or 'points' for fixed places",
        );
    }
    let has_own_time =
        mapping.points.is_empty() && mapping.each.as_ref().is_some_and(|each| each.time.is_some());
    if mapping.time.is_none() && !has_own_time && !receive_time {
        errors.add(
            at("time"),
            "is missing, and spec.accept.receiveTime is Reject, so nothing could be stored",
            "write where the time is, such as {pointer: /ts, unit: Milliseconds}, or set receiveTime: Allow",
        );
    }
    if let Some(each) = &mapping.each {
        number_only(each.value_type, each.scale, each.offset, &at("each"), errors);
    }
    let mut names = std::collections::BTreeSet::new();
    for (index, point) in mapping.points.iter().enumerate() {
        let at = at(&format!("points[{index}]"));
        if !fits(&point.name, MAX_NAME) || point.name.chars().any(char::is_control) {
            errors.add(
                format!("{at}.name"),
                "is no name",
                "write 1 to 255 characters, none of them a control character",
            );
        } else if !names.insert(&point.name) {
            errors.add(
                format!("{at}.name"),
                format!("'{}' is there twice", point.name),
                "name each point once",
            );
        }
        if point.unit.as_ref().is_some_and(|unit| !fits(unit, MAX_UNIT) || unit.contains('\0')) {
            errors.add(format!("{at}.unit"), "is no unit", "write 1 to 64 characters, without NUL");
        }
        number_only(point.value_type, point.scale, point.offset, &at, errors);
    }
}

fn number_only(
    value_type: Option<ValueType>,
    scale: Option<f64>,
    offset: Option<f64>,
    path: &str,
    errors: &mut Errors,
) {
    let numbers = matches!(value_type, None | Some(ValueType::Number));
    for (field, value) in [("scale", scale), ("offset", offset)] {
        let Some(value) = value else { continue };
        if !numbers {
            errors.add(
                format!("{path}.{field}"),
                "is given for what is no number",
                "remove it, or set type: Number",
            );
        } else if !value.is_finite() || (field == "scale" && value == 0.0) {
            errors.add(
                format!("{path}.{field}"),
                format!("is {value}"),
                "write a finite number; a scale is not 0",
            );
        }
    }
}

/// What is wrong with what a subscription says beside its format.
pub(crate) fn check_subscription(
    subscription: &Subscription,
    receive_time: bool,
    path: &str,
    errors: &mut Errors,
) {
    use crate::Format::{Fields, InfluxLine, Mapped};
    let Subscription { format, time_field, time_unit, mapping, .. } = subscription;
    let at = |field: &str| format!("{path}.{field}");
    match mapping {
        None if *format == Mapped => {
            errors.add(at("mapping"), "is missing", "write one, or choose another format");
        }
        Some(_) if *format != Mapped => {
            errors.add(
                at("mapping"),
                "is given, but the format is not Mapped",
                "set format: Mapped, or remove it",
            );
        }
        Some(mapping) => check(mapping, receive_time, &at("mapping"), errors),
        None => {}
    }
    if time_field.is_some() && *format != Fields {
        errors.add(at("timeField"), "is given, but the format is not Fields", "remove it");
    }
    if time_field.as_ref().is_some_and(|field| !fits(field, MAX_NAME)) {
        errors.add(at("timeField"), "is no name", "write 1 to 255 characters");
    }
    match (time_unit, format) {
        (Some(TimeUnit::Rfc3339), InfluxLine) => errors.add(
            at("timeUnit"),
            "is Rfc3339, which line protocol does not have",
            "write Nanoseconds, Microseconds, Milliseconds or Seconds",
        ),
        (None, _) | (Some(_), Fields | InfluxLine) => {}
        (Some(_), _) => {
            errors.add(
                at("timeUnit"),
                "is given, but the format is neither Fields nor InfluxLine",
                "remove it",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pointers_are_those_of_rfc_6901() {
        for (text, levels) in [
            ("", &[][..]),
            ("/", &[""]),
            ("/foo/0", &["foo", "0"]),
            ("/a~1b", &["a/b"]),
            ("/m~0n", &["m~n"]),
            ("/~01", &["~1"]),
            ("/ ", &[" "]),
        ] {
            assert_eq!(text.parse::<Pointer>().unwrap().levels(), levels, "{text}");
        }
        for (text, remedy) in [("foo", "write /foo"), ("/a~", "write ~0"), ("/~2", "write ~0")] {
            let error = text.parse::<Pointer>().unwrap_err();
            assert!(error.contains(remedy), "{error}");
        }
        assert!("/a".repeat(17).parse::<Pointer>().is_err());
        assert!("/a".repeat(16).parse::<Pointer>().is_ok());
        // The API server counts characters.
        assert!(format!("/{}", "ä".repeat(499)).parse::<Pointer>().is_ok());
        assert!(format!("/{}", "ä".repeat(500)).parse::<Pointer>().is_err());
    }

    proptest! {
        #[test]
        fn a_pointer_is_written_as_it_was_read(levels in prop::collection::vec("[a-z/~ ]{0,4}", 0..6)) {
            let escaped: Vec<_> = levels.iter().map(|l| l.replace('~', "~0").replace('/', "~1")).collect();
            let text = if escaped.is_empty() { String::new() } else { format!("/{}", escaped.join("/")) };
            let pointer: Pointer = text.parse().unwrap();
            prop_assert_eq!(pointer.levels(), &levels[..]);
            prop_assert_eq!(pointer.to_string(), text);
        }
    }
}
