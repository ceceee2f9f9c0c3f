//! What the broker still waits to have acknowledged.
//!
//! PUBACKs leave in the order of the PUBLISH packets (MQTT-4.6.0-2) although batches commit in any
//! order, so only the longest committed prefix is acknowledged. An acknowledgement never crosses
//! epochs: packet ids mean something on one connection only, and a broker may discard a queued
//! message when it gets a stale one.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::client::Client;
use crate::stopwatch::{Level, Stopwatch};

/// Windows of brokers that bound them by themselves: 10 to 50. In a larger one half a batch costs the
/// database more than it gains.
const SMALL_WINDOW: usize = 64;
/// Where so many have been unacknowledged, a rest of two milliseconds costs little: such a window limits the rate
/// only with a broker far away, and then by the rest's part of the round trip.
const WIDE_WINDOW: usize = 256;

/// How often a window must have been filled before it is known that the broker sends no more: a mere peak of
/// the load is soon exceeded.
const FILLED: u32 = 20;
/// The least that is supposed of a window that is not known.
const UNKNOWN_WINDOW: usize = 1000;

/// Unacknowledged deliveries of one epoch, in the order of receipt.
#[derive(Debug, Default)]
struct AckPrefix {
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
    fn push(&mut self, packet_id: u16, arrived: Instant) -> u64 {
        self.entries.push_back(Entry { packet_id, arrived, committed: false });
        self.first + self.entries.len() as u64 - 1
    }

    /// Notes that the delivery's transaction is committed. A place that is not waiting changes nothing.
    fn commit(&mut self, seq: u64) {
        if let Some(entry) =
            seq.checked_sub(self.first).and_then(|index| self.entries.get_mut(usize::try_from(index).ok()?))
        {
            entry.committed = true;
        }
    }

    /// The next packet id to acknowledge, if all before it are acknowledged.
    fn pop(&mut self) -> Option<u16> {
        if !self.entries.front()?.committed {
            return None;
        }
        self.first += 1;
        self.entries.pop_front().map(|entry| entry.packet_id)
    }

    /// How many wait.
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn oldest(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.arrived)
    }
}

/// The acknowledgements of the current epoch of one session, shared by the session and the writers.
#[derive(Debug, Default)]
pub struct Acks {
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    epoch: u64,
    client: Option<Client>,
    prefix: AckPrefix,
    /// Deliveries of all epochs that are not committed.
    in_hand: usize,
    /// Most deliveries seen unacknowledged at once in this epoch: the broker's window, as far as
    /// load has shown it.
    plateau: usize,
    /// How often there were so many again.
    filled: u32,
    /// The share of the window that is in use.
    used: Level,
    /// The time for which the window was full.
    full: Stopwatch,
}

impl Live {
    /// The window is no longer full.
    fn over(&mut self, now: Instant) {
        self.full.set(false, now);
    }

    /// What an epoch leaves to the next: what is added up, and what is in hand.
    fn next(&mut self, now: Instant) -> Self {
        self.over(now);
        self.used.set(0.0, now);
        let Self { epoch, in_hand, used, full, .. } = *self;
        Self { epoch, in_hand, used, full, ..Self::default() }
    }

    /// The share of the window that is in use, as far as load has shown the window.
    fn note_use(&mut self, now: Instant) {
        let window = if self.filled >= FILLED { self.plateau } else { self.plateau.max(UNKNOWN_WINDOW) };
        self.used.set(self.prefix.len() as f64 / window as f64, now);
    }
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
    /// The epoch: how many connections there were.
    pub epoch: u64,
    /// The fullest session's share: unacknowledged, and observed.
    fullest: (usize, usize),
    /// The smallest session's half.
    half: Option<usize>,
}

/// What became of a delivery's acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It waits for deliveries before it.
    Waiting,
    /// Sent.
    Sent,
    /// Its connection is over.
    Never,
}

impl Window {
    fn of(unacked: usize, observed: usize, oldest: Option<Duration>, epoch: u64) -> Self {
        let half = if observed <= SMALL_WINDOW { observed.div_ceil(2) } else { usize::MAX };
        let half = (observed > 0).then_some(half);
        Self { unacked, observed, oldest, epoch, fullest: (unacked, observed), half }
    }

    /// Two sessions' windows as one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let share = |(unacked, observed): (usize, usize)| unacked as f64 / observed.max(1) as f64;
        Self {
            unacked: self.unacked + other.unacked,
            observed: self.observed + other.observed,
            oldest: self.oldest.max(other.oldest),
            epoch: self.epoch + other.epoch,
            fullest: if share(other.fullest) > share(self.fullest) { other.fullest } else { self.fullest },
            half: self.half.into_iter().chain(other.half).min(),
        }
    }

    /// Whether the broker sends nothing more before an acknowledgement, as far as load has shown: on one
    /// session at least.
    pub fn is_full(&self) -> bool {
        let (unacked, observed) = self.fullest;
        unacked >= observed
    }

    /// Whether acknowledgements may leave a moment later.
    pub fn is_wide(&self) -> bool {
        self.observed >= WIDE_WINDOW
    }

    /// Deliveries that are a batch before the window is full: half of a small window, so that the broker
    /// fills one half while the other is committed.
    pub fn half(&self) -> usize {
        self.half.unwrap_or(0)
    }
}

