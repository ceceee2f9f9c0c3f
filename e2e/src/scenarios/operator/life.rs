//! Pipelines that are suspended, and the ends of pipelines.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};

use super::scale::stored;
use crate::bed::Bed;
use crate::plant::{PATIENCE, PIPELINE, Plant, condition};
use crate::scenario;
use crate::scenarios::load::Load;
use crate::suite::Scenario;
use crate::wait::until_async;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(
            a_suspended_pipeline_keeps_its_sessions_and_their_queues_are_drained_when_it_goes_on[cluster]
        ),
        scenario!(a_deleted_pipeline_drains_and_ends_its_sessions_and_one_of_its_name_begins_anew[cluster]),
        scenario!(a_foreground_deletion_ends_the_sessions_too[cluster]),
        scenario!(a_namespace_that_is_deleted_does_not_hang_on_a_pipeline[cluster]),
    ]
}

async fn a_suspended_pipeline_keeps_its_sessions_and_their_queues_are_drained_when_it_goes_on(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(2).await?;
    let load = Load::mixed(bed, 200.0);
    for (stop, go) in [
        (r#"{"spec":{"suspend":true}}"#, r#"{"spec":{"suspend":false}}"#),
        (r#"{"spec":{"replicas":0}}"#, r#"{"spec":{"replicas":1}}"#),
    ] {
        let patch = |patch: &str| {
            plant.kubectl(&["patch", "ingestpipelines.penstock.dev", PIPELINE, "--type=merge", "-p", patch])
        };
        patch(stop)?;
        plant
            .until("it is parked and says so", |ipl| {
                condition(ipl, "Suspended").0 == "True" && condition(ipl, "Ready") == ("False", "suspended")
            })
            .await?;
        until_async("no worker is left", PATIENCE, || async {
            plant.names("pods").is_ok_and(|pods| pods.is_empty())
        })
        .await?;
        ensure!(plant.has_session(0).await? && plant.has_session(1).await?, "a session is gone");
        let before: i64 = bed.sql("SELECT count(*) FROM penstock.sample").await?;
        let published = load.progress.acknowledged.load(Ordering::SeqCst);
        until_async("the broker has queued more", PATIENCE, || async {
            load.progress.acknowledged.load(Ordering::SeqCst) > published + 200
        })
        .await?;
        ensure!(
            before == bed.sql::<i64>("SELECT count(*) FROM penstock.sample").await?,
            "it stores while parked"
        );
        patch(go)?;
        plant.ready(if go.contains("suspend") { 2 } else { 1 }).await?;
    }
    ensure!(!plant.has_session(1).await?, "shard 1 left a session");
    load.progress.stop.store(true, Ordering::SeqCst);
    stored(bed, &load.ledger().await?).await
}

/// Deletes the pipeline under load and waits until nothing of it is left.
async fn delete(bed: &Bed, plant: &Plant, how: &str) -> Result<()> {
    let load = Load::mixed(bed, 200.0);
    until_async("it stores", PATIENCE, || async {
        bed.sql::<i64>("SELECT count(*) FROM penstock.sample").await.is_ok_and(|rows| rows > 0)
    })
    .await?;
    load.progress.stop.store(true, Ordering::SeqCst);
    let ledger = load.ledger().await?;
    plant.kubectl(&["delete", "ingestpipelines.penstock.dev", PIPELINE, how, "--wait=false"])?;
    until_async("the pipeline is gone", PATIENCE, || async { plant.pipeline().await.is_err() })
        .await
        .with_context(|| plant.logs())?;
    stored(bed, &ledger).await?;
    for shard in 0..2 {
        ensure!(!plant.has_session(shard).await?, "shard {shard} left a session");
    }
    for kind in ["deployments", "configmaps", "jobs", "serviceaccounts", "services", "poddisruptionbudgets"] {
        until_async(&format!("no {kind} are left"), PATIENCE, || async {
            plant.names(kind).is_ok_and(|names| names.is_empty())
        })
        .await?;
    }
    let events = plant.kubectl(&["get", "events"])?;
    ensure!(events.contains("all sessions are drained and ended"), "{events}");
    Ok(())
}

async fn a_deleted_pipeline_drains_and_ends_its_sessions_and_one_of_its_name_begins_anew(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(2).await?;
    delete(bed, &plant, "--cascade=background").await?;
    let ended: i64 = bed.sql("SELECT max(plan_generation) FROM penstock.shard_lease").await?;
    plant.start(2).await?;
    let followed: i64 = bed.sql("SELECT min(plan_generation) FROM penstock.shard_lease").await?;
    ensure!(
        ended > 0 && followed > ended,
        "plan {followed} is not newer than plan {ended}, which ended the shards"
    );
    Ok(())
}

async fn a_foreground_deletion_ends_the_sessions_too(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(2).await?;
    delete(bed, &plant, "--cascade=foreground").await
}

async fn a_namespace_that_is_deleted_does_not_hang_on_a_pipeline(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(1).await?;
    plant.kubectl(&["delete", "namespace", &plant.namespace, "--wait=false"])?;
    until_async("the namespace is gone", PATIENCE, || async {
        plant.kubectl(&["get", "namespace", &plant.namespace]).is_err()
    })
    .await
    .with_context(|| plant.logs())
}
