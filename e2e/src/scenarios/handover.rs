//! Shards pass from worker to worker, change their plan, and end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::load::Load;
use crate::bed::{Bed, require_identities};
use crate::compare::compare;
use crate::fleet::{Fleet, at};
use crate::proxy::{Mode, Proxy};
use crate::publisher::{self, Outgoing, Progress};
use crate::scenario;
use crate::suite::Scenario;
use crate::wait::until_async;
use crate::worker::{self, Worker};

const LONG: Duration = Duration::from_secs(40);

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_newer_instance_takes_over_under_load_and_the_older_one_does_not_steal_back),
        scenario!(a_stopping_worker_serves_until_its_successor_has_taken_over),
        scenario!(a_retired_shard_has_no_session_and_lost_nothing_of_a_full_queue),
        scenario!(a_shard_is_retired_from_under_a_running_worker),
        scenario!(a_broker_that_is_away_while_a_shard_is_retired_is_no_empty_queue[broker]),
        scenario!(a_retire_that_lost_the_shard_ends_no_session),
        scenario!(a_marker_that_a_retire_left_behind_is_no_delivery),
        scenario!(a_worker_that_outlives_the_end_of_its_shard_begins_nothing_anew),
        scenario!(a_changed_plan_is_followed_without_a_restart_and_an_older_one_is_not),
        scenario!(a_plan_that_came_while_the_database_was_away_is_remembered),
    ]
}

async fn a_newer_instance_takes_over_under_load_and_the_older_one_does_not_steal_back(
    bed: &mut Bed,
) -> Result<()> {
    let mut one = bed.worker().await?;
    let load = Load::mixed(bed, 800.0);
    one.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 500.0).await?;
    let two = bed.start("two", &[])?;
    two.ready().await?;
    // It says who has the shard.
    one.not_ready("two").await?;
    ensure!(one.is_live().await?, "a superseded worker is live");
    one.metric("what it held is committed", LONG, |m| m.get("ingest_in_flight") == 0.0).await?;
    require_identities(&one.metrics().await?)?;

    one.kill();
    let one = bed.start("one", &[])?;
    one.not_ready("a newer instance runs the shard").await?;
    // Through several of its attempts.
    let before = two.metrics().await?.get("ingest_committed_total");
    two.metric("the newer one goes on", LONG, |m| m.get("ingest_committed_total") > before + 4000.0).await?;
    ensure!(
        two.metrics().await?.get("ingest_lease_held") > 0.0 && two.readiness().await?.0,
        "the newer one keeps the shard"
    );
    ensure!(one.metrics().await?.get("ingest_mqtt_epoch") == 0.0, "the older one never connected");
    load.finish(bed, &two).await.map(drop)
}

async fn a_stopping_worker_serves_until_its_successor_has_taken_over(bed: &mut Bed) -> Result<()> {
    bed.migrate().await?;
    bed.manifest(|text| text)?;
    let one = bed.start("one", &["--handover", "20"])?;
    one.ready().await?;
    let load = Load::mixed(bed, 500.0);
    one.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 300.0).await?;
    one.ask_to_stop();
    let before = one.metrics().await?.get("ingest_committed_total");
    one.metric("it goes on consuming", LONG, |m| m.get("ingest_committed_total") > before + 500.0).await?;
    let two = bed.start("two", &[])?;
    two.ready().await?;
    // Long before the time for the handover is over.
    one.ended(Duration::from_secs(8)).await?;
    load.finish(bed, &two).await.map(drop)
}

/// Leaves a queue of messages for a shard that nobody runs, and returns what was published.
async fn queue(bed: &mut Bed, messages: u64) -> Result<(Fleet, Vec<crate::fleet::Entry>)> {
    bed.worker().await?.stop(Duration::from_secs(10)).await?;
    let fleet = Fleet { rate: None, mixed: true, ..Fleet::steady(&bed.address, 0.0, messages) };
    let ledger = fleet.run(Arc::new(Progress::default())).await?;
    Ok((fleet, ledger))
}

