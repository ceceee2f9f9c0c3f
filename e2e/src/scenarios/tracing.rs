//! Traces: from the context that a message carries to the spans that a collector gets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};

use super::load::Load;
use crate::bed::{Bed, require_identities};
use crate::collector::{Collector, Received};
use crate::fleet::at;
use crate::scenario;
use crate::stack::free_port;
use crate::suite::Scenario;
use crate::worker::Worker;

const LONG: Duration = Duration::from_secs(60);
const TOPIC: &str = "traksense/t0/s1/dev-00000/telem";
const PARENT: &str = "00f067aa0ba902b7";

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_traceparent_in_user_properties_leads_to_spans_up_to_the_acknowledgement),
        scenario!(a_traceparent_in_meta_does_the_same_with_mqtt_3_1_1_and_the_ratio_decides_on_the_others),
        scenario!(a_collector_that_is_silent_or_away_costs_spans_and_no_message),
    ]
}

async fn traced(bed: &mut Bed, port: u16, ratio: f64) -> Result<Worker> {
    traced_with(bed, port, ratio, |text| text).await
}

async fn traced_with(
    bed: &mut Bed,
    port: u16,
    ratio: f64,
    edit: impl FnOnce(String) -> String,
) -> Result<Worker> {
    let tracing = format!("tracing: {{otlpEndpoint: 'http://127.0.0.1:{port}', ratio: {ratio}}}\n  sink: {{");
    bed.worker_with(|text| edit(text.replacen("sink: {", &tracing, 1))).await
}

fn trace_id(n: u8) -> String {
    format!("4bf92f3577b34da6a3ce929d0e0e47{n:02x}")
}

