//! The rows of one batch, ready for the database, each with the delivery it came from.

use crate::decode::sparkplug::births::Change;
use crate::decode::{Micros, Reason};

/// A sample with its series resolved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRow {
    /// Series.
    pub series_id: i32,
    /// Device time.
    pub ts: Micros,
    /// Value.
    pub value: RowValue,
    /// 0 is good.
    pub quality: i16,
    /// Index of the delivery in the batch.
    pub delivery: u32,
    /// Position in the message.
    pub part: u32,
}

/// A value; text lies in the batch's arena.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowValue {
    /// A number.
    Num(f64),
    /// A truth value.
    Bool(bool),
    /// Text, from here on, so many bytes.
    Text {
        /// First byte in the arena.
        start: u32,
        /// Bytes.
        len: u32,
    },
    /// None, as the device says.
    Null,
}

impl RowValue {
    /// The text, where it is one.
    pub fn text(self, arena: &str) -> Option<&str> {
        match self {
            Self::Text { start, len } => arena.get(start as usize..start as usize + len as usize),
            _ => None,
        }
    }

    /// Whether both are the same value; each text in its arena.
    pub fn same(self, other: Self, arena: &str) -> bool {
        match (self, other) {
            (Self::Text { .. }, Self::Text { .. }) => self.text(arena) == other.text(arena),
            _ => self == other,
        }
    }
}

/// A command answer.
#[derive(Debug, Clone, PartialEq)]
pub struct AckRow {
    /// Device.
    pub device_id: i32,
    /// Command.
    pub cmd_id: String,
    /// Carried out.
    pub ok: bool,
    /// When, by the device.
    pub executed_at: Option<Micros>,
    /// What went wrong.
    pub error: Option<String>,
    /// The whole answer.
    pub document: String,
    /// Index of the delivery in the batch.
    pub delivery: u32,
}

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRow {
    /// Device.
    pub device_id: i32,
    /// The event's id, or the digest of its payload.
    pub event_key: String,
    /// The event's id, where it has one.
    pub event_id: Option<String>,
    /// What happened.
    pub event_type: String,
    /// When, by the device.
    pub ts: Micros,
    /// Details.
    pub data: Option<String>,
    /// Index of the delivery in the batch.
    pub delivery: u32,
}

/// Metadata of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct MetadataRow {
    /// Device.
    pub device_id: i32,
    /// Device time.
    pub ts: Micros,
    /// Digest of the document.
    pub digest: [u8; 32],
    /// The document.
    pub document: String,
    /// Index of the delivery in the batch.
    pub delivery: u32,
}

/// What a Sparkplug message changes of what is known of its edge node.
#[derive(Debug, Clone, PartialEq)]
pub struct SparkplugRow {
    /// What it changes.
    pub change: Change,
    /// Index of the delivery in the batch.
    pub delivery: u32,
}

/// A delivery, or a part of one, that cannot be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadRow {
    /// Index of the delivery in the batch.
    pub delivery: u32,
    /// Position in the message; `None` for the whole message.
    pub part: Option<u32>,
    /// Why.
    pub reason: Reason,
    /// For a person.
    pub detail: String,
}

/// A dead letter whose message is decoded again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayRow {
    /// Index of the delivery in the batch.
    pub delivery: u32,
    /// The letter's digest.
    pub digest: [u8; 32],
}
