//! One shard's parts put together, and its life: wait for the lease, serve, let go.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::clock::DatabaseClock;
use crate::flow::Flow;
use crate::gap::Gap;
use crate::http::{Pages, Pulse};
use crate::inbox::Inbox;
use crate::ingest::Ingest;
use crate::metrics::Metrics;
use crate::mqtt::connection::Lost;
use crate::mqtt::lanes::Lanes;
use crate::mqtt::options::Options;
use crate::mqtt::session::{End, Marker, Session, Shared};
use crate::mqtt::visit;
use crate::settings::{Access, Settings, Terms};
use crate::stopwatch::Occupied;
use crate::store::breaker::Breaker;
use crate::store::dictionary::Dictionary;
use crate::store::lease::{self, Acquired, LeaseKey, Me};
use crate::store::lease_rules::{Purpose, Wait};
use crate::store::writer::Writer;
use crate::store::{connection, schema, transaction};
use crate::tenure::{LeaseView, NOT_HELD, Tenure};
use crate::throughput::{Look, Throughput};
use crate::trace::{TraceError, Tracer};

/// Writers of a worker: one commits while the other gathers.
pub const WRITERS: usize = 2;
/// How long a stopping worker has to commit and acknowledge what it holds.
const GRACE: Duration = Duration::from_secs(60);
/// How long a first look at the database may take, with the dictionary that is read then.
const LOOK_DEADLINE: Duration = Duration::from_mins(2);
const ASK_AGAIN: Duration = Duration::from_secs(1);
const BEAT: Duration = Duration::from_millis(500);

/// A failure to put the parts together.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// Metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Traces.
    #[error("spec.tracing: {0}")]
    Traces(#[from] TraceError),
}

/// One shard's parts.
#[derive(Debug)]
pub struct Shard {
    pub(crate) settings: Settings,
    pub(crate) shared: Arc<Shared>,
    breaker: Arc<Breaker>,
    pub(crate) pool: PgPool,
    /// A connection kept for readiness alone.
    reserve: PgPool,
    /// How to reach broker and database now.
    pub(crate) access: watch::Receiver<Access>,
    /// What is followed now.
    pub(crate) terms: watch::Receiver<Arc<Terms>>,
    pub(crate) lease: Arc<LeaseView>,
    pulse: Arc<Pulse>,
    pub(crate) key: LeaseKey,
    pub(crate) me: Me,
    /// Where the writers run.
    writers: Handle,
}

/// When and how to stop.
#[derive(Debug, Clone)]
pub struct Stop {
    /// Becomes true when the worker is to stop.
    pub signal: watch::Receiver<bool>,
    /// How long it goes on consuming until another took over.
    pub handover: Duration,
}

impl Stop {
    /// Waits for the signal.
    pub async fn requested(&self) {
        let _ = self.signal.clone().wait_for(|stop| *stop).await;
    }
}

impl Shard {
    /// Puts the parts together; nothing is connected yet.
    pub fn new(
        settings: Settings,
        (access, terms): (watch::Receiver<Access>, watch::Receiver<Arc<Terms>>),
        me: Me,
        writers: Handle,
    ) -> Result<Self, AssemblyError> {
        let metrics = Metrics::new()?;
        let database = access.borrow().database.clone();
        let tracer = settings
            .tracing
            .as_ref()
            .map(|options| Tracer::new(options, &settings, &metrics, &writers))
            .transpose()?;
        let shared = Arc::new(Shared {
            inbox: Inbox::default(),
            lanes: Lanes::default(),
            budget: Arc::new(Semaphore::new(settings.max_in_hand)),
            budget_bytes: settings.max_in_hand,
            clock: DatabaseClock::default(),
            metrics: metrics.clone(),
            committing: Occupied::default(),
            throughput: Throughput::default(),
            flow: Flow::default(),
            gap: Gap::default(),
            tracer,
        });
        let lease = Arc::new(LeaseView::default());
        lease.waiting("starting", "it has not looked at the database yet".to_owned());
        Ok(Self {
            pool: connection::pool(database.clone()),
            reserve: connection::reserve(database),
            access,
            terms,
            breaker: Arc::new(Breaker::new(metrics.breaker.clone())),
            key: settings.lease_key(),
            pulse: Arc::new(Pulse::default()),
            settings,
            shared,
            lease,
            me,
            writers,
        })
    }

