//! Counters and gauges, all under `ingest_`. Label sets are bounded: no tenant, device or topic.

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::decode::Reason;

/// Seconds from the device's time to the commit.
const LATENCY_BUCKETS: [f64; 20] = [
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0,
    300.0, 3600.0, 86400.0,
];
const COMMIT_BUCKETS: [f64; 13] =
    [0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];
const COUNT_BUCKETS: [f64; 12] =
    [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 20_000.0, 50_000.0, 100_000.0];
const BYTES_BUCKETS: [f64; 8] = [1e2, 1e3, 1e4, 1e5, 1e6, 2e6, 4e6, 8e6];

/// Why connections to the broker end.
const DISCONNECTS: [&str; 9] = [
    "client_id_in_use",
    "client_id_refused",
    "login_refused",
    "connection_refused",
    "tls_refused",
    "packet_too_large",
    "connection_failed",
    "broker_silent",
    "budget_full",
];

/// All that the worker counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Deliveries taken in.
    pub received: IntCounter,
    /// Deliveries whose transaction is committed.
    pub committed: IntCounter,
    /// Deliveries given up uncommitted, at exit.
    pub abandoned: IntCounter,
    /// Deliveries at QoS 0 dropped because the byte budget was full.
    pub dropped_qos0: IntCounter,
    /// Deliveries in hand.
    pub in_flight: IntGauge,
    /// Items of committed deliveries, by kind.
    pub items: IntCounterVec,
    /// What became of these items.
    pub outcomes: IntCounterVec,
    /// Messages of committed deliveries, by type.
    pub messages: IntCounterVec,
    /// Samples stored.
    pub points: IntCounter,
    /// Rejects and failures, by reason.
    pub errors: IntCounterVec,
    /// Dead letters stored, by reason.
    pub dead_letters: IntCounterVec,
    /// Messages in a batch.
    pub batch_size: Histogram,
    /// Rows in a batch.
    pub batch_rows: Histogram,
    /// Payload bytes in a batch.
    pub batch_bytes: Histogram,
    /// What ended the gathering of a batch.
    pub batch_trigger: IntCounterVec,
    /// Device time to commit, by the database's clock.
    pub latency: Histogram,
    /// Samples whose device time is after their commit.
    pub latency_negative: IntCounter,
    /// Deliveries in hand that no writer has taken.
    pub queue_size: IntGauge,
    /// Bytes of the budget in use, 0 to 1.
    pub queue_fill: Gauge,
    /// From the first statement of a transaction to its commit.
    pub commit_seconds: Histogram,
    /// Failed attempts to commit, by class of the error.
    pub db_errors: IntCounterVec,
    /// 0 closed, 1 half open, 2 open.
    pub breaker: IntGauge,
    /// Batches that were not copied as they are.
    pub staged_batches: IntCounter,
    /// Largest share of the window seen unacknowledged, see `mqtt_window_observed`.
    pub window_observed: IntGauge,
    /// Deliveries not yet acknowledged.
    pub unacked: IntGauge,
    /// Messages a second that window, round trip and commits allow.
    pub rate_bound: Gauge,
    /// The last round trip to the broker.
    pub round_trip: Gauge,
    /// 1 for what limits the throughput now.
    pub limited_by: IntGaugeVec,
    /// What the broker says it dropped, for any client.
    pub broker_dropped: Gauge,
    /// How long the oldest of them waits.
    pub oldest_unacked: Gauge,
    /// The current epoch.
    pub epoch: IntGauge,
    /// 1 while connected and subscribed.
    pub connected: IntGauge,
    /// 1 while the shard's lease is held.
    pub lease_held: IntGauge,
    /// Seconds without a consumer at the last takeover.
    pub takeover_gap: Gauge,
    /// Connections that ended, by reason.
    pub disconnects: IntCounterVec,
    /// Sessions that the broker no longer had: what it queued is gone.
    pub sessions_lost: IntCounter,
    /// Acknowledgements not sent because their epoch was over.
    pub stale_acks: IntCounter,
    /// Deliveries received at QoS 0.
    pub qos0_received: IntCounter,
    /// Deliveries larger than `maxPacketSize`.
    pub oversize: IntCounter,
    /// Deliveries with the DUP flag.
    pub redelivered: IntCounter,
    /// Samples refused because their time is outside the accept window.
    pub late: IntCounter,
    /// Series in the cache.
    pub series_cached: IntGauge,
    /// Sparkplug's messages before which others are missing.
    pub sequence_gaps: IntCounter,
    /// Sparkplug's edge nodes asked for their births, by outcome.
    pub rebirth_requests: IntCounterVec,
    /// Spans that the collector took.
    pub spans_exported: IntCounter,
    /// Spans that it did not get, by reason.
    pub spans_dropped: IntCounterVec,
    /// Messages with a trace context that is none.
    pub trace_contexts_invalid: IntCounter,
    /// Times that a delivery was put aside because its tenant begins series too fast.
    pub series_delayed: IntCounter,
    /// Deliveries that are put aside now.
    pub series_waiting: IntGauge,
}

