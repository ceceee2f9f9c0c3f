//! How a subscription's payloads are read.

use std::sync::Arc;

use penstock_crds::Format;
use penstock_crds::mapping::{Mapping, TimeUnit};
use penstock_crds::source::Subscription;

use super::reject::{Reason, Reject};
use super::{
    Content, Message, auto, fields, influx_line, je02, kind_of, mapped, parsec, senml, sensors, sparkplug,
};

/// The field of a plain object that holds its time, where the manifest names none.
const TIME_FIELD: &str = "ts";

/// How payloads are read: the format, with what the manifest says of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    /// By the topic's kind and the payload's marks.
    Auto,
    /// Normalized JSON.
    V1,
    /// `parsec_v1`.
    Parsec,
    /// JE02.
    Je02,
    /// JSON with an array `sensors`.
    Sensors,
    /// SenML, JSON or CBOR.
    SenMl,
    /// Sparkplug B.
    SparkplugB,
    /// Line protocol, with times in this unit.
    InfluxLine(TimeUnit),
    /// A plain object.
    Fields {
        /// The field that holds the time.
        time_field: String,
        /// What it is written in.
        unit: TimeUnit,
    },
    /// Foreign JSON.
    Mapped(Arc<Mapping>),
}

impl From<&Subscription> for Reading {
    fn from(subscription: &Subscription) -> Self {
        let Subscription { format, time_field, time_unit, mapping, .. } = subscription;
        match format {
            Format::Auto => Self::Auto,
            Format::V1 => Self::V1,
            Format::Parsec => Self::Parsec,
            Format::Je02 => Self::Je02,
            Format::Sensors => Self::Sensors,
            Format::SenMl => Self::SenMl,
            Format::SparkplugB => Self::SparkplugB,
            Format::InfluxLine => Self::InfluxLine(time_unit.unwrap_or(TimeUnit::Nanoseconds)),
            Format::Fields => Self::Fields {
                time_field: time_field.clone().unwrap_or_else(|| TIME_FIELD.to_owned()),
                unit: time_unit.unwrap_or_default(),
            },
            // A manifest without the mapping is refused.
            Format::Mapped => Self::Mapped(Arc::new(mapping.clone().unwrap_or_default())),
        }
    }
}

impl Reading {
    /// Whether the message says itself whose it is.
    pub(super) fn names_tenant(&self) -> bool {
        matches!(self, Self::Mapped(mapping) if mapping.tenant.is_some())
    }

    /// Whether a message is read as Sparkplug B: its namespace tells where the format does not.
    pub(super) fn is_sparkplug(&self, topic: &[u8]) -> bool {
        *self == Self::SparkplugB || (*self == Self::Auto && sparkplug::is_topic(topic))
    }

    /// Whether the payload may be SenML in CBOR, which is no text.
    pub(super) fn may_be_cbor(&self, kind: Option<&str>) -> bool {
        *self == Self::SenMl || (*self == Self::Auto && matches!(kind, None | Some("telem")))
    }

    /// Decodes a message of text.
    pub(super) fn decode<'a>(
        &self,
        kind: Option<&str>,
        message: &Message<'a>,
        content: &mut Content<'a>,
    ) -> Result<(), Reject> {
        match self {
            Self::Auto => match kind {
                None => auto::any(message, content),
                Some("telem") => auto::telemetry(message, content),
                kind => kind_of(kind, message.text)?(message, content),
            },
            Self::V1 => kind_of(kind, message.text)?(message, content),
            Self::Parsec => parsec::decode(message, content),
            Self::Je02 => je02::decode(message, content),
            Self::Sensors => sensors::decode(message, content),
            Self::SenMl => senml::decode(message, content),
            // It is no text, and was decoded before.
            Self::SparkplugB => {
                Err(Reject::whole(Reason::UnknownSchema, "the message is none of Sparkplug B's"))
            }
            Self::InfluxLine(unit) => influx_line::decode(message, *unit, content),
            Self::Fields { time_field, unit } => fields::decode(message, time_field, *unit, content),
            Self::Mapped(mapping) => mapped::decode(message, mapping, content),
        }
    }
}
