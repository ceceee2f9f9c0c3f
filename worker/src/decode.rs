//! Bytes in; samples, acks, events, metadata and rejects out. Pure: no I/O, no clock.
//!
//! One file per format. A message is never half understood in silence: what cannot be stored
//! leaves as a [`Reject`].

use std::borrow::Cow;

pub mod reject;

pub use reject::{Reason, Reject};

/// Microseconds since 1970-01-01T00:00:00Z, the resolution of a database timestamp.
pub type Micros = i64;

/// What the decoder may know of a delivery.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The topic, as the broker sent it.
    pub topic: &'a [u8],
    /// The payload, as the broker sent it.
    pub payload: &'a [u8],
    /// When the worker received it, by the database's clock.
    pub received_at: Micros,
    /// The database's clock now, for the accept window.
    pub now: Micros,
}

/// Whose message it is: the layout's placeholders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source<'a> {
    /// The `{tenant}` level.
    pub tenant: &'a str,
    /// The `{site}` level, or empty where the layout has none.
    pub site: &'a str,
    /// The `{device}` level.
    pub device: &'a str,
}

/// A value, of the type the device declared.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// A finite number.
    Num(f64),
    /// A truth value, never stored as a number too.
    Bool(bool),
    /// Text or a member of an enumeration; without NUL.
    Text(Cow<'a, str>),
}

/// One value at one time of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// Position in the message, counted from 0.
    pub part: u32,
    /// Name of the point, at most 255 bytes.
    pub point: Cow<'a, str>,
    /// Time of the value, by the device.
    pub ts: Micros,
    /// The value.
    pub value: Value<'a>,
    /// Unit, where the device gave one.
    pub unit: Option<Cow<'a, str>>,
    /// 0 is good.
    pub quality: i16,
}

/// A device's answer to a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Ack<'a> {
    /// The command answered.
    pub cmd_id: Cow<'a, str>,
    /// Whether the device carried it out.
    pub ok: bool,
    /// When it did, by the device.
    pub executed_at: Option<Micros>,
    /// What went wrong, in the device's words.
    pub error: Option<Cow<'a, str>>,
    /// The whole document, valid for a `jsonb` column.
    pub document: Cow<'a, str>,
}

/// Something that happened on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Event<'a> {
    /// The device's id for it; without one the payload's digest is its key.
    pub event_id: Option<Cow<'a, str>>,
    /// What kind of thing happened.
    pub event_type: Cow<'a, str>,
    /// When, by the device.
    pub ts: Micros,
    /// Details, valid for a `jsonb` column.
    pub data: Option<Cow<'a, str>>,
}

/// What a message says of itself beside its values.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata<'a> {
    /// Time of the message, by the device.
    pub ts: Micros,
    /// A JSON object, valid for a `jsonb` column.
    pub document: Cow<'a, str>,
}

/// All that one payload held. Borrowed from the payload wherever it can be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Content<'a> {
    /// Values to store.
    pub samples: Vec<Sample<'a>>,
    /// Command answers to store.
    pub acks: Vec<Ack<'a>>,
    /// Events to store.
    pub events: Vec<Event<'a>>,
    /// Metadata to store.
    pub metadata: Option<Metadata<'a>>,
    /// What cannot be stored, and why.
    pub rejects: Vec<Reject>,
}
