//! Sparkplug B: births, data by alias, deaths, and what goes missing between them.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_worker::decode::sparkplug::proto::{Metric, Payload, Value};
use prost::Message;
use sqlx::{Connection, Executor, PgConnection};

use crate::bed::{Bed, require_identities};
use crate::fleet::now;
use crate::listener::Listener;
use crate::proxy::{Mode, Proxy};
use crate::publisher::Outgoing;
use crate::scenario;
use crate::suite::Scenario;
use crate::wait::until_async;
use crate::worker::{Metrics, Worker};

const LONG: Duration = Duration::from_secs(40);

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(births_name_what_data_sends_by_alias_also_for_a_worker_that_was_killed_between),
        scenario!(a_worker_that_waited_knows_the_births_that_the_one_before_it_stored),
        scenario!(a_birth_that_the_old_worker_stores_while_the_new_one_connects_is_known_to_both),
        scenario!(who_begins_a_filter_knows_the_births_that_another_shard_stored),
        scenario!(data_before_a_birth_is_a_dead_letter_and_asks_each_edge_node_once_a_minute),
        scenario!(deaths_mark_what_is_stale_and_births_end_it),
        scenario!(missing_sequence_numbers_are_counted_and_redelivered_ones_are_not),
        scenario!(an_alias_that_changes_its_meaning_keeps_the_old_one_for_old_data_that_comes_again),
    ]
}

/// Unix milliseconds: a minute before this process began, and so many later.
fn at(millis: u64) -> u64 {
    static BASE: LazyLock<u64> = LazyLock::new(|| (now() / 1000 - 60_000) as u64);
    *BASE + millis
}

fn message(topic: &str, millis: u64, seq: Option<u64>, metrics: Vec<Metric>) -> Outgoing {
    let payload = Payload { timestamp: Some(at(millis)), seq, metrics, uuid: None };
    Outgoing { topic: format!("spBv1.0/{topic}"), payload: payload.encode_to_vec().into(), qos: 1 }
}

fn named(name: &str, alias: u64, datatype: u32, value: Value) -> Metric {
    let name = Some(name.into());
    Metric { name, alias: Some(alias), datatype: Some(datatype), value: Some(value), ..Metric::default() }
}

fn by_alias(alias: u64, value: Value) -> Metric {
    Metric { alias: Some(alias), value: Some(value), ..Metric::default() }
}

fn bd_seq(number: u64) -> Metric {
    Metric { alias: None, ..named("bdSeq", 0, 4, Value::Long(number)) }
}

/// A birth that calls alias 1 so.
fn birth(topic: &str, millis: u64, seq: u64, name: &str) -> Outgoing {
    message(topic, millis, Some(seq), vec![bd_seq(1), named(name, 1, 10, Value::Double(0.0))])
}

fn data(topic: &str, millis: u64, seq: u64) -> Outgoing {
    message(topic, millis, Some(seq), vec![by_alias(1, Value::Double(millis as f64))])
}

async fn worker(bed: &mut Bed) -> Result<Worker> {
    bed.worker_with(|text| subscribed(&text)).await
}

fn subscribed(text: &str) -> String {
    let other = "- {filter: \"traksense/+/+/+/telem\"}";
    text.replace(other, &format!("{other}\n      - {{filter: \"spBv1.0/#\", format: SparkplugB}}"))
}

/// Site, device, point, milliseconds, values and quality of all samples.
type Reading = (String, String, String, i64, Option<f64>, Option<bool>, Option<String>, i16);

async fn readings(bed: &Bed, points: &str) -> Result<Vec<Reading>> {
    bed.rows(&format!(
        "SELECT d.site, d.name, e.point, (extract(epoch FROM s.ts) * 1000)::int8, s.v_num, s.v_bool, s.v_text, s.quality \
         FROM penstock.sample s JOIN penstock.series e USING (series_id) JOIN penstock.device d USING (device_id) \
         JOIN penstock.tenant t USING (tenant_id) WHERE t.name = 'plant' AND e.point IN ({points}) ORDER BY 3, 4"
    ))
    .await
}

/// Waits until so many messages at QoS 1 are committed. At QoS 0 come requests for births, which this
/// worker has subscribed too, and which another writer may commit first.
async fn committed(worker: &Worker, count: usize) -> Result<()> {
    let wanted = count as f64;
    let holds = |m: &Metrics| m.get("ingest_committed_total") - m.get("ingest_qos0_received_total") >= wanted;
    worker.metric("all are committed", LONG, holds).await.map(drop)
}

