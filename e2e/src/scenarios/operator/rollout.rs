//! Workers' pods are replaced under load: another image, a bad one, a node that is drained.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use penstock_operator::names;
use serde_json::Value;
use sqlx::{Connection, PgConnection};

use super::run::{RATE, Run};
use crate::bed::Bed;
use crate::cluster::image::PENSTOCK;
use crate::plant::{self, PATIENCE, PIPELINE, Plant, condition};
use crate::scenario;
use crate::suite::Scenario;
use crate::wait::until_async;

/// The same image under another name.
const OTHER: &str = "localhost/penstock:other";
/// How often pods are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Goal for the time without a consumer at a takeover.
const GOAL: f64 = 3.0;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(
            a_bad_image_stalls_at_the_first_shard_ingestion_goes_on_and_a_corrected_one_finishes[cluster]
        ),
        scenario!(
            another_image_reaches_eight_shards_one_at_a_time_under_load_and_every_message_is_stored_once
                [cluster]
        ),
        scenario!(an_upgrade_of_the_chart_restarts_no_worker_and_writes_nothing_of_an_unchanged_pipeline[cluster, alone]),
        scenario!(another_image_for_all_pipelines_reaches_so_many_at_a_time_as_the_chart_says[cluster, alone]),
        scenario!(a_drained_nodes_shards_move_to_the_other_node_and_every_message_is_stored_once[cluster, alone]),
    ]
}

/// The pods of each shard, by the pipeline's own labels.
async fn pods(plant: &Plant) -> Result<BTreeMap<String, Vec<Value>>> {
    let mut shards: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for pod in plant.workers().await? {
        let shard = pod["metadata"]["labels"][names::SHARD].as_str().unwrap_or_default();
        shards.entry(shard.to_owned()).or_default().push(pod);
    }
    Ok(shards)
}

fn images(plant: &Plant) -> Result<BTreeMap<String, String>> {
    let list: Value = serde_json::from_str(&plant.kubectl(&["get", "deployments", "-o", "json"])?)?;
    let of = |deployment: &Value| {
        let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str()?;
        Some((deployment["metadata"]["name"].as_str()?.to_owned(), image.to_owned()))
    };
    Ok(list["items"].as_array().into_iter().flatten().filter_map(of).collect())
}

async fn samples(bed: &Bed) -> Result<i64> {
    let mut connection = PgConnection::connect(&bed.database.admin_url).await?;
    Ok(sqlx::query_scalar("SELECT count(*) FROM penstock.sample").fetch_one(&mut connection).await?)
}

/// Watches until told to stop: shards that had two pods at once at the same time as another.
fn watch(plant: &Arc<Plant>) -> (Arc<AtomicBool>, tokio::task::JoinHandle<Result<BTreeSet<String>>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (told, plant) = (Arc::clone(&stop), Arc::clone(plant));
    let task = tokio::spawn(async move {
        let (mut seen, mut looks) = (BTreeSet::new(), tokio::time::interval(LOOK));
        while !told.load(Ordering::SeqCst) {
            looks.tick().await;
            let turning: Vec<String> = pods(&plant)
                .await?
                .into_iter()
                .filter(|(_, pods)| pods.len() > 1)
                .map(|(shard, _)| shard)
                .collect();
            if turning.len() > 1 {
                bail!("shards {turning:?} are replaced at once");
            }
            seen.extend(turning);
        }
        Ok(seen)
    });
    (stop, task)
}

/// The time without a consumer at the last takeover of each shard that was taken over.
async fn gaps(plant: &Plant) -> Result<BTreeMap<String, f64>> {
    let pipeline = plant.pipeline().await?;
    let shards = pipeline["status"]["shards"].as_array().context("shards")?;
    let gap = |shard: &Value| {
        let gap = shard["gap"].as_str()?.strip_suffix('s')?.parse().ok()?;
        Some((shard["shard"].to_string(), gap))
    };
    Ok(shards.iter().filter_map(gap).collect())
}

/// Keeps how long the change took, and the gaps.
fn tell(run: &Run, took: Duration, gaps: &BTreeMap<String, f64>) {
    let (took, p99) = (format!("{:.1} s", took.as_secs_f64()), gaps.values().copied().fold(0.0, f64::max));
    let without = format!("{gaps:?}; p99 {p99:.1} (goal {GOAL})");
    eprintln!("  {took}; seconds without a consumer at each takeover {without}");
    run.recorder.found("until all shards had their new pods", took);
    run.recorder.found("seconds without a consumer at each takeover", without);
}