impl Acks {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the next epoch: one connection, with acknowledgements of its own. Returns its number.
    pub fn begin(&self, client: Client) -> u64 {
        let mut live = self.live();
        let next = live.next(Instant::now());
        *live = Live { epoch: next.epoch + 1, client: Some(client), ..next };
        live.epoch
    }

    /// Ends the current epoch. What is unacknowledged is never acknowledged; the broker sends it again.
    pub fn end(&self) {
        let mut live = self.live();
        *live = live.next(Instant::now());
    }

    /// Takes in a delivery at QoS 1 of the current epoch. Returns its place, and the window.
    pub fn push(&self, packet_id: u16, arrived: Instant) -> (u64, Window) {
        let mut live = self.live();
        let seq = live.prefix.push(packet_id, arrived);
        live.in_hand += 1;
        let unacked = live.prefix.len();
        match unacked.cmp(&live.plateau) {
            Ordering::Greater => (live.plateau, live.filled) = (unacked, 0),
            Ordering::Equal => live.filled = live.filled.saturating_add(1),
            Ordering::Less => {}
        }
        let full = unacked >= live.plateau;
        live.full.set(full, arrived);
        live.note_use(arrived);
        (seq, Window::of(unacked, live.plateau, None, live.epoch))
    }

    /// Notes committed deliveries and acknowledges the longest committed prefix. Returns how many
    /// belong to an epoch that is over and are not acknowledged.
    pub fn commit(&self, deliveries: impl Iterator<Item = (u64, u64)>) -> u64 {
        let mut stale = 0;
        let mut live = self.live();
        for (epoch, seq) in deliveries {
            live.in_hand = live.in_hand.saturating_sub(1);
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
        let now = Instant::now();
        if live.prefix.len() < live.plateau {
            live.over(now);
        }
        live.note_use(now);
        stale
    }

    /// Deliveries at QoS 1 that are not committed, of all epochs. The broker may no longer have those of
    /// an epoch that is over. Without any, nothing is unacknowledged either.
    pub fn in_hand(&self) -> usize {
        self.live().in_hand
    }

    /// The time for which the window has been full, in all epochs.
    pub fn full_for(&self, now: Instant) -> Duration {
        self.live().full.total(now)
    }

    /// The share of the window in use, added up over all epochs: 1 for each second in which it was full. A
    /// window that load has not filled yet is taken for a large one.
    pub fn used(&self, now: Instant) -> f64 {
        self.live().used.total(now)
    }

    /// Sends on the current epoch's connection.
    pub fn client(&self) -> Option<Client> {
        self.live().client.clone()
    }

    /// What became of the acknowledgement of an epoch's delivery.
    pub fn standing(&self, epoch: u64, seq: u64) -> Standing {
        let live = self.live();
        if epoch != live.epoch || live.client.is_none() {
            Standing::Never
        } else if seq < live.prefix.first {
            Standing::Sent
        } else {
            Standing::Waiting
        }
    }

    /// The window now.
    pub fn window(&self) -> Window {
        let live = self.live();
        let oldest = live.prefix.oldest().map(|arrived| arrived.elapsed());
        Window::of(live.prefix.len(), live.plateau, oldest, live.epoch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mqtt::options::Protocol;

    #[test]
    fn of_several_windows_the_fullest_says_full_and_the_smallest_gives_the_half() {
        let (idle, slow, busy) =
            (Window::of(0, 0, None, 0), Window::of(3, 20, None, 1), Window::of(10, 10, None, 2));
        let both = idle.and(slow).and(busy);
        assert!(both.is_full() && !idle.and(slow).is_full());
        assert_eq!((both.unacked, both.observed, both.epoch, both.half()), (13, 30, 3, 5));
        assert_eq!(Window::of(1, 1000, None, 1).and(idle).half(), usize::MAX);
    }

    #[test]
    fn a_window_is_wide_once_it_has_held_many() {
        assert!(!Window::of(255, 255, None, 1).is_wide() && Window::of(0, 256, None, 1).is_wide());
    }

    #[test]
    fn a_window_counts_as_a_large_one_until_load_has_filled_it_again_and_again() {
        let (acks, start) = (Acks::default(), Instant::now());
        let second = |second: u64| start + Duration::from_secs(second);
        for packet_id in 0..20 {
            acks.push(packet_id, start);
        }
        assert!((acks.used(second(10)) - 0.2).abs() < 1e-6, "20 of 1000 for ten seconds");
        for _ in 0..FILLED {
            acks.live().prefix.commit(0);
            acks.live().prefix.entries.pop_front();
            acks.push(0, second(10));
        }
        assert!((acks.used(second(20)) - 10.2).abs() < 1e-6, "it was full for ten seconds");
    }

    #[test]
    fn what_a_lost_connection_brought_is_in_hand_until_it_is_committed() {
        let (acks, now) = (Acks::default(), Instant::now());
        let client = || Client::new(Protocol::V5);
        let first = acks.begin(client());
        let lost: Vec<u64> = (1..=3).map(|packet_id| acks.push(packet_id, now).0).collect();
        acks.end();
        assert_eq!((acks.in_hand(), acks.window().unacked), (3, 0));
        let second = acks.begin(client());
        let (again, _) = acks.push(1, now);
        assert_eq!(acks.commit(lost.into_iter().map(|seq| (first, seq))), 3, "never acknowledged");
        assert_eq!((acks.in_hand(), acks.window().unacked), (1, 1));
        acks.commit(std::iter::once((second, again)));
        assert_eq!((acks.in_hand(), acks.window().unacked), (0, 0));
    }

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