async fn speeds(bed: &Bed) -> Result<Vec<Option<f64>>> {
    Ok(readings(bed, "'speed'").await?.into_iter().map(|row| row.4).collect())
}

async fn births_name_what_data_sends_by_alias_also_for_a_worker_that_was_killed_between(
    bed: &mut Bed,
) -> Result<()> {
    let mut running = worker(bed).await?;
    let node = vec![bd_seq(1), named("load", 1, 9, Value::Float(0.5))];
    let device = vec![
        named("temperature", 2, 10, Value::Double(20.0)),
        named("level", 3, 1, Value::Int(0xffff_fffe)),
        named("open", 4, 11, Value::Boolean(false)),
        named("mode", 5, 12, Value::Text(b"RUN".to_vec())),
    ];
    bed.publish(vec![
        message("plant/NBIRTH/line", 0, Some(0), node),
        message("plant/DBIRTH/line/pump", 1, Some(1), device),
        // For others; nothing of it is stored.
        message("plant/NCMD/line", 2, None, vec![named("x", 1, 10, Value::Double(1.0))]),
        Outgoing { topic: "spBv1.0/STATE/scada".into(), payload: "{\"online\":true}".into(), qos: 1 },
    ])
    .await?;
    committed(&running, 4).await?;
    let metrics = running.idle().await?;
    ensure!(metrics.get("ingest_messages_total/other") == 2.0, "a command and a state are counted");
    ensure!(metrics.sum("ingest_items_total") == 6.0, "the births' metrics are samples, and no other");
    require_identities(&metrics)?;
    running.kill();
    let running = bed.start("one", &[])?;
    running.ready().await?;
    let device = vec![
        by_alias(2, Value::Double(21.25)),
        by_alias(3, Value::Int(0xfd)),
        by_alias(4, Value::Boolean(true)),
        by_alias(5, Value::Text(b"STOP".to_vec())),
    ];
    let gone = Metric { alias: Some(2), is_null: Some(true), timestamp: Some(at(120)), ..Metric::default() };
    bed.publish(vec![
        message("plant/NDATA/line", 100, Some(2), vec![by_alias(1, Value::Float(0.75))]),
        message("plant/DDATA/line/pump", 101, Some(3), device),
        message("plant/DDATA/line/pump", 130, Some(4), vec![gone]),
    ])
    .await?;
    committed(&running, 3).await?;
    let found = readings(bed, "'load', 'temperature', 'level', 'open', 'mode'").await?;
    let row = |device: &str, point: &str, millis: u64, number: Option<f64>, quality: i16| {
        let millis = at(millis) as i64;
        ("line".to_owned(), device.to_owned(), point.to_owned(), millis, number, None, None, quality)
    };
    let truth = |millis, open| (Some(open), row("pump", "open", millis, None, 0));
    let text = |millis, mode: &str| (Some(mode.to_owned()), row("pump", "mode", millis, None, 0));
    let mut expected = vec![
        row("pump", "level", 1, Some(-2.0), 0),
        row("pump", "level", 101, Some(-3.0), 0),
        row("line", "load", 0, Some(0.5), 0),
        row("line", "load", 100, Some(0.75), 0),
    ];
    expected.extend(
        [text(1, "RUN"), text(101, "STOP")]
            .map(|(mode, row)| (row.0, row.1, row.2, row.3, None, None, mode, 0)),
    );
    expected.extend(
        [truth(1, false), truth(101, true)]
            .map(|(open, row)| (row.0, row.1, row.2, row.3, None, open, None, 0)),
    );
    expected.extend([
        row("pump", "temperature", 1, Some(20.0), 0),
        row("pump", "temperature", 101, Some(21.25), 0),
        row("pump", "temperature", 120, None, 500),
    ]);
    ensure!(found == expected, "{found:#?} instead of {expected:#?}");
    let metrics = running.idle().await?;
    ensure!(metrics.sum("ingest_dead_letters_total") == 0.0, "no dead letters");
    require_identities(&metrics)
}

