//! What the pages show of a shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use penstock_crds::report::{Limit, Link, SessionStatus, WorkerStatus};
use sqlx::PgPool;
use tokio::sync::watch;

use crate::mqtt::acks::Window;
use crate::mqtt::lanes::Lane;
use crate::mqtt::session::Shared;
use crate::retire::RETIRE_TOPIC;
use crate::settings::Terms;
use crate::store::breaker::Breaker;
use crate::store::connection;
use crate::tenure::LeaseView;
use crate::throughput;

/// How long the database has for readiness' question.
const DATABASE_DEADLINE: Duration = Duration::from_secs(2);

/// When a worker is ready.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Share of the byte budget in use, 0 to 1.
    pub max_queue_fill: f64,
    /// Age of the oldest unacknowledged delivery.
    pub max_unacked_age: Duration,
    /// The loop is alive while it moved within this time.
    pub max_stillness: Duration,
}

/// When the loop last moved.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    last: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// The loop moved.
    pub fn beat(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn stillness(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

/// What the pages show.
#[derive(Debug)]
pub struct Pages {
    /// Which shard of which pipeline: `namespace/pipeline/shard`.
    pub shard: String,
    /// Shared with the session.
    pub shared: Arc<Shared>,
    /// The writers' breaker.
    pub breaker: Arc<Breaker>,
    /// A connection kept for readiness alone.
    pub reserve: PgPool,
    /// The lease.
    pub lease: Arc<LeaseView>,
    /// When the loop last moved.
    pub pulse: Arc<Pulse>,
    /// When the worker is ready, and what is followed.
    pub terms: watch::Receiver<Arc<Terms>>,
}

/// Whether the worker consumes and stores.
struct Readiness {
    /// What is wrong: a bounded word, and for a person.
    reasons: Vec<(&'static str, String)>,
    /// The queue is full.
    crowded: bool,
    fill: f64,
    window: Window,
}

impl Pages {
    /// All metrics, in Prometheus' text format.
    pub(super) fn metrics(&self) -> Result<Vec<u8>, prometheus::Error> {
        self.refresh_gauges();
        self.shared.metrics.render()
    }

    fn refresh_gauges(&self) {
        let (metrics, window) = (&self.shared.metrics, self.shared.lanes.window());
        metrics.queue_size.set(self.shared.inbox.len() as i64);
        metrics.queue_fill.set(self.shared.queue_fill());
        metrics.series_waiting.set(self.shared.inbox.deferred() as i64);
        metrics.unacked.set(window.unacked as i64);
        metrics.window_observed.set(window.observed as i64);
        metrics.oldest_unacked.set(window.oldest.unwrap_or_default().as_secs_f64());
        metrics.lease_held.set(i64::from(self.lease.is_held()));
        metrics.takeover_gap.set(self.shared.gap.last().unwrap_or_default().as_secs_f64());
        let (recent, lanes) = (self.shared.throughput.recent(), self.shared.lanes.used());
        for limit in Limit::ALL {
            let now = limit == recent.limit();
            metrics.limited_by.with_label_values(&[limit.as_str()]).set(i64::from(now));
        }
        let round_trip = lanes.iter().map(Lane::round_trip).max().unwrap_or_default();
        metrics.round_trip.set(round_trip.as_secs_f64());
        if let Some(commit) = recent.commit {
            let bounds = lanes
                .iter()
                .map(|lane| throughput::bound(lane.acks.window().observed, lane.round_trip(), commit));
            metrics.rate_bound.set(bounds.sum());
        }
    }

    async fn readiness(&self) -> Readiness {
        let limits = self.limits();
        let mut reasons = self.link_faults();
        if !self.lease.is_held() {
            reasons.push(self.lease.explain());
        }
        if let Some((class, why)) = self.breaker.open() {
            reasons.push(("database_refuses", format!("{}: {why}", class.as_str())));
        } else if let Some(why) = self.database_fault().await {
            reasons.push(("database_away", why));
        }
        let window = self.shared.lanes.window();
        let oldest = window.oldest.unwrap_or_default();
        let fill = self.shared.queue_fill();
        // The broker's window is a queue too: where it is full, nothing more comes.
        let crowded = fill >= limits.max_queue_fill || (window.unacked > 1 && window.is_full());
        if crowded && oldest > limits.max_unacked_age {
            reasons.push((
                "queue_stuck",
                format!(
                    "the queue is full and its oldest delivery has waited {:.1} s for a commit",
                    oldest.as_secs_f64()
                ),
            ));
        }
        Readiness { reasons, crowded, fill, window }
    }

    fn limits(&self) -> Limits {
        self.terms.borrow().readiness
    }

    /// Whether the loop moves, and for how long it has not.
    pub(super) fn liveness(&self) -> (bool, Duration) {
        let stillness = self.pulse.stillness();
        (stillness <= self.limits().max_stillness, stillness)
    }

    /// All that is known.
    pub(super) async fn status(&self) -> WorkerStatus {
        let Shared { metrics, lanes, throughput, flow, .. } = &*self.shared;
        let (window, recent) = (lanes.window(), throughput.recent());
        let (lease, plan) = self.lease.status();
        let granted = |lane: &Lane| lane.link().granted().cloned().collect::<Vec<_>>();
        let subscribed = lanes.used().iter().flat_map(granted);
        let Readiness { reasons, crowded, fill, window: Window { unacked, oldest, .. } } =
            self.readiness().await;
        let reason = |(reason, why): (&str, String)| (reason.to_owned(), why);
        WorkerStatus {
            shard: self.shard.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: reasons.is_empty(),
            backpressured: crowded,
            reasons: reasons.into_iter().map(reason).collect(),
            queue_fill: fill,
            unacked,
            oldest_unacked_seconds: oldest.unwrap_or_default().as_secs_f64(),
            manifest: self.terms.borrow().digest.clone(),
            unfollowed: Vec::new(),
            plan,
            subscribed: subscribed.filter(|filter| !filter.starts_with(RETIRE_TOPIC)).collect(),
            lease,
            sessions: self.sessions(),
            window_observed: window.observed,
            limited_by: recent.limit(),
            takeover_gap_seconds: self.shared.gap.last().map(|gap| gap.as_secs_f64()),
            rate: recent.rate,
            utilisation: recent.utilisation(),
            commit_seconds: recent.commit.map(|commit| commit.as_secs_f64()),
            delay_seconds: recent.delay.map(|(delay, _)| delay),
            delay_growth: recent.delay.and_then(|(_, growth)| growth),
            key_rates: flow.rates(),
            busy: recent.busy.min(1.0),
            epoch: window.epoch,
            received: metrics.received.get(),
            committed: metrics.committed.get(),
            abandoned: metrics.abandoned.get(),
            dropped_qos0: metrics.dropped_qos0.get(),
            in_flight: metrics.in_flight.get(),
        }
    }

    fn sessions(&self) -> Vec<SessionStatus> {
        let lanes = self.shared.lanes.used().iter();
        lanes
            .map(|lane| {
                let window = lane.acks.window();
                SessionStatus {
                    link: lane.link().clone(),
                    unacked: window.unacked,
                    window_observed: window.observed,
                    epoch: window.epoch,
                }
            })
            .collect()
    }

    /// The faults of the first session, and of the others that have something to consume.
    fn link_faults(&self) -> Vec<(&'static str, String)> {
        let lanes = self.shared.lanes.used().iter().enumerate();
        lanes
            .filter(|(index, lane)| *index == 0 || !lane.wanted().is_empty())
            .flat_map(|(index, lane)| {
                let of_session = if index == 0 { String::new() } else { format!("session {index}: ") };
                let faults = faults_of(&lane.link());
                faults.into_iter().map(move |(reason, why)| (reason, format!("{of_session}{why}")))
            })
            .collect()
    }

    async fn database_fault(&self) -> Option<String> {
        let question = async {
            let mut connection = connection::borrow(&self.reserve).await?;
            sqlx::query("SELECT 1").execute(&mut *connection).await?;
            connection.give_back();
            Ok::<_, sqlx::Error>(())
        };
        match tokio::time::timeout(DATABASE_DEADLINE, question).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {DATABASE_DEADLINE:?}")),
        }
    }
}

fn faults_of(link: &Link) -> Vec<(&'static str, String)> {
    if !link.connected {
        let why = match &link.last_end {
            Some((reason, why)) => format!("{reason}: {why}"),
            None => "not connected yet".to_owned(),
        };
        return vec![("broker_away", why)];
    }
    link.subscriptions
        .iter()
        .filter_map(|(filter, grant)| match grant {
            Some(Ok(qos)) if *qos >= 1 => None,
            Some(Ok(qos)) => Some(("subscription_refused", format!("{filter}: granted at QoS {qos} only"))),
            Some(Err(why)) => Some(("subscription_refused", format!("{filter}: {why}"))),
            None => Some(("subscribing", format!("{filter}: no SUBACK yet"))),
        })
        .collect()
}
