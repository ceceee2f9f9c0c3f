//! Durations with a unit: `5ms`, `30s`, `10m`, `24h`, `365d`.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rules;

/// A duration with a unit: a whole number and `ms`, `s`, `m`, `h` or `d`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duration {
    text: String,
    value: std::time::Duration,
}

impl Duration {
    /// So many milliseconds, written with the largest unit that divides them.
    pub fn of_millis(millis: u64) -> Self {
        let (factor, unit) = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")]
            .into_iter()
            .find(|(factor, _)| millis > 0 && millis.is_multiple_of(*factor))
            .unwrap_or((1, "ms"));
        Self { text: format!("{}{unit}", millis / factor), value: std::time::Duration::from_millis(millis) }
    }

    /// So many seconds.
    pub fn of_seconds(seconds: u64) -> Self {
        Self::of_millis(seconds * 1000)
    }

    /// The duration.
    pub fn get(&self) -> std::time::Duration {
        self.value
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a duration; write a whole number and a unit, such as 5ms, 30s, 10m, 24h or 365d"
            )
        };
        let unit = text.find(|c: char| !c.is_ascii_digit());
        let Some(unit) = unit else {
            return Err(if text.is_empty() {
                wrong()
            } else {
                format!("'{text}' has no unit; write {text}s for seconds")
            });
        };
        let (number, unit) = text.split_at(unit);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let millis = number.checked_mul(factor).ok_or_else(wrong)?;
        Ok(Self { text: text.to_owned(), value: std::time::Duration::from_millis(millis) })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Text::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Text, or a number that someone wrote without its unit.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Text {
    Text(String),
    Number(serde_json::Number),
}

impl Text {
    pub(crate) fn parse<T: FromStr<Err = String>>(self) -> Result<T, String> {
        match self {
            Self::Text(text) => text.parse(),
            Self::Number(number) => number.to_string().parse(),
        }
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 12, "x-kubernetes-validations": [rules::duration()] })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_duration_is_written_back_as_it_was_read(number in 0u32..1_000_000, unit in prop::sample::select(vec!["ms", "s", "m", "h", "d"])) {
            let text = format!("{number}{unit}");
            prop_assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn units_mean_what_they_say() {
        for (text, millis) in
            [("5ms", 5), ("30s", 30_000), ("2m", 120_000), ("24h", 86_400_000), ("365d", 31_536_000_000)]
        {
            assert_eq!(text.parse::<Duration>().unwrap().get().as_millis(), millis, "{text}");
        }
    }

    #[test]
    fn defaults_are_written_with_their_largest_unit() {
        for (millis, text) in [(5, "5ms"), (30_000, "30s"), (86_400_000, "1d"), (90_000, "90s"), (0, "0ms")] {
            assert_eq!(Duration::of_millis(millis).to_string(), text);
        }
    }

    #[test]
    fn a_number_without_a_unit_is_refused_with_what_would_be_right() {
        assert_eq!("30".parse::<Duration>().unwrap_err(), "'30' has no unit; write 30s for seconds");
        for text in ["", "s", "1.5h", "3 s", "5y", "-1s", "99999999999999999999d"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }
}
