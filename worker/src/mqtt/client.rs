//! What any task may send to the broker; the connection's own task writes it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

use super::options::Protocol;
use super::wire;

/// Sends to the broker; cheap to clone, never waits.
#[derive(Debug, Clone)]
pub struct Client {
    protocol: Protocol,
    pub(super) outbox: Arc<Outbox>,
}

/// What is to leave, filled by any task and emptied by the connection's.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    /// Told when something was added.
    pub(super) filled: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) bytes: BytesMut,
    last_packet_id: u16,
    /// DISCONNECT is the last packet.
    pub(super) closing: bool,
    /// The connection is over.
    closed: bool,
}

impl Outbox {
    pub(super) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is over: nothing more leaves.
    pub(super) fn close(&self) {
        self.waiting().closed = true;
    }

    /// Adds to what waits. False when nothing more may be sent, or nothing was added.
    pub(super) fn add(&self, packets: impl FnOnce(&mut Waiting) -> bool) -> bool {
        let added = {
            let mut waiting = self.waiting();
            !waiting.closing && !waiting.closed && packets(&mut waiting)
        };
        if added {
            self.filled.notify_one();
        }
        added
    }
}

impl Waiting {
    pub(super) fn next_packet_id(&mut self) -> u16 {
        self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
        self.last_packet_id
    }
}

impl Client {
    /// For a connection that is still to be opened.
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self { protocol, outbox: Arc::default() }
    }

    /// PUBACKs, which leave together. False when the connection is over.
    pub fn acknowledge(&self, packet_ids: impl Iterator<Item = u16>) -> bool {
        self.outbox.add(|waiting| {
            packet_ids.for_each(|packet_id| wire::acknowledge(packet_id, &mut waiting.bytes));
            true
        })
    }

    /// SUBSCRIBE at QoS 1, all filters in one packet.
    pub fn subscribe(&self, filters: &[String]) -> bool {
        self.outbox.add(|waiting| {
            let packet_id = waiting.next_packet_id();
            wire::subscribe(self.protocol, packet_id, filters, true, &mut waiting.bytes)
        })
    }

    /// SUBSCRIBE of one filter at QoS 0.
    pub fn subscribe_unprotected(&self, filter: &str) -> bool {
        self.outbox.add(|waiting| {
            let packet_id = waiting.next_packet_id();
            wire::subscribe(self.protocol, packet_id, &[filter.to_owned()], false, &mut waiting.bytes)
        })
    }

    /// PUBLISH at QoS 1.
    pub fn publish(&self, topic: &str, payload: &str) -> bool {
        self.outbox.add(|waiting| {
            let packet_id = waiting.next_packet_id();
            wire::publish(self.protocol, packet_id, topic, payload.as_bytes(), &mut waiting.bytes)
        })
    }

    /// PUBLISH at QoS 0, which nobody confirms.
    pub fn tell(&self, topic: &str, payload: &[u8]) -> bool {
        self.outbox.add(|waiting| wire::publish(self.protocol, 0, topic, payload, &mut waiting.bytes))
    }

    /// DISCONNECT, after all that was sent before. It keeps the session.
    pub fn disconnect(&self) -> bool {
        self.outbox.add(|waiting| {
            wire::disconnect(&mut waiting.bytes);
            waiting.closing = true;
            true
        })
    }
}
