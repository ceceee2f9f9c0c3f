//! Keeps one session with the broker: connects while the lease is held, subscribes, takes
//! deliveries in, and settles when asked.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;

use super::client::Client;
use super::connection::{Connection, Event, Granted, Lost, Publish};
use super::lanes::{Lane, Lanes};
use super::options::Options;
use crate::clock::DatabaseClock;
use crate::decode;
use crate::delivery::{Delivery, InHand};
use crate::flow::Flow;
use crate::gap::Gap;
use crate::inbox::Inbox;
use crate::metrics::Metrics;
use crate::settings::{Access, Terms};
use crate::stopwatch::Occupied;
use crate::tenure::Tenure;
use crate::throughput::Throughput;
use crate::trace::Tracer;

/// What a delivery costs beside its bytes.
const DELIVERY_OVERHEAD: usize = 256;
const TICK: Duration = Duration::from_millis(20);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A connection that lived this long starts backoff anew.
const STEADY: Duration = Duration::from_secs(10);
/// Where Mosquitto tells how many messages it has dropped in all.
const BROKER_DROPS: &str = "$SYS/broker/publish/messages/dropped";
/// Refused filters are asked for again this often.
const RESUBSCRIBE: Duration = Duration::from_secs(30);

/// What the session is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Consume these filters.
    Consume(Arc<[String]>),
    /// Take nothing more in; once nothing is in hand, disconnect and keep the broker's session.
    Settle,
    /// Disconnect once nothing of this session is unacknowledged; others go on.
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
    pub marker: Option<Marker>,
    /// Whether the broker may be asked what it dropped: not if it ended the connection for that, or refused.
    pub asks_for_drops: AtomicBool,
    /// Shared with the rest of the worker.
    pub shared: Arc<Shared>,
}

impl Session {
    fn lane(&self) -> &Lane {
        self.shared.lanes.get(self.lane)
    }