async fn require_retired(bed: &Bed) -> Result<()> {
    let present = publisher::has_session(&bed.address, &bed.client_id()).await?;
    ensure!(!present, "the broker still has the session");
    ensure!(
        bed.sql::<i64>("SELECT count(*) FROM penstock.shard_lease").await? == 0,
        "the shard's row is still there"
    );
    Ok(())
}

async fn a_retired_shard_has_no_session_and_lost_nothing_of_a_full_queue(bed: &mut Bed) -> Result<()> {
    let (fleet, ledger) = queue(bed, 20_000).await?;
    ensure!(publisher::has_session(&bed.address, &bed.client_id()).await?, "there is a session to retire");
    let (good, said) = retire(bed, &["retire"]).await?;
    ensure!(good && said.contains("Marker"), "retire: {said}");
    compare(&bed.database.admin_url, &ledger, fleet.points).await?.require_exact()?;
    require_retired(bed).await?;
    // Nothing to retire is no failure: a Job may run again.
    let (good, said) = retire(bed, &["retire"]).await?;
    ensure!(good, "retire again: {said}");
    require_retired(bed).await
}

async fn a_shard_is_retired_from_under_a_running_worker(bed: &mut Bed) -> Result<()> {
    let (fleet, ledger) = queue(bed, 20_000).await?;
    let one = bed.start("one", &[])?;
    one.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 0.0).await?;
    let retiring = tokio::spawn(retire(bed, &["retire"]));
    one.not_ready("lease_not_held").await?;
    one.stop(Duration::from_secs(20)).await?;
    let (good, said) = retiring.await??;
    ensure!(good, "retire: {said}");
    compare(&bed.database.admin_url, &ledger, fleet.points).await?.require_exact()?;
    require_retired(bed).await
}

/// Whether it went well, and what it said.
fn retire<'a>(
    bed: &Bed,
    arguments: &'a [&'a str],
) -> impl Future<Output = Result<(bool, String)>> + Send + use<'a> {
    let (manifest, secrets) = (bed.folder.join("plant.yaml"), bed.secrets());
    async move { worker::command(arguments, &manifest, &secrets).await }
}

/// Waits until a writer has a batch that [`Bed::hold_writers`] keeps from its commit.
async fn writers_wait(bed: &Bed) -> Result<()> {
    let waiting = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database \
                   WHERE NOT granted AND datname = current_database()";
    until_async("a batch is in hand", LONG, || async {
        bed.sql::<i64>(waiting).await.is_ok_and(|count| count > 0)
    })
    .await
}

async fn a_broker_that_is_away_while_a_shard_is_retired_is_no_empty_queue(bed: &mut Bed) -> Result<()> {
    let idle = Duration::from_secs(3);
    let (fleet, ledger) = queue(bed, 5000).await?;
    let held = bed.hold_writers().await?;
    let retiring = tokio::spawn(retire(bed, &["retire", "--idle", "3"]));
    writers_wait(bed).await?;
    // A window of messages is in hand, and the broker has all of them.
    bed.broker()?.stop()?;
    held.release().await?;
    tokio::time::sleep(idle * 2).await;
    ensure!(!retiring.is_finished(), "nobody can tell whether the queue is empty");
    bed.broker()?.start_again()?;
    let (good, said) = retiring.await??;
    ensure!(good, "retire: {said}");
    compare(&bed.database.admin_url, &ledger, fleet.points).await?.require_exact()?;
    require_retired(bed).await
}

async fn a_retire_that_lost_the_shard_ends_no_session(bed: &mut Bed) -> Result<()> {
    queue(bed, 200).await?;
    let held = bed.hold_writers().await?;
    let retiring = tokio::spawn(retire(bed, &["retire"]));
    writers_wait(bed).await?;
    // Its next renewal would tell, but the queue is drained before.
    bed.execute("UPDATE penstock.shard_lease SET instance = 'another', incarnation = gen_random_uuid()")
        .await?;
    held.release().await?;
    let (good, said) = retiring.await??;
    ensure!(!good && said.contains("another worker"), "retire: {said}");
    ensure!(publisher::has_session(&bed.address, &bed.client_id()).await?, "it ended another's session");
    let holder: String = bed.sql("SELECT instance FROM penstock.shard_lease").await?;
    ensure!(holder == "another", "it forgot another's shard");
    Ok(())
}