fn traceparent(n: u8, flags: &str) -> String {
    format!("00-{}-{PARENT}-{flags}", trace_id(n))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn sample(n: u32, meta: &str) -> String {
    format!(r#"{{"schema":"v1","ts":"{}",{meta}"points":[{{"name":"p0","v":{n}}}]}}"#, at(n))
}

/// Publishes one message with user properties, over MQTT 5.
async fn publish(bed: &Bed, payload: String, properties: &[(&str, &str)]) -> Result<()> {
    let (host, port) = bed.address.rsplit_once(':').context("host:port")?;
    let (client, mut events) = AsyncClient::new(MqttOptions::new("traced-device", host, port.parse()?), 10);
    let user_properties =
        properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let properties = PublishProperties { user_properties, ..PublishProperties::default() };
    client.publish_with_properties(TOPIC, QoS::AtLeastOnce, false, payload, properties).await?;
    let acknowledged = async {
        while !matches!(events.poll().await?, Event::Incoming(Packet::PubAck(_))) {}
        anyhow::Ok(())
    };
    tokio::time::timeout(LONG, acknowledged).await?
}

fn is_message(received: &Received) -> bool {
    received.span.name == "process traksense/{tenant}/{site}/{device}/{kind}"
}

/// The message's children in the order of their beginning; they fill it, one after the other.
fn way(collector: &Collector, message: &Span) -> Result<Vec<Span>> {
    let mut children: Vec<Span> = collector
        .spans()
        .into_iter()
        .map(|received| received.span)
        .filter(|span| span.parent_span_id == message.span_id && span.trace_id == message.trace_id)
        .collect();
    children.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
    let mut end = message.start_time_unix_nano;
    for child in &children {
        ensure!(child.start_time_unix_nano == end, "'{}' begins where the one before ends", child.name);
        ensure!(child.end_time_unix_nano >= end, "'{}' does not end before it begins", child.name);
        end = child.end_time_unix_nano;
    }
    ensure!(end == message.end_time_unix_nano, "the last child ends with the message");
    Ok(children)
}

fn require_whole_way(collector: &Collector, message: &Span) -> Result<()> {
    let children = way(collector, message)?;
    let names: Vec<&str> = children.iter().map(|span| span.name.as_str()).collect();
    ensure!(names == ["receive", "decode", "wait", "commit", "ack"], "the way is {names:?}");
    // To the batch and back.
    let links = &children[3].links;
    let batch = collector.spans().into_iter().find(|received| {
        links.iter().any(|link| link.span_id == received.span.span_id) && received.span.name == "commit batch"
    });
    let batch = batch.context("the commit is linked to a batch")?;
    ensure!(
        batch
            .span
            .links
            .iter()
            .any(|link| link.span_id == message.span_id && link.trace_id == message.trace_id),
        "the batch is linked to the message"
    );
    ensure!(batch.span.kind == SpanKind::Client as i32, "a batch is a client's call");
    ensure!(batch.attributes["db.system.name"] == "postgresql", "{:?}", batch.attributes);
    ensure!(batch.attributes["penstock.batch.rows"].parse::<u32>()? >= 1, "{:?}", batch.attributes);
    ensure!(
        (batch.span.start_time_unix_nano, batch.span.end_time_unix_nano)
            == (children[3].start_time_unix_nano, children[3].end_time_unix_nano),
        "a message's commit is its batch's"
    );
    Ok(())
}

async fn a_traceparent_in_user_properties_leads_to_spans_up_to_the_acknowledgement(
    bed: &mut Bed,
) -> Result<()> {
    let collector = Collector::start(0).await?;
    let worker = traced(bed, collector.port, 0.0).await?;
    let begun = crate::fleet::now() as u64 * 1000;
    publish(bed, sample(1, ""), &[("traceparent", &traceparent(1, "01")), ("tracestate", "vendor=7")])
        .await?;
    publish(bed, sample(2, ""), &[("traceparent", &traceparent(2, "00"))]).await?;
    publish(bed, sample(3, ""), &[]).await?;
    publish(bed, sample(4, ""), &[("traceparent", "00-malformed")]).await?;
    let metrics = worker
        .metric("the spans are sent", LONG, |m| {
            m.get("ingest_committed_total") == 4.0 && m.get("ingest_spans_exported_total") == 7.0
        })
        .await?;
    ensure!(metrics.get("ingest_trace_contexts_invalid_total") == 1.0, "the malformed one is counted");
    ensure!(metrics.sum("ingest_spans_dropped_total") == 0.0, "no span is dropped");
    let message = collector.span("the message's span", is_message).await?;
    let Span { trace_id: id, parent_span_id, kind, trace_state, .. } = &message.span;
    ensure!(hex(id) == trace_id(1) && hex(parent_span_id) == PARENT, "it continues the device's trace");
    ensure!(*kind == SpanKind::Consumer as i32 && trace_state == "vendor=7", "{message:?}");
    ensure!(
        message.span.start_time_unix_nano >= begun
            && message.span.end_time_unix_nano <= crate::fleet::now() as u64 * 1000,
        "its times are now"
    );
    for (name, value) in [
        ("messaging.system", "mqtt"),
        ("messaging.destination.name", TOPIC),
        ("messaging.client.id", &bed.client_id()),
        ("penstock.acknowledged", "true"),
    ] {
        ensure!(message.attributes[name] == value, "{name}: {:?}", message.attributes);
    }
    ensure!(message.resource["service.name"] == "penstock-worker", "{:?}", message.resource);
    require_whole_way(&collector, &message.span)?;
    require_identities(&worker.idle().await?)?;
    worker.stop(LONG).await?;
    // Nothing of the others came with the worker's last words either.
    ensure!(collector.spans().len() == 7, "{:?}", collector.spans());
    let stored: i64 = bed.sql("SELECT count(*) FROM penstock.sample").await?;
    ensure!(stored == 4, "{stored} rows");
    Ok(())
}

async fn a_traceparent_in_meta_does_the_same_with_mqtt_3_1_1_and_the_ratio_decides_on_the_others(
    bed: &mut Bed,
) -> Result<()> {
    let collector = Collector::start(0).await?;
    let worker =
        traced_with(bed, collector.port, 1.0, |text| text.replace("protocol: V5", "protocol: V311")).await?;
    let carrying = |n: u8, flags: &str| {
        sample(n.into(), &format!(r#""meta":{{"traceparent":"{}"}},"#, traceparent(n, flags)))
    };
    bed.publish_one(TOPIC, carrying(1, "01")).await?;
    bed.publish_one(TOPIC, carrying(2, "00")).await?;
    bed.publish_one(TOPIC, sample(3, "")).await?;
    // A point that is a dead letter.
    bed.publish_one(TOPIC, sample(4, "").replace(":4}", ":null}")).await?;
    require_identities(&worker.idle().await?)?;
    // A stopping worker sends what waits.
    worker.stop(LONG).await?;
    let messages: Vec<Received> = collector.spans().into_iter().filter(is_message).collect();
    ensure!(messages.len() == 3, "all but the one that its sender did not sample: {messages:?}");
    for message in &messages {
        require_whole_way(&collector, &message.span)?;
    }
    let continued = messages.iter().find(|message| hex(&message.span.trace_id) == trace_id(1));
    ensure!(
        continued.is_some_and(|message| hex(&message.span.parent_span_id) == PARENT),
        "the device's trace is continued: {messages:?}"
    );
    let begun = messages.iter().filter(|message| message.span.parent_span_id.is_empty());
    ensure!(begun.count() == 2, "the others begin a trace");
    let failed: Vec<_> = messages.iter().filter_map(|message| message.attributes.get("error.type")).collect();
    ensure!(failed == ["invalid_value"], "the dead letter's reason is in its span: {failed:?}");
    Ok(())
}

async fn a_collector_that_is_silent_or_away_costs_spans_and_no_message(bed: &mut Bed) -> Result<()> {
    let port = free_port()?;
    let worker = traced(bed, port, 1.0).await?;
    let load = Load::mixed(bed, 1000.0);
    worker
        .metric("spans that are not sent are counted", LONG, |m| {
            m.get("ingest_spans_dropped_total/not_sent") > 0.0
        })
        .await?;
    worker.logs("traces do not reach the collector", LONG).await?;
    let collector = Collector::start(port).await?;
    collector.silence(true);
    worker
        .metric("spans that find the queue full are counted", LONG, |m| {
            m.get("ingest_spans_dropped_total/queue_full") > 0.0
        })
        .await?;
    collector.silence(false);
    worker.metric("spans are sent again", LONG, |m| m.get("ingest_spans_exported_total") > 0.0).await?;
    worker.logs("traces reach the collector again", LONG).await?;
    let (_, metrics) = load.finish(bed, &worker).await?;
    ensure!(metrics.get("ingest_mqtt_disconnects_total") == 0.0, "the broker noticed nothing");
    ensure!(collector.spans().iter().any(is_message), "whole messages are among them");
    let told = worker.process.tail(100_000).matches("traces do not reach the collector").count();
    ensure!(told <= 3, "the log is told of changes only, not {told} times");
    collector.silence(true);
    bed.publish_one(TOPIC, sample(9_000_000, "")).await?;
    let begun = std::time::Instant::now();
    worker.stop(LONG).await?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "a silent collector does not hold the exit up");
    Ok(())
}
