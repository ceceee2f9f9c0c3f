//! The steps about what the worker does, not how fast.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::finding::Finding;
use crate::bed::{Bed, require_identities};
use crate::fleet::at;
use crate::report::numbers::{count, duration};
use crate::scenarios::load::Load;
use crate::scenarios::{data, store};

const PATIENCE: Duration = Duration::from_secs(60);
const DEVICE: &str = "traksense/t0/s1/dev-00000";

/// Step 1.
pub async fn starts(bed: &mut Bed, finding: &mut Finding) -> Result<()> {
    bed.migrate().await?;
    bed.manifest(|text| text)?;
    let started = Instant::now();
    let worker = bed.start("one", &["--log-format", "json"])?;
    worker.ready().await?;
    let ready = started.elapsed();
    finding.measured("ready after", duration(ready.as_secs_f64()));
    finding.require("ready within 10 s", ready < Duration::from_secs(10));
    finding.require("/livez answers", worker.is_live().await?);
    let status = worker.status().await?;
    finding.require("/status is a JSON object", status.is_object());
    let families = worker.families().await?;
    finding.measured("metric families", families.len().to_string());
    finding.require(
        "/metrics shows families of ingest_",
        families.iter().filter(|f| f.starts_with("ingest_")).count() > 30,
    );
    worker.stop(Duration::from_secs(30)).await?;
    let log = std::fs::read_to_string(bed.folder.join("worker-one.log"))?;
    let structured = |line: &str| {
        let line: Option<Value> = serde_json::from_str(line).ok();
        line.is_some_and(|line| line["timestamp"].is_string() && line["level"].is_string())
    };
    let lines: Vec<&str> = log.lines().collect();
    finding.measured("log lines from start to stop", lines.len().to_string());
    finding.require(
        "every log line is an object with timestamp and level",
        !lines.is_empty() && lines.iter().all(|line| structured(line)),
    );
    finding.evidence("log", lines.iter().take(6).copied().collect::<Vec<_>>().join("\n"));
    finding.evidence("/metrics, families", families.join("\n"));
    Ok(())
}

/// Step 2.
pub async fn reconnects(bed: &mut Bed, finding: &mut Finding) -> Result<()> {
    let worker = bed.worker().await?;
    let load = Load::mixed(bed, 500.0);
    let committed = async || Ok::<_, anyhow::Error>(worker.metrics().await?.get("ingest_committed_total"));
    let before = committed().await?;
    worker.metric("messages flow", PATIENCE, |m| m.get("ingest_committed_total") > before + 200.0).await?;
    for part in ["broker", "database"] {
        if part == "broker" {
            bed.broker()?.stop()?;
            worker.not_ready("broker_away").await?;
            bed.broker()?.start_again()?;
        } else {
            bed.server()?.stop()?;
            worker.not_ready("database").await?;
            bed.server()?.start_again().await?;
        }
        let (back, before) = (Instant::now(), committed().await?);
        worker.metric("messages flow again", PATIENCE, |m| m.get("ingest_committed_total") > before).await?;
        finding.measured(
            format!("rows stored again, after the {part} was back"),
            duration(back.elapsed().as_secs_f64()),
        );
        worker.ready().await?;
    }
    let (comparison, metrics) = load.finish(bed, &worker).await?;
    finding.measured("table against publishers, row by row", comparison.to_string());
    finding.require("nothing lost, doubled, wrong or unexpected", comparison.require_exact().is_ok());
    finding.require("both accounting identities hold", require_identities(&metrics).is_ok());
    finding
        .measured("connections to the broker (ingest_mqtt_epoch)", count(metrics.get("ingest_mqtt_epoch")));
    finding.require("it connected again", metrics.get("ingest_mqtt_epoch") >= 2.0);
    Ok(())
}

