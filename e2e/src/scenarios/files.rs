//! What a worker reads: waited for at its start, followed while it runs. And what jobs leave.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use penstock_crds::plan::files_digest;
use penstock_crds::report::{Outcome, Proof, RetireReport, StoreReport, WorkerStatus};

use super::load::Load;
use crate::bed::Bed;
use crate::fleet::{at, now};
use crate::publisher;
use crate::scenario;
use crate::suite::Scenario;
use crate::wait::until_async;
use crate::worker::{self, Worker};

const LONG: Duration = Duration::from_secs(40);
const KINDS: [&str; 3] = ["traksense/+/+/+/telem", "traksense/+/+/+/ack", "traksense/+/+/+/event"];
const LINES: &str = "traksense/+/lines/+/raw";

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(formats_limits_and_filters_are_followed_under_load_without_a_restart_or_a_lost_message),
        scenario!(a_worker_whose_files_are_not_there_says_which_and_starts_when_they_are),
        scenario!(jobs_leave_how_they_ended_and_any_shard_can_be_retired),
    ]
}

/// Manifest and plan as Kubernetes mounts them: both are swapped at once.
fn mount(bed: &Bed, version: u32, manifest: &str, filters: &[&str]) -> Result<(PathBuf, String)> {
    let folder = bed.folder.join(format!("..{version}"));
    std::fs::create_dir(&folder)?;
    let plan = format!("{{generation: {version}, shard: 0, keys: {filters:?}}}");
    std::fs::write(folder.join("plant.yaml"), manifest)?;
    std::fs::write(folder.join("plan.yaml"), &plan)?;
    symlink(format!("..{version}"), bed.folder.join("..next"))?;
    std::fs::rename(bed.folder.join("..next"), bed.folder.join("..data"))?;
    Ok((bed.folder.join("plan.yaml"), files_digest(manifest, &plan)))
}

async fn status(worker: &Worker) -> Result<WorkerStatus> {
    Ok(serde_json::from_value(worker.status().await?)?)
}

async fn status_is(worker: &Worker, what: &str, holds: impl Fn(&WorkerStatus) -> bool) -> Result<()> {
    let holds = &holds;
    let found =
        until_async(what, LONG, || async { status(worker).await.is_ok_and(|status| holds(&status)) }).await;
    match found {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(format!("{:?}", status(worker).await?))),
    }
}

/// Swaps the files and waits until the worker says that it does what they say.
async fn follow(bed: &Bed, worker: &Worker, version: u32, manifest: &str, filters: &[&str]) -> Result<()> {
    let (_, digest) = mount(bed, version, manifest, filters)?;
    status_is(worker, &format!("version {version} is followed"), |status| {
        let plan = status.plan.as_ref().is_some_and(|plan| {
            plan.generation == i64::from(version) && plan.keys.as_ref().is_some_and(|keys| keys == filters)
        });
        let subscribed = status.subscribed.len() == filters.len()
            && filters.iter().all(|filter| status.subscribed.contains(*filter));
        status.manifest == digest && plan && subscribed && status.ready
    })
    .await
}

async fn stored(bed: &Bed, what: &str, query: &str, count: i64) -> Result<()> {
    until_async(what, LONG, || async { bed.sql::<i64>(query).await.is_ok_and(|found| found == count) }).await
}

