use std::sync::Arc;

use bytes::Bytes;
use opentelemetry::trace::{TraceFlags, TraceId};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as Exporter};

use super::*;
use crate::batch::Tally;
use crate::mqtt::client::Client as Broker;
use crate::mqtt::options::Protocol as Mqtt;

#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<SpanData>>>);

impl Exporter for Collector {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(spans);
        Ok(())
    }
}

impl Collector {
    fn named(&self, prefix: &str) -> Vec<SpanData> {
        self.0.lock().unwrap().iter().filter(|span| span.name.starts_with(prefix)).cloned().collect()
    }
}

fn tracer(ratio: f64) -> (Tracer, Collector) {
    let (metrics, collector) = (Metrics::new().unwrap(), Collector::default());
    let tracer = Tracer {
        sampler: Sampler::TraceIdRatioBased(ratio),
        spans: Spans::new("t/{device}".to_owned(), Vec::new(), Vec::new()),
        queue: Queue::new(collector.clone(), || None, metrics.clone(), &Handle::current()),
        waiting: Mutex::default(),
        invalid: metrics.trace_contexts_invalid,
    };
    (tracer, collector)
}

fn remote(trace_id: u128, flags: TraceFlags) -> SpanContext {
    SpanContext::new(TraceId::from(trace_id), SpanId::from(5u64), flags, true, TraceState::default())
}

fn delivery(place: Option<(u64, u64)>, parent: Option<SpanContext>) -> Delivery {
    Delivery {
        epoch: place.map_or(1, |(epoch, _)| epoch),
        seq: place.map(|(_, seq)| seq),
        topic: Bytes::from_static(b"t/a"),
        payload: Bytes::from_static(b"{}"),
        parent: parent.map(Box::new),
        ..Delivery::empty()
    }
}

/// A batch of messages that their senders sampled.
fn batch(tracer: &Tracer, places: &[Option<(u64, u64)>]) -> Batch {
    let mut batch = Batch::default();
    for place in places {
        let trace_id = place.map_or(1000, |(epoch, seq)| u128::from(epoch * 100 + seq));
        let mut delivery = delivery(*place, Some(remote(trace_id, TraceFlags::SAMPLED)));
        tracer.decoded(&mut delivery, None, Instant::now());
        batch.deliveries.push((delivery, Tally::default()));
    }
    batch
}

fn now() -> Range<Instant> {
    Instant::now()..Instant::now()
}

#[tokio::test]
async fn the_sender_decides_and_without_one_the_ratio_does() {
    for (ratio, parent, expected) in [
        (0.0, Some(TraceFlags::SAMPLED), true),
        (1.0, Some(TraceFlags::default()), false),
        (0.0, None, false),
        (1.0, None, true),
    ] {
        let (tracer, _) = tracer(ratio);
        let mut delivery = delivery(None, parent.map(|flags| remote(7, flags)));
        tracer.decoded(&mut delivery, None, Instant::now());
        assert_eq!(delivery.trace.is_some(), expected, "{ratio} {parent:?}");
        if let (Some(trace), Some(_)) = (delivery.trace, parent) {
            assert_eq!(trace.context.trace_id(), TraceId::from(7u128));
            assert_eq!(trace.parent, Some(SpanId::from(5u64)));
        }
    }
}

#[tokio::test]
async fn user_properties_count_more_than_the_payload_and_malformed_ones_are_counted() {
    let (tracer, _) = tracer(0.0);
    let mut both = delivery(None, Some(remote(7, TraceFlags::SAMPLED)));
    tracer.decoded(&mut both, Some(Ok(remote(8, TraceFlags::SAMPLED))), Instant::now());
    assert_eq!(both.trace.unwrap().context.trace_id(), TraceId::from(7u128));
    let mut payload = delivery(None, None);
    tracer.decoded(&mut payload, Some(Ok(remote(8, TraceFlags::SAMPLED))), Instant::now());
    assert_eq!(payload.trace.unwrap().context.trace_id(), TraceId::from(8u128));
    assert_eq!(tracer.arrived(&[("traceparent".to_owned(), "00-no".to_owned())]), None);
    let mut malformed = delivery(None, None);
    tracer.decoded(&mut malformed, Some(Err(context::Malformed)), Instant::now());
    assert!(malformed.trace.is_none());
    assert_eq!(tracer.invalid.get(), 2);
}

#[tokio::test]
async fn a_message_ends_with_its_acknowledgement_which_may_come_with_a_later_batch() {
    let (tracer, collector) = tracer(0.0);
    let lanes = Lanes::default();
    let acks = &lanes.get(0).acks;
    let epoch = acks.begin(Broker::new(Mqtt::V5));
    for packet_id in 1..=2 {
        acks.push(packet_id, Instant::now());
    }
    let (first, second) = (batch(&tracer, &[Some((epoch, 0))]), batch(&tracer, &[Some((epoch, 1))]));
    acks.commit(std::iter::once((epoch, 1)));
    tracer.settled(&second, &now(), &lanes);
    assert_eq!(tracer.waiting.lock().unwrap().len(), 1);
    acks.commit(std::iter::once((epoch, 0)));
    tracer.settled(&first, &now(), &lanes);
    tracer.close().await;
    assert_eq!(collector.named("ack").len(), 2);
    let (batches, messages) = (collector.named("commit batch"), collector.named("process"));
    assert_eq!((batches.len(), messages.len()), (2, 2));
    for message in messages {
        let links = batches.iter().flat_map(|batch| &batch.links.links);
        assert_eq!(links.filter(|link| link.span_context == message.span_context).count(), 1);
    }
}

#[tokio::test]
async fn what_is_never_acknowledged_ends_with_its_commit() {
    let (tracer, collector) = tracer(0.0);
    let lanes = Lanes::default();
    let acks = &lanes.get(0).acks;
    let epoch = acks.begin(Broker::new(Mqtt::V5));
    acks.push(1, Instant::now());
    // At QoS 0; of an earlier connection; still waiting at the exit.
    let batch = batch(&tracer, &[None, Some((epoch - 1, 0)), Some((epoch, 0))]);
    tracer.settled(&batch, &now(), &lanes);
    assert_eq!(tracer.waiting.lock().unwrap().len(), 1);
    tracer.close().await;
    assert_eq!(collector.named("process").len(), 3);
    assert_eq!(collector.named("ack").len(), 0);
    assert_eq!(collector.named("commit batch")[0].links.len(), 3);
}

#[tokio::test]
async fn a_batch_without_a_sampled_message_makes_no_span() {
    let (tracer, collector) = tracer(0.0);
    let mut batch = Batch::default();
    let mut delivery = delivery(Some((1, 0)), None);
    tracer.decoded(&mut delivery, None, Instant::now());
    batch.deliveries.push((delivery, Tally::default()));
    tracer.settled(&batch, &now(), &Lanes::default());
    tracer.close().await;
    assert!(collector.0.lock().unwrap().is_empty());
}

#[test]
fn the_endpoint_names_the_place_for_traces_or_what_it_is_below() {
    for (endpoint, expected) in [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://tempo.example/otlp", "https://tempo.example/otlp/v1/traces"),
        ("http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
    ] {
        assert_eq!(traces_url(&Url::parse(endpoint).unwrap()), expected);
    }
}