async fn a_worker_that_waited_knows_the_births_that_the_one_before_it_stored(bed: &mut Bed) -> Result<()> {
    let one = worker(bed).await?;
    let two = bed.start("two", &[])?;
    two.ready().await?;
    one.not_ready("two").await?;
    bed.publish(vec![birth("plant/NBIRTH/line", 0, 0, "speed")]).await?;
    committed(&two, 1).await?;
    two.stop(Duration::from_secs(10)).await?;
    one.ready().await?;
    bed.publish(vec![data("plant/NDATA/line", 10, 1)]).await?;
    committed(&one, 1).await?;
    let speeds = speeds(bed).await?;
    ensure!(speeds == [Some(0.0), Some(10.0)], "{speeds:?}");
    require_identities(&one.idle().await?)
}

async fn a_birth_that_the_old_worker_stores_while_the_new_one_connects_is_known_to_both(
    bed: &mut Bed,
) -> Result<()> {
    let proxy = Proxy::start(bed.address.clone()).await?;
    proxy.set(Mode::Cut);
    let old = worker(bed).await?;
    let holder = "SELECT incarnation::text FROM penstock.shard_lease";
    let before: String = bed.sql(holder).await?;
    // Of the same instance, it takes the lease without a look at the broker, which it does not reach yet.
    let (direct, through) = (bed.address.clone(), format!("127.0.0.1:{}", proxy.port));
    bed.manifest(|text| subscribed(&text).replace(&direct, &through))?;
    let new = bed.start("one", &[])?;
    until_async("the new worker has the lease", LONG, || async {
        matches!(bed.sql::<String>(holder).await, Ok(now) if now != before)
    })
    .await?;
    // Neither learns anything of the lease meanwhile, so the old one goes on.
    let mut lock = PgConnection::connect(&bed.database.admin_url).await?;
    lock.execute("BEGIN; SELECT FROM penstock.shard_lease FOR UPDATE").await?;
    bed.publish(vec![birth("plant/NBIRTH/line", 0, 0, "speed")]).await?;
    committed(&old, 1).await?;
    lock.execute("ROLLBACK").await?;
    proxy.set(Mode::Pass);
    new.ready().await?;
    bed.publish(vec![data("plant/NDATA/line", 10, 1)]).await?;
    committed(&new, 1).await?;
    let speeds = speeds(bed).await?;
    ensure!(speeds == [Some(0.0), Some(10.0)], "{speeds:?}");
    require_identities(&new.idle().await?)
}

async fn who_begins_a_filter_knows_the_births_that_another_shard_stored(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    // As the other shard's transaction does, long after this worker began.
    bed.execute(&format!(
        "INSERT INTO penstock.sparkplug_birth (group_id, edge_node, device, since, metrics) VALUES \
         ('plant', 'line', '', to_timestamp({} / 1000.0), '[{{\"alias\": 1, \"name\": \"speed\", \"type\": 10}}]')",
        at(0)
    ))
    .await?;
    bed.manifest(|text| subscribed(&text))?;
    let status = || async { worker.status().await.map(|status| status.to_string()).unwrap_or_default() };
    until_async("it is subscribed", LONG, || async { status().await.contains("spBv1.0/#") }).await?;
    worker.ready().await?;
    bed.publish(vec![data("plant/NDATA/line", 10, 1)]).await?;
    committed(&worker, 1).await?;
    let speeds = speeds(bed).await?;
    ensure!(speeds == [Some(10.0)], "{speeds:?}");
    require_identities(&worker.idle().await?)
}

