//! `/livez`, `/readyz`, `/metrics` and `/status`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use sqlx::PgPool;

use crate::mqtt::lanes::{Lane, Link};
use crate::mqtt::session::Shared;
use crate::store::breaker::Breaker;
use crate::store::connection;
use crate::tenure::LeaseView;
use crate::throughput::{self, Limit};

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
    /// When the worker is ready.
    pub limits: Limits,
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    /// The queue is full, and it moves.
    backpressured: bool,
    /// What is wrong: a bounded word, and for a person.
    reasons: Vec<(&'static str, String)>,
    queue_fill: f64,
    unacked: usize,
    oldest_unacked_seconds: f64,
}

#[derive(Serialize)]
struct Status {
    shard: String,
    #[serde(flatten)]
    readiness: Readiness,
    lease: serde_json::Value,
    sessions: Vec<SessionStatus>,
    window_observed: usize,
    #[serde(rename = "limitedBy")]
    limited_by: Limit,
    epoch: u64,
    received: u64,
    committed: u64,
    abandoned: u64,
    dropped_qos0: u64,
    in_flight: i64,
}

#[derive(Serialize)]
struct SessionStatus {
    #[serde(flatten)]
    link: Link,
    unacked: usize,
    window_observed: usize,
    epoch: u64,
}

/// The pages.
pub fn router(pages: Arc<Pages>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/health", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(pages)
}

async fn livez(State(pages): State<Arc<Pages>>) -> Response {
    let stillness = pages.pulse.stillness();
    let code = if stillness <= pages.limits.max_stillness {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    (code, Json(serde_json::json!({ "still_seconds": stillness.as_secs_f64() }))).into_response()
}

async fn readyz(State(pages): State<Arc<Pages>>) -> Response {
    let readiness = pages.readiness().await;
    let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(readiness)).into_response()
}

async fn status(State(pages): State<Arc<Pages>>) -> Response {
    let metrics = &pages.shared.metrics;
    let window = pages.shared.lanes.window();
    Json(Status {
        shard: pages.shard.clone(),
        readiness: pages.readiness().await,
        lease: pages.lease.to_json(),
        sessions: pages.sessions(),
        window_observed: window.observed,
        limited_by: pages.shared.throughput.recent().limit(),
        epoch: window.epoch,
        received: metrics.received.get(),
        committed: metrics.committed.get(),
        abandoned: metrics.abandoned.get(),
        dropped_qos0: metrics.dropped_qos0.get(),
        in_flight: metrics.in_flight.get(),
    })
    .into_response()
}

async fn metrics(State(pages): State<Arc<Pages>>) -> Response {
    pages.refresh_gauges();
    match pages.shared.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

impl Pages {
    fn refresh_gauges(&self) {
        let (metrics, window) = (&self.shared.metrics, self.shared.lanes.window());
        metrics.queue_size.set(self.shared.inbox.len() as i64);
        metrics.queue_fill.set(self.shared.queue_fill());
        metrics.series_waiting.set(self.shared.inbox.deferred() as i64);
        metrics.unacked.set(window.unacked as i64);
        metrics.window_observed.set(window.observed as i64);
        metrics.oldest_unacked.set(window.oldest.unwrap_or_default().as_secs_f64());
        metrics.lease_held.set(i64::from(self.lease.is_held()));
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
        let mut reasons = self.link_faults();
        if !self.lease.is_held() {
            reasons.push(("lease_not_held", self.lease.explain()));
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
        let crowded = fill >= self.limits.max_queue_fill || (window.unacked > 1 && window.is_full());
        if crowded && oldest > self.limits.max_unacked_age {
            reasons.push((
                "queue_stuck",
                format!(
                    "the queue is full and its oldest delivery has waited {:.1} s for a commit",
                    oldest.as_secs_f64()
                ),
            ));
        }
        Readiness {
            ready: reasons.is_empty(),
            backpressured: crowded,
            reasons,
            queue_fill: fill,
            unacked: window.unacked,
            oldest_unacked_seconds: oldest.as_secs_f64(),
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