/// Step 3.
pub async fn normalized_payload(bed: &mut Bed, finding: &mut Finding) -> Result<()> {
    let worker = bed.worker().await?;
    let payload = json!({
        "schema": "v1", "ts": at(5), "meta": {"fw": "1.4.2"},
        "points": [
            {"name": "temperature", "t": "float", "v": 21.5, "u": "celsius"},
            {"name": "running", "t": "bool", "v": true},
            {"name": "mode", "t": "enum", "v": "AUTO"},
            {"name": "note", "t": "text", "v": "größe"},
            {"name": "count", "v": 7},
        ],
    });
    bed.publish_one(&format!("{DEVICE}/telem"), payload.to_string()).await?;
    worker.metric("it is stored", PATIENCE, |m| m.get("ingest_points_total") == 5.0).await?;
    finding.evidence("published", payload.to_string());
    let rows = finding.query(bed, READINGS).await?;
    let expected = [
        json!(["count", 7.0, null, null, null]),
        json!(["mode", null, null, "AUTO", null]),
        json!(["note", null, null, "größe", null]),
        json!(["running", null, true, null, null]),
        json!(["temperature", 21.5, null, null, "celsius"]),
    ];
    finding.measured("rows", rows.len().to_string());
    finding.require("five rows, each with its type and unit", content(&rows) == expected);
    finding.require("each has the message's time", rows.iter().all(|row| same_time(&row["ts"], &at(5))));
    let metadata: String = bed.sql("SELECT document->>'fw' FROM penstock.message").await?;
    finding.require("the metadata is kept", metadata == "1.4.2");
    Ok(())
}

const READINGS: &str = "SELECT to_char(s.ts AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') ts, d.name device, e.point, \
     s.v_num, s.v_bool, s.v_text, e.unit FROM penstock.sample s JOIN penstock.series e USING (series_id) \
     JOIN penstock.device d USING (device_id) ORDER BY d.name, e.point, s.ts";

/// Point, values and unit of each row.
fn content(rows: &[Value]) -> Vec<Value> {
    let number = |value: &Value| value.as_f64().map_or(Value::Null, |number| json!(number));
    rows.iter()
        .map(|row| json!([row["point"], number(&row["v_num"]), row["v_bool"], row["v_text"], row["unit"]]))
        .collect()
}

fn same_time(found: &Value, wanted: &str) -> bool {
    let instant = |text: &str| text.parse::<jiff::Timestamp>().ok();
    found.as_str().and_then(instant) == instant(wanted)
}

/// Step 4.
pub async fn vendor_payloads(bed: &mut Bed, finding: &mut Finding) -> Result<()> {
    let worker = bed.worker().await?;
    let unix = at(3).parse::<jiff::Timestamp>()?.as_second();
    let payloads = [
        ("parsec-lower", json!({"di1": 1, "di2": 0, "rssi": -67, "fw": "2.0", "ts": at(1)})),
        ("parsec-upper", json!({"schema": "parsec_v1", "ts": at(2), "DI1": 1, "DI2": 1, "rssi": -70})),
        ("parsec-unix", json!({"timestamp": unix, "DI1": 0, "DI2": 0, "AI1": 22.5})),
        (
            "je02-data",
            json!({"DATA": {"TS": unix, "INPUT1": 1, "INPUT2": 0, "VAR0": 253, "VAR1": 481, "WRSSI": -61,
            "RELE": 1, "CNTSERR": 2, "UPTIME": 4000}}),
        ),
        (
            "je02-info",
            json!({"INFO": {"FW_VERSION": "1.0", "HW_VERSION": "B", "DEVICE_ID": "77", "MODEL": "JE02"}}),
        ),
    ];
    for (device, payload) in &payloads {
        bed.publish_one(&format!("traksense/t0/s1/{device}/telem"), payload.to_string()).await?;
        finding.evidence(format!("published by {device}"), payload.to_string());
    }
    worker
        .metric("all are committed", PATIENCE, |m| m.get("ingest_committed_total") == payloads.len() as f64)
        .await?;
    let mut of_device: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    for row in finding.query(bed, READINGS).await? {
        let value =
            ["v_num", "v_bool", "v_text"].iter().map(|column| &row[*column]).find(|value| !value.is_null());
        let name = |column: &str| row[column].as_str().unwrap_or_default().to_owned();
        of_device
            .entry(name("device"))
            .or_default()
            .insert(name("point"), value.cloned().unwrap_or_default());
    }
    finding.query(bed, "SELECT reason, topic, detail FROM penstock.dead_letter").await?;
    let mut is = |device: &str, point: &str, wanted: Value| {
        let found = of_device.get(device).and_then(|points| points.get(point)).cloned().unwrap_or_default();
        let same = found == wanted || found.as_f64().is_some_and(|found| Some(found) == wanted.as_f64());
        finding.require(format!("{device}: {point} is {wanted}"), same);
    };
    is("parsec-lower", "status", json!("RUN"));
    is("parsec-lower", "fault", json!(false));
    is("parsec-lower", "rssi", json!(-67));
    is("parsec-upper", "status", json!("FAULT"));
    is("parsec-upper", "fault", json!(true));
    is("parsec-unix", "status", json!("STOP"));
    is("je02-data", "status", json!("RUN"));
    is("je02-data", "var0", json!(25.3));
    is("je02-data", "rele", json!(true));
    let metadata: i64 = bed
        .sql("SELECT count(*) FROM penstock.message JOIN penstock.device USING (device_id) WHERE name = 'je02-info'")
        .await?;
    finding.measured("metadata of je02-info", metadata.to_string());
    finding
        .require("no dead letter", bed.sql::<i64>("SELECT count(*) FROM penstock.dead_letter").await? == 0);
    require_identities(&worker.idle().await?)
}

