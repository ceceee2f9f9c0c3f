//! Keeps one session with the broker: connects while the lease is held, subscribes, takes
//! deliveries in, and settles when asked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use penstock_crds::topic::Layout;
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;

use super::acks::Acks;
use super::connection::{Connection, Event, Granted, Lost, Publish};
use super::options::Options;
use crate::clock::DatabaseClock;
use crate::decode;
use crate::delivery::{Delivery, InHand};
use crate::inbox::Inbox;
use crate::metrics::Metrics;
use crate::tenure::Tenure;

/// What a delivery costs beside its bytes.
const DELIVERY_OVERHEAD: usize = 256;
const TICK: Duration = Duration::from_millis(20);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A connection that lived this long starts backoff anew.
const STEADY: Duration = Duration::from_secs(10);
/// Refused filters are asked for again this often.
const RESUBSCRIBE: Duration = Duration::from_secs(30);

/// What the session is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Consume these filters.
    Consume(Arc<[String]>),
    /// Take nothing more in; once nothing is in hand, disconnect and keep the broker's session.
    Settle,
}

/// How a session's work ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing is in hand, and all that was committed is acknowledged as far as the connection allowed.
    Settled,
    /// The lease passed to another worker.
    Superseded,
}

/// The link to the broker, for readiness and status.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Link {
    /// CONNACK received, connection open.
    pub connected: bool,
    /// Whether the broker had the session at the last connect.
    pub session_present: Option<bool>,
    /// For each filter the granted QoS, or the refusal; `None` until SUBACK.
    pub subscriptions: BTreeMap<String, Option<Result<u8, String>>>,
    /// Why the last connection ended: the reason's word, and for a person.
    pub last_end: Option<(&'static str, String)>,
}

/// What the session shares with the rest of the worker.
#[derive(Debug)]
pub struct Shared {
    /// Deliveries for the writers.
    pub inbox: Inbox,
    /// Acknowledgements for the broker.
    pub acks: Acks,
    /// The link's state.
    pub link: Mutex<Link>,
    /// The byte budget of all deliveries in hand.
    pub budget: Arc<Semaphore>,
    /// Its size.
    pub budget_bytes: usize,
    /// The database's clock.
    pub clock: DatabaseClock,
    /// Counters.
    pub metrics: Metrics,
}

impl Shared {
    /// The link's state.
    pub fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// How to reach the broker.
    pub options: Options,
    /// Finds a delivery's tenant.
    pub layout: Layout,
    /// Set to watch for the message that ends the queue of a retiring shard.
    pub marker: Option<Marker>,
    /// Shared with the rest of the worker.
    pub shared: Arc<Shared>,
}

impl Session {
    /// Works for as long as the lease is held and until settled.
    pub async fn run(&self, tenure: &Tenure, orders: &mut watch::Receiver<Order>) -> End {
        let mut failures = 0u32;
        loop {
            if *orders.borrow() == Order::Settle {
                return self.settle_offline().await;
            }
            tokio::select! {
                held = tenure.confirmed() => if held.is_err() {
                    return End::Superseded;
                },
                _ = orders.changed() => continue,
            }
            tokio::select! {
                () = self.wait_for_room() => {}
                _ = orders.changed() => continue,
            }
            let started = Instant::now();
            let lost = match self.serve(tenure, orders).await {
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
            }
        }
    }

    fn ended(&self, lost: Option<&Lost>) {
        self.shared.acks.end();
        self.shared.metrics.connected.set(0);
        let mut link = self.shared.link();
        link.connected = false;
        if let Some(lost) = lost {
            link.last_end = Some((lost.reason(), lost.to_string()));
            self.shared.metrics.disconnects.with_label_values(&[lost.reason()]).inc();
        }
    }

    /// Without a connection the broker keeps what is unacknowledged; what is in hand is still committed.
    async fn settle_offline(&self) -> End {
        while self.shared.metrics.in_flight.get() > 0 {
            tokio::time::sleep(TICK).await;
        }
        End::Settled
    }

    /// A connection would be of no use while the budget has no room for what comes.
    async fn wait_for_room(&self) {
        let half = u32::try_from(self.shared.budget_bytes / 2).unwrap_or(u32::MAX);
        let _ = self.shared.budget.acquire_many(half).await;
    }

