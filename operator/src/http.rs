//! `/livez`, `/readyz` and `/metrics` of the operator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::metrics::Metrics;

/// What the pages show.
#[derive(Debug, Clone)]
pub struct Pages {
    /// Counters.
    pub metrics: Metrics,
    /// In each namespace: all caches are filled. A standby could take over.
    pub ready: Vec<Arc<AtomicBool>>,
}

/// The pages.
pub fn router(pages: Pages) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(pages)
}

async fn readyz(State(pages): State<Pages>) -> Response {
    if pages.ready.iter().all(|ready| ready.load(Ordering::Relaxed)) {
        (StatusCode::OK, "ok").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the caches are not filled yet: is the API server there?")
            .into_response()
    }
}

async fn metrics(State(pages): State<Pages>) -> Response {
    match pages.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
