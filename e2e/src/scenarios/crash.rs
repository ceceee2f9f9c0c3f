//! The worker is killed and stopped.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::load::Load;
use crate::bed::Bed;
use crate::scenario;
use crate::suite::Scenario;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_worker_killed_20_times_under_load_loses_and_doubles_nothing),
        scenario!(a_holder_restarted_after_sigkill_goes_on_at_once),
        scenario!(sigterm_under_load_commits_and_acknowledges_what_is_in_hand),
    ]
}

async fn a_worker_killed_20_times_under_load_loses_and_doubles_nothing(bed: &mut Bed) -> Result<()> {
    let mut worker = bed.worker().await?;
    let load = Load::mixed(bed, 800.0);
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..900))).await;
        worker.kill();
        worker = bed.start("one", &[])?;
        let alive = worker.metric("the worker takes messages again", Duration::from_secs(20), |metrics| {
            metrics.get("ingest_mqtt_connected") > 0.0
        });
        alive.await?;
    }
    let (comparison, _) = load.finish(bed, &worker).await?;
    ensure!(comparison.acknowledged > 20_000, "too little load: {comparison}");
    Ok(())
}

async fn a_holder_restarted_after_sigkill_goes_on_at_once(bed: &mut Bed) -> Result<()> {
    let mut worker = bed.worker().await?;
    let load = Load::mixed(bed, 300.0);
    worker
        .metric("messages flow", Duration::from_secs(10), |m| m.get("ingest_committed_total") > 100.0)
        .await?;
    worker.kill();
    let killed = Instant::now();
    let worker = bed.start("one", &[])?;
    worker
        .metric("messages flow again", Duration::from_secs(10), |m| m.get("ingest_committed_total") > 0.0)
        .await?;
    // The lease of its own instance has 15 s to run.
    ensure!(killed.elapsed() < Duration::from_secs(8), "went on only after {:?}", killed.elapsed());
    load.finish(bed, &worker).await.map(drop)
}

async fn sigterm_under_load_commits_and_acknowledges_what_is_in_hand(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let load = Load::mixed(bed, 1000.0);
    worker
        .metric("messages flow", Duration::from_secs(10), |m| m.get("ingest_committed_total") > 500.0)
        .await?;
    worker.stop(Duration::from_secs(10)).await?;
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    let (_, metrics) = load.finish(bed, &worker).await?;
    // All that was committed was acknowledged. (What came while it settled was not taken in, and comes
    // again with the DUP flag.)
    let twice = metrics.get("ingest_outcomes_total/deduplicated");
    ensure!(twice == 0.0, "{twice} items were stored by the first worker and not acknowledged");
    Ok(())
}
