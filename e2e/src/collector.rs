//! A trace collector: takes OTLP over HTTP as a real one does, by OpenTelemetry's own protocol definitions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::wait::until_async;

/// A span, and whose it is.
#[derive(Debug, Clone)]
pub struct Received {
    /// Attributes of the resource.
    pub resource: BTreeMap<String, String>,
    /// Attributes of the span.
    pub attributes: BTreeMap<String, String>,
    /// The span.
    pub span: Span,
}

#[derive(Debug, Default)]
struct Shared {
    spans: Mutex<Vec<Received>>,
    silent: watch::Sender<bool>,
}

/// A collector on loopback.
#[derive(Debug)]
pub struct Collector {
    /// Its port.
    pub port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collector {
    /// Starts one; on a free port if 0.
    pub async fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::<Shared>::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { port, shared, task })
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Received> {
        self.shared.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has it take requests and answer none.
    pub fn silence(&self, silent: bool) {
        self.shared.silent.send_replace(silent);
    }

    /// Waits until a span is there, and returns the first.
    pub async fn span(&self, what: &str, wanted: impl Fn(&Received) -> bool) -> Result<Received> {
        let find = || self.spans().into_iter().find(&wanted);
        until_async(what, Duration::from_secs(20), || async { find().is_some() }).await?;
        find().context("it was there")
    }
}

async fn take(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> (StatusCode, Vec<u8>) {
    let _ = shared.silent.subscribe().wait_for(|silent| !silent).await;
    if headers.get("content-type").is_none_or(|kind| kind != "application/x-protobuf") {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, Vec::new());
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return (StatusCode::BAD_REQUEST, Vec::new());
    };
    let mut spans = shared.spans.lock().unwrap_or_else(PoisonError::into_inner);
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.map(|resource| plain(&resource.attributes)).unwrap_or_default();
        for span in of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans) {
            let attributes = plain(&span.attributes);
            spans.push(Received { resource: resource.clone(), attributes, span });
        }
    }
    (StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec())
}

fn plain(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::BoolValue(truth) => truth.to_string(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .iter()
        .filter_map(|attribute| {
            Some((attribute.key.clone(), text(attribute.value.as_ref()?.value.as_ref()?)))
        })
        .collect()
}
