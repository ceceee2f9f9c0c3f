//! Several sessions of one shard: its filters divided, all exact, none left behind.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::load::Load;
use crate::bed::Bed;
use crate::publisher;
use crate::scenario;
use crate::suite::Scenario;
use crate::wait::until_async;
use crate::worker::{self, Worker};

const LONG: Duration = Duration::from_secs(40);

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(two_sessions_of_a_window_of_20_are_exact_through_a_kill_and_leave_nothing_when_retired),
        scenario!(filters_move_between_sessions_without_a_gap_and_unused_sessions_end),
        scenario!(the_broker_divides_a_shared_subscription_between_two_sessions),
    ]
}

fn with_sessions(text: &str, sessions: u32) -> String {
    text.replace("protocol: V5", "protocol: V311")
        .replace("keepAlive: 30s", &format!("keepAlive: 30s\n      sessions: {sessions}"))
}

/// The most that each session has had unacknowledged.
async fn windows(worker: &Worker) -> Result<Vec<u64>> {
    let status = worker.status().await?;
    let sessions = status["sessions"].as_array().context("sessions")?;
    Ok(sessions.iter().filter_map(|session| session["window_observed"].as_u64()).collect())
}

async fn present(bed: &Bed, session: &str) -> Result<bool> {
    publisher::has_session(&bed.address, &format!("{}{session}", bed.client_id())).await
}

async fn two_sessions_of_a_window_of_20_are_exact_through_a_kill_and_leave_nothing_when_retired(
    bed: &mut Bed,
) -> Result<()> {
    let mut worker = bed.worker_with(|text| with_sessions(&text, 2)).await?;
    let load = Load::mixed(bed, 800.0);
    worker.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 2000.0).await?;
    let observed = windows(&worker).await?;
    ensure!(
        observed.len() == 2 && observed.iter().all(|window| (1..=20).contains(window)),
        "both sessions consume, each within its window: {observed:?}"
    );
    worker.kill();
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    let (_, metrics) = load.finish(bed, &worker).await?;
    ensure!(metrics.get("ingest_mqtt_sessions_lost_total") == 0.0, "both sessions were kept");
    ensure!(metrics.get("ingest_mqtt_window_observed") <= 40.0, "never more than both windows");
    worker.stop(LONG).await?;

    ensure!(present(bed, "").await? && present(bed, "-1").await?, "there are two sessions to retire");
    let (good, said) = worker::command(&["retire"], &bed.folder.join("plant.yaml"), &bed.secrets()).await?;
    ensure!(good && said.contains("Marker"), "retire: {said}");
    ensure!(!present(bed, "").await? && !present(bed, "-1").await?, "the broker still has a session");
    Ok(())
}

async fn filters_move_between_sessions_without_a_gap_and_unused_sessions_end(bed: &mut Bed) -> Result<()> {
    bed.migrate().await?;
    bed.manifest(|text| with_sessions(&text, 1))?;
    let mut worker = bed.start("one", &[])?;
    worker.ready().await?;
    let load = Load::mixed(bed, 500.0);
    for sessions in [3, 2, 1] {
        worker.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 500.0).await?;
        worker.stop(LONG).await?;
        bed.manifest(|text| with_sessions(&text, sessions))?;
        worker = bed.start("one", &[])?;
        worker.ready().await?;
        let expected = format!("{sessions} of three filters and sessions");
        until_async(&expected, LONG, || async {
            let held: i32 = bed
                .sql("SELECT cardinality(filters) + cardinality(more_filters) FROM penstock.shard_lease")
                .await
                .unwrap_or_default();
            let used: i64 = bed
                .sql("SELECT count(DISTINCT split_part(f, ':', 1)) + 1 FROM penstock.shard_lease, unnest(more_filters) f")
                .await
                .unwrap_or_default();
            (held, used) == (3, i64::from(sessions))
        })
        .await?;
    }
    ensure!(!present(bed, "-1").await? && !present(bed, "-2").await?, "the broker has an unused session");
    let (_, metrics) = load.finish(bed, &worker).await?;
    ensure!(metrics.get("ingest_mqtt_sessions_lost_total") == 0.0, "no session was lost");
    Ok(())
}

async fn the_broker_divides_a_shared_subscription_between_two_sessions(bed: &mut Bed) -> Result<()> {
    let shared = |text: String| {
        text.replace("sessionExpiry: 24h", "sessionExpiry: 5m\n      sessions: 2")
            .replace("  sink:", "  sharding: {by: Shared}\n  sink:")
    };
    let mut worker = bed.worker_with(shared).await?;
    let load = Load::mixed(bed, 500.0);
    worker.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 1000.0).await?;
    let observed = windows(&worker).await?;
    ensure!(observed.len() == 2 && observed.iter().all(|window| *window > 0), "both consume: {observed:?}");
    worker.kill();
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    load.finish(bed, &worker).await.map(drop)
}