    /// Serves one connection. `Ok` when settled.
    async fn serve(&self, tenure: &Tenure, orders: &mut watch::Receiver<Order>) -> Result<(), Lost> {
        let mut connection = Connection::new(&self.options);
        let granted = loop {
            if let Event::Connected(granted) = connection.next().await? {
                break granted;
            }
        };
        let mut serving = Serving {
            session: self,
            epoch: self.shared.acks.begin(connection.client().clone()),
            subscribing: VecDeque::new(),
            refused: BTreeSet::new(),
            asked: Instant::now(),
            settling: false,
        };
        self.shared.metrics.epoch.set(serving.epoch as i64);
        serving.greet(&granted, tenure);
        let order = orders.borrow_and_update().clone();
        serving.follow(&mut connection, tenure, &order).await?;

        let silence = self.options.keep_alive * 2;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = tokio::time::timeout(silence, connection.next()) => {
                    let event = event.map_err(|_| Lost::Silent(silence))??;
                    if matches!(event, Event::Disconnected) {
                        return Ok(());
                    }
                    serving.on_event(event, tenure).await?;
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

/// One connection being served.
struct Serving<'a> {
    session: &'a Session,
    epoch: u64,
    /// Filters of each SUBSCRIBE not yet answered.
    subscribing: VecDeque<Vec<String>>,
    refused: BTreeSet<String>,
    /// When filters were last subscribed.
    asked: Instant,
    settling: bool,
}

impl Serving<'_> {
    fn shared(&self) -> &Shared {
        &self.session.shared
    }

    fn greet(&self, granted: &Granted, tenure: &Tenure) {
        {
            let mut link = self.shared().link();
            link.connected = true;
            link.session_present = Some(granted.session_present);
            link.subscriptions.clear();
        }
        if !granted.session_present && tenure.session_existed() {
            self.shared().metrics.sessions_lost.inc();
            tracing::error!(
                client_id = self.session.options.client_id,
                "the broker no longer has the session: what it queued for it is lost"
            );
        }
        tracing::info!(
            epoch = self.epoch,
            client_id = self.session.options.client_id,
            session_present = granted.session_present,
            "connected to the broker"
        );
    }

    /// Carries out an order: subscribes what is wanted, unsubscribes what no longer is.
    async fn follow(
        &mut self,
        connection: &mut Connection,
        tenure: &Tenure,
        order: &Order,
    ) -> Result<(), Lost> {
        let Order::Consume(wanted) = order else {
            self.settling = true;
            return Ok(());
        };
        self.refused.retain(|filter| wanted.contains(filter));
        let subscribed = {
            let mut link = self.shared().link();
            let new: Vec<_> =
                wanted.iter().filter(|f| !link.subscriptions.contains_key(*f)).cloned().collect();
            link.subscriptions.retain(|filter, _| wanted.contains(filter));
            link.subscriptions.extend(new.iter().map(|filter| (filter.clone(), None)));
            new
        };
        // Written down first, so that whoever serves this session next knows what to unsubscribe.
        let stale = tenure.subscribing(wanted).await.map_err(|error| Lost::Failed(error.to_string()))?;
        if !subscribed.is_empty() {
            self.subscribe(connection, subscribed);
        }
        for filter in stale {
            connection.unsubscribe(&filter);
        }
        self.show_connected();
        Ok(())
    }

    fn subscribe(&mut self, connection: &Connection, filters: Vec<String>) {
        connection.client().subscribe(&filters);
        self.subscribing.push_back(filters);
        self.asked = Instant::now();
    }

    async fn on_event(&mut self, event: Event, tenure: &Tenure) -> Result<(), Lost> {
        match event {
            Event::Publish(publish) => self.take_in(publish).await?,
            Event::Subscribed(grants) => self.subscribed(grants, tenure).await,
            // Wanted again meanwhile: SUBSCRIBE followed on the wire.
            Event::Unsubscribed(filter) if self.shared().link().subscriptions.contains_key(&filter) => {}
            Event::Unsubscribed(filter) => {
                tracing::info!(filter, "unsubscribed");
                // Not noted, it must be unsubscribed again: by the next connection.
                tenure.unsubscribed(&filter).await.map_err(|error| Lost::Failed(error.to_string()))?;
            }
            Event::Connected(_) | Event::Disconnected | Event::Published | Event::Alive => {}
        }
        Ok(())
    }

    async fn subscribed(&mut self, grants: Vec<Result<u8, String>>, tenure: &Tenure) {
        let filters = self.subscribing.pop_front().unwrap_or_default();
        let mut granted_any = false;
        {
            let mut link = self.session.shared.link();
            for (filter, grant) in filters.into_iter().zip(grants) {
                match &grant {
                    Ok(qos) if *qos >= 1 => {
                        granted_any = true;
                        self.refused.remove(&filter);
                    }
                    refused => {
                        tracing::error!(
                            filter,
                            ?refused,
                            "the broker does not grant the subscription at QoS 1"
                        );
                        self.refused.insert(filter.clone());
                    }
                }
                if let Some(entry) = link.subscriptions.get_mut(&filter) {
                    *entry = Some(grant);
                }
            }
        }
        self.show_connected();
        if granted_any && !tenure.session_existed() {
            let _ = tenure.session_exists().await;
        }
    }

    fn show_connected(&self) {
        let granted = self.shared().link().subscriptions.values().all(|grant| matches!(grant, Some(Ok(1..))));
        self.shared().metrics.connected.set(i64::from(granted));
    }

    fn on_tick(&mut self, connection: &mut Connection) {
        if self.settling {
            if self.shared().metrics.in_flight.get() == 0 {
                connection.client().disconnect();
            }
        } else if !self.refused.is_empty() && self.asked.elapsed() > RESUBSCRIBE {
            self.subscribe(connection, self.refused.iter().cloned().collect());
        }
    }

    /// Takes a delivery in, or waits a while for room for it.
    async fn take_in(&mut self, publish: Publish) -> Result<(), Lost> {
        let Self { session, epoch, settling, .. } = self;
        let shared = &session.shared;
        let metrics = &shared.metrics;
        let qos0 = publish.packet_id == 0;
        if *settling && !qos0 {
            // Not taken in: the broker keeps it.
            return Ok(());
        }
        if let Some(marker) =
            session.marker.as_ref().filter(|marker| publish.topic == marker.topic.as_bytes())
        {
            if !qos0 {
                let (seq, _) = shared.acks.push(publish.packet_id, Instant::now());
                shared.acks.commit(std::iter::once((*epoch, seq)));
            }
            marker.seen.send_replace(Some(String::from_utf8_lossy(&publish.payload).into_owned()));
            return Ok(());
        }
        let cost =
            (publish.topic.len() + publish.payload.len() + DELIVERY_OVERHEAD).min(shared.budget_bytes) as u32;
        let budget = match Arc::clone(&shared.budget).try_acquire_many_owned(cost) {
            Ok(budget) if !*settling => budget,
            _ if qos0 => {
                metrics.received.inc();
                metrics.qos0_received.inc();
                metrics.dropped_qos0.inc();
                return Ok(());
            }
            _ => {
                // Pings stop meanwhile, so not for long.
                let patience = session.options.keep_alive / 2;
                match tokio::time::timeout(patience, Arc::clone(&shared.budget).acquire_many_owned(cost))
                    .await
                {
                    Ok(Ok(budget)) => budget,
                    _ => return Err(Lost::BudgetFull(patience)),
                }
            }
        };
        let arrived = Instant::now();
        metrics.received.inc();
        if qos0 {
            metrics.qos0_received.inc();
        }
        if publish.dup {
            metrics.redelivered.inc();
        }
        let (seq, window) = if qos0 {
            (None, None)
        } else {
            let (seq, window) = shared.acks.push(publish.packet_id, arrived);
            (Some(seq), Some(window))
        };
        let waiting = shared.inbox.push(Delivery {
            epoch: *epoch,
            seq,
            tenant: decode::tenant(&session.layout, &publish.topic).map(Into::into),
            topic: publish.topic,
            payload: publish.payload,
            compression: publish.compression,
            dup: publish.dup,
            received_at: shared.clock.now(),
            arrived,
            in_hand: InHand::new(budget, metrics.in_flight.clone()),
        });
        if window.is_some_and(|window| window.is_full() || waiting == window.half()) {
            shared.inbox.wake();
        }
        Ok(())
    }
}
