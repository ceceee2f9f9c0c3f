//! The built-in autoscaler on real shards. The database is far away, so that a commit takes tens of
//! milliseconds and a small window is soon full: a machine of any size can be brought to its limits so.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::run::record;
use super::scale::stored;
use crate::bed::Bed;
use crate::fleet::Fleet;
use crate::plant::{Plant, condition, is_settled};
use crate::scenario;
use crate::scenarios::load::Load;
use crate::suite::Scenario;
use crate::wait::until_async;

/// Messages a second at 1x.
const RATE: f64 = 70.0;
/// What each question to the database waits on its way, and does where it is slow.
const FAR: Duration = Duration::from_millis(8);
const SLOW: Duration = Duration::from_millis(70);
/// The delay of a device's newest row, beyond which it is behind, in seconds.
const BEHIND: f64 = 5.0;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(
            shards_follow_four_times_the_load_and_back_and_hold_where_the_database_is_slow_under_load
                [cluster, alone]
        ),
        scenario!(shards_are_not_added_where_there_are_too_few_keys[cluster, alone]),
    ]
}

/// The example, scaled by itself.
fn scaled(text: &str) -> String {
    let scaling = "autoscaling: {maxReplicas: 6, behavior: {scaleDown: {stabilizationWindowSeconds: 15, policies: [{type: Percent, value: 100, periodSeconds: 15}]}}}";
    text.replace("replicas: 3", scaling)
        .replace("      clientIdPrefix", "      receiveMaximum: 10\n      clientIdPrefix")
}

fn chosen(pipeline: &Value) -> i64 {
    pipeline["status"]["autoscaling"]["replicas"].as_i64().unwrap_or_default()
}

fn settled(pipeline: &Value) -> bool {
    is_settled(pipeline, u32::try_from(chosen(pipeline)).unwrap_or_default())
}

/// Three times the load, besides what is published anyway.
fn surge(bed: &Bed) -> Load {
    let fleet = Fleet::steady(&bed.address, 3.0 * RATE, 1_000_000);
    Load::start(Fleet { name: "surge".to_owned(), first: 1000, mixed: true, ..fleet })
}

async fn shards_follow_four_times_the_load_and_back_and_hold_where_the_database_is_slow_under_load(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.apply(&plant.manifest(|text| scaled(&text))?)?;
    plant.ready(1).await.with_context(|| plant.logs())?;
    plant.database.slow(FAR);
    let base = Load::mixed(bed, RATE);
    let title = "1x to 4x to 1x, then a slow database, with the autoscaler";
    let recorder = record(bed, &plant, &base, title);
    plant.until("it rests", |ipl| ipl["status"]["rate"].as_i64() > Some(0) && settled(ipl)).await?;
    let rest = chosen(&plant.pipeline().await?);
    ensure!(rest <= 2, "{rest} shards at rest");

    let mark = recorder.mark("4x");
    let more = surge(bed);
    plant.until("shards are added", |ipl| chosen(ipl) > rest && settled(ipl)).await?;
    let most = chosen(&plant.pipeline().await?);
    until_async("the queue is worked off", Duration::from_secs(60), || async {
        recorder.so_far().moments.last().and_then(|moment| moment.lag).is_some_and(|lag| lag < BEHIND)
    })
    .await?;
    more.progress.stop.store(true, Ordering::SeqCst);
    recorder.over(mark);
    let mut ledger = more.ledger().await?;
    plant.until("shards are removed", |ipl| chosen(ipl) <= rest && settled(ipl)).await?;
    eprintln!("  {rest} shards at rest, {most} at 4x, {} again", chosen(&plant.pipeline().await?));

    let before = chosen(&plant.pipeline().await?);
    let mark = recorder.mark("slow database");
    plant.database.slow(SLOW);
    plant
        .until("it says why", |ipl| condition(ipl, "ScalingLimited") == ("True", "database"))
        .await
        .with_context(|| plant.logs())?;
    ensure!(chosen(&plant.pipeline().await?) == before, "shards were added to a slow database");
    plant.database.slow(FAR);
    recorder.over(mark);
    plant.until("it is not limited", |ipl| condition(ipl, "ScalingLimited").0 == "False").await?;

    base.progress.stop.store(true, Ordering::SeqCst);
    recorder.found("shards at rest, and at 4x", format!("{rest}, {most}"));
    ledger.extend(base.ledger().await?);
    stored(bed, &ledger).await.with_context(|| plant.logs())?;
    recorder.found("messages published and stored exactly once", ledger.len().to_string());
    recorder.keep("3-autoscaling")?;
    ensure!(plant.pipeline().await?["spec"]["replicas"] == 1, "the spec is nobody else's");
    let events = plant.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"])?;
    ensure!(events.contains("scaled") && events.contains("database"), "{events}");
    Ok(())
}

async fn shards_are_not_added_where_there_are_too_few_keys(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    let one_key = |text: String| {
        let lines = scaled(&text);
        let (kept, gone): (Vec<&str>, Vec<&str>) =
            lines.lines().partition(|line| !line.contains("- {filter") || line.contains("t0/"));
        assert_eq!(gone.len(), 7, "{gone:?}");
        kept.join("\n").replace("traksense/t0/+/+/telem", "traksense/#")
    };
    plant.apply(&plant.manifest(one_key)?)?;
    plant.ready(1).await.with_context(|| plant.logs())?;
    plant.database.slow(FAR);
    let (base, more) = (Load::mixed(bed, RATE), surge(bed));
    let limited = |ipl: &Value| condition(ipl, "ScalingLimited") == ("True", "not_enough_keys");
    plant.until("it says why", limited).await.with_context(|| plant.logs())?;
    ensure!(chosen(&plant.pipeline().await?) == 1, "a shard without a key");
    let said = plant.scale(3);
    ensure!(
        said.as_ref()
            .is_err_and(|error| format!("{error:#}").contains("remove spec.autoscaling to scale by hand")),
        "two scalers at once: {said:?}"
    );
    plant.database.slow(Duration::ZERO);
    let mut ledger = Vec::new();
    for load in [base, more] {
        load.progress.stop.store(true, Ordering::SeqCst);
        ledger.extend(load.ledger().await?);
    }
    stored(bed, &ledger).await.with_context(|| plant.logs())
}
