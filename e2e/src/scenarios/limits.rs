//! What limits the throughput, and what the broker loses before the worker sees it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::bed::{Bed, require_identities};
use crate::compare::compare;
use crate::fleet::Fleet;
use crate::publisher::Progress;
use crate::scenario;
use crate::stack::mosquitto::Setup;
use crate::suite::Scenario;
use crate::wait::until_async;
use crate::worker::{self, Metrics, Worker};

const LONG: Duration = Duration::from_secs(60);
const DROPS: &str = "$SYS/broker/publish/messages/dropped";

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(the_status_says_whether_the_window_the_database_or_nothing_is_the_limit),
        Scenario {
            setup: Setup { queue: 100, ..Setup::default() },
            ..scenario!(messages_that_the_broker_drops_are_seen_and_warned_of[broker])
        },
        Scenario {
            setup: Setup { refused: Some(DROPS), ..Setup::default() },
            ..scenario!(a_broker_that_does_not_tell_what_it_drops_is_no_fault[broker])
        },
    ]
}

async fn limited_by(worker: &Worker, limit: &str) -> Result<()> {
    until_async(&format!("limited by {limit}"), LONG, || async {
        worker.status().await.is_ok_and(|status| status["limitedBy"] == limit)
    })
    .await?;
    let metrics = worker.metrics().await?;
    ensure!(metrics.sum("ingest_limited_by") == 1.0, "the metric names one limit");
    Ok(())
}

async fn the_status_says_whether_the_window_the_database_or_nothing_is_the_limit(
    bed: &mut Bed,
) -> Result<()> {
    let v311 = |text: String| text.replace("protocol: V5", "protocol: V311");
    let worker = bed.worker_with(v311).await?;
    limited_by(&worker, "nothing").await?;
    worker.stop(LONG).await?;
    let fleet = Fleet { rate: None, points: 1, ..Fleet::steady(&bed.address, 0.0, 60_000) };
    let ledger = fleet.run(Arc::new(Progress::default())).await?;

    let worker = bed.start("one", &[])?;
    limited_by(&worker, "brokerWindow").await?;
    let told = |metrics: &Metrics| {
        metrics.get("ingest_mqtt_rate_bound") > 0.0 && metrics.get("ingest_mqtt_round_trip_seconds") > 0.0
    };
    worker.metric("the bound and the round trip are told", LONG, told).await?;
    let held = bed.hold_writers().await?;
    limited_by(&worker, "database").await?;
    held.release().await?;
    let metrics = worker.idle().await?;
    limited_by(&worker, "nothing").await?;
    require_identities(&metrics)?;
    compare(&bed.database.admin_url, &ledger, fleet.points).await?.require_exact()
}

async fn messages_that_the_broker_drops_are_seen_and_warned_of(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    worker.metric("it tells", LONG, |m| m.get("ingest_broker_dropped_messages") == 0.0).await?;
    worker.stop(LONG).await?;
    let fleet = Fleet::steady(&bed.address, 2000.0, 1000);
    fleet.run(Arc::new(Progress::default())).await?;
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    let metrics = worker.idle().await?;
    let received = metrics.get("ingest_received_total");
    ensure!(received < 1000.0, "the broker dropped nothing");
    // It tells every 10 s.
    let metrics = worker
        .metric("the drops are told", LONG, |m| m.get("ingest_broker_dropped_messages") >= 1000.0 - received)
        .await?;
    require_identities(&metrics)?;
    ensure!(metrics.get("ingest_received_total") == received, "what it tells is no delivery");
    let filters: String = bed.sql("SELECT filters::text FROM penstock.shard_lease").await?;
    ensure!(!filters.contains("$SYS"), "the lease remembers {filters}");

    let check = async |more: &[&str]| {
        let arguments = [&["check", "--connect"], more].concat();
        worker::command(&arguments, &bed.folder.join("plant.yaml"), &bed.secrets()).await
    };
    let (good, said) = check(&["--rate", "50"]).await?;
    ensure!(good && said.contains("warning: at 50.0 messages/s"), "{said}");
    ensure!(said.contains("30000 messages") && said.contains("Mosquitto"), "{said}");
    // As many as were stored in the last five minutes.
    let (good, said) = check(&["--outage", "5"]).await?;
    let rate = format!("queue: at {:.1} messages/s", received / 300.0);
    ensure!(good && said.contains(&rate), "{rate}: {said}");
    Ok(())
}

async fn a_broker_that_does_not_tell_what_it_drops_is_no_fault(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let fleet = Fleet::steady(&bed.address, 500.0, 500);
    let ledger = fleet.run(Arc::new(Progress::default())).await?;
    let metrics = worker.idle().await?;
    ensure!(metrics.get("ingest_broker_dropped_messages").is_nan(), "nothing is told");
    ensure!(metrics.get("ingest_mqtt_epoch") == 1.0, "the connection stays");
    ensure!(worker.readiness().await?.0, "it is ready");
    require_identities(&metrics)?;
    compare(&bed.database.admin_url, &ledger, fleet.points).await?.require_exact()
}
