//! Keeps one session with the broker: connects while the lease is held, again and again, and
//! settles when asked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;

use super::client::Client;
use super::connection::{Connection, Event, Lost};
use super::lanes::{Lane, Lanes};
use super::serving::Serving;
use crate::clock::DatabaseClock;
use crate::flow::Flow;
use crate::gap::Gap;
use crate::inbox::Inbox;
use crate::metrics::Metrics;
use crate::settings::{Access, Terms};
use crate::stopwatch::Occupied;
use crate::tenure::Tenure;
use crate::throughput::Throughput;
use crate::trace::Tracer;

const TICK: Duration = Duration::from_millis(20);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A connection that lived this long starts backoff anew.
const STEADY: Duration = Duration::from_secs(10);

/// What the session is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Consume these filters.
    Consume(Arc<[String]>),
    /// Take nothing more in; once nothing is in hand, disconnect and keep the broker's session.
    Settle,
    /// Disconnect once nothing of this session is in hand; others go on.
    Leave,
}

/// How a session's work ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing is in hand, and all that was committed is acknowledged as far as the connection allowed.
    Settled,
    /// The lease passed to another worker.
    Superseded,
}

/// What the sessions share with the rest of the worker.
#[derive(Debug)]
pub struct Shared {
    /// Deliveries for the writers.
    pub inbox: Inbox,
    /// The sessions' acknowledgements and links.
    pub lanes: Lanes,
    /// The byte budget of all deliveries in hand.
    pub budget: Arc<Semaphore>,
    /// Its size.
    pub budget_bytes: usize,
    /// The database's clock.
    pub clock: DatabaseClock,
    /// Counters.
    pub metrics: Metrics,
    /// While writers have batches on their way into the database.
    pub committing: Occupied,
    /// What limits the throughput.
    pub throughput: Throughput,
    /// What comes by key, and how old it is.
    pub flow: Flow,
    /// The last takeover.
    pub gap: Gap,
    /// Traces, if they are asked for.
    pub tracer: Option<Tracer>,
}

impl Shared {
    /// Share of the byte budget in use.
    pub fn queue_fill(&self) -> f64 {
        let total = self.budget_bytes;
        total.saturating_sub(self.budget.available_permits()) as f64 / total.max(1) as f64
    }

    /// Shows whether all sessions are connected and subscribed.
    pub fn show_connected(&self) {
        let is_whole = self.lanes.are_whole();
        self.metrics.connected.set(i64::from(is_whole));
        if is_whole {
            self.gap.end();
        }
    }

    /// Sends to the broker, while there is a connection.
    pub fn client(&self) -> Option<Client> {
        self.lanes.used().iter().find_map(|lane| lane.acks.client())
    }
}

/// A message that a retiring worker publishes to itself: when it arrives, so has all before it.
#[derive(Debug)]
pub struct Marker {
    /// Its topic.
    pub topic: String,
    /// Its payload, as it arrived.
    pub seen: watch::Sender<Option<String>>,
}

/// One session with the broker.
#[derive(Debug)]
pub struct Session {
    /// Which of the shard's sessions it is.
    pub lane: u8,
    /// How to reach the broker now.
    pub access: watch::Receiver<Access>,
    /// Finds a delivery's tenant.
    pub terms: watch::Receiver<Arc<Terms>>,
    /// Set to watch for the message that ends the queue of a retiring shard.
    pub marker: Option<Arc<Marker>>,
    /// Whether the broker may be asked what it dropped: not if it ended the connection for that, or refused.
    pub asks_for_drops: AtomicBool,
    /// Shared with the rest of the worker.
    pub shared: Arc<Shared>,
}

impl Session {
    pub(super) fn lane(&self) -> &Lane {
        self.shared.lanes.get(self.lane)
    }