    /// The pages of this shard.
    pub fn pages(&self) -> Pages {
        Pages {
            shard: self.key.0.clone(),
            shared: Arc::clone(&self.shared),
            breaker: Arc::clone(&self.breaker),
            reserve: self.reserve.clone(),
            lease: Arc::clone(&self.lease),
            pulse: Arc::clone(&self.pulse),
            terms: self.terms.clone(),
        }
    }

    /// Runs the shard until it is told to stop.
    pub async fn run(&self, stop: Stop) {
        tokio::select! {
            () = self.consume(stop) => {}
            () = self.renew_pools() => {}
        }
    }

    /// The pools' next connections use what was read last, for ever.
    async fn renew_pools(&self) {
        let mut access = self.access.clone();
        while access.changed().await.is_ok() {
            let database = access.borrow_and_update().database.clone();
            self.pool.set_connect_options(database.clone());
            self.reserve.set_connect_options(database);
            self.breaker.hurry();
        }
        std::future::pending::<()>().await;
    }

    async fn consume(&self, stop: Stop) {
        let mut writers = JoinSet::new();
        tokio::select! {
            () = stop.requested() => return,
            () = self.prepare(&mut writers) => {}
        }
        let life = self.live(stop.clone());
        let overdue = async {
            stop.requested().await;
            tokio::time::sleep(stop.handover + GRACE).await;
        };
        tokio::select! {
            () = life => {}
            () = overdue => tracing::error!("stopping although deliveries are still in hand"),
        }
        self.abandon();
    }

    /// Sends the traces that are still here, for a moment at most.
    pub async fn close_traces(&self) {
        if let Some(tracer) = &self.shared.tracer {
            tracer.close().await;
        }
    }

    pub(crate) fn abandon(&self) {
        let left = self.shared.metrics.in_flight.get();
        if left > 0 {
            self.shared.metrics.abandoned.inc_by(left as u64);
            self.shared.inbox.abandon();
            tracing::warn!(deliveries = left, "given up uncommitted; the broker sends them again");
        }
    }

