//! The sessions of a shard as the rest of the worker sees them. All fill one inbox; each has
//! acknowledgements and a connection of its own.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use penstock_crds::report::Link;

use super::acks::{Acks, Window};
use crate::delivery::Delivery;

/// Most sessions of a shard.
pub const MAX_SESSIONS: usize = 64;

/// One session.
#[derive(Debug, Default)]
pub struct Lane {
    /// Acknowledgements for the broker.
    pub acks: Acks,
    /// Deliveries at QoS 1 since start.
    pub received: AtomicU64,
    /// Microseconds of the last round trip to the broker; 0 before the first.
    round_trip: AtomicU64,
    link: Mutex<Link>,
    /// Filters that the shard wants it to have.
    wanted: Mutex<Arc<[String]>>,
}

impl Lane {
    /// The link's state.
    pub fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A round trip took so long.
    pub fn went_round(&self, trip: Duration) {
        self.round_trip.store(trip.as_micros().max(1) as u64, Ordering::Relaxed);
    }

    /// What the last round trip took.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed))
    }

    /// Filters that the shard wants it to have.
    pub fn wanted(&self) -> Arc<[String]> {
        Arc::clone(&self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets what the shard wants it to have.
    pub fn want(&self, filters: Arc<[String]>) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = filters;
    }
}

/// All sessions of a shard.
#[derive(Debug)]
pub struct Lanes {
    all: Box<[Lane]>,
    used: AtomicUsize,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { all: (0..MAX_SESSIONS).map(|_| Lane::default()).collect(), used: AtomicUsize::new(1) }
    }
}

impl Lanes {
    /// Uses so many, and all that were used before.
    pub fn use_up_to(&self, count: usize) {
        self.used.fetch_max(count.clamp(1, MAX_SESSIONS), Ordering::Relaxed);
    }

    /// Those in use.
    pub fn used(&self) -> &[Lane] {
        &self.all[..self.used.load(Ordering::Relaxed)]
    }

    /// One of them.
    pub fn get(&self, lane: u8) -> &Lane {
        &self.all[usize::from(lane).min(MAX_SESSIONS - 1)]
    }

    /// The windows of all together.
    pub fn window(&self) -> Window {
        self.used().iter().map(|lane| lane.acks.window()).reduce(Window::and).unwrap_or_default()
    }

    /// Notes committed deliveries and acknowledges what can be. Returns how many belong to a connection
    /// that is over.
    pub fn commit<'a>(&self, deliveries: &(impl Iterator<Item = &'a Delivery> + Clone)) -> u64 {
        let of = |lane: usize| {
            deliveries
                .clone()
                .filter(move |delivery| usize::from(delivery.lane) == lane)
                .filter_map(|delivery| delivery.seq.map(|seq| (delivery.epoch, seq)))
        };
        let lanes = self.used().iter().enumerate();
        lanes.map(|(index, lane)| lane.acks.commit(of(index))).sum()
    }

    /// Whether a filter that one session is to give up is still to come to another. It is given up
    /// after that, so that no message falls between them.
    pub fn awaits(&self, filter: &str, lane: u8) -> bool {
        let others = self.used().iter().enumerate().filter(|(index, _)| *index != usize::from(lane));
        let mut wanting =
            others.map(|(_, other)| other).filter(|other| other.wanted().iter().any(|f| f == filter));
        let Some(first) = wanting.next() else { return false };
        !std::iter::once(first).chain(wanting).any(|other| other.link().has(filter))
    }

    /// Whether every session that has something to consume is connected and subscribed.
    pub fn are_whole(&self) -> bool {
        let mut lanes = self.used().iter().enumerate();
        lanes.all(|(index, lane)| (index > 0 && lane.wanted().is_empty()) || lane.link().is_whole())
    }

    /// Ends what all connections acknowledge: they are gone.
    pub fn disconnected(&self) {
        for lane in self.used() {
            lane.acks.end();
            lane.link().connected = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes() -> Lanes {
        let lanes = Lanes::default();
        lanes.use_up_to(2);
        lanes
    }

    #[test]
    fn a_filter_is_given_up_only_after_the_other_session_has_it() {
        let lanes = lanes();
        assert!(!lanes.awaits("a/#", 0), "nobody else wants it");
        lanes.get(1).want(["a/#".to_owned()].into());
        assert!(lanes.awaits("a/#", 0), "not connected");
        lanes.get(1).link().connected = true;
        lanes.get(1).link().subscriptions.insert("a/#".to_owned(), None);
        assert!(lanes.awaits("a/#", 0), "no SUBACK");
        lanes.get(1).link().subscriptions.insert("a/#".to_owned(), Some(Ok(0)));
        assert!(lanes.awaits("a/#", 0), "not protected there");
        lanes.get(1).link().subscriptions.insert("a/#".to_owned(), Some(Ok(1)));
        assert!(!lanes.awaits("a/#", 0));
        assert!(!lanes.awaits("b/#", 0));
        lanes.disconnected();
        assert!(lanes.awaits("a/#", 0), "its connection is over");
    }

    #[test]
    fn the_worker_is_connected_when_each_session_with_filters_is() {
        let lanes = lanes();
        assert!(!lanes.are_whole());
        lanes.get(0).link().connected = true;
        assert!(lanes.are_whole(), "the second has nothing to consume");
        lanes.get(1).want(["a/#".to_owned()].into());
        assert!(!lanes.are_whole());
        lanes.get(1).link().connected = true;
        lanes.get(1).link().subscriptions.insert("a/#".to_owned(), Some(Ok(1)));
        assert!(lanes.are_whole());
    }
}