async fn data_before_a_birth_is_a_dead_letter_and_asks_each_edge_node_once_a_minute(
    bed: &mut Bed,
) -> Result<()> {
    let listener = Listener::start(&bed.address, "spBv1.0/+/NCMD/+").await?;
    let worker = worker(bed).await?;
    let early: Vec<Outgoing> = (0..5).map(|n| data("plant/DDATA/line/pump", 100 + n, 7 + n)).collect();
    bed.publish(early.clone()).await?;
    bed.publish(vec![data("plant/NDATA/other", 100, 7)]).await?;
    committed(&worker, 6).await?;
    until_async("both edge nodes are asked", LONG, || async { listener.heard().len() >= 2 }).await?;
    let metrics = worker.idle().await?;
    ensure!(metrics.get("ingest_dead_letters_total/unknown_alias") == 6.0, "each is a dead letter");
    require_identities(&metrics)?;
    let letters: Vec<(Vec<u8>,)> = bed
        .rows("SELECT payload FROM penstock.dead_letter JOIN penstock.dead_payload USING (payload_digest) WHERE reason = 'unknown_alias' AND tenant = 'plant'")
        .await?;
    for message in &early {
        ensure!(letters.iter().any(|(payload,)| *payload == message.payload), "the whole payload is kept");
    }
    let mut asked = listener.heard();
    asked.sort();
    let topics: Vec<&str> = asked.iter().map(|(topic, _)| topic.as_str()).collect();
    ensure!(topics == ["spBv1.0/plant/NCMD/line", "spBv1.0/plant/NCMD/other"], "asked: {topics:?}");
    for (topic, payload) in &asked {
        let command = Payload::decode(payload.clone())?;
        let metric = command.metrics.first().context("a metric")?;
        let told = (metric.name.as_deref(), metric.datatype, &metric.value);
        let rebirth = (Some(&b"Node Control/Rebirth"[..]), Some(11), &Some(Value::Boolean(true)));
        ensure!(command.metrics.len() == 1 && told == rebirth, "{topic}: {command:?}");
    }
    // It is born again, and goes on.
    bed.publish(vec![
        birth("plant/NBIRTH/line", 200, 0, "speed"),
        birth("plant/DBIRTH/line/pump", 201, 1, "flow"),
        data("plant/DDATA/line/pump", 202, 2),
    ])
    .await?;
    committed(&worker, 9).await?;
    let flow: Option<f64> = readings(bed, "'flow'").await?.last().and_then(|row| row.4);
    ensure!(flow == Some(202.0), "read by its alias: {flow:?}");
    let metrics = worker.idle().await?;
    ensure!(metrics.get("ingest_sparkplug_rebirth_requests_total/sent") == 2.0, "nobody is asked again");
    ensure!(listener.heard().len() == 2, "nobody is asked again");
    Ok(())
}

/// Device, whether it is stale, and which connection its node's last birth named.
async fn states(bed: &Bed) -> Result<Vec<(String, bool, Option<i64>)>> {
    bed.rows("SELECT device, stale_since IS NOT NULL, bd_seq FROM penstock.sparkplug_state ORDER BY device")
        .await
}

async fn deaths_mark_what_is_stale_and_births_end_it(bed: &mut Bed) -> Result<()> {
    let worker = worker(bed).await?;
    let death = |number| message("plant/NDEATH/line", 0, None, vec![bd_seq(number)]);
    let born = |millis, number: u64| {
        message(
            "plant/NBIRTH/line",
            millis,
            Some(0),
            vec![bd_seq(number), named("speed", 1, 10, Value::Double(1.0))],
        )
    };
    let device = |millis| {
        message("plant/DBIRTH/line/pump", millis, Some(1), vec![named("flow", 2, 10, Value::Double(1.0))])
    };
    let state = |device: &str, stale, number| (device.to_owned(), stale, number);
    bed.publish(vec![born(10, 4), device(11), death(3)]).await?;
    committed(&worker, 3).await?;
    ensure!(
        states(bed).await? == [state("", false, Some(4)), state("pump", false, None)],
        "the death of an older connection is outdated: {:?}",
        states(bed).await?
    );
    for _ in 0..2 {
        bed.publish(vec![death(4)]).await?;
    }
    committed(&worker, 5).await?;
    ensure!(
        states(bed).await? == [state("", true, Some(4)), state("pump", true, None)],
        "the edge node and its device are stale: {:?}",
        states(bed).await?
    );
    bed.publish(vec![born(20, 5)]).await?;
    committed(&worker, 6).await?;
    ensure!(
        states(bed).await? == [state("", false, Some(5)), state("pump", true, None)],
        "the device is not born yet: {:?}",
        states(bed).await?
    );
    bed.publish(vec![device(21), message("plant/DDEATH/line/pump", 30, Some(2), Vec::new())]).await?;
    committed(&worker, 8).await?;
    let stale_since: i64 = bed
        .sql("SELECT (extract(epoch FROM stale_since) * 1000)::int8 FROM penstock.sparkplug_state WHERE device = 'pump'")
        .await?;
    ensure!(stale_since == at(30) as i64, "stale since its own death");
    let events: Vec<(String, String, String)> = bed
        .rows("SELECT d.site, d.name, v.event_type FROM penstock.event v JOIN penstock.device d USING (device_id) ORDER BY 3")
        .await?;
    let event = |device: &str, kind: &str| ("line".to_owned(), device.to_owned(), kind.to_owned());
    ensure!(
        events == [event("pump", "sparkplug.ddeath"), event("line", "sparkplug.ndeath")],
        "each death is one event: {events:?}"
    );
    let metrics = worker.idle().await?;
    ensure!(metrics.get("ingest_outcomes_total/deduplicated") == 1.0, "the same death twice is one");
    require_identities(&metrics)
}