    /// Waits for a database with a schema, reads the dictionary, and starts the writers.
    pub async fn prepare(&self, writers: &mut JoinSet<()>) {
        let dictionary = Dictionary::new(self.pool.clone(), self.settings.terms.max_series);
        let mut told = String::new();
        loop {
            self.pulse.beat();
            let looked = tokio::select! {
                looked = self.look_at_database(&dictionary) => looked,
                () = self.beat() => continue,
            };
            let Err(error) = looked else { break };
            if told != error.to_string() {
                tracing::error!(reason = error.reason(), %error, "waiting for the database");
                told = error.to_string();
                self.lease.waiting(error.reason(), told.clone());
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        self.shared.metrics.series_cached.set(dictionary.cached() as i64);
        let ingest = Arc::new(Ingest {
            shared: Arc::clone(&self.shared),
            terms: self.terms.clone(),
            dictionary,
            breaker: Arc::clone(&self.breaker),
            turn: tokio::sync::Mutex::default(),
        });
        let turn = Arc::default();
        for _ in 0..WRITERS {
            let writer = Writer::new(
                self.access.clone(),
                Arc::clone(&self.settings.pipeline),
                Arc::clone(&self.breaker),
                self.shared.metrics.clone(),
                Arc::clone(&turn),
            );
            let ingest = Arc::clone(&ingest);
            writers.spawn_on(async move { ingest.run(writer).await }, &self.writers);
        }
    }

    async fn look_at_database(&self, dictionary: &Dictionary) -> Result<(), schema::SchemaError> {
        let look = async {
            let mut connection = connection::borrow(&self.pool).await?;
            schema::require(&mut connection).await?;
            self.shared.clock.observe(transaction::clock(&mut *connection).await?);
            dictionary.warm(&mut connection).await?;
            connection.give_back();
            Ok(())
        };
        tokio::time::timeout(LOOK_DEADLINE, look)
            .await
            .unwrap_or(Err(schema::SchemaError::Silent(LOOK_DEADLINE)))
    }

    /// Takes the lease whenever the rules allow, and consumes while it is held.
    async fn live(&self, stop: Stop) {
        let (mut preflight, mut superseded) = (false, false);
        loop {
            self.pulse.beat();
            let plan = self.terms.borrow().work.generation;
            let purpose = Purpose::Run { preflight, plan };
            let acquired = tokio::select! {
                acquired = lease::acquire(&self.pool, &self.key, &self.me, purpose, superseded) => acquired,
                () = stop.requested() => break,
            };
            preflight = false;
            let (reason, why) = match acquired {
                Ok(Acquired::Taken(row)) => {
                    tracing::info!(shard = self.key.0, instance = self.me.instance, "took the shard's lease");
                    self.shared.gap.begin(row.consumed_ago);
                    let tenure = self.tenure(row);
                    match self.serve(&tenure, &stop).await {
                        End::Settled => return,
                        End::Superseded => {
                            superseded = true;
                            continue;
                        }
                    }
                }
                Ok(Acquired::NeedsPreflight) => match self.preflight().await {
                    Ok(()) => {
                        preflight = true;
                        continue;
                    }
                    Err(lost) => ("preflight_failed", format!("the broker: {lost}")),
                },
                Ok(Acquired::Wait { holder, why, plan_generation }) => {
                    // The next plan has to exceed it.
                    self.lease.saw_plan(plan_generation + i64::from(why == Wait::Retired));
                    let by = if holder.is_empty() { format!("plan {plan_generation}") } else { holder };
                    (NOT_HELD, format!("{why} ({by})"))
                }
                Err(error) => (NOT_HELD, format!("nothing is known of the lease: {error}")),
            };
            if self.lease.explain().1 != why {
                tracing::info!(reason, why, "waiting for the shard's lease");
            }
            self.lease.waiting(reason, why);
            tokio::select! {
                () = tokio::time::sleep(ASK_AGAIN) => {}
                () = stop.requested() => break,
            }
        }
        // Without the lease no acknowledgement can be sent, but what is in hand is still committed.
        while self.shared.metrics.in_flight.get() > 0 {
            self.pulse.beat();
            tokio::time::sleep(BEAT).await;
        }
    }

    /// How to reach the broker now.
    pub(crate) fn broker(&self) -> Options {
        self.access.borrow().broker.clone()
    }

    pub(crate) fn tenure(&self, row: lease::LeaseRow) -> Tenure {
        Tenure::new(self.pool.clone(), self.key.clone(), self.me.clone(), row, Arc::clone(&self.lease))
    }

    /// Whether this worker could run the shard: the database answers already; so must the broker.
    async fn preflight(&self) -> Result<(), Lost> {
        match visit::log_in(&self.broker().visit("-preflight")).await {
            // Brokers may allow a login only certain ids: that says nothing about the real one.
            Ok(_) | Err(Lost::ClientIdRefused) => Ok(()),
            Err(lost) => Err(lost),
        }
    }

    pub(crate) fn session(&self, lane: u8, marker: Option<Arc<Marker>>) -> Session {
        Session {
            lane,
            access: self.access.clone(),
            terms: self.terms.clone(),
            marker,
            asks_for_drops: AtomicBool::new(true),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Beats in the same task as the session: when that blocks, so does this.
    pub(crate) async fn beat(&self) {
        loop {
            self.pulse.beat();
            self.shared.throughput.observe(self.look());
            tokio::time::sleep(BEAT).await;
        }
    }

    /// The counters that tell what limits the throughput.
    fn look(&self) -> Look {
        let (at, lanes) = (Instant::now(), self.shared.lanes.used());
        let (session, writers) = (Handle::current().metrics(), self.writers.metrics());
        let busy_writers: Duration =
            (0..writers.num_workers()).map(|worker| writers.worker_total_busy_duration(worker)).sum();
        let commits = &self.shared.metrics.commit_seconds;
        Look {
            at,
            full: lanes.iter().map(|lane| lane.acks.full_for(at)).collect(),
            used: lanes.iter().map(|lane| lane.acks.used(at)).collect(),
            committing: self.shared.committing.total(at),
            busy: [session.worker_total_busy_duration(0), busy_writers / writers.num_workers().max(1) as u32],
            committed: self.shared.metrics.committed.get(),
            commits: commits.get_sample_count(),
            commit_seconds: commits.get_sample_sum(),
            window: lanes.iter().map(|lane| lane.acks.window().observed).max().unwrap_or_default(),
            fill: self.shared.queue_fill(),
            delay: self.shared.flow.beat(at),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
