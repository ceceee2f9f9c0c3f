//! Deliveries in hand that no writer has taken yet. Tenants take turns, so that one noisy tenant
//! cannot delay another's rows by more than a batch.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

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
}

impl Inbox {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a delivery at the end of its tenant's queue. Returns how many wait now.
    pub fn push(&self, delivery: Delivery) -> usize {
        let waiting = {
            let mut inbox = self.queues();
            let queue = inbox.queue_of(delivery.tenant.as_deref().unwrap_or_default());
            if inbox.waiting[queue].is_empty() {
                inbox.turns.push_back(queue);
            }
            inbox.waiting[queue].push_back(delivery);
            inbox.len += 1;
            inbox.len
        };
        if waiting == 1 {
            self.wake();
        }
        waiting
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
            *inbox = Queues::default();
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
        std::mem::take(&mut *self.queues()).len
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
    use std::sync::Arc;

    use bytes::Bytes;
    use prometheus::IntGauge;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::delivery::InHand;

    fn delivery(tenant: &str, topic: &'static str) -> Delivery {
        let budget = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Delivery {
            lane: 0,
            epoch: 1,
            seq: None,
            topic: Bytes::from_static(topic.as_bytes()),
            payload: Bytes::new(),
            compression: None,
            dup: false,
            received_at: 0,
            arrived: Instant::now(),
            tenant: Some(tenant.into()),
            parent: None,
            trace: None,
            in_hand: InHand::new(budget, IntGauge::new("in_flight", "in flight").unwrap()),
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
    fn queues_of_many_tenants_are_forgotten_once_empty() {
        let inbox = Inbox::default();
        for tenant in 0..2000 {
            inbox.push(delivery(&tenant.to_string(), "t"));
        }
        while inbox.pop().is_some() {}
        assert_eq!(inbox.queues().waiting.len(), 0);
    }
}
