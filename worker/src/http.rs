//! `/livez`, `/readyz`, `/metrics` and `/status`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use penstock_crds::report::{Reason, WorkerStatus};
use serde::Serialize;

pub use self::pages::{Limits, Pages, Pulse};

mod pages;

/// Why a worker is not ready before its first look at its files.
const STARTING: &str = "starting";

/// What is served: before the files are good, why they are not; then the shard's pages.
#[derive(Debug, Default)]
pub struct Front {
    stage: Mutex<Stage>,
}

#[derive(Debug, Default, Clone)]
struct Stage {
    /// The shard's, once its files are good.
    pages: Option<Arc<Pages>>,
    /// What is wrong with the files.
    faults: Vec<Reason>,
}

impl Front {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a shard from now on.
    pub fn show(&self, pages: Pages) {
        *self.stage() = Stage { pages: Some(Arc::new(pages)), faults: Vec::new() };
    }

    /// Shows what is wrong with the files now.
    pub fn faults(&self, faults: Vec<Reason>) {
        self.stage().faults = faults;
    }

    async fn status(&self) -> WorkerStatus {
        let Stage { pages, faults } = self.stage().clone();
        match pages {
            Some(pages) => WorkerStatus { unfollowed: faults, ..pages.status().await },
            None if faults.is_empty() => WorkerStatus::not_ready(STARTING, "reading its files".to_owned()),
            None => WorkerStatus { reasons: faults, ..WorkerStatus::default() },
        }
    }
}

/// The part of the status that readiness is about.
#[derive(Serialize)]
struct Readiness {
    ready: bool,
    backpressured: bool,
    reasons: Vec<Reason>,
    queue_fill: f64,
    unacked: usize,
    oldest_unacked_seconds: f64,
}

impl From<WorkerStatus> for Readiness {
    fn from(status: WorkerStatus) -> Self {
        let WorkerStatus {
            ready, backpressured, reasons, queue_fill, unacked, oldest_unacked_seconds, ..
        } = status;
        Self { ready, backpressured, reasons, queue_fill, unacked, oldest_unacked_seconds }
    }
}

/// The pages.
pub fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/health", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(front)
}

async fn livez(State(front): State<Arc<Front>>) -> Response {
    let pages = front.stage().pages.clone();
    let (alive, stillness) = pages.map_or((true, Duration::ZERO), |pages| pages.liveness());
    let code = if alive { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (code, Json(serde_json::json!({ "still_seconds": stillness.as_secs_f64() }))).into_response()
}

async fn readyz(State(front): State<Arc<Front>>) -> Response {
    let readiness = Readiness::from(front.status().await);
    let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(readiness)).into_response()
}

async fn status(State(front): State<Arc<Front>>) -> Response {
    Json(front.status().await).into_response()
}

async fn metrics(State(front): State<Arc<Front>>) -> Response {
    let pages = front.stage().pages.clone();
    match pages.map_or(Ok(Vec::new()), |pages| pages.metrics()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