async fn formats_limits_and_filters_are_followed_under_load_without_a_restart_or_a_lost_message(
    bed: &mut Bed,
) -> Result<()> {
    const OF_LINES: &str = "SELECT count(*) FROM penstock.sample JOIN penstock.series USING (series_id) \
                            JOIN penstock.device d USING (device_id) WHERE d.site = 'lines'";
    bed.migrate().await?;
    let first = std::fs::read_to_string(bed.manifest(|text| text)?)?;
    let (plan, _) = mount(bed, 1, &first, &KINDS)?;
    let worker = bed.start("one", &["--plan", &plan.to_string_lossy()])?;
    worker.ready().await?;
    let load = Load::mixed(bed, 500.0);
    worker.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 200.0).await?;
    status_is(&worker, "the rate is told", |status| status.rate > 100.0).await?;

    let lines =
        format!("subscriptions:\n      - {{filter: {LINES:?}, format: InfluxLine, timeUnit: Seconds}}");
    let second = first.replace("subscriptions:", &lines).replace("maxRows: 20000", "maxRows: 50");
    let with_lines = [&KINDS[..], &[LINES]].concat();
    follow(bed, &worker, 2, &second, &with_lines).await?;
    let (topic, seconds) = ("traksense/t0/lines/dev-00001/raw", now() / 1_000_000);
    bed.publish_one(topic, format!("weather a=1 {seconds}")).await?;
    stored(bed, "a line is stored", OF_LINES, 1).await?;

    let third = second
        .replace("InfluxLine, timeUnit", "Fields, timeField: at, timeUnit")
        .replace("maxPacketSize: 1Mi", "maxPacketSize: 4Ki")
        .replace("mode: Auto", "mode: Listed, names: [t0, t1, t2, t3, t4, t5]");
    follow(bed, &worker, 3, &third, &with_lines).await?;
    bed.publish_one(topic, format!(r#"{{"at": {seconds}, "b": 2}}"#)).await?;
    stored(bed, "an object is stored", OF_LINES, 2).await?;
    bed.publish_one(topic, vec![b' '; 5000]).await?;
    bed.publish_one("traksense/stranger/s1/d/telem", "{}").await?;
    for reason in ["too_large", "unknown_tenant"] {
        let query = format!("SELECT count(*) FROM penstock.dead_letter WHERE reason = '{reason}'");
        stored(bed, reason, &query, 1).await?;
    }

    mount(bed, 4, "kind: Nothing", &KINDS)?;
    status_is(&worker, "a wrong file is told and not followed", |status| {
        status.unfollowed.first().is_some_and(|(reason, _)| reason == "manifest_wrong")
            && status.ready
            && status.plan.as_ref().is_some_and(|plan| plan.generation == 3)
    })
    .await?;
    follow(bed, &worker, 5, &first, &KINDS).await?;
    let status = status(&worker).await?;
    ensure!(status.unfollowed.is_empty() && status.epoch == 1, "one connection served all of it: {status:?}");
    // What the fleet did not publish.
    bed.execute(
        "DELETE FROM penstock.sample s USING penstock.series e JOIN penstock.device d USING (device_id) \
           WHERE s.series_id = e.series_id AND d.site = 'lines'; \
         DELETE FROM penstock.series e USING penstock.device d WHERE e.device_id = d.device_id AND d.site = 'lines'; \
         DELETE FROM penstock.dead_letter WHERE reason IN ('too_large', 'unknown_tenant')",
    )
    .await?;
    load.finish(bed, &worker).await?;
    worker.stop(LONG).await
}

async fn a_worker_whose_files_are_not_there_says_which_and_starts_when_they_are(bed: &mut Bed) -> Result<()> {
    bed.migrate().await?;
    let url = bed.secrets().join("timescale/url");
    let value = std::fs::read_to_string(&url)?;
    std::fs::remove_file(&url)?;
    let manifest = bed.manifest(|text| text)?;
    let text = std::fs::read_to_string(&manifest)?;

    // It can be stopped meanwhile.
    let worker = bed.start("one", &[])?;
    worker.not_ready("secret_missing").await?;
    worker.stop(Duration::from_secs(5)).await?;

    std::fs::remove_file(&manifest)?;
    let worker = bed.start("one", &[])?;
    worker.not_ready("manifest_missing").await?;
    ensure!(worker.is_live().await?, "it is live");
    ensure!(worker.metrics().await.is_ok(), "it has metrics, though none yet");
    std::fs::write(&manifest, text.replace("keepAlive: 30s", "keepAlive: soon"))?;
    let why = worker.not_ready("manifest_wrong").await?;
    ensure!(why.to_string().contains("keepAlive"), "the field is named: {why}");
    std::fs::write(&manifest, &text)?;
    let why = worker.not_ready("secret_missing").await?;
    ensure!(why.to_string().contains("timescale/url"), "the Secret and its key are named: {why}");
    bed.secret("timescale", "url", "no-url-secret")?;
    let why = worker.not_ready("secret_wrong").await?;
    ensure!(!why.to_string().contains("-secret"), "its value is not shown: {why}");
    bed.secret("timescale", "url", &value)?;
    worker.ready().await?;

    // Once it runs, it keeps what it read.
    std::fs::remove_file(&url)?;
    status_is(&worker, "the missing file is told", |status| {
        status.ready && status.unfollowed.first().is_some_and(|(reason, _)| reason == "secret_missing")
    })
    .await?;
    bed.secret("timescale", "url", &value)?;
    status_is(&worker, "it is there again", |status| status.ready && status.unfollowed.is_empty()).await?;
    worker.stop(LONG).await
}

/// Runs a job; whether it succeeded, and what it left.
async fn job<Report: serde::de::DeserializeOwned>(bed: &Bed, arguments: &[&str]) -> Result<Outcome<Report>> {
    let report = bed.folder.join("termination-log");
    let path = report.to_string_lossy();
    let arguments = [arguments, &["--report", &path]].concat();
    let (good, said) = worker::command(&arguments, &bed.folder.join("plant.yaml"), &bed.secrets()).await?;
    let text = std::fs::read_to_string(&report).with_context(|| said.clone())?;
    ensure!(text.len() <= 4096, "{} bytes", text.len());
    let outcome = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(good == matches!(outcome, Outcome::Done(_)), "{arguments:?}: {said}");
    Ok(outcome)
}

async fn retired(bed: &Bed, shard: &str, proof: Proof) -> Result<()> {
    let Outcome::Done(report) = job::<RetireReport>(bed, &["retire", "--shard", shard]).await? else {
        bail!("shard {shard} is not retired")
    };
    let client_id = bed.client_id_of(shard.parse()?);
    ensure!(report.retired && report.proof == proof, "{report:?}");
    ensure!(report.client_ids == [client_id.clone()], "{report:?}");
    ensure!(!publisher::has_session(&bed.address, &client_id).await?, "the broker still has the session");
    // The plan that it followed is remembered, and nothing else.
    let rest = "SELECT count(*) FROM penstock.shard_lease \
         WHERE instance IS NOT NULL OR session_existed OR filters <> '{}' OR more_filters <> '{}' \
            OR plan_generation = 0";
    ensure!(bed.sql::<i64>(rest).await? == 0, "the shard's row tells of a session");
    Ok(())
}

async fn jobs_leave_how_they_ended_and_any_shard_can_be_retired(bed: &mut Bed) -> Result<()> {
    let without = std::fs::read_to_string(bed.manifest(|text| text)?)?;
    let Outcome::Done(report) = job::<StoreReport>(bed, &["migrate"]).await? else { bail!("not migrated") };
    ensure!(report.schema_version.is_some() && !report.edition.is_empty(), "{report:?}");
    ensure!(report.size_bytes.is_some_and(|bytes| bytes > 10_000), "{report:?}");
    let Outcome::Done(report) = job::<StoreReport>(bed, &["maintain"]).await? else {
        bail!("not maintained")
    };
    ensure!(report.removed.is_some(), "{report:?}");

    let started = Instant::now();
    retired(bed, "7", Proof::NoSession).await?;
    ensure!(
        started.elapsed() < Duration::from_secs(5),
        "a shard that never ran took {:?}",
        started.elapsed()
    );

    // A queue is drained first, whatever the shard's part was.
    for (n, sharding, key) in
        [(1, "Topic", KINDS[0]), (2, "Tenant, tenants: [t0, t1]", "t0"), (3, "Shared", "")]
    {
        let text = without.replace("  sink:", &format!("  sharding: {{by: {sharding}}}\n  sink:"));
        let text = if sharding == "Shared" {
            text.replace("sessionExpiry: 24h", "sessionExpiry: 300s")
        } else {
            text
        };
        std::fs::write(bed.folder.join("plant.yaml"), text)?;
        let plan = bed.folder.join("plan.yaml");
        let keys: Vec<&str> = [key].into_iter().filter(|key| !key.is_empty()).collect();
        std::fs::write(&plan, format!("{{generation: 1, shard: {n}, keys: {keys:?}}}"))?;
        let shard = n.to_string();
        let worker = bed.start("one", &["--shard", &shard, "--plan", &plan.to_string_lossy()])?;
        worker.ready().await?;
        worker.stop(LONG).await?;
        let payload = format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p0","v":1}}]}}"#, at(n));
        bed.publish_one("traksense/t0/s1/dev-00001/telem", payload).await?;
        // Without the plan: the row remembers what was subscribed.
        std::fs::remove_file(&plan)?;
        retired(bed, &shard, Proof::Marker).await?;
        ensure!(
            bed.sql::<i64>("SELECT count(*) FROM penstock.sample").await? == i64::from(n),
            "{sharding}: drained"
        );
    }

    std::fs::remove_file(bed.secrets().join("timescale/url"))?;
    let Outcome::Failed { error } = job::<RetireReport>(bed, &["retire"]).await? else { bail!("retired") };
    ensure!(error.reason == "secret_missing" && error.message.contains("timescale/url"), "{error:?}");
    Ok(())
}