impl Metrics {
    /// All metrics, at 0.
    pub fn new() -> Result<Self, prometheus::Error> {
        let r = Registry::new();
        let metrics = Self {
            received: counter(&r, "received_total", "Deliveries taken in.")?,
            committed: counter(&r, "committed_total", "Deliveries whose transaction is committed.")?,
            abandoned: counter(
                &r,
                "abandoned_total",
                "Deliveries given up uncommitted at exit; the broker has them.",
            )?,
            dropped_qos0: counter(
                &r,
                "dropped_qos0_total",
                "QoS 0 deliveries dropped at a full byte budget.",
            )?,
            in_flight: gauge(&r, "in_flight", "Deliveries in hand, not yet committed.")?,
            items: counters(&r, "items_total", "Items of committed deliveries, by kind.", "kind")?,
            outcomes: counters(&r, "outcomes_total", "What became of these items.", "outcome")?,
            messages: counters(&r, "messages_total", "Messages of committed deliveries, by type.", "type")?,
            points: counter(&r, "points_total", "Samples stored.")?,
            errors: counters(&r, "errors_total", "Rejects and failures, by reason.", "reason")?,
            dead_letters: counters(&r, "dead_letters_total", "Dead letters stored, by reason.", "reason")?,
            batch_size: histogram(&r, "batch_size", "Messages in a batch.", &COUNT_BUCKETS)?,
            batch_rows: histogram(&r, "batch_rows", "Rows in a batch.", &COUNT_BUCKETS)?,
            batch_bytes: histogram(&r, "batch_bytes", "Payload bytes in a batch.", &BYTES_BUCKETS)?,
            batch_trigger: counters(
                &r,
                "batch_trigger_total",
                "What ended the gathering of a batch.",
                "trigger",
            )?,
            latency: histogram(
                &r,
                "latency_seconds",
                "Device time to commit, by the database's clock.",
                &LATENCY_BUCKETS,
            )?,
            latency_negative: counter(
                &r,
                "latency_negative_total",
                "Samples whose device time is after their commit.",
            )?,
            queue_size: gauge(&r, "queue_size", "Deliveries in hand that no writer has taken.")?,
            queue_fill: float_gauge(&r, "queue_fill_ratio", "Share of the byte budget in use.")?,
            commit_seconds: histogram(
                &r,
                "commit_seconds",
                "Seconds a committed transaction took.",
                &COMMIT_BUCKETS,
            )?,
            db_errors: counters(&r, "db_errors_total", "Failed attempts to commit, by class.", "class")?,
            breaker: gauge(&r, "db_breaker_state", "Circuit breaker: 0 closed, 1 half open, 2 open.")?,
            staged_batches: counter(
                &r,
                "staged_batches_total",
                "Batches sifted or staged for rows that may be there already.",
            )?,
            window_observed: gauge(
                &r,
                "mqtt_window_observed",
                "Most deliveries seen unacknowledged at once in this epoch.",
            )?,
            unacked: gauge(&r, "mqtt_unacked", "Deliveries not yet acknowledged.")?,
            rate_bound: float_gauge(
                &r,
                "mqtt_rate_bound",
                "Messages a second that window, round trip and recent commits allow.",
            )?,
            round_trip: float_gauge(
                &r,
                "mqtt_round_trip_seconds",
                "The last round trip to the broker, the longest of all sessions.",
            )?,
            limited_by: register(
                &r,
                IntGaugeVec::new(
                    Opts::new("ingest_limited_by", "1 for what limits the throughput now."),
                    &["by"],
                )?,
            )?,
            broker_dropped: float_gauge(
                &r,
                "broker_dropped_messages",
                "Messages the broker says it has dropped, for any client; NaN where it does not say.",
            )?,
            oldest_unacked: float_gauge(
                &r,
                "oldest_unacked_seconds",
                "How long the oldest delivery waits for its acknowledgement.",
            )?,
            epoch: gauge(&r, "mqtt_epoch", "Broker connections since start.")?,
            connected: gauge(&r, "mqtt_connected", "1 while connected and subscribed.")?,
            lease_held: gauge(&r, "lease_held", "1 while the shard's lease is held.")?,
            takeover_gap: float_gauge(
                &r,
                "takeover_gap_seconds",
                "Seconds in which nobody consumed the shard when this worker took it over; 0 if it did not.",
            )?,
            disconnects: counters(
                &r,
                "mqtt_disconnects_total",
                "Broker connections that ended, by reason.",
                "reason",
            )?,
            sessions_lost: counter(
                &r,
                "mqtt_sessions_lost_total",
                "Sessions the broker no longer had; what it queued is gone.",
            )?,
            stale_acks: counter(
                &r,
                "stale_acks_dropped_total",
                "Acknowledgements not sent because their epoch was over.",
            )?,
            qos0_received: counter(
                &r,
                "qos0_received_total",
                "Deliveries received at QoS 0, which nothing protects.",
            )?,
            oversize: counter(&r, "oversize_total", "Deliveries larger than maxPacketSize.")?,
            redelivered: counter(&r, "redelivered_total", "Deliveries with the DUP flag.")?,
            late: counter(
                &r,
                "late_rows_total",
                "Rows refused because their time is outside the accept window.",
            )?,
            series_cached: gauge(&r, "series_cached", "Series in the cache.")?,
            sequence_gaps: counter(
                &r,
                "sparkplug_sequence_gaps_total",
                "Sparkplug messages before which others are missing.",
            )?,
            rebirth_requests: counters(
                &r,
                "sparkplug_rebirth_requests_total",
                "Edge nodes asked for their births, by outcome.",
                "outcome",
            )?,
            spans_exported: counter(&r, "spans_exported_total", "Spans that the trace collector took.")?,
            spans_dropped: counters(
                &r,
                "spans_dropped_total",
                "Spans that the trace collector did not get, by reason.",
                "reason",
            )?,
            trace_contexts_invalid: counter(
                &r,
                "trace_contexts_invalid_total",
                "Messages whose traceparent is malformed.",
            )?,
            series_delayed: counter(
                &r,
                "series_delayed_total",
                "Times that a delivery had to wait because its tenant begins series too fast.",
            )?,
            series_waiting: gauge(&r, "series_waiting", "Deliveries that wait for it now.")?,
            registry: r,
        };
        metrics.broker_dropped.set(f64::NAN);
        for reason in Reason::ALL {
            metrics.errors.with_label_values(&[reason.as_str()]);
            metrics.dead_letters.with_label_values(&[reason.as_str()]);
        }
        for class in ["retry", "duplicate", "poison", "stop"] {
            metrics.db_errors.with_label_values(&[class]);
        }
        // What rises from nothing is no increase to Prometheus.
        for reason in DISCONNECTS {
            metrics.disconnects.with_label_values(&[reason]);
        }
        for trigger in ["window", "size", "age"] {
            metrics.batch_trigger.with_label_values(&[trigger]);
        }
        for outcome in ["sent", "failed"] {
            metrics.rebirth_requests.with_label_values(&[outcome]);
        }
        for kind in ["samples", "acks", "events", "metadata", "rejects"] {
            metrics.items.with_label_values(&[kind]);
        }
        for outcome in ["stored", "deduplicated", "outdated", "dead_lettered"] {
            metrics.outcomes.with_label_values(&[outcome]);
        }
        for message_type in ["telem", "ack", "event", "other"] {
            metrics.messages.with_label_values(&[message_type]);
        }
        for reason in ["queue_full", "not_sent"] {
            metrics.spans_dropped.with_label_values(&[reason]);
        }
        Ok(metrics)
    }

    /// The text exposition format.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    register(registry, IntCounter::new(format!("ingest_{name}"), help)?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> Result<IntCounterVec, prometheus::Error> {
    register(registry, IntCounterVec::new(Opts::new(format!("ingest_{name}"), help), &[label])?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    register(registry, IntGauge::new(format!("ingest_{name}"), help)?)
}

fn float_gauge(registry: &Registry, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    register(registry, Gauge::new(format!("ingest_{name}"), help)?)
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> Result<Histogram, prometheus::Error> {
    let options = HistogramOpts::new(format!("ingest_{name}"), help).buckets(buckets.to_vec());
    register(registry, Histogram::with_opts(options)?)
}
