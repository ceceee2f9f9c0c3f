//! Tenants beside each other: who may store, how many series, how fast they begin, and whose turn it is.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bed::{Bed, require_identities};
use crate::fleet::at;
use crate::publisher::Outgoing;
use crate::scenario;
use crate::suite::Scenario;
use crate::worker::{self, Worker};

const LONG: Duration = Duration::from_secs(60);

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_tenant_that_begins_5000_series_is_delayed_and_another_is_not),
        scenario!(a_worker_killed_while_new_series_wait_loses_nothing),
        scenario!(ten_thousand_messages_of_a_noisy_tenant_delay_a_quiet_one_by_a_batch_at_most),
        scenario!(only_listed_tenants_store_and_what_others_sent_is_replayed_once_they_are_listed),
        scenario!(a_tenant_at_its_cap_of_series_gets_dead_letters_and_others_do_not),
    ]
}

/// A message with points of these names.
fn telemetry(tenant: &str, device: u32, n: u32, names: impl Iterator<Item = String>) -> Outgoing {
    let mut points = String::new();
    for name in names {
        let _ = write!(points, r#",{{"name":"{name}","v":{n}}}"#);
    }
    let payload =
        format!(r#"{{"schema":"v1","ts":"{}","points":[{}]}}"#, at(n), points.trim_start_matches(','));
    Outgoing { topic: format!("traksense/{tenant}/s1/dev-{device}/telem"), payload: payload.into(), qos: 1 }
}

/// 50 messages with 100 new series each.
fn flood() -> Vec<Outgoing> {
    (0..50).map(|device| telemetry("noisy", device, 1, (0..100).map(|point| format!("p{point}")))).collect()
}

/// Rows of the noisy tenant, and of the quiet one.
async fn rows(bed: &Bed) -> Result<(i64, i64)> {
    bed.row(
        "SELECT count(*) FILTER (WHERE t.name = 'noisy'), count(*) FILTER (WHERE t.name = 'quiet') FROM penstock.sample \
         JOIN penstock.series USING (series_id) JOIN penstock.device USING (device_id) JOIN penstock.tenant t USING (tenant_id)",
    )
    .await
}

async fn slow(bed: &mut Bed) -> Result<Worker> {
    bed.worker_with(|text| text.replace("maxSeries: 1000000", "maxSeries: 1000000, newSeriesPerMinute: 4200"))
        .await
}

async fn a_tenant_that_begins_5000_series_is_delayed_and_another_is_not(bed: &mut Bed) -> Result<()> {
    let worker = slow(bed).await?;
    bed.publish(flood()).await?;
    worker.metric("some wait", LONG, |m| m.get("ingest_series_waiting") > 0.0).await?;
    bed.publish((0..200).map(|n| telemetry("quiet", 0, n, std::iter::once("p".to_owned()))).collect())
        .await?;
    let started = std::time::Instant::now();
    let noisy = loop {
        let (noisy, quiet) = rows(bed).await?;
        if quiet == 200 {
            break noisy;
        }
        ensure!(started.elapsed() < LONG, "{quiet} of the quiet tenant are stored");
    };
    ensure!(noisy < 5000, "the noisy tenant is delayed meanwhile");
    let metrics = worker.idle().await?;
    ensure!(rows(bed).await? == (5000, 200), "all are stored in the end: {:?}", rows(bed).await?);
    ensure!(
        metrics.get("ingest_series_delayed_total") > 0.0 && metrics.get("ingest_series_waiting") == 0.0,
        "counted"
    );
    ensure!(metrics.sum("ingest_dead_letters_total") == 0.0, "none is a dead letter");
    require_identities(&metrics)
}

async fn a_worker_killed_while_new_series_wait_loses_nothing(bed: &mut Bed) -> Result<()> {
    let mut worker = slow(bed).await?;
    bed.publish(flood()).await?;
    worker.metric("some wait", LONG, |m| m.get("ingest_series_waiting") > 0.0).await?;
    worker.kill();
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    worker
        .metric("what was not acknowledged came again", LONG, |m| m.get("ingest_received_total") > 0.0)
        .await?;
    let metrics = worker.idle().await?;
    ensure!(rows(bed).await?.0 == 5000, "all are stored in the end: {:?}", rows(bed).await?);
    require_identities(&metrics)
}

async fn ten_thousand_messages_of_a_noisy_tenant_delay_a_quiet_one_by_a_batch_at_most(
    bed: &mut Bed,
) -> Result<()> {
    const BATCH: i64 = 500;
    let worker = bed
        .worker_with(|text| {
            text.replace("receiveMaximum: 1000", "receiveMaximum: 20000")
                .replace("maxRows: 20000", "maxRows: 500")
        })
        .await?;
    let one = |tenant: &str, n| telemetry(tenant, n % 50, n, std::iter::once("p".to_owned()));
    // Series that are known, so that only turns decide.
    bed.publish((0..50).map(|n| one("noisy", n)).chain([one("quiet", 0)]).collect()).await?;
    worker.metric("they are known", LONG, |m| m.get("ingest_points_total") == 51.0).await?;
    let held = bed.hold_writers().await?;
    bed.publish((100..10_100).map(|n| one("noisy", n)).collect()).await?;
    worker.metric("the noisy ones are in hand", LONG, |m| m.get("ingest_in_flight") == 10_000.0).await?;
    bed.publish(vec![one("quiet", 100)]).await?;
    worker
        .metric("the quiet one is in hand behind them", LONG, |m| m.get("ingest_in_flight") == 10_001.0)
        .await?;
    held.release().await?;
    worker.metric("all are stored", LONG, |m| m.get("ingest_points_total") == 10_052.0).await?;
    // Transactions are numbered as they begin to write.
    let before: i64 = bed
        .sql(&format!(
            "SELECT count(*) FROM penstock.sample s WHERE ts >= '{}' AND s.xmin::text::int8 < (SELECT max(q.xmin::text::int8) \
             FROM penstock.sample q JOIN penstock.series USING (series_id) JOIN penstock.device USING (device_id) \
             JOIN penstock.tenant t USING (tenant_id) WHERE t.name = 'quiet')",
            at(100)
        ))
        .await?;
    // The two batches that the writers held already, and one that another writer began first.
    ensure!(before <= 3 * BATCH, "{before} rows of the noisy tenant went before");
    require_identities(&worker.idle().await?)
}

/// What a replay says.
async fn replay(bed: &Bed, manifest: &std::path::Path) -> Result<serde_json::Value> {
    let (good, said) =
        worker::command(&["dead-letters", "replay", "--json"], manifest, &bed.secrets()).await?;
    ensure!(good, "replay: {said}");
    serde_json::from_str(said.lines().last().context("a line with the sums")?).context(said.clone())
}

async fn only_listed_tenants_store_and_what_others_sent_is_replayed_once_they_are_listed(
    bed: &mut Bed,
) -> Result<()> {
    let listed = |names: &'static str| {
        move |text: String| {
            text.replace("{mode: Auto, maxSeries", &format!("{{mode: Listed, names: [{names}], maxSeries"))
        }
    };
    let worker = bed.worker_with(listed("noisy")).await?;
    let messages = ["noisy", "quiet"]
        .map(|tenant| (0..20).map(move |n| telemetry(tenant, n, n, std::iter::once("p".to_owned()))));
    bed.publish(messages.into_iter().flatten().collect()).await?;
    let metrics =
        worker.metric("all are committed", LONG, |m| m.get("ingest_committed_total") == 40.0).await?;
    ensure!(
        metrics.get("ingest_dead_letters_total/unknown_tenant") == 20.0 && rows(bed).await? == (20, 0),
        "one is listed"
    );
    let tenants: i64 = bed.sql("SELECT count(*) FROM penstock.tenant").await?;
    ensure!(tenants == 1, "a tenant that is not listed is not made");
    let manifest = bed.manifest(listed("noisy, quiet"))?;
    let sums = replay(bed, &manifest).await?;
    ensure!(sums["letters"]["replayed"] == 20 && rows(bed).await? == (20, 20), "now both are: {sums}");
    require_identities(&metrics)
}

async fn a_tenant_at_its_cap_of_series_gets_dead_letters_and_others_do_not(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker_with(|text| text.replace("maxSeries: 1000000", "maxSeries: 10")).await?;
    let message =
        |tenant: &str, count: u32| telemetry(tenant, 0, 1, (0..count).map(|point| format!("p{point:02}")));
    bed.publish(vec![message("noisy", 15), message("quiet", 10)]).await?;
    let metrics =
        worker.metric("both are committed", LONG, |m| m.get("ingest_committed_total") == 2.0).await?;
    ensure!(rows(bed).await? == (10, 10), "each has its ten: {:?}", rows(bed).await?);
    ensure!(metrics.get("ingest_dead_letters_total/cardinality") == 5.0, "the others are dead letters");
    let (series, counted): (i64, i32) = bed
        .row("SELECT count(*), max(series_count) FROM penstock.series JOIN penstock.device USING (device_id) JOIN penstock.tenant t USING (tenant_id) WHERE t.name = 'noisy'")
        .await?;
    ensure!((series, counted) == (10, 10), "{series} series, counted {counted}");
    let manifest = bed.manifest(|text| text.replace("maxSeries: 1000000", "maxSeries: 20"))?;
    let sums = replay(bed, &manifest).await?;
    ensure!(
        sums["letters"]["replayed"] == 5 && rows(bed).await? == (15, 10),
        "with a higher cap they are stored: {sums}"
    );
    require_identities(&metrics)
}