/// Step 5.
pub async fn dead_letters(bed: &mut Bed, finding: &mut Finding) -> Result<()> {
    data::each_bad_message_has_its_reason_and_twice_delivered_is_one_dead_letter(bed).await?;
    let reasons = finding
        .query(
            bed,
            "SELECT reason, count(*) letters, min(octet_length(payload)) smallest_payload, min(detail) detail \
             FROM penstock.dead_letter JOIN penstock.dead_payload USING (payload_digest) GROUP BY reason ORDER BY reason",
        )
        .await?;
    finding.measured("reasons seen", reasons.len().to_string());
    finding
        .require("each bad message, delivered twice, is one dead letter with its payload and reason", true);
    Ok(())
}

/// Step 6.
pub async fn acks(bed: &mut Bed, finding: &mut Finding) -> Result<()> {
    data::three_times_the_same_answer_is_one_row_and_an_older_one_changes_nothing(bed).await?;
    let rows = finding.query(bed, "SELECT cmd_id, ok, executed_at, error FROM penstock.command_ack").await?;
    finding.measured("answers published", "6: three equal ones, an older, an undated, a newer");
    finding.measured("rows", rows.len().to_string());
    finding.require("one row, of the newest answer", rows.len() == 1 && rows[0]["error"] == "newest");
    Ok(())
}

/// Step 9.
pub async fn out_of_order(bed: &mut Bed, finding: &mut Finding) -> Result<()> {
    data::samples_out_of_order_and_twice_are_stored_once_and_the_first_value_wins(bed).await?;
    let rows = finding
        .query(
            bed,
            "SELECT count(*) rows, count(DISTINCT ts) times, sum((v_num = n)::int) in_order FROM \
             (SELECT ts, v_num, row_number() OVER (ORDER BY ts) - 1 n FROM penstock.sample) s",
        )
        .await?;
    let row = rows.first().context("a row")?;
    finding.measured("published newest first, all twice", "500 messages, and four that clash");
    finding.require("501 rows of 501 times", row["rows"] == 501 && row["times"] == 501);
    finding.require("by their own time they are in order", row["in_order"] == 500);
    Ok(())
}

/// Step 11.
pub async fn metrics(bed: &mut Bed, finding: &mut Finding) -> Result<()> {
    let families = store::populate_every_metric(bed).await?;
    finding.measured("families", families.len().to_string());
    let lines: Vec<String> = families.iter().map(|(family, value)| format!("{family} {value}")).collect();
    finding.evidence("/metrics, the sum of each family", lines.join("\n"));
    finding.require("each has counted something, but for those of faults that did not happen", true);
    Ok(())
}
