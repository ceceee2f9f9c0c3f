//! What the broker still waits to have acknowledged.
//!
//! PUBACKs leave in the order of the PUBLISH packets (MQTT-4.6.0-2) although batches commit in any
//! order, so only the longest committed prefix is acknowledged. An acknowledgement never crosses
//! epochs: packet ids mean something on one connection only, and a broker may discard a queued
//! message when it gets a stale one.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::client::Client;

/// Windows of brokers that bound them by themselves: 10 to 50. In a larger one half a batch costs the
/// database more than it gains.
const SMALL_WINDOW: usize = 64;

/// Unacknowledged deliveries of one epoch, in the order of receipt.
#[derive(Debug, Default)]
pub struct AckPrefix {
    first: u64,
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    packet_id: u16,
    arrived: Instant,
    committed: bool,
}

impl AckPrefix {
    /// Takes in a delivery and gives it its place.
    pub fn push(&mut self, packet_id: u16, arrived: Instant) -> u64 {
        self.entries.push_back(Entry { packet_id, arrived, committed: false });
        self.first + self.entries.len() as u64 - 1
    }

    /// Notes that the delivery's transaction is committed. A place that is not waiting changes nothing.
    pub fn commit(&mut self, seq: u64) {
        if let Some(entry) =
            seq.checked_sub(self.first).and_then(|index| self.entries.get_mut(usize::try_from(index).ok()?))
        {
            entry.committed = true;
        }
    }

    /// The next packet id to acknowledge, if all before it are acknowledged.
    pub fn pop(&mut self) -> Option<u16> {
        if !self.entries.front()?.committed {
            return None;
        }
        self.first += 1;
        self.entries.pop_front().map(|entry| entry.packet_id)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn oldest(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.arrived)
    }
}

/// The acknowledgements of the current epoch, shared by the session and the writers.
#[derive(Debug, Default)]
pub struct Acks {
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    epoch: u64,
    client: Option<Client>,
    prefix: AckPrefix,
    /// Most deliveries seen unacknowledged at once in this epoch: the broker's window, as far as
    /// load has shown it.
    plateau: usize,
}

/// The broker's window as seen from here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window {
    /// Deliveries not yet acknowledged in this epoch.
    pub unacked: usize,
    /// The most that were unacknowledged at once in this epoch.
    pub observed: usize,
    /// How long the oldest of them waits.
    pub oldest: Option<Duration>,
    /// The epoch.
    pub epoch: u64,
    /// Deliveries acknowledged in this epoch: all with a place below it.
    pub acknowledged: u64,
}

impl Window {
    /// Whether the broker sends nothing more before an acknowledgement, as far as load has shown.
    pub fn is_full(&self) -> bool {
        self.unacked >= self.observed
    }

    /// Deliveries that are a batch before the window is full: half of a small window, so that the broker
    /// fills one half while the other is committed.
    pub fn half(&self) -> usize {
        if self.observed <= SMALL_WINDOW { self.observed.div_ceil(2) } else { usize::MAX }
    }
}

impl Acks {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the next epoch: one connection, with acknowledgements of its own. Returns its number.
    pub fn begin(&self, client: Client) -> u64 {
        let mut live = self.live();
        *live = Live { epoch: live.epoch + 1, client: Some(client), ..Live::default() };
        live.epoch
    }

    /// Ends the current epoch. What is unacknowledged is never acknowledged; the broker sends it again.
    pub fn end(&self) {
        let mut live = self.live();
        *live = Live { epoch: live.epoch, ..Live::default() };
    }

    /// Takes in a delivery at QoS 1 of the current epoch. Returns its place, and the window.
    pub fn push(&self, packet_id: u16, arrived: Instant) -> (u64, Window) {
        let mut live = self.live();
        let seq = live.prefix.push(packet_id, arrived);
        let unacked = live.prefix.len();
        live.plateau = live.plateau.max(unacked);
        let (epoch, acknowledged) = (live.epoch, live.prefix.first);
        (seq, Window { unacked, observed: live.plateau, oldest: None, epoch, acknowledged })
    }

    /// Notes committed deliveries and acknowledges the longest committed prefix. Returns how many
    /// belong to an epoch that is over and are not acknowledged.
    pub fn commit(&self, deliveries: impl Iterator<Item = (u64, u64)>) -> u64 {
        let mut stale = 0;
        let mut live = self.live();
        for (epoch, seq) in deliveries {
            if epoch == live.epoch && live.client.is_some() {
                live.prefix.commit(seq);
            } else {
                stale += 1;
            }
        }
        let Live { client, prefix, .. } = &mut *live;
        if let Some(client) = client {
            // All at once: a system call for each would cost more than the rest of a message.
            client.acknowledge(std::iter::from_fn(|| prefix.pop()));
        }
        stale
    }

    /// The window now.
    pub fn window(&self) -> Window {
        let live = self.live();
        Window {
            unacked: live.prefix.len(),
            observed: live.plateau,
            oldest: live.prefix.oldest().map(|arrived| arrived.elapsed()),
            epoch: live.epoch,
            acknowledged: live.prefix.first,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn acknowledges_exactly_the_longest_committed_prefix_in_the_order_of_receipt(
            order in Just((0..40u64).collect::<Vec<_>>()).prop_shuffle(),
            stop in 0..40usize,
        ) {
            let mut prefix = AckPrefix::default();
            for packet_id in 0..40 {
                prop_assert_eq!(prefix.push(packet_id, Instant::now()), u64::from(packet_id));
            }
            let mut committed = [false; 40];
            let mut acknowledged = Vec::new();
            for seq in order.into_iter().take(stop) {
                prefix.commit(seq);
                committed[seq as usize] = true;
                while let Some(packet_id) = prefix.pop() {
                    acknowledged.push(packet_id);
                }
                let expected = committed.iter().take_while(|done| **done).count();
                prop_assert_eq!(&acknowledged, &(0..expected as u16).collect::<Vec<_>>());
                prop_assert_eq!(prefix.len(), 40 - expected);
            }
        }

        #[test]
        fn a_place_that_is_not_waiting_changes_nothing(seq in any::<u64>()) {
            let mut prefix = AckPrefix::default();
            prefix.push(7, Instant::now());
            prefix.commit(0);
            prop_assert_eq!(prefix.pop(), Some(7));
            prefix.push(8, Instant::now());
            prop_assume!(seq != 1);
            prefix.commit(seq);
            prop_assert_eq!(prefix.pop(), None);
        }
    }
}
