//! Shards move under load while the operator, workers, the broker and the database fail.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::run::Run;
use crate::bed::Bed;
use crate::plant::{self, Plant, SYSTEM};
use crate::scenario;
use crate::suite::Scenario;

const KILLS: u32 = 20;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(one_shard_becomes_eight_and_two_and_five_under_load[cluster]),
        scenario!(workers_killed_twenty_times_while_shards_move_lose_and_double_nothing_under_load[cluster]),
        scenario!(a_broker_that_restarts_in_the_middle_of_a_move_costs_nothing_under_load[cluster, broker]),
        scenario!(a_database_that_restarts_in_the_middle_of_a_retire_costs_nothing_under_load[cluster, server]),
        scenario!(an_operator_killed_twenty_times_while_shards_move_finishes_under_load[cluster, alone]),
        scenario!(operator_and_workers_killed_twenty_times_each_lose_and_double_nothing_under_load[cluster, alone]),
    ]
}

async fn one_shard_becomes_eight_and_two_and_five_under_load(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(1).await?;
    let run = Run::start(bed, &plant, "1 to 8 to 2 to 5 shards");
    for replicas in [8, 2, 5] {
        run.scale(replicas).await?;
    }
    run.finish(bed, "1-moves").await
}

/// Whom to kill.
#[derive(Clone, Copy)]
struct Victims {
    operator: bool,
    workers: bool,
}

async fn workers_killed_twenty_times_while_shards_move_lose_and_double_nothing_under_load(
    bed: &mut Bed,
) -> Result<()> {
    killed(bed, Victims { operator: false, workers: true }, "2-workers-killed").await
}

async fn an_operator_killed_twenty_times_while_shards_move_finishes_under_load(bed: &mut Bed) -> Result<()> {
    killed(bed, Victims { operator: true, workers: false }, "2-operator-killed").await
}

async fn operator_and_workers_killed_twenty_times_each_lose_and_double_nothing_under_load(
    bed: &mut Bed,
) -> Result<()> {
    killed(bed, Victims { operator: true, workers: true }, "2-both-killed").await
}

async fn killed(bed: &Bed, victims: Victims, name: &str) -> Result<()> {
    let plant = Plant::new(bed).await?;
    if victims.operator {
        // Else there would hardly ever be a leader to kill.
        plant::install_with(&plant.cluster, &["leaseDurationSeconds=3"])?;
    }
    plant.start(1).await?;
    let title = match victims {
        Victims { operator: true, workers: true } => "Operator and workers killed 20 times each",
        Victims { operator: true, .. } => "The operator killed 20 times",
        Victims { .. } => "Workers killed 20 times",
    };
    let run = Run::start(bed, &plant, title);
    let seed = fastrand::u64(..);
    eprintln!("  seed {seed}");
    let over = AtomicBool::new(false);
    let kills = async {
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..KILLS {
            // At any moment of a move.
            tokio::time::sleep(Duration::from_millis(random.u64(300..2500))).await;
            if victims.operator {
                kill_operator(&run, &mut random);
            }
            if victims.workers {
                kill_worker(&run, &mut random);
            }
        }
        over.store(true, Ordering::SeqCst);
    };
    let moves = async {
        let mut next = [8, 2, 5].into_iter().cycle();
        while !over.load(Ordering::SeqCst) {
            let replicas = next.next().unwrap_or_default();
            run.recorder.mark(&format!("to {replicas}"));
            plant.scale(replicas)?;
            // A new wish comes in the middle of a move, too.
            let wait = plant.until_within("settled", Duration::from_secs(12), |ipl| {
                ipl["status"]["ready"] == format!("{replicas}/{replicas}").as_str()
            });
            let _ = wait.await;
        }
        anyhow::Ok(())
    };
    tokio::join!(kills, moves).1?;
    run.scale(5).await?;
    for gone in 5..8 {
        anyhow::ensure!(!plant.has_session(gone).await?, "shard {gone} left a session");
    }
    run.finish(bed, name).await?;
    if victims.operator { plant::install(&plant.cluster) } else { Ok(()) }
}

/// The operator's process; and its pod, which would otherwise wait longer and longer to start again.
fn kill_operator(run: &Run, random: &mut fastrand::Rng) {
    let label = "app.kubernetes.io/name=penstock";
    let cluster = &run.plant.cluster;
    let Ok(pods) = cluster.kubectl(&["get", "pods", "-n", SYSTEM, "-l", label, "-o", "name"]) else { return };
    let pods: Vec<&str> = pods.lines().filter_map(|pod| pod.strip_prefix("pod/")).collect();
    let Some(pod) = random.choice(&pods) else { return };
    if run.plant.crash(SYSTEM, pod).is_ok() {
        run.recorder.mark("");
    }
    let _ = cluster.kubectl(&["delete", "pod", pod, "-n", SYSTEM, "--wait=false"]);
}

fn kill_worker(run: &Run, random: &mut fastrand::Rng) {
    let Ok(pods) = run.plant.names("pods") else { return };
    let pods: Vec<&str> = pods.iter().filter_map(|pod| pod.strip_prefix("pod/")).collect();
    if let Some(pod) = random.choice(&pods)
        && run.plant.crash(&run.plant.namespace, pod).is_ok()
    {
        run.recorder.mark("");
        // It starts again, or another takes its place: a pod that only crashes waits longer and longer.
        if random.bool() {
            let _ = run.plant.kubectl(&["delete", "pod", pod, "--wait=false"]);
        }
    }
}

async fn a_broker_that_restarts_in_the_middle_of_a_move_costs_nothing_under_load(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(2).await?;
    let run = Run::start(bed, &plant, "The broker restarts in the middle of a move");
    plant.scale(6)?;
    let moving = plant.until("keys are on their way", |ipl| plant::condition(ipl, "PlanApplied").0 != "True");
    moving.await?;
    let mark = run.recorder.mark("broker restarts");
    bed.broker()?.stop()?;
    bed.broker()?.start_again()?;
    plant.ready(6).await.with_context(|| plant.logs())?;
    run.recorder.over(mark);
    run.scale(2).await?;
    run.finish(bed, "7-broker").await
}

async fn a_database_that_restarts_in_the_middle_of_a_retire_costs_nothing_under_load(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(6).await?;
    let run = Run::start(bed, &plant, "The database restarts in the middle of a retire");
    plant.scale(1)?;
    crate::wait::until_async("a retire Job is there", plant::PATIENCE, || async {
        plant.names("jobs").is_ok_and(|jobs| jobs.iter().any(|job| job.contains("retire")))
    })
    .await?;
    let mark = run.recorder.mark("database restarts");
    bed.server()?.stop()?;
    bed.server()?.start_again().await?;
    plant.ready(1).await.with_context(|| plant.logs())?;
    run.recorder.over(mark);
    for gone in 1..6 {
        anyhow::ensure!(!plant.has_session(gone).await?, "shard {gone} left a session");
    }
    run.finish(bed, "7-database").await
}