async fn a_bad_image_stalls_at_the_first_shard_ingestion_goes_on_and_a_corrected_one_finishes(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    bed.cluster()?.tag_image(PENSTOCK, OTHER)?;
    plant.start(3).await?;
    let run = Run::start(bed, &plant, "A bad image, and a corrected one");
    let mark = run.recorder.mark("a bad image");
    plant.set_image("localhost/penstock:nowhere")?;
    plant
        .until("it stalls and says why, and is ready", |ipl| {
            let said = ipl["status"]["conditions"].to_string();
            condition(ipl, "Stalled") == ("True", "rollout_stalled")
                && condition(ipl, "Ready").0 == "True"
                && said.contains("shard 0")
                && said.contains("ErrImageNeverPull")
        })
        .await
        .with_context(|| plant.logs())?;
    let before = samples(bed).await?;
    until_async("samples of ten more seconds are stored", PATIENCE, || async {
        samples(bed).await.is_ok_and(|now| now > before + (10.0 * RATE) as i64)
    })
    .await?;
    for (name, image) in images(&plant)? {
        let is_bad = image.ends_with(":nowhere");
        ensure!(is_bad == (name == "plant-shard-0"), "{name} has {image}");
    }
    let two: Vec<_> =
        pods(&plant).await?.into_iter().filter(|(_, pods)| pods.len() > 1).map(|(shard, _)| shard).collect();
    ensure!(two == ["0"], "shards {two:?} have two pods");
    run.recorder.over(mark);
    let mark = run.recorder.mark("a good one");
    plant.set_image(OTHER)?;
    plant.ready(3).await.with_context(|| plant.logs())?;
    run.recorder.over(mark);
    ensure!(condition(&plant.pipeline().await?, "Stalled").0 == "False");
    ensure!(images(&plant)?.values().all(|image| image == OTHER), "{:?}", images(&plant)?);
    run.finish(bed, "3-bad-image").await
}

async fn another_image_reaches_eight_shards_one_at_a_time_under_load_and_every_message_is_stored_once(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    bed.cluster()?.tag_image(PENSTOCK, OTHER)?;
    plant.start(8).await?;
    let run = Run::start(bed, &plant, "Another image for eight shards");
    let (stop, watching) = watch(&plant);
    let (start, mark) = (Instant::now(), run.recorder.mark("another image"));
    plant.set_image(OTHER)?;
    plant.ready(8).await.with_context(|| plant.logs())?;
    let took = start.elapsed();
    run.recorder.over(mark);
    stop.store(true, Ordering::SeqCst);
    let seen = watching.await??;
    ensure!(images(&plant)?.values().all(|image| image == OTHER), "{:?}", images(&plant)?);
    ensure!(seen.len() == 8, "only of shards {seen:?} two pods were seen");
    let gaps = gaps(&plant).await?;
    ensure!(gaps.len() == 8, "only of shards {gaps:?} a takeover is told");
    tell(&run, took, &gaps);
    run.finish(bed, "3-image").await
}

async fn an_upgrade_of_the_chart_restarts_no_worker_and_writes_nothing_of_an_unchanged_pipeline(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(2).await?;
    let uids = async || -> Result<BTreeSet<String>> {
        let told = |pod: &Value| {
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            format!("{} {restarts}", pod["metadata"]["uid"])
        };
        Ok(plant.workers().await?.iter().map(told).collect())
    };
    // Nobody but the operator writes these.
    let versions = || {
        let label = format!("{}={PIPELINE}", names::PIPELINE);
        let path = "jsonpath={.items[*].metadata.resourceVersion}";
        plant.kubectl(&["get", "configmaps,serviceaccounts", "-l", &label, "-o", path])
    };
    let (before, written) = (uids().await?, versions()?);
    let operator = || {
        plant.kubectl(&[
            "-n",
            plant::SYSTEM,
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/name=penstock",
            "-o",
            "name",
        ])
    };
    let first = operator()?;
    let cluster = bed.cluster()?;
    plant::install_with(&cluster, &["retireDeadlineSeconds=599"])?;
    until_async("another operator runs", PATIENCE, || async { operator().is_ok_and(|now| now != first) })
        .await?;
    // It reconciles: what it puts back, it has looked at.
    let service = plant.object("service", "plant-metrics")?["metadata"]["uid"].clone();
    plant.kubectl(&["delete", "service", "plant-metrics"])?;
    until_async("the new operator reconciles", PATIENCE, || async {
        plant.object("service", "plant-metrics").is_ok_and(|now| now["metadata"]["uid"] != service)
    })
    .await
    .with_context(|| plant.logs())?;
    plant.ready(2).await?;
    let after = uids().await?;
    ensure!(after == before, "{before:?} became {after:?}");
    ensure!(versions()? == written, "something was written: {written} became {}", versions()?);
    Ok(())
}

