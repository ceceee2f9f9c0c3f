//! What devices send: out of order, twice, at odds with itself, and broken in every way.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::bed::{Bed, require_identities};
use crate::fleet::at;
use crate::publisher::Outgoing;
use crate::scenario;
use crate::suite::Scenario;
use crate::worker::Metrics;

const LONG: Duration = Duration::from_secs(60);
const DEVICE: &str = "traksense/t0/s1/dev-00000";

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(samples_out_of_order_and_twice_are_stored_once_and_the_first_value_wins),
        scenario!(samples_that_others_stored_are_found_though_they_are_later_than_all_that_was_seen),
        scenario!(three_times_the_same_answer_is_one_row_and_an_older_one_changes_nothing),
        scenario!(events_and_metadata_that_come_twice_are_stored_once),
        scenario!(each_bad_message_has_its_reason_and_twice_delivered_is_one_dead_letter),
        scenario!(strange_payloads_and_topics_are_answered_and_block_nothing),
        scenario!(one_message_gives_some_samples_and_some_dead_letters),
    ]
}

fn message(topic: &str, payload: impl Into<bytes::Bytes>) -> Outgoing {
    Outgoing { topic: topic.to_owned(), payload: payload.into(), qos: 1 }
}

fn telemetry(ts: &str, value: &str) -> Outgoing {
    let payload = format!(r#"{{"schema":"v1","ts":"{ts}","points":[{{"name":"p0","v":{value}}}]}}"#);
    message(&format!("{DEVICE}/telem"), payload)
}

pub async fn samples_out_of_order_and_twice_are_stored_once_and_the_first_value_wins(
    bed: &mut Bed,
) -> Result<()> {
    let worker = bed.worker().await?;
    // Publishing waits for the broker, so the order is that of receipt.
    let newest_first: Vec<Outgoing> = (0..500).rev().map(|n| telemetry(&at(n), &n.to_string())).collect();
    bed.publish(newest_first.clone()).await?;
    worker.metric("all are stored", LONG, |m| m.get("ingest_points_total") == 500.0).await?;
    bed.publish(newest_first).await?;
    worker
        .metric("all are there already", LONG, |m| m.get("ingest_outcomes_total/deduplicated") == 500.0)
        .await?;
    // In one batch, and against what is stored.
    let clash = vec![
        telemetry(&at(900), "1"),
        telemetry(&at(900), "2"),
        telemetry(&at(900), "1"),
        telemetry(&at(7), "8"),
    ];
    bed.publish(clash.clone()).await?;
    worker.metric("two conflicts", LONG, |m| m.get("ingest_dead_letters_total/conflict") == 2.0).await?;
    bed.publish(clash).await?;
    worker.metric("all came", LONG, |m| m.get("ingest_committed_total") == 1008.0).await?;
    let (rows, first, seventh): (i64, f64, f64) = bed
        .row(&format!(
            "SELECT count(*), max(v_num) FILTER (WHERE ts = '{}'), max(v_num) FILTER (WHERE ts = '{}') FROM penstock.sample",
            at(900),
            at(7)
        ))
        .await?;
    ensure!(
        (rows, first, seventh) == (501, 1.0, 7.0),
        "{rows} rows; the first values are {first} and {seventh}"
    );
    let metrics = worker.idle().await?;
    ensure!(
        metrics.get("ingest_dead_letters_total/conflict") == 2.0,
        "a conflict that comes again is one dead letter"
    );
    require_identities(&metrics)
}

async fn samples_that_others_stored_are_found_though_they_are_later_than_all_that_was_seen(
    bed: &mut Bed,
) -> Result<()> {
    let worker = bed.worker().await?;
    let publish = async |numbers: std::ops::Range<u32>, stored: f64, deduplicated: f64| {
        bed.publish(numbers.map(|n| telemetry(&at(n), &n.to_string())).collect()).await?;
        let all = |m: &Metrics| {
            let outcome = |name: &str| m.get(&format!("ingest_outcomes_total/{name}"));
            (outcome("stored"), outcome("deduplicated")) == (stored, deduplicated)
        };
        worker.metric("all are accounted for", LONG, all).await?;
        worker.idle().await
    };
    publish(0..50, 50.0, 0.0).await?;
    // Repeats come: from here on only samples that are not later than all others of their series are looked
    // for.
    publish(0..50, 50.0, 50.0).await?;
    let before = publish(40..60, 60.0, 60.0).await?.get("ingest_db_errors_total/duplicate");
    // Another writer's, of which the last ten differ from what is to come.
    bed.execute(&format!(
        "INSERT INTO penstock.sample (ts, series_id, quality, v_num) \
         SELECT '{}'::timestamptz + (n - 60) * ('{}'::timestamptz - '{}'), s.series_id, 0, CASE WHEN n < 70 THEN n ELSE -n END \
         FROM generate_series(60, 79) n, (SELECT DISTINCT series_id FROM penstock.sample) s",
        at(60), at(61), at(60)
    ))
    .await?;
    let metrics = publish(50..90, 70.0, 80.0).await?;
    ensure!(
        metrics.get("ingest_db_errors_total/duplicate") > before,
        "those of others were found at once: this tests nothing"
    );
    ensure!(metrics.get("ingest_dead_letters_total/conflict") == 10.0, "those that differ are told");
    let wrong: i64 = bed
        .sql("SELECT count(*) FROM (SELECT row_number() OVER (ORDER BY ts) - 1 n, v_num FROM penstock.sample) s \
              WHERE v_num <> CASE WHEN n BETWEEN 70 AND 79 THEN -n ELSE n END OR n > 89")
        .await?;
    ensure!(wrong == 0, "{wrong} rows are wrong");
    require_identities(&metrics)
}

pub async fn three_times_the_same_answer_is_one_row_and_an_older_one_changes_nothing(
    bed: &mut Bed,
) -> Result<()> {
    let worker = bed.worker().await?;
    let answer = |ts: Option<u32>, ok: bool, err: &str| {
        let ts = ts.map_or(String::new(), |n| format!(r#","ts_exec":"{}""#, at(n)));
        message(
            &format!("{DEVICE}/ack"),
            format!(r#"{{"schema":"v1","cmd_id":"c1","ok":{ok}{ts},"err":"{err}"}}"#),
        )
    };
    for _ in 0..3 {
        bed.publish(vec![answer(Some(50), true, "new")]).await?;
    }
    worker.metric("three came", LONG, |m| m.get("ingest_messages_total/ack") == 3.0).await?;
    bed.publish(vec![answer(Some(40), false, "old"), answer(None, false, "undated")]).await?;
    worker.metric("five came", LONG, |m| m.get("ingest_messages_total/ack") == 5.0).await?;
    let row: (bool, String) = bed.row("SELECT ok, error FROM penstock.command_ack").await?;
    ensure!(row == (true, "new".to_owned()), "the row is {row:?}");
    bed.publish(vec![answer(Some(60), false, "newest")]).await?;
    worker.metric("six came", LONG, |m| m.get("ingest_messages_total/ack") == 6.0).await?;
    let row: (i64, String) = bed.row("SELECT count(*) OVER (), error FROM penstock.command_ack").await?;
    ensure!(row == (1, "newest".to_owned()), "the row is {row:?}");
    let metrics = worker.idle().await?;
    let outcome = |name: &str| metrics.get(&format!("ingest_outcomes_total/{name}"));
    ensure!(
        (outcome("stored"), outcome("deduplicated"), outcome("outdated")) == (2.0, 2.0, 2.0),
        "stored {}, deduplicated {}, outdated {}",
        outcome("stored"),
        outcome("deduplicated"),
        outcome("outdated")
    );
    require_identities(&metrics)
}

async fn events_and_metadata_that_come_twice_are_stored_once(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let event = |id: &str| {
        let payload =
            format!(r#"{{"schema":"v1",{id}"event_type":"door","ts":"{}","data":{{"open":true}}}}"#, at(1));
        message(&format!("{DEVICE}/event"), payload)
    };
    let meta = format!(r#"{{"schema":"v1","ts":"{}","points":[],"meta":{{"fw":"1.2"}}}}"#, at(2));
    for _ in 0..2 {
        let batch =
            vec![event(r#""event_id":"e1","#), event(""), message(&format!("{DEVICE}/telem"), meta.clone())];
        bed.publish(batch).await?;
    }
    worker.metric("six came", LONG, |m| m.get("ingest_committed_total") == 6.0).await?;
    let (events, messages): (i64, i64) = bed
        .row("SELECT (SELECT count(*) FROM penstock.event), (SELECT count(*) FROM penstock.message)")
        .await?;
    ensure!((events, messages) == (2, 1), "{events} events and {messages} messages");
    require_identities(&worker.idle().await?)
}

/// Topic, payload and the reason of its dead letter.
fn bad_messages() -> Vec<(Outgoing, &'static str)> {
    let telem = |payload: String| message(&format!("{DEVICE}/telem"), payload);
    let point = |point: &str| telem(format!(r#"{{"schema":"v1","ts":"{}","points":[{point}]}}"#, at(1)));
    let head = format!(r#"{{"schema":"v1","ts":"{}""#, at(1));
    vec![
        (message("traksense/t0/s1/dev-00000/x/telem", "{}"), "invalid_topic"),
        (message("traksense/t0/s1//telem", "{}"), "invalid_topic"),
        (message("traksense/stranger/s1/dev-00000/telem", "{}"), "unknown_tenant"),
        (message(&format!("{DEVICE}/weather"), "{}"), "unknown_schema"),
        (telem(r#"{"schema":"v9"}"#.into()), "unknown_schema"),
        (telem(String::new()), "empty_payload"),
        (message(&format!("{DEVICE}/telem"), &b"\xff\xfe{}"[..]), "invalid_encoding"),
        (point(r#"{"name":"p","t":"text","v":"a\u0000b"}"#), "invalid_encoding"),
        (message(&format!("{DEVICE}/telem"), &b"\x1f\x8b"[..]), "invalid_compression"),
        (telem(r#"{"schema":"v1","#.into()), "parse_error"),
        (
            telem(format!(r#"{head},"points":[],"meta":{}{}}}"#, "[".repeat(40), "]".repeat(40))),
            "invalid_field",
        ),
        (telem(format!("{head}}}")), "invalid_field"),
        (point(r#"{"v":1}"#), "invalid_field"),
        (point(r#"{"name":"p","v":null}"#), "invalid_value"),
        (point(r#"{"name":"p","t":"bool","v":1}"#), "invalid_value"),
        (point(r#"{"name":"p","v":1e999}"#), "invalid_value"),
        (point(r#"{"name":"p","v":9007199254740993}"#), "out_of_range"),
        (point(&format!(r#"{{"name":"{}","v":1}}"#, "n".repeat(300))), "too_long"),
        (telem(r#"{"schema":"v1","points":[{"name":"p","v":1}]}"#.into()), "missing_time"),
        (
            telem(r#"{"schema":"v1","ts":"2026-11-24T05:10:53","points":[{"name":"p","v":1}]}"#.into()),
            "invalid_time",
        ),
        (
            telem(r#"{"schema":"v1","ts":"1970-01-01T00:00:00Z","points":[{"name":"p","v":1}]}"#.into()),
            "ts_window",
        ),
        (
            telem(r#"{"schema":"v1","ts":"2099-01-01T00:00:00Z","points":[{"name":"p","v":1}]}"#.into()),
            "ts_window",
        ),
        (telem("x".repeat(5000)), "too_large"),
        (
            message(
                "traksense/full/s1/dev-00000/telem",
                format!(r#"{head},"points":[{{"name":"one too many","v":1}}]}}"#),
            ),
            "cardinality",
        ),
        // A metric with an alias and nothing else, before any birth.
        (message("spBv1.0/t0/NDATA/line", &b"\x12\x02\x10\x01"[..]), "unknown_alias"),
        (point(r#"{"name":"taken","v":2}"#), "conflict"),
        (point(r#"{"name":"poison","v":666}"#), "database"),
    ]
}

pub async fn each_bad_message_has_its_reason_and_twice_delivered_is_one_dead_letter(
    bed: &mut Bed,
) -> Result<()> {
    let worker = bed
        .worker_with(|text| {
            text.replace(
                "{mode: Auto, maxSeries: 1000000}",
                "{mode: Listed, names: [t0, full], maxSeries: 4}",
            )
            .replace("maxPacketSize: 1Mi", "maxPacketSize: 4Ki")
            .replace("traksense/+/+/+/telem", "traksense/#")
            .replace("traksense/+/+/+/ack", "spBv1.0/+/NDATA/+")
            .replace("      - {filter: \"traksense/+/+/+/event\"}\n", "")
        })
        .await?;
    bed.execute("ALTER TABLE penstock.sample ADD CONSTRAINT good CHECK (v_num IS DISTINCT FROM 666)").await?;
    let full = (0..4).map(|n| format!(r#"{{"name":"p{n}","v":1}}"#)).collect::<Vec<_>>().join(",");
    let good = vec![
        telemetry(&at(1), "1"),
        message(
            &format!("{DEVICE}/telem"),
            format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"taken","v":1}}]}}"#, at(1)),
        ),
        message(
            "traksense/full/s1/dev-00000/telem",
            format!(r#"{{"schema":"v1","ts":"{}","points":[{full}]}}"#, at(1)),
        ),
    ];
    bed.publish(good).await?;
    worker.metric("the good ones are stored", LONG, |m| m.get("ingest_points_total") == 6.0).await?;

    let bad = bad_messages();
    for _ in 0..2 {
        let before = worker.metrics().await?.get("ingest_committed_total");
        bed.publish(bad.iter().map(|(message, _)| message.clone()).collect()).await?;
        worker
            .metric("they are committed", LONG, |m| {
                m.get("ingest_committed_total") == before + bad.len() as f64
            })
            .await?;
    }
    let letters: Vec<(String, String, Vec<u8>, String)> =
        bed.rows("SELECT reason, topic, payload, detail FROM penstock.dead_letter JOIN penstock.dead_payload USING (payload_digest)").await?;
    ensure!(letters.len() == bad.len(), "{} dead letters for {} bad messages", letters.len(), bad.len());
    let mut expected: BTreeMap<&str, f64> = BTreeMap::new();
    for (message, reason) in &bad {
        let found = letters.iter().find(|(r, topic, payload, _)| {
            r == reason && *topic == message.topic && *payload == message.payload
        });
        let letter = letters.iter().find(|letter| letter.1 == message.topic && letter.2 == message.payload);
        ensure!(
            found.is_some_and(|(.., detail)| !detail.is_empty()),
            "{reason}: {message:?} became {letter:?}"
        );
        *expected.entry(reason).or_default() += 1.0;
    }
    let metrics = worker.idle().await?;
    for reason in penstock_worker::decode::Reason::ALL {
        let counted = metrics.get(&format!("ingest_dead_letters_total/{}", reason.as_str()));
        ensure!(Some(&counted) == expected.get(reason.as_str()), "{}: counted {counted}", reason.as_str());
    }
    ensure!(metrics.get("ingest_points_total") == 6.0, "no more samples are stored");
    require_identities(&metrics)
}

async fn strange_payloads_and_topics_are_answered_and_block_nothing(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker_with(|text| text.replace("maxPacketSize: 1Mi", "maxPacketSize: 2Mi")).await?;
    let topic = format!("{DEVICE}/telem");
    let names = [
        "o'brien\"; DROP TABLE penstock.sample; --",
        "$1",
        "%s{}\\",
        "größe-\u{1f321}",
        "a b",
        "$(id)",
        "\\x00",
    ];
    let payload = format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p0","v":1}}]}}"#, at(1));
    let mut messages: Vec<Outgoing> = names
        .iter()
        .map(|name| message(&format!("traksense/{name}/{name}/{name}/telem"), payload.clone()))
        .collect();
    let strange: Vec<Vec<u8>> = vec![
        Vec::new(),
        (0..=255).collect(),
        "[".repeat(100_000).into_bytes(),
        vec![b'{'; 1 << 20],
        format!(
            r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p","t":"text","v":"{}"}}]}}"#,
            at(1),
            "x".repeat(1 << 20)
        )
        .into_bytes(),
        b"\0\0\0".to_vec(),
        format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p","v":NaN}}]}}"#, at(1)).into_bytes(),
        b"\xc3\x28".to_vec(),
        b"null".to_vec(),
        b"\"v1\"".to_vec(),
        br#"{"schema":"v1","schema":"v1"}"#.to_vec(),
    ];
    messages.extend(strange.iter().map(|payload| message(&topic, payload.clone())));
    let count = messages.len() as f64;
    bed.publish(messages).await?;
    bed.publish(vec![telemetry(&at(2), "5")]).await?;
    worker.metric("all are committed", LONG, |m| m.get("ingest_committed_total") == count + 1.0).await?;
    let stored: i64 = bed.sql("SELECT count(*) FROM penstock.sample").await?;
    ensure!(stored == names.len() as i64 + 1, "{stored} samples");
    for name in names {
        let found: Vec<(String, String, String)> =
            bed.rows("SELECT t.name, d.site, d.name FROM penstock.device d JOIN penstock.tenant t USING (tenant_id)").await?;
        ensure!(
            found.contains(&(name.into(), name.into(), name.into())),
            "{name} is stored as it is: {found:?}"
        );
    }
    let letters: Vec<(Vec<u8>,)> = bed
        .rows("SELECT payload FROM penstock.dead_letter JOIN penstock.dead_payload USING (payload_digest)")
        .await?;
    for payload in &strange {
        ensure!(
            letters.iter().any(|(letter,)| letter == payload),
            "no dead letter for {} bytes",
            payload.len()
        );
    }
    ensure!(worker.readiness().await?.0, "the worker is ready");
    require_identities(&worker.idle().await?)
}

async fn one_message_gives_some_samples_and_some_dead_letters(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let payload = format!(
        r#"{{"schema":"v1","ts":"{}","points":[{{"name":"a","v":1}},{{"name":"b","v":null}},{{"name":"c","t":"bool","v":true}},{{"name":"d","t":"enum","v":"RUN"}},{{"v":2}}]}}"#,
        at(1)
    );
    for _ in 0..2 {
        bed.publish_one(&format!("{DEVICE}/telem"), payload.clone()).await?;
    }
    worker.metric("both are committed", LONG, |m| m.get("ingest_committed_total") == 2.0).await?;
    let values: Vec<(String,)> = bed
        .rows("SELECT concat_ws(' ', e.point, v_num, v_bool, v_text) FROM penstock.sample JOIN penstock.series e USING (series_id) ORDER BY 1")
        .await?;
    ensure!(values == [("a 1".to_owned(),), ("c t".into(),), ("d RUN".into(),)], "stored {values:?}");
    let letters: Vec<(i32, String, Vec<u8>)> =
        bed.rows("SELECT part, reason, payload FROM penstock.dead_letter JOIN penstock.dead_payload USING (payload_digest) ORDER BY part").await?;
    let whole = payload.into_bytes();
    let expected =
        vec![(1, "invalid_value".to_owned(), whole.clone()), (4, "invalid_field".to_owned(), whole)];
    ensure!(letters == expected, "dead letters {letters:?}");
    require_identities(&worker.idle().await?)
}
