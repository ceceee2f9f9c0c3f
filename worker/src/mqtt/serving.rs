//! Serves one connection of a session: subscribes and unsubscribes, takes deliveries in, and leaves
//! once nothing is in hand.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::connection::{Connection, Event, Granted, Lost, Publish};
use super::lanes::Lane;
use super::options::Options;
use super::session::{Order, Session, Shared};
use crate::decode;
use crate::delivery::{Delivery, InHand};
use crate::retire;
use crate::tenure::Tenure;

/// What a delivery costs beside its packet.
const DELIVERY_OVERHEAD: usize = 256;
/// With so many deliveries that wait for a writer, the next one is in no hurry.
const PLENTY: usize = 64;
/// Where Mosquitto tells how many messages it has dropped in all.
const BROKER_DROPS: &str = "$SYS/broker/publish/messages/dropped";
/// Refused filters are asked for again this often.
const RESUBSCRIBE: Duration = Duration::from_secs(30);

/// What a SUBSCRIBE asked for.
enum Asked {
    Filters(Vec<String>),
    Drops,
}

/// One connection being served.
pub struct Serving<'a> {
    session: &'a Session,
    options: &'a Options,
    epoch: u64,
    /// How long the connection may wait for something else. Pings stop meanwhile, so not for long.
    patience: Duration,
    /// Filters whose grant was followed by a look at the stored births, since the lease was taken.
    taught: &'a mut BTreeSet<String>,
    /// Filters of each SUBSCRIBE not yet answered.
    subscribing: VecDeque<Asked>,
    refused: BTreeSet<String>,
    /// Filters that are still to be unsubscribed.
    stale: Vec<String>,
    /// When filters were last subscribed.
    asked: Instant,
    /// What is carried out now.
    order: Order,
}

impl<'a> Serving<'a> {
    /// Has what is committed acknowledged on this connection from now on.
    pub fn begin(
        session: &'a Session,
        options: &'a Options,
        taught: &'a mut BTreeSet<String>,
        connection: &Connection,
    ) -> Self {
        // What is not acknowledged comes again, and a marker says nothing of what comes before it then.
        if let Some(marker) = &session.marker {
            marker.seen.send_replace(None);
        }
        Self {
            session,
            options,
            epoch: session.lane().acks.begin(connection.client().clone()),
            patience: connection.keep_alive() / 2,
            taught,
            subscribing: VecDeque::new(),
            refused: BTreeSet::new(),
            stale: Vec::new(),
            asked: Instant::now(),
            order: Order::Consume([].into()),
        }
    }

    fn shared(&self) -> &Shared {
        &self.session.shared
    }

    fn lane(&self) -> &Lane {
        self.session.lane()
    }

    /// Notes that there is a connection, and whether the broker kept its session.
    pub fn greet(&self, granted: &Granted, tenure: &Tenure) {
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
    pub async fn learn_births(&self, tenure: &Tenure) -> Result<(), Lost> {
        let terms = Arc::clone(&self.session.terms.borrow());
        let patience = self.patience;
        let failed = |why: String| Lost::Failed(format!("reading Sparkplug's births: {why}"));
        match tokio::time::timeout(patience, tenure.teach_births(&terms.decoder)).await {
            Ok(read) => read.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed(format!("not done within {patience:?}"))),
        }
    }

