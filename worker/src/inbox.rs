//! Deliveries in hand that no writer has taken yet. Tenants take turns, so that one noisy tenant
//! cannot delay another's rows by more than a batch.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hashbrown::HashMap;
use tokio::sync::Notify;

use crate::delivery::Delivery;

/// Queues that are kept for tenants seen before; more are forgotten when all are empty.
const KEPT_QUEUES: usize = 1024;

/// Deliveries in hand that no writer has taken yet.
#[derive(Debug, Default)]
pub struct Inbox {
    queues: Mutex<Queues>,
    arrival: Notify,
}

#[derive(Debug, Default)]
struct Queues {
    of_tenant: HashMap<Box<str>, usize>,
    waiting: Vec<VecDeque<Delivery>>,
    turns: VecDeque<usize>,
    len: usize,
    /// Those that are to be taken only later, by time and number.
    deferred: BTreeMap<(Instant, u64), Delivery>,
    deferrals: u64,
}

impl Inbox {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a delivery at the end of its tenant's queue. Returns how many wait now.
    pub fn push(&self, delivery: Delivery) -> usize {
        let waiting = {
            let mut inbox = self.queues();
            inbox.push(delivery);
            inbox.len
        };
        if waiting == 1 {
            self.wake();
        }
        waiting
    }

    /// Takes a delivery back until a time. It is in hand all the while, and nobody waits for it but its
    /// acknowledgement and those behind it.
    pub fn defer(&self, delivery: Delivery, until: Instant) {
        {
            let mut inbox = self.queues();
            inbox.deferrals += 1;
            let place = (until, inbox.deferrals);
            inbox.deferred.insert(place, delivery);
        }
        // A writer that waits without an end waits until then.
        self.wake();
    }

    /// Puts those whose time has come at the end of their tenants' queues.
    pub fn release(&self, now: Instant) {
        let mut inbox = self.queues();
        while let Some(first) = inbox.deferred.first_entry().filter(|first| first.key().0 <= now) {
            let delivery = first.remove();
            inbox.push(delivery);
        }
    }

    /// When the next one is to be released.
    pub fn next_release(&self) -> Option<Instant> {
        self.queues().deferred.first_key_value().map(|((at, _), _)| *at)
    }

    /// How many are to be taken only later.
    pub fn deferred(&self) -> usize {
        self.queues().deferred.len()
    }

    /// Takes the next delivery: the oldest of the tenant whose turn it is.
    pub fn pop(&self) -> Option<Delivery> {
        let mut inbox = self.queues();
        let turn = inbox.turns.pop_front()?;
        let delivery = inbox.waiting[turn].pop_front()?;
        inbox.len -= 1;
        if !inbox.waiting[turn].is_empty() {
            inbox.turns.push_back(turn);
        } else if inbox.len == 0 && inbox.waiting.len() > KEPT_QUEUES {
            let (deferred, deferrals) = (std::mem::take(&mut inbox.deferred), inbox.deferrals);
            *inbox = Queues { deferred, deferrals, ..Queues::default() };
        }
        Some(delivery)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.queues().len
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops all that wait; returns how many. Only at exit: nobody else may have them.
    pub fn abandon(&self) -> usize {
        let all = std::mem::take(&mut *self.queues());
        all.len + all.deferred.len()
    }

    /// When the delivery that is taken next arrived.
    pub fn oldest(&self) -> Option<Instant> {
        let inbox = self.queues();
        let turn = inbox.turns.front()?;
        Some(inbox.waiting[*turn].front()?.arrived)
    }

    /// Has a waiting writer look again.
    pub fn wake(&self) {
        self.arrival.notify_one();
    }

    /// Waits for a first delivery, or for [`Inbox::wake`].
    pub async fn woken(&self) {
        self.arrival.notified().await;
    }
}

impl Queues {
    fn push(&mut self, delivery: Delivery) {
        let queue = self.queue_of(delivery.tenant.as_deref().unwrap_or_default());
        if self.waiting[queue].is_empty() {
            self.turns.push_back(queue);
        }
        self.waiting[queue].push_back(delivery);
        self.len += 1;
    }

    fn queue_of(&mut self, tenant: &str) -> usize {
        if let Some(queue) = self.of_tenant.get(tenant) {
            return *queue;
        }
        self.waiting.push(VecDeque::new());
        self.of_tenant.insert(tenant.into(), self.waiting.len() - 1);
        self.waiting.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn delivery(tenant: &str, topic: &'static str) -> Delivery {
        Delivery {
            seq: None,
            topic: Bytes::from_static(topic.as_bytes()),
            tenant: Some(tenant.into()),
            ..Delivery::empty()
        }
    }

    #[test]
    fn a_noisy_tenant_does_not_delay_a_quiet_one() {
        let inbox = Inbox::default();
        for topic in ["noisy/1", "noisy/2", "noisy/3"] {
            inbox.push(delivery("noisy", topic));
        }
        inbox.push(delivery("quiet", "quiet/1"));
        let taken: Vec<_> = std::iter::from_fn(|| inbox.pop()).map(|d| d.topic).collect();
        assert_eq!(taken, ["noisy/1", "quiet/1", "noisy/2", "noisy/3"]);
    }

    #[test]
    fn a_deferred_delivery_comes_at_its_time_and_delays_nobody() {
        let (inbox, now) = (Inbox::default(), Instant::now());
        let at = |seconds| now + std::time::Duration::from_secs(seconds);
        for (topic, seconds) in [("second", 2), ("first", 1), ("third", 2)] {
            inbox.defer(delivery("noisy", topic), at(seconds));
        }
        inbox.push(delivery("quiet", "quiet"));
        let taken = || std::iter::from_fn(|| inbox.pop()).map(|d| d.topic).collect::<Vec<_>>();
        inbox.release(now);
        assert_eq!(taken(), ["quiet"]);
        inbox.release(at(1));
        assert_eq!((taken(), inbox.next_release()), (vec![Bytes::from_static(b"first")], Some(at(2))));
        inbox.release(at(3));
        assert_eq!(taken(), ["second", "third"]);
        inbox.defer(delivery("noisy", "left"), at(9));
        assert_eq!((inbox.len(), inbox.abandon(), inbox.deferred()), (0, 1, 0));
    }

    #[test]
    fn queues_of_many_tenants_are_forgotten_once_empty() {
        let inbox = Inbox::default();
        for tenant in 0..2000 {
            inbox.push(delivery(&tenant.to_string(), "t"));
        }
        inbox.defer(delivery("late", "t"), Instant::now());
        while inbox.pop().is_some() {}
        let queues = inbox.queues();
        assert_eq!((queues.waiting.len(), queues.deferred.len()), (0, 1));
    }
}