/// As where a shard was to end and is to go on after all: its retire ended between marker and proof.
async fn a_marker_that_a_retire_left_behind_is_no_delivery(bed: &mut Bed) -> Result<()> {
    let topic = format!("penstock/retire/{}", bed.client_id());
    // First: what is queued would come behind CONNACK.
    publisher::subscribe(&bed.address, &bed.client_id(), &topic).await?;
    let (fleet, ledger) = queue(bed, 1000).await?;
    let marker = Outgoing { topic, payload: "77cf3b40-f2bd-43c1-8301-bc72e31578c1".into(), qos: 1 };
    publisher::publish_all(&bed.address, vec![marker]).await?;
    let one = bed.start("one", &[])?;
    one.ready().await?;
    let all = ledger.len() as f64;
    one.metric("all is committed", LONG, move |m| m.get("ingest_committed_total") >= all).await?;
    require_identities(&one.idle().await?)?;
    compare(&bed.database.admin_url, &ledger, fleet.points).await?.require_exact()
}

/// As a kubelet does it: readers see the old file or the new one.
fn write_plan(path: &Path, generation: i64, kinds: &[&str]) -> std::io::Result<()> {
    let keys: Vec<String> = kinds.iter().map(|kind| format!("\"traksense/+/+/+/{kind}\"")).collect();
    let next = path.with_extension("next");
    std::fs::write(&next, format!("generation: {generation}\nshard: 3\nkeys: [{}]\n", keys.join(", ")))?;
    std::fs::rename(next, path)
}

/// A worker of shard 3 on its first plan, and the plan's file.
async fn follow_plan_5(bed: &mut Bed) -> Result<(PathBuf, Worker)> {
    bed.migrate().await?;
    bed.manifest(|text| text)?;
    let path = bed.folder.join("plan.yaml");
    write_plan(&path, 5, &["telem"])?;
    let worker = bed.start("one", &["--shard", "3", "--plan", &path.to_string_lossy()])?;
    worker.ready().await?;
    Ok((path, worker))
}

async fn subscribed_by(worker: &Worker, filters: &[&str]) -> Result<()> {
    until_async(&format!("subscribed are {filters:?}"), LONG, || async {
        worker.status().await.is_ok_and(|status| status["lease"]["filters"] == serde_json::json!(filters))
    })
    .await
}

async fn require_no_session(bed: &Bed, shard: u32) -> Result<()> {
    let client_id = bed.client_id_of(shard);
    ensure!(!publisher::has_session(&bed.address, &client_id).await?, "the broker has a session {client_id}");
    Ok(())
}