async fn missing_sequence_numbers_are_counted_and_redelivered_ones_are_not(bed: &mut Bed) -> Result<()> {
    let proxy = Proxy::start(bed.address.clone()).await?;
    let (direct, through) = (bed.address.clone(), format!("127.0.0.1:{}", proxy.port));
    let worker = bed.worker_with(|text| subscribed(&text).replace(&direct, &through)).await?;
    bed.publish(vec![
        birth("plant/NBIRTH/line", 0, 0, "speed"),
        birth("plant/DBIRTH/line/pump", 1, 1, "flow"),
    ])
    .await?;
    committed(&worker, 2).await?;
    let held = bed.hold_writers().await?;
    // 7 is missing, among what is delivered twice.
    let seqs = [2, 3, 4, 5, 6, 8, 9, 10];
    let topic = |seq: u64| if seq.is_multiple_of(2) { "plant/NDATA/line" } else { "plant/DDATA/line/pump" };
    bed.publish(seqs.iter().map(|seq| data(topic(*seq), 10 + seq, *seq)).collect()).await?;
    // At QoS 1: the request for a birth, which this worker has subscribed too, comes at QoS 0.
    worker.metric("they are in hand", LONG, |m| m.get("ingest_mqtt_unacked") == 8.0).await?;
    proxy.set(Mode::Cut);
    worker.not_ready("broker_away").await?;
    proxy.set(Mode::Pass);
    worker.metric("they come again", LONG, |m| m.get("ingest_redelivered_total") == 8.0).await?;
    held.release().await?;
    bed.publish(vec![data(topic(11), 21, 11)]).await?;
    committed(&worker, 2 + 8 + 8 + 1).await?;
    let metrics = worker.idle().await?;
    let gaps = metrics.get("ingest_sparkplug_sequence_gaps_total");
    ensure!(gaps == 1.0, "{gaps} gaps");
    ensure!(metrics.sum("ingest_dead_letters_total") == 0.0, "no dead letters");
    let stored = readings(bed, "'speed', 'flow'").await?;
    ensure!(stored.len() == 2 + 9, "stored once each: {stored:#?}");
    require_identities(&metrics)
}

async fn an_alias_that_changes_its_meaning_keeps_the_old_one_for_old_data_that_comes_again(
    bed: &mut Bed,
) -> Result<()> {
    let mut running = worker(bed).await?;
    let held = bed.hold_writers().await?;
    let all = [
        birth("plant/NBIRTH/line", 0, 0, "pressure"),
        data("plant/NDATA/line", 10, 1),
        birth("plant/NBIRTH/line", 20, 0, "voltage"),
        data("plant/NDATA/line", 30, 1),
    ];
    bed.publish(all.to_vec()).await?;
    running.metric("all are in hand", LONG, |m| m.get("ingest_in_flight") == 4.0).await?;
    running.kill();
    held.release().await?;
    running = bed.start("one", &[])?;
    running.ready().await?;
    committed(&running, 4).await?;
    // A publisher or broker may also send old ones again later.
    bed.publish(vec![all[1].clone(), all[0].clone(), all[3].clone()]).await?;
    committed(&running, 7).await?;
    let found = readings(bed, "'pressure', 'voltage'").await?;
    let found: Vec<(String, i64, Option<f64>)> = found.into_iter().map(|row| (row.2, row.3, row.4)).collect();
    let row = |point: &str, millis: u64, value| (point.to_owned(), at(millis) as i64, Some(value));
    let expected = [
        row("pressure", 0, 0.0),
        row("pressure", 10, 10.0),
        row("voltage", 20, 0.0),
        row("voltage", 30, 30.0),
    ];
    ensure!(found == expected, "{found:?}");
    let metrics = running.idle().await?;
    ensure!(metrics.sum("ingest_dead_letters_total") == 0.0, "no dead letters");
    require_identities(&metrics)
}
