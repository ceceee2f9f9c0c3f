//! The messages of Tahu's `sparkplug_b.proto`, as far as they are read, by its field numbers.
//!
//! Text is taken as bytes, which is the same on the wire: so text that is not UTF-8 spoils its metric
//! and not the whole message. Data sets, templates and bytes are left out, and thereby skipped.

use prost::Message;

/// A payload.
#[derive(Clone, PartialEq, Message)]
pub struct Payload {
    /// When it was sent, in Unix milliseconds.
    #[prost(uint64, optional, tag = "1")]
    pub timestamp: Option<u64>,
    /// Metrics.
    #[prost(message, repeated, tag = "2")]
    pub metrics: Vec<Metric>,
    /// Sequence number within the edge node's messages, 0 to 255.
    #[prost(uint64, optional, tag = "3")]
    pub seq: Option<u64>,
    /// What the payload is, where it is not the usual one.
    #[prost(bytes = "vec", optional, tag = "4")]
    pub uuid: Option<Vec<u8>>,
}

/// A metric.
#[derive(Clone, PartialEq, Message)]
pub struct Metric {
    /// Name; after a birth the alias may stand for it.
    #[prost(bytes = "vec", optional, tag = "1")]
    pub name: Option<Vec<u8>>,
    /// Stands for the name that a birth gave it.
    #[prost(uint64, optional, tag = "2")]
    pub alias: Option<u64>,
    /// When the value was taken, in Unix milliseconds.
    #[prost(uint64, optional, tag = "3")]
    pub timestamp: Option<u64>,
    /// Number of its data type.
    #[prost(uint32, optional, tag = "4")]
    pub datatype: Option<u32>,
    /// There is no value.
    #[prost(bool, optional, tag = "7")]
    pub is_null: Option<bool>,
    /// Properties.
    #[prost(message, optional, tag = "9")]
    pub properties: Option<PropertySet>,
    /// The value.
    #[prost(oneof = "Value", tags = "10, 11, 12, 13, 14, 15")]
    pub value: Option<Value>,
}

/// A value.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Value {
    /// Integers of up to 32 bits; negative ones in two's complement.
    #[prost(uint32, tag = "10")]
    Int(u32),
    /// Integers of 64 bits, negative ones in two's complement, and times.
    #[prost(uint64, tag = "11")]
    Long(u64),
    /// A number of 32 bits.
    #[prost(float, tag = "12")]
    Float(f32),
    /// A number of 64 bits.
    #[prost(double, tag = "13")]
    Double(f64),
    /// A truth value.
    #[prost(bool, tag = "14")]
    Boolean(bool),
    /// Text.
    #[prost(bytes, tag = "15")]
    Text(Vec<u8>),
}

/// Properties: names and values, place by place.
#[derive(Clone, PartialEq, Message)]
pub struct PropertySet {
    /// Names.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub keys: Vec<Vec<u8>>,
    /// Values.
    #[prost(message, repeated, tag = "2")]
    pub values: Vec<PropertyValue>,
}

/// A property's value; other types than integers are skipped.
#[derive(Clone, PartialEq, Message)]
pub struct PropertyValue {
    /// Number of its data type.
    #[prost(uint32, optional, tag = "1")]
    pub r#type: Option<u32>,
    /// An integer of up to 32 bits.
    #[prost(uint32, optional, tag = "3")]
    pub int: Option<u32>,
    /// An integer of 64 bits.
    #[prost(uint64, optional, tag = "4")]
    pub long: Option<u64>,
}

/// The command that asks an edge node for its births.
pub fn rebirth(unix_millis: u64) -> Vec<u8> {
    let metric = Metric {
        name: Some(b"Node Control/Rebirth".to_vec()),
        timestamp: Some(unix_millis),
        datatype: Some(11),
        value: Some(Value::Boolean(true)),
        ..Metric::default()
    };
    Payload { timestamp: Some(unix_millis), metrics: vec![metric], ..Payload::default() }.encode_to_vec()
}
