//! Ingestion goes on while a node, the operator or the API server is away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::run::Run;
use crate::bed::Bed;
use crate::cluster::Cluster;
use crate::plant::{PATIENCE, Plant, SYSTEM};
use crate::scenario;
use crate::suite::Scenario;
use crate::wait::until_async;

/// From NotReady of a node until its shards are ready elsewhere.
const BACK: Duration = Duration::from_secs(60);

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(workers_go_on_without_an_operator_under_load[cluster, alone]),
        scenario!(workers_go_on_while_the_api_server_is_away_for_a_minute_under_load[cluster, alone]),
        scenario!(shards_of_a_node_that_dies_come_back_on_the_other_under_load[cluster, alone]),
    ]
}

/// Waits until so many more messages are stored.
async fn stores(bed: &Bed, more: i64) -> Result<()> {
    let count = || bed.sql::<i64>("SELECT count(*) FROM penstock.sample");
    let before = count().await?;
    until_async("more is stored", Duration::from_secs(30), || async {
        count().await.is_ok_and(|now| now >= before + more)
    })
    .await
}

async fn workers_go_on_without_an_operator_under_load(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(3).await?;
    let cluster = bed.cluster()?;
    let run = Run::start(bed, &plant, "No operator");
    let before = cluster.kubectl(&[
        "get",
        "deployment",
        "penstock",
        "-n",
        SYSTEM,
        "-o",
        "jsonpath={.spec.replicas}",
    ])?;
    let replicas = |count: &str| {
        cluster.kubectl(&["scale", "deployment", "penstock", "-n", SYSTEM, &format!("--replicas={count}")])
    };
    replicas("0")?;
    let mark = run.recorder.mark("no operator");
    let check = async {
        until_async("no operator is left", PATIENCE, || async {
            cluster
                .kubectl(&["get", "pods", "-n", SYSTEM, "-o", "name"])
                .is_ok_and(|pods| !pods.contains("penstock"))
        })
        .await?;
        stores(bed, 5_000).await?;
        // A worker that crashes comes back by itself.
        let pods = plant.names("pods")?;
        let pod = pods.first().and_then(|pod| pod.strip_prefix("pod/")).context("a worker")?;
        plant.crash(&plant.namespace, pod)?;
        stores(bed, 5_000).await?;
        // What is wished meanwhile is done later.
        plant.scale(5)
    };
    let result = check.await;
    replicas(&before)?;
    run.recorder.over(mark);
    result?;
    plant.ready(5).await.with_context(|| plant.logs())?;
    run.finish(bed, "6-no-operator").await
}

async fn workers_go_on_while_the_api_server_is_away_for_a_minute_under_load(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(3).await?;
    let cluster = bed.cluster()?;
    let run = Run::start(bed, &plant, "No API server for a minute");
    // In the middle of a move.
    plant.scale(5)?;
    let (mark, began) = (run.recorder.mark("no API server"), Instant::now());
    cluster.freeze_api_server(true)?;
    let check = async {
        while began.elapsed() < Duration::from_secs(60) {
            stores(bed, 1_000).await?;
        }
        anyhow::Ok(())
    };
    let result = check.await;
    cluster.freeze_api_server(false)?;
    run.recorder.over(mark);
    result?;
    plant.ready(5).await.with_context(|| plant.logs())?;
    run.finish(bed, "6-no-api-server").await
}

/// Waits until these nodes take pods, and no others.
async fn nodes_take_pods(cluster: &Cluster, nodes: &[&str]) -> Result<()> {
    until_async(&format!("{nodes:?} take pods"), PATIENCE, || async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.nodes_that_take_pods().is_ok_and(|names| names == nodes)
    })
    .await
    .with_context(|| cluster.logs())
}

async fn shards_of_a_node_that_dies_come_back_on_the_other_under_load(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    let cluster = bed.cluster()?;
    // One may still be tainted since the API server was away.
    nodes_take_pods(&cluster, &["node-1", "node-2"]).await?;
    plant.start(4).await?;
    let on = |ipl: &serde_json::Value, node: &str| {
        let shards = ipl["status"]["shards"].as_array().into_iter().flatten();
        shards.filter(|shard| shard["node"] == node).count()
    };
    let ipl = plant.pipeline().await?;
    ensure!(on(&ipl, "node-1") > 0 && on(&ipl, "node-2") > 0, "all shards are on one node");
    let run = Run::start(bed, &plant, "A node dies");
    let mark = run.recorder.mark("node-2 dies");
    cluster.kill_node(2)?;
    let check = async {
        nodes_take_pods(&cluster, &["node-1"]).await?;
        let (seen, began) = (run.recorder.mark("NotReady"), Instant::now());
        plant
            .until_within("its shards are ready on the other node", BACK, |ipl| {
                ipl["status"]["readyReplicas"] == 4 && on(ipl, "node-1") == 4
            })
            .await
            .with_context(|| plant.logs())?;
        run.recorder.over(seen);
        let seconds = began.elapsed().as_secs_f64();
        run.recorder
            .found("from NotReady until all shards were ready on the other node", format!("{seconds:.1} s"));
        anyhow::Ok(())
    };
    let result = check.await;
    cluster.restart_node(2)?;
    run.recorder.over(mark);
    nodes_take_pods(&cluster, &["node-1", "node-2"]).await?;
    result?;
    // Pods that were never told to stop come back with their node, and go.
    plant.ready(4).await.with_context(|| plant.logs())?;
    run.finish(bed, "4-node").await
}