    /// Works for as long as the lease is held and until settled.
    pub async fn run(&self, tenure: &Tenure, orders: &mut watch::Receiver<Order>) -> End {
        let (mut failures, mut access, mut taught) = (0u32, self.access.clone(), BTreeSet::new());
        loop {
            let order = orders.borrow_and_update().clone();
            match order {
                Order::Settle | Order::Leave => return self.end_offline(&order).await,
                // A session beside the first is opened for its filters alone.
                Order::Consume(wanted)
                    if self.lane > 0 && wanted.is_empty() && tenure.filters_of(self.lane).is_empty() =>
                {
                    if orders.changed().await.is_err() {
                        return End::Superseded;
                    }
                    continue;
                }
                Order::Consume(_) => {}
            }
            tokio::select! {
                () = self.wait_for_room() => {}
                _ = orders.changed() => continue,
            }
            // Last: whoever has taken the lease since may be done with the session.
            tokio::select! {
                held = tenure.confirmed() => if held.is_err() {
                    return End::Superseded;
                },
                _ = orders.changed() => continue,
            }
            let started = Instant::now();
            access.mark_unchanged();
            let lost = match self.serve(tenure, orders, &mut taught).await {
                Ok(()) => {
                    self.ended(None);
                    return End::Settled;
                }
                Err(lost) => lost,
            };
            self.ended(Some(&lost));
            failures = if started.elapsed() > STEADY { 1 } else { failures.saturating_add(1) };
            let pause =
                FIRST_BACKOFF.saturating_mul(1 << failures.min(16).saturating_sub(1)).min(LONGEST_BACKOFF);
            let pause = pause / 2 + pause.mul_f64(fastrand::f64() / 2.0);
            tracing::warn!(reason = lost.reason(), error = %lost, ?pause, "broker connection ended; connecting again");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = orders.changed() => {}
                // The login that was refused may be another one now.
                Ok(()) = access.changed() => {}
            }
        }
    }

    fn ended(&self, lost: Option<&Lost>) {
        self.lane().acks.end();
        {
            let mut link = self.lane().link();
            link.connected = false;
            if let Some(lost) = lost {
                link.last_end = Some((lost.reason().to_owned(), lost.to_string()));
                self.shared.metrics.disconnects.with_label_values(&[lost.reason()]).inc();
            }
        }
        self.shared.show_connected();
    }

    /// Whether nothing is left in hand of what an order to end waits for.
    pub(super) fn is_done(&self, order: &Order) -> bool {
        match order {
            Order::Consume(_) => false,
            Order::Settle => self.shared.metrics.in_flight.get() == 0,
            Order::Leave => self.lane().acks.in_hand() == 0,
        }
    }

    /// Without a connection the broker keeps what is unacknowledged; what is in hand is still committed.
    async fn end_offline(&self, order: &Order) -> End {
        while !self.is_done(order) {
            tokio::time::sleep(TICK).await;
        }
        End::Settled
    }

    /// A connection would be of no use while the budget has no room for what comes.
    async fn wait_for_room(&self) {
        // Not by the semaphore's queue: what waits there keeps from others what becomes free.
        while self.shared.budget.available_permits() < self.shared.budget_bytes / 2 {
            tokio::time::sleep(TICK).await;
        }
    }

    /// Serves one connection. `Ok` when settled.
    async fn serve(
        &self,
        tenure: &Tenure,
        orders: &mut watch::Receiver<Order>,
        taught: &mut BTreeSet<String>,
    ) -> Result<(), Lost> {
        let options = self.access.borrow().broker.of_session(self.lane);
        let mut connection = Connection::new(&options);
        let granted = loop {
            if let Event::Connected(granted) = connection.next().await? {
                break granted;
            }
        };
        let is_first = taught.is_empty();
        let mut serving = Serving::begin(self, &options, taught, &connection);
        self.shared.metrics.epoch.inc();
        if is_first {
            // The holder before receives nothing more, and stored all that it acknowledged; the rest comes now.
            serving.learn_births(tenure).await?;
        }
        // Not before: connected, and with nothing that waits to be subscribed, it would be ready.
        serving.greet(&granted, tenure);
        let order = orders.borrow_and_update().clone();
        serving.follow(&mut connection, tenure, &order).await?;
        serving.ask_for_drops(&connection);

        let silence = connection.keep_alive() * 2;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = tokio::time::timeout(silence, connection.next()) => {
                    let event = event.map_err(|_| Lost::Silent(silence))??;
                    if matches!(event, Event::Disconnected) {
                        return Ok(());
                    }
                    serving.on_event(&mut connection, event, tenure).await?;
                }
                _ = orders.changed() => {
                    let order = orders.borrow_and_update().clone();
                    serving.follow(&mut connection, tenure, &order).await?;
                }
                _ = tick.tick() => serving.on_tick(&mut connection),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::tests::lonely;

    #[tokio::test]
    async fn a_session_that_waits_for_room_takes_none_from_the_others() {
        let shard = lonely();
        let (session, budget) = (shard.session(1, None), &shard.shared.budget);
        let size = shard.shared.budget_bytes as u32;
        let taken = budget.acquire_many(size - size / 4).await.unwrap();
        let mut waiting = std::pin::pin!(session.wait_for_room());
        assert!(tokio::time::timeout(TICK * 3, &mut waiting).await.is_err(), "there is no room");
        assert_eq!(budget.available_permits() as u32, size / 4, "it shows as in use");
        assert!(budget.try_acquire_many(size / 8).is_ok(), "another session finds none");
        drop(taken);
        tokio::time::timeout(TICK * 50, waiting).await.unwrap();
    }
}