async fn another_image_for_all_pipelines_reaches_so_many_at_a_time_as_the_chart_says(
    bed: &mut Bed,
) -> Result<()> {
    const PIPELINES: [&str; 3] = [PIPELINE, "second", "third"];
    const ONE: &str = "rollouts.pipelinesAtOnce=1";
    let (plant, cluster) = (Plant::new(bed).await?, bed.cluster()?);
    cluster.tag_image(PENSTOCK, OTHER)?;
    plant::install_with(&cluster, &[ONE])?;
    for name in PIPELINES {
        plant.apply(&plant.manifest(|text| {
            text.replace("replicas: 3", "replicas: 2")
                .replace("metadata: {name: plant}", &format!("metadata: {{name: {name}}}"))
                .replace(&plant.prefix, &format!("{}-{name}", plant.prefix))
        })?)?;
    }
    let all = || -> Result<Vec<Value>> {
        PIPELINES.iter().map(|name| plant.object("ingestpipelines.penstock.dev", name)).collect()
    };
    let all_are_settled = || async { all().is_ok_and(|all| all.iter().all(|ipl| plant::is_settled(ipl, 2))) };
    until_async("all are ready", PATIENCE, all_are_settled).await.with_context(|| plant.logs())?;
    // Those of scenarios before would be rolled too: their namespaces end when their pods have.
    until_async("no other pipeline is left", PATIENCE, || async {
        let all = cluster.kubectl(&["get", "ingestpipelines.penstock.dev", "-A", "-o", "name"]);
        all.is_ok_and(|all| all.lines().count() == PIPELINES.len())
    })
    .await?;
    let (repository, tag) = OTHER.split_once(':').context("an image's tag")?;
    let (repository, tag) =
        (format!("worker.image.repository={repository}"), format!("worker.image.tag={tag}"));
    plant::install_with(&cluster, &[ONE, &repository, &tag])?;
    let (begin, mut history) = (Instant::now(), Vec::<(f64, Vec<String>)>::new());
    let done = until_async("all have the other image", PATIENCE, || {
        let reasons = all().unwrap_or_default();
        let reasons: Vec<String> =
            reasons.iter().map(|ipl| condition(ipl, "Reconciling").1.to_owned()).collect();
        if history.last().is_none_or(|(_, before)| *before != reasons) {
            history.push((begin.elapsed().as_secs_f64(), reasons));
        }
        let done = images(&plant).is_ok_and(|images| {
            images.len() == 2 * PIPELINES.len() && images.values().all(|image| image == OTHER)
        });
        async move { done }
    });
    done.await.with_context(|| plant.logs())?;
    until_async("all are ready again", PATIENCE, all_are_settled).await?;
    eprintln!("  {PIPELINES:?}: {history:?}");
    let at_once = |reasons: &[String]| reasons.iter().filter(|reason| *reason == "rolling").count();
    let most = history.iter().map(|(_, reasons)| at_once(reasons)).max();
    ensure!(most == Some(1), "{most:?} pipelines were rolled at once: {history:?}");
    let waited = |place: &usize| {
        history.iter().any(|(_, reasons)| reasons.get(*place).is_some_and(|is| is == "rollout_waiting"))
    };
    let waited: Vec<&str> = (0..PIPELINES.len()).filter(waited).map(|place| PIPELINES[place]).collect();
    ensure!(waited.len() == 2, "{waited:?} waited for their turn: {history:?}\n{}", plant.logs());
    plant::install(&cluster)
}

async fn a_drained_nodes_shards_move_to_the_other_node_and_every_message_is_stored_once(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(8).await?;
    let on = async |node: &str| -> Result<BTreeSet<String>> {
        let here = |pods: &Vec<Value>| pods.iter().any(|pod| pod["spec"]["nodeName"] == node);
        Ok(pods(&plant).await?.into_iter().filter(|(_, pods)| here(pods)).map(|(shard, _)| shard).collect())
    };
    let node = "node-1";
    let there = on(node).await?;
    ensure!((3..=5).contains(&there.len()), "{there:?} are on {node}");
    let run = Run::start(bed, &plant, "A node is drained");
    let (start, mark) = (Instant::now(), run.recorder.mark("drain"));
    let mut drain = bed.cluster()?.kubectl_command()?;
    drain.args(["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=150s"]);
    let drained = tokio::task::spawn_blocking(move || drain.output()).await?;
    let after = async {
        let drained = drained?;
        ensure!(drained.status.success(), "kubectl drain: {}", String::from_utf8_lossy(&drained.stderr));
        plant.ready(8).await.with_context(|| plant.logs())?;
        let left = on(node).await?;
        ensure!(left.is_empty(), "{left:?} are still on {node}");
        gaps(&plant).await
    };
    let after = after.await;
    plant.kubectl(&["uncordon", node])?;
    let (gaps, took) = (after?, start.elapsed());
    ensure!(there.iter().all(|shard| gaps.contains_key(shard)), "{there:?} moved, and {gaps:?} tell so");
    run.recorder.over(mark);
    run.recorder.found("shards on the node", format!("{} of 8", there.len()));
    tell(&run, took, &gaps);
    run.finish(bed, "3-drain").await
}
