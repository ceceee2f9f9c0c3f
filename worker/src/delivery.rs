//! One received PUBLISH on its way to a commit.

use std::time::Instant;

use bytes::Bytes;
use compact_str::CompactString;
use opentelemetry::trace::SpanContext;
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;

use crate::decode::sparkplug::births::Change;
use crate::decode::{Compression, Micros};
use crate::trace::MessageTrace;

/// One received PUBLISH. It holds its place among the deliveries in hand until it is dropped.
#[derive(Debug)]
pub struct Delivery {
    /// The shard's session it came by.
    pub lane: u8,
    /// The broker connection it came by.
    pub epoch: u64,
    /// Its place among the acknowledgements of that epoch; `None` at QoS 0, which has none.
    pub seq: Option<u64>,
    /// The topic's tenant, where the topic fits the layout.
    pub tenant: Option<CompactString>,
    /// The tenant that the message itself names; known once it is decoded.
    pub claimed: Option<CompactString>,
    /// The topic's bytes.
    pub topic: Bytes,
    /// The payload's bytes.
    pub payload: Bytes,
    /// How the payload is compressed, where its content type says so (MQTT 5).
    pub compression: Option<Compression>,
    /// Whether the broker says that it may have sent it before (MQTT-3.3.1-1).
    pub dup: bool,
    /// When it was received, by the database's clock.
    pub received_at: Micros,
    /// When it was received, by this process.
    pub arrived: Instant,
    /// The trace context that its user properties carry; looked for only while messages are traced.
    pub parent: Option<Box<SpanContext>>,
    /// Its trace, if it is sampled; known once it is decoded.
    pub trace: Option<Box<MessageTrace>>,
    /// What it told of a Sparkplug edge node when it was decoded before; decoding it again tells nothing new.
    pub told: Vec<Change>,
    /// Its place among the deliveries in hand.
    pub in_hand: InHand,
}

impl Delivery {
    /// Whose it is: those who see this tenant may see the message.
    pub fn whose(&self) -> Option<&str> {
        self.claimed.as_deref().or(self.tenant.as_deref())
    }
}

#[cfg(test)]
impl Delivery {
    /// One of a connection's first message, with nothing in it.
    pub(crate) fn empty() -> Self {
        let budget = std::sync::Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        Self {
            lane: 0,
            epoch: 1,
            seq: Some(0),
            tenant: None,
            claimed: None,
            topic: Bytes::new(),
            payload: Bytes::new(),
            compression: None,
            dup: false,
            received_at: 0,
            arrived: Instant::now(),
            parent: None,
            trace: None,
            told: Vec::new(),
            in_hand: InHand::new(budget, IntGauge::new("in_flight", "in flight").unwrap()),
        }
    }
}

/// A place among the deliveries in hand: a share of the byte budget, given back when dropped.
#[derive(Debug)]
pub struct InHand {
    _budget: OwnedSemaphorePermit,
    in_flight: IntGauge,
}

impl InHand {
    /// Counts one more delivery in hand.
    pub fn new(budget: OwnedSemaphorePermit, in_flight: IntGauge) -> Self {
        in_flight.inc();
        Self { _budget: budget, in_flight }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}