    /// Works for as long as the lease is held and until settled.
    pub async fn run(&self, tenure: &Tenure, orders: &mut watch::Receiver<Order>) -> End {
        let (mut failures, mut access, mut taught) = (0u32, self.access.clone(), BTreeSet::new());
        loop {
            let order = orders.borrow_and_update().clone();
            match order {
                Order::Settle => return self.settle_offline().await,
                Order::Leave => return End::Settled,
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
        let mut serving = Serving {
            session: self,
            options: &options,
            taught,
            epoch: self.lane().acks.begin(connection.client().clone()),
            subscribing: VecDeque::new(),
            refused: BTreeSet::new(),
            stale: Vec::new(),
            asked: Instant::now(),
            settling: false,
            leaving: false,
        };
        self.shared.metrics.epoch.inc();
        if serving.taught.is_empty() {
            // The holder before receives nothing more, and stored all that it acknowledged; the rest comes now.
            serving.learn_births(tenure).await?;
        }
        // Not before: connected, and with nothing that waits to be subscribed, it would be ready.
        serving.greet(&granted, tenure);
        let order = orders.borrow_and_update().clone();
        serving.follow(&mut connection, tenure, &order).await?;
        serving.ask_for_drops(&connection);

        let silence = options.keep_alive * 2;
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

/// What a SUBSCRIBE asked for.
enum Asked {
    Filters(Vec<String>),
    Drops,
}

/// One connection being served.
struct Serving<'a> {
    session: &'a Session,
    options: &'a Options,
    epoch: u64,
    /// Filters whose grant was followed by a look at the stored births, since the lease was taken.
    taught: &'a mut BTreeSet<String>,
    /// Filters of each SUBSCRIBE not yet answered.
    subscribing: VecDeque<Asked>,
    refused: BTreeSet<String>,
    /// Filters that are still to be unsubscribed.
    stale: Vec<String>,
    /// When filters were last subscribed.
    asked: Instant,
    settling: bool,
    leaving: bool,
}

impl Serving<'_> {
    fn shared(&self) -> &Shared {
        &self.session.shared
    }

    fn lane(&self) -> &Lane {
        self.session.lane()
    }

    fn greet(&self, granted: &Granted, tenure: &Tenure) {
        {
            let mut link = self.lane().link();
            link.connected = true;
            link.session_present = Some(granted.session_present);
            link.subscriptions.clear();
        }
        if !granted.session_present && tenure.session_existed(self.session.lane) {
            self.shared().metrics.sessions_lost.inc();
            tracing::error!(
                client_id = self.options.client_id,
                "the broker no longer has the session: what it queued for it is lost"
            );
        }
        tracing::info!(
            epoch = self.epoch,
            client_id = self.options.client_id,
            session_present = granted.session_present,
            "connected to the broker"
        );
    }

    /// Reads Sparkplug's births before more deliveries: who consumed these before may have stored some.
    async fn learn_births(&self, tenure: &Tenure) -> Result<(), Lost> {
        let terms = Arc::clone(&self.session.terms.borrow());
        // Pings stop meanwhile, so not for long.
        let patience = self.options.keep_alive / 2;
        let failed = |why: String| Lost::Failed(format!("reading Sparkplug's births: {why}"));
        match tokio::time::timeout(patience, tenure.teach_births(&terms.decoder)).await {
            Ok(read) => read.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed(format!("not done within {patience:?}"))),
        }
    }

    /// Carries out an order: subscribes what is wanted, unsubscribes what no longer is.
    async fn follow(
        &mut self,
        connection: &mut Connection,
        tenure: &Tenure,
        order: &Order,
    ) -> Result<(), Lost> {
        let wanted = match order {
            Order::Consume(wanted) => wanted,
            Order::Settle => {
                self.settling = true;
                return Ok(());
            }
            Order::Leave => {
                self.leaving = true;
                return Ok(());
            }
        };
        self.refused.retain(|filter| wanted.contains(filter));
        let subscribed = {
            let mut link = self.lane().link();
            let new: Vec<_> =
                wanted.iter().filter(|f| !link.subscriptions.contains_key(*f)).cloned().collect();
            link.subscriptions.retain(|filter, _| wanted.contains(filter));
            link.subscriptions.extend(new.iter().map(|filter| (filter.clone(), None)));
            new
        };
        // Written down first, so that whoever serves this session next knows what to unsubscribe.
        let noted = tenure.subscribing(self.session.lane, wanted).await;
        self.stale = noted.map_err(|error| Lost::Failed(error.to_string()))?;
        if !subscribed.is_empty() {
            self.subscribe(connection, subscribed);
        }
        self.unsubscribe_stale(connection);
        self.shared().show_connected();
        Ok(())
    }

    /// Unsubscribes what no longer is wanted here, unless another session is still to have it.
    fn unsubscribe_stale(&mut self, connection: &mut Connection) {
        let (lanes, lane) = (&self.session.shared.lanes, self.session.lane);
        self.stale.retain(|filter| {
            let waits = lanes.awaits(filter, lane);
            if !waits {
                connection.unsubscribe(filter);
            }
            waits
        });
    }

    fn subscribe(&mut self, connection: &Connection, filters: Vec<String>) {
        connection.client().subscribe(&filters);
        self.subscribing.push_back(Asked::Filters(filters));
        self.asked = Instant::now();
    }

    /// One session asks the broker what it dropped. At QoS 0, so that the answers are no deliveries.
    fn ask_for_drops(&mut self, connection: &Connection) {
        let session = self.session;
        let first = session.lane == 0 && session.marker.is_none();
        // Not again, unless it is granted: there are brokers that end the connection instead of refusing.
        if first && session.asks_for_drops.swap(false, Ordering::Relaxed) {
            connection.client().subscribe_unprotected(BROKER_DROPS);
            self.subscribing.push_back(Asked::Drops);
        }
    }

    async fn on_event(&mut self, event: Event, tenure: &Tenure) -> Result<(), Lost> {
        match event {
            Event::Publish(publish) => self.take_in(publish).await?,
            Event::Subscribed(grants) => self.subscribed(grants, tenure).await?,
            // Wanted again meanwhile: SUBSCRIBE followed on the wire.
            Event::Unsubscribed(filter) if self.lane().link().subscriptions.contains_key(&filter) => {}
            Event::Unsubscribed(filter) => {
                tracing::info!(filter, "unsubscribed");
                self.taught.remove(&filter);
                // Not noted, it must be unsubscribed again: by the next connection.
                tenure
                    .unsubscribed(self.session.lane, &filter)
                    .await
                    .map_err(|error| Lost::Failed(error.to_string()))?;
            }
            Event::Pong(trip) => self.lane().went_round(trip),
            Event::Connected(_) | Event::Disconnected | Event::Published | Event::Alive => {}
        }
        Ok(())
    }

    async fn subscribed(&mut self, grants: Vec<Result<u8, String>>, tenure: &Tenure) -> Result<(), Lost> {
        let filters = match self.subscribing.pop_front() {
            Some(Asked::Filters(filters)) => filters,
            Some(Asked::Drops) => {
                let granted = grants.first().is_some_and(Result::is_ok);
                self.session.asks_for_drops.store(granted, Ordering::Relaxed);
                return Ok(());
            }
            None => return Ok(()),
        };
        self.lane().went_round(self.asked.elapsed());
        if filters.iter().any(|filter| !self.taught.contains(filter)) {
            // Another shard may have had them until now.
            self.learn_births(tenure).await?;
            self.taught.extend(filters.iter().cloned());
        }
        let mut granted_any = false;
        {
            let mut link = self.session.lane().link();
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
        self.shared().show_connected();
        if granted_any && !tenure.session_existed(self.session.lane) {
            let _ = tenure.session_exists(self.session.lane).await;
        }
        Ok(())
    }

    fn on_tick(&mut self, connection: &mut Connection) {
        if !self.stale.is_empty() {
            self.unsubscribe_stale(connection);
        }
        if self.leaving {
            if self.lane().acks.window().unacked == 0 {
                connection.client().disconnect();
            }
        } else if self.settling {
            if self.shared().metrics.in_flight.get() == 0 {
                connection.client().disconnect();
            }
        } else if !self.refused.is_empty() && self.asked.elapsed() > RESUBSCRIBE {
            self.subscribe(connection, self.refused.iter().cloned().collect());
        }
    }

    /// Takes a delivery in, or waits a while for room for it.
    async fn take_in(&mut self, publish: Publish) -> Result<(), Lost> {
        let Self { session, options, epoch, settling, .. } = self;
        let shared = &session.shared;
        let metrics = &shared.metrics;
        let qos0 = publish.packet_id == 0;
        if qos0 && publish.topic == BROKER_DROPS.as_bytes() {
            if let Some(count) = std::str::from_utf8(&publish.payload).ok().and_then(|text| text.parse().ok())
            {
                metrics.broker_dropped.set(count);
            }
            return Ok(());
        }
        if *settling && !qos0 {
            // Not taken in: the broker keeps it.
            return Ok(());
        }
        if let Some(marker) =
            session.marker.as_ref().filter(|marker| publish.topic == marker.topic.as_bytes())
        {
            if !qos0 {
                let (seq, _) = session.lane().acks.push(publish.packet_id, Instant::now());
                session.lane().acks.commit(std::iter::once((*epoch, seq)));
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
                let patience = options.keep_alive / 2;
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
            let lane = session.lane();
            lane.received.fetch_add(1, Ordering::Relaxed);
            let (seq, window) = lane.acks.push(publish.packet_id, arrived);
            (Some(seq), Some(window))
        };
        let waiting = shared.inbox.push(Delivery {
            lane: session.lane,
            epoch: *epoch,
            seq,
            tenant: decode::tenant(session.terms.borrow().decoder.layout(), &publish.topic).map(Into::into),
            topic: publish.topic,
            payload: publish.payload,
            compression: publish.compression,
            told: Vec::new(),
            dup: publish.dup,
            received_at: shared.clock.now(),
            arrived,
            parent: shared.tracer.as_ref().and_then(|tracer| tracer.arrived(&publish.user_properties)),
            trace: None,
            in_hand: InHand::new(budget, metrics.in_flight.clone()),
        });
        if window.is_some_and(|window| window.is_full() || waiting >= window.half()) {
            shared.inbox.wake();
        }
        Ok(())
    }
}
