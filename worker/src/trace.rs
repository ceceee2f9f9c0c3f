//! Traces of sampled messages, from the device's own trace to the acknowledgement, and of the batches that
//! stored them. Off, they cost the check of an `Option`; a message that is not sampled costs a random number.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, TraceState};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, ShouldSample, SpanExporter as _};
use prometheus::IntCounter;
use tokio::runtime::Handle;
use url::Url;

use crate::batch::Batch;
use crate::delivery::Delivery;
use crate::metrics::Metrics;
use crate::mqtt::acks::Standing;
use crate::mqtt::lanes::Lanes;
use crate::settings::Settings;

mod client;
pub mod context;
mod export;
mod spans;

use client::Client;
use context::Carried;
use export::Queue;
use spans::{Place, Size, Spans, Stored, Wall};

/// Sampled messages that wait for their acknowledgement; of more, the spans end with the commit.
const MAX_WAITING: usize = 4096;
/// Spans of a message, beside that of its acknowledgement.
const OF_MESSAGE: usize = 5;
/// Where a collector takes traces, below the endpoint.
const PATH: &str = "/v1/traces";

/// Where traces go, and how many.
#[derive(Debug, Clone)]
pub struct Options {
    /// The collector: OTLP over HTTP.
    pub endpoint: Url,
    /// Share of the messages without a context of their own to trace.
    pub ratio: f64,
    /// The topics' layout, which names the spans.
    pub layout: String,
}

