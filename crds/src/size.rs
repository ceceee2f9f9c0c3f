//! Sizes in bytes, as Kubernetes writes quantities: `1Mi`, `10Gi`, `500k`, `4096`.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::duration::Text;
use crate::rules;

/// A size in bytes: a whole number and, optionally, `k`, `M`, `G`, `T`, `Ki`, `Mi`, `Gi` or `Ti`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    text: String,
    bytes: u64,
}

impl Size {
    /// So many bytes, written with the largest binary unit that divides them.
    pub fn of_bytes(bytes: u64) -> Self {
        let (factor, unit) = [(1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")]
            .into_iter()
            .find(|(factor, _)| bytes > 0 && bytes.is_multiple_of(*factor))
            .unwrap_or((1, ""));
        Self { text: format!("{}{unit}", bytes / factor), bytes }
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a size; write a whole number of bytes, or one with a unit such as 500k, 1Mi or 10Gi"
            )
        };
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor: u64 = match unit {
            "" => 1,
            "k" => 1000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(wrong()),
        };
        // The API server takes what 64 bits do not hold: it means as much as there is.
        Ok(Self { text: text.to_owned(), bytes: number.saturating_mul(factor) })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Text::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 17, "x-kubernetes-validations": [rules::size()] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_mean_what_kubernetes_says() {
        for (text, bytes) in [
            ("4096", 4096),
            ("500k", 500_000),
            ("1Mi", 1 << 20),
            ("10Gi", 10 << 30),
            ("16777215Ti", 16_777_215 << 40),
            ("16777216Ti", u64::MAX),
            ("999999999999999Ti", u64::MAX),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string()), (bytes, text.to_owned()));
        }
        for text in ["", "Mi", "1mb", "1.5Gi", "-1", "99999999999999999999"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