    /// Carries out an order: subscribes what is wanted, unsubscribes what no longer is.
    pub async fn follow(
        &mut self,
        connection: &mut Connection,
        tenure: &Tenure,
        order: &Order,
    ) -> Result<(), Lost> {
        self.order = order.clone();
        let Order::Consume(wanted) = order else { return Ok(()) };
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
    pub fn ask_for_drops(&mut self, connection: &Connection) {
        let session = self.session;
        let first = session.lane == 0 && session.marker.is_none();
        // Not again, unless it is granted: there are brokers that end the connection instead of refusing.
        if first && session.asks_for_drops.swap(false, Ordering::Relaxed) {
            connection.client().subscribe_unprotected(BROKER_DROPS);
            self.subscribing.push_back(Asked::Drops);
        }
    }

    /// Does what an event asks for.
    pub async fn on_event(
        &mut self,
        connection: &mut Connection,
        event: Event,
        tenure: &Tenure,
    ) -> Result<(), Lost> {
        match event {
            Event::Publish(publish) => self.take_in(connection, publish).await?,
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

    /// Ends what is to end and can, and asks again for what was refused.
    pub fn on_tick(&mut self, connection: &mut Connection) {
        if !self.stale.is_empty() {
            self.unsubscribe_stale(connection);
        }
        if !matches!(self.order, Order::Consume(_)) {
            if self.session.is_done(&self.order) {
                connection.client().disconnect();
            }
        } else if !self.refused.is_empty() && self.asked.elapsed() > RESUBSCRIBE {
            self.subscribe(connection, self.refused.iter().cloned().collect());
        }
    }

    /// Takes a delivery in, or waits a while for room for it.
    async fn take_in(&mut self, connection: &mut Connection, publish: Publish) -> Result<(), Lost> {
        let Self { session, options, epoch, order, patience, .. } = self;
        let settling = *order == Order::Settle;
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
        if settling && !qos0 {
            // Not taken in: the broker keeps it.
            return Ok(());
        }
        // Also one of a retire that was called off: its marker may be queued still, and is no device's message.
        if retire::is_marker(&publish.topic, &options.client_id) {
            if !qos0 {
                let (seq, _) = session.lane().acks.push(publish.packet_id, Instant::now());
                session.lane().acks.commit(std::iter::once((*epoch, seq)));
            }
            if let Some(marker) = &session.marker {
                marker.seen.send_replace(Some(String::from_utf8_lossy(&publish.payload).into_owned()));
            }
            return Ok(());
        }
        let cost = (publish.held + DELIVERY_OVERHEAD).min(shared.budget_bytes) as u32;
        let budget = match Arc::clone(&shared.budget).try_acquire_many_owned(cost) {
            Ok(budget) if !settling => budget,
            _ if qos0 => {
                metrics.received.inc();
                metrics.qos0_received.inc();
                metrics.dropped_qos0.inc();
                return Ok(());
            }
            _ => {
                match tokio::time::timeout(*patience, Arc::clone(&shared.budget).acquire_many_owned(cost))
                    .await
                {
                    Ok(Ok(budget)) => budget,
                    _ => return Err(Lost::BudgetFull(*patience)),
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
            claimed: None,
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
        if waiting >= PLENTY && window.is_none_or(|window| window.is_wide()) {
            connection.rest();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::shard::tests::lonely;
    use crate::store::lease::LeaseRow;

    #[tokio::test]
    async fn a_new_connection_forgets_a_marker_that_came_by_an_earlier_one() {
        let shard = lonely();
        let options = shard.broker();
        let session = shard.session(0, Some(Arc::new(retire::marker(&options))));
        let seen = &session.marker.as_ref().unwrap().seen;
        seen.send_replace(Some("nonce".to_owned()));
        let mut taught = BTreeSet::new();
        Serving::begin(&session, &options, &mut taught, &Connection::new(&options));
        assert_eq!(*seen.borrow(), None, "what was in hand then comes again, and the marker behind it");
    }

    fn message(held: usize) -> Event {
        Event::Publish(Publish {
            packet_id: 7,
            topic: "t".into(),
            payload: "p".into(),
            compression: None,
            held,
            dup: false,
            user_properties: Vec::new(),
        })
    }

    #[tokio::test]
    async fn a_delivery_takes_the_byte_budget_of_its_whole_packet() {
        let shard = lonely();
        let (options, session) = (shard.broker(), shard.session(0, None));
        let (mut connection, mut taught) = (Connection::new(&options), BTreeSet::new());
        let mut serving = Serving::begin(&session, &options, &mut taught, &connection);
        let tenure = shard.tenure(LeaseRow::default());
        serving.on_event(&mut connection, message(10_000), &tenure).await.unwrap();
        let free = shard.shared.budget.available_permits();
        assert_eq!(shard.shared.budget_bytes - free, 10_000 + DELIVERY_OVERHEAD);
    }

    #[tokio::test]
    async fn a_full_budget_is_waited_for_half_of_the_keep_alive_that_the_broker_granted() {
        let shard = lonely();
        let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = broker.local_addr().unwrap().port();
        let options = Options { host: "127.0.0.1".to_owned(), port, ..shard.broker() };
        let mut connection = Connection::new(&options);
        let answer = async {
            let (mut stream, _) = broker.accept().await.unwrap();
            // A server's keep-alive of 1 s (property 19).
            stream.write_all(&[0x20, 6, 0, 0, 3, 19, 0, 1]).await.unwrap();
            stream
        };
        let (_stream, connected) = tokio::join!(answer, connection.next());
        assert!(matches!(connected, Ok(Event::Connected(_))), "{connected:?}");
        let (session, mut taught) = (shard.session(0, None), BTreeSet::new());
        let mut serving = Serving::begin(&session, &options, &mut taught, &connection);
        let _all = shard.shared.budget.acquire_many(shard.shared.budget_bytes as u32).await.unwrap();
        let tenure = shard.tenure(LeaseRow::default());
        let wait = serving.on_event(&mut connection, message(10), &tenure);
        let lost = tokio::time::timeout(Duration::from_secs(5), wait).await.unwrap();
        assert!(matches!(lost, Err(Lost::BudgetFull(patience)) if patience == Duration::from_millis(500)));
    }

    #[tokio::test]
    async fn a_session_leaves_only_when_what_an_earlier_connection_brought_is_committed() {
        let shard = lonely();
        let (options, session) = (shard.broker(), shard.session(0, None));
        let acks = &session.lane().acks;
        let lost = acks.begin(Connection::new(&options).client().clone());
        let (seq, _) = acks.push(7, Instant::now());
        let (mut connection, mut taught) = (Connection::new(&options), BTreeSet::new());
        let mut serving = Serving::begin(&session, &options, &mut taught, &connection);
        let tenure = shard.tenure(LeaseRow::default());
        serving.follow(&mut connection, &tenure, &Order::Leave).await.unwrap();
        serving.on_tick(&mut connection);
        assert!(connection.client().acknowledge(std::iter::empty()), "it has left");
        acks.commit(std::iter::once((lost, seq)));
        serving.on_tick(&mut connection);
        assert!(!connection.client().acknowledge(std::iter::empty()), "nothing keeps it");
    }
}