/// Why traces cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// TLS cannot be set up.
    #[error("TLS to the collector: {0}")]
    Tls(#[from] rustls::Error),
    /// The exporter refuses its settings, such as an OTEL_EXPORTER_OTLP_… variable.
    #[error("the OTLP exporter: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// The trace of a sampled message.
#[derive(Debug, Clone)]
pub struct MessageTrace {
    /// The message's span.
    pub context: SpanContext,
    /// The span of the device that sent it.
    pub parent: Option<SpanId>,
    /// When a writer took it.
    pub taken: Instant,
    /// When it was decoded.
    pub decoded: Instant,
}

/// Makes the traces.
#[derive(Debug)]
pub struct Tracer {
    sampler: Sampler,
    spans: Spans,
    queue: Queue,
    /// Committed, and not yet acknowledged.
    waiting: Mutex<Vec<Stored>>,
    invalid: IntCounter,
}

impl Tracer {
    /// A tracer that sends its spans by tasks of `runtime`.
    pub fn new(
        options: &Options,
        settings: &Settings,
        metrics: &Metrics,
        runtime: &Handle,
    ) -> Result<Self, TraceError> {
        let client = Client::new(options.endpoint.scheme() == "https")?;
        let fault = client.fault();
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(traces_url(&options.endpoint))
            .build()?;
        let resource = Resource::builder().with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", settings.lease_key().0),
            KeyValue::new("penstock.pipeline", settings.pipeline.to_string()),
            KeyValue::new("penstock.shard", i64::from(settings.shard)),
        ]);
        exporter.set_resource(&match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => resource.build(),
            None => resource.with_service_name("penstock-worker").build(),
        });
        let server = |host: &str, port: u16| {
            [KeyValue::new("server.address", host.to_owned()), KeyValue::new("server.port", i64::from(port))]
        };
        let (broker, database) = (&settings.access.broker, &settings.access.database);
        let mut message = vec![KeyValue::new("messaging.client.id", broker.client_id.clone())];
        message.extend(server(&broker.host, broker.port));
        let mut batch = Vec::from(server(database.get_host(), database.get_port()));
        batch.extend(database.get_database().map(|name| KeyValue::new("db.namespace", name.to_owned())));
        let why = move || fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Self {
            sampler: Sampler::TraceIdRatioBased(options.ratio),
            spans: Spans::new(options.layout.clone(), message, batch),
            queue: Queue::new(exporter, why, metrics.clone(), runtime),
            waiting: Mutex::default(),
            invalid: metrics.trace_contexts_invalid.clone(),
        })
    }

    /// The context that a message's user properties carry.
    pub fn arrived(&self, properties: &[(String, String)]) -> Option<Box<SpanContext>> {
        self.valid(context::in_properties(properties)).map(Box::new)
    }

    fn valid(&self, carried: Carried) -> Option<SpanContext> {
        carried?.inspect_err(|_| self.invalid.inc()).ok()
    }

    /// Decides whether a decoded message is traced. `carried`: what its payload carries.
    pub fn decoded(&self, delivery: &mut Delivery, carried: Carried, taken: Instant) {
        // Decoded before, and put aside since.
        if delivery.trace.is_some() {
            return;
        }
        let carried = self.valid(carried);
        let parent = delivery.parent.take().map(|parent| *parent).or(carried);
        delivery.trace = self.sample(parent.as_ref()).map(|context| {
            let parent = parent.map(|parent| parent.span_id());
            Box::new(MessageTrace { context, parent, taken, decoded: Instant::now() })
        });
    }

    /// The span of a message that is to be traced: what its sender decided, or else the ratio does.
    fn sample(&self, parent: Option<&SpanContext>) -> Option<SpanContext> {
        if let Some(parent) = parent {
            let of_parent = || self.spans.context(parent.trace_id(), parent.trace_state().clone());
            return parent.is_sampled().then(of_parent);
        }
        let trace_id = self.spans.trace_id();
        let sampling = self.sampler.should_sample(None, trace_id, "", &SpanKind::Consumer, &[], &[]);
        (sampling.decision == SamplingDecision::RecordAndSample)
            .then(|| self.spans.context(trace_id, TraceState::default()))
    }

    /// Makes the spans of a batch that is committed, and of all messages that are acknowledged by now.
    pub fn settled(&self, batch: &Batch, attempt: &Range<Instant>, lanes: &Lanes) {
        let traced: Vec<_> = (0u32..)
            .zip(&batch.deliveries)
            .filter_map(|(index, (delivery, _))| Some((index, delivery, delivery.trace.as_deref()?)))
            .collect();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !traced.is_empty() {
            let context = self.spans.context(self.spans.trace_id(), TraceState::default());
            let size = Size {
                messages: batch.deliveries.len(),
                rows: batch.rows(),
                bytes: batch.deliveries.iter().map(|(delivery, _)| delivery.payload.len()).sum(),
            };
            let wall = Wall::now();
            let messages = traced.iter().map(|(_, _, trace)| &trace.context);
            self.queue.put(1, || [self.spans.batch(context.clone(), attempt, size, messages, &wall)]);
            let stored = traced.into_iter().map(|(index, delivery, trace)| Stored {
                trace: trace.clone(),
                place: delivery.seq.map(|seq| (delivery.lane, delivery.epoch, seq)),
                topic: String::from_utf8_lossy(&delivery.topic).into_owned(),
                bytes: delivery.payload.len(),
                dup: delivery.dup,
                reject: batch.dead.iter().find(|row| row.delivery == index).map(|row| row.reason),
                arrived: delivery.arrived,
                attempt: attempt.clone(),
                batch: context.clone(),
                wall,
            });
            waiting.extend(stored);
        }
        if !waiting.is_empty() {
            let standing = |(lane, epoch, seq): Place| lanes.get(lane).acks.standing(epoch, seq);
            self.finish(&mut waiting, standing);
        }
    }

    /// Makes the spans of messages that no longer wait for their acknowledgement.
    fn finish(&self, waiting: &mut Vec<Stored>, standing: impl Fn(Place) -> Standing) {
        let now = Instant::now();
        let finish = |stored: &Stored, acknowledged: Option<Instant>| {
            let count = OF_MESSAGE + usize::from(acknowledged.is_some());
            self.queue.put(count, || self.spans.message(stored, acknowledged));
        };
        waiting.retain(|stored| match stored.place.map_or(Standing::Never, &standing) {
            Standing::Waiting => true,
            Standing::Sent => {
                finish(stored, Some(now));
                false
            }
            // Or at QoS 0.
            Standing::Never => {
                finish(stored, None);
                false
            }
        });
        for stored in waiting.drain(MAX_WAITING.min(waiting.len())..) {
            finish(&stored, None);
        }
    }

    /// Sends what there is, for a moment at most.
    pub async fn close(&self) {
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            // What waits now waits for ever.
            self.finish(&mut waiting, |_| Standing::Never);
        }
        self.queue.close().await;
    }
}

/// Where the collector takes traces: the endpoint names it, or what it is below.
fn traces_url(endpoint: &Url) -> String {
    let base = endpoint.as_str().trim_end_matches('/');
    if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") }
}

#[cfg(test)]
mod tests;