async fn a_changed_plan_is_followed_without_a_restart_and_an_older_one_is_not(bed: &mut Bed) -> Result<()> {
    let (path, worker) = follow_plan_5(bed).await?;
    let plan = |generation: i64, kinds: &[&str]| write_plan(&path, generation, kinds);
    let subscribed = async |filters: &[&str]| subscribed_by(&worker, filters).await;
    subscribed(&["traksense/+/+/+/telem"]).await?;
    plan(6, &["ack", "telem"])?;
    subscribed(&["traksense/+/+/+/ack", "traksense/+/+/+/telem"]).await?;
    plan(7, &["ack"])?;
    subscribed(&["traksense/+/+/+/ack"]).await?;
    plan(6, &["ack", "telem"])?;
    worker.logs("ignoring an older plan", LONG).await?;
    subscribed(&["traksense/+/+/+/ack"]).await?;
    ensure!(
        worker.status().await?["lease"]["plan_generation"] == 7,
        "the status says which plan is followed"
    );
    ensure!(worker.metrics().await?.get("ingest_mqtt_epoch") == 1.0, "one connection served all of it");

    let arguments = ["retire", "--shard", "3", "--plan-generation", "6"];
    let (good, said) = retire(bed, &arguments).await?;
    ensure!(!good && said.contains("follows plan 7"), "an older plan does not end it: {said}");
    ensure!(worker.readiness().await?.0, "it goes on");

    // A restart on the older file keeps what the row remembers.
    worker.stop(Duration::from_secs(10)).await?;
    let worker = bed.start("one", &["--shard", "3", "--plan", &path.to_string_lossy()])?;
    worker.ready().await?;
    ensure!(
        worker.status().await?["lease"]["filters"].as_array().map(Vec::len) == Some(1),
        "the row's filters are kept"
    );
    let topic = "traksense/t0/s1/dev-00001";
    bed.publish_one(
        &format!("{topic}/telem"),
        format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p0","v":1}}]}}"#, at(1)),
    )
    .await?;
    bed.publish_one(&format!("{topic}/ack"), r#"{"schema":"v1","cmd_id":"c1","ok":true}"#).await?;
    worker.metric("the answer is stored", LONG, |m| m.get("ingest_messages_total/ack") == 1.0).await?;
    ensure!(worker.idle().await?.get("ingest_received_total") == 1.0, "what is not subscribed does not come");
    worker.stop(Duration::from_secs(10)).await?;

    // What a plan has ended does not begin again by an older one, and does by a newer one.
    let arguments = ["retire", "--shard", "3", "--plan-generation", "8"];
    let (good, said) = retire(bed, &arguments).await?;
    ensure!(good, "{said}");
    let worker = bed.start("one", &["--shard", "3", "--plan", &path.to_string_lossy()])?;
    worker.not_ready("the shard was retired; only a newer plan begins it again (plan 8)").await?;
    ensure!(
        worker.status().await?["lease"]["plan_generation"] == 9,
        "the status says which plan is to be exceeded"
    );
    plan(8, &["ack"])?;
    require_no_session(bed, 3).await?;
    plan(9, &["telem"])?;
    worker.ready().await?;
    subscribed_by(&worker, &["traksense/+/+/+/telem"]).await
}

async fn a_plan_that_came_while_the_database_was_away_is_remembered(bed: &mut Bed) -> Result<()> {
    let proxy = Proxy::start(bed.database.address()?).await?;
    bed.reach_database_through(proxy.port)?;
    let (path, worker) = follow_plan_5(bed).await?;
    proxy.set(Mode::Cut);
    write_plan(&path, 6, &["ack", "telem"])?;
    // The filter could not be noted, so the session is to begin again.
    worker.metric("it gave up", LONG, |m| m.sum("ingest_mqtt_disconnects_total") > 0.0).await?;
    proxy.set(Mode::Pass);
    worker.ready().await?;
    subscribed_by(&worker, &["traksense/+/+/+/ack", "traksense/+/+/+/telem"]).await?;
    let followed: i64 = bed.sql("SELECT plan_generation FROM penstock.shard_lease").await?;
    ensure!(followed == 6, "filters of plan 6 are noted as those of plan {followed}");
    let arguments = ["retire", "--shard", "3", "--plan-generation", "5"];
    let (good, said) = retire(bed, &arguments).await?;
    ensure!(!good && said.contains("follows plan 6"), "an older plan does not end it: {said}");
    Ok(())
}

async fn a_worker_that_outlives_the_end_of_its_shard_begins_nothing_anew(bed: &mut Bed) -> Result<()> {
    // SIGTERM came late, or never.
    let (path, worker) = follow_plan_5(bed).await?;
    for (by, newer) in [(&["--plan-generation", "5"][..], 6), (&[], 7)] {
        let arguments = [&["retire", "--shard", "3"], by].concat();
        let (good, said) = retire(bed, &arguments).await?;
        ensure!(good, "{said}");
        worker.not_ready("the shard was retired").await?;
        require_no_session(bed, 3).await?;
        write_plan(&path, newer, &["telem"])?;
        worker.ready().await?;
    }
    Ok(())
}
