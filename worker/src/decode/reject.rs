//! Why something cannot be stored.

/// A bounded word for why. The same word stands in the dead letter, the metric's label and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The topic does not fit the layout.
    InvalidTopic,
    /// The tenant is not listed in the store's `tenants.names`.
    UnknownTenant,
    /// The topic's kind, or the payload's `schema`, is none that Penstock knows.
    UnknownSchema,
    /// The payload has no bytes.
    EmptyPayload,
    /// Not UTF-8 where text is needed, or text that holds NUL.
    InvalidEncoding,
    /// Compressed, but not well.
    InvalidCompression,
    /// Not what the format says, or nested too deeply.
    ParseError,
    /// A required field is missing or of the wrong type.
    InvalidField,
    /// A value that does not fit its declared type, is null, NaN or infinite.
    InvalidValue,
    /// An integer that a double cannot hold exactly.
    OutOfRange,
    /// A name, id or text longer than its limit.
    TooLong,
    /// No time, and receive time is not allowed.
    MissingTime,
    /// A time that is not an instant: naive, malformed, outside the calendar.
    InvalidTime,
    /// A time outside the accept window.
    TsWindow,
    /// No birth tells what an alias stands for, or of which type a metric is.
    UnknownAlias,
    /// The payload is larger than `maxPacketSize`, or expands to more.
    TooLarge,
    /// The tenant has as many series as it may have.
    Cardinality,
    /// Another value is stored for the same series and time.
    Conflict,
    /// The database refused it as data (a constraint, a type); the detail has the SQLSTATE.
    Database,
}

impl Reason {
    /// Every reason, for metrics that start at 0 and for docs.
    pub const ALL: [Self; 19] = [
        Self::InvalidTopic,
        Self::UnknownTenant,
        Self::UnknownSchema,
        Self::EmptyPayload,
        Self::InvalidEncoding,
        Self::InvalidCompression,
        Self::ParseError,
        Self::InvalidField,
        Self::InvalidValue,
        Self::OutOfRange,
        Self::TooLong,
        Self::MissingTime,
        Self::InvalidTime,
        Self::TsWindow,
        Self::UnknownAlias,
        Self::TooLarge,
        Self::Cardinality,
        Self::Conflict,
        Self::Database,
    ];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidTopic => "invalid_topic",
            Self::UnknownTenant => "unknown_tenant",
            Self::UnknownSchema => "unknown_schema",
            Self::EmptyPayload => "empty_payload",
            Self::InvalidEncoding => "invalid_encoding",
            Self::InvalidCompression => "invalid_compression",
            Self::ParseError => "parse_error",
            Self::InvalidField => "invalid_field",
            Self::InvalidValue => "invalid_value",
            Self::OutOfRange => "out_of_range",
            Self::TooLong => "too_long",
            Self::MissingTime => "missing_time",
            Self::InvalidTime => "invalid_time",
            Self::TsWindow => "ts_window",
            Self::UnknownAlias => "unknown_alias",
            Self::TooLarge => "too_large",
            Self::Cardinality => "cardinality",
            Self::Conflict => "conflict",
            Self::Database => "database",
        }
    }
}

/// A message, or one part of it, that cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Position in the message, counted from 0; `None` for the whole message.
    pub part: Option<u32>,
    /// Why.
    pub reason: Reason,
    /// What was found and what would be right, for a person; at most 500 bytes, no NUL.
    pub detail: String,
}

/// Longest detail, in bytes.
const MAX_DETAIL: usize = 500;

impl Reject {
    /// The whole message cannot be stored.
    pub fn whole(reason: Reason, detail: &str) -> Self {
        Self { part: None, reason, detail: printable(detail) }
    }

    /// One part of the message cannot be stored.
    pub fn part(part: u32, reason: Reason, detail: &str) -> Self {
        Self { part: Some(part), ..Self::whole(reason, detail) }
    }
}

fn printable(detail: &str) -> String {
    let mut end = detail.len().min(MAX_DETAIL);
    while !detail.is_char_boundary(end) {
        end -= 1;
    }
    detail[..end].replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_documented_with_what_to_do() {
        let documented = include_str!("../../../docs/dead-letters.md");
        for reason in Reason::ALL {
            assert!(documented.contains(&format!("\n| `{}` | ", reason.as_str())), "{}", reason.as_str());
        }
    }
}
