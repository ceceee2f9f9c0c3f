//! `kubectl penstock`, found by kubectl as a plugin.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use penstock_operator::plan::Plan;
use penstock_operator::preview::{Move, Preview};

use super::scale::stored;
use crate::bed::Bed;
use crate::operator;
use crate::plant::{PATIENCE, Plant, condition};
use crate::publisher::Outgoing;
use crate::scenario;
use crate::scenarios::load::Load;
use crate::stack::{self, process};
use crate::suite::Scenario;
use crate::wait::until_async;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(what_a_plan_shows_before_is_exactly_what_moves_then_under_load[cluster]),
        scenario!(a_pipeline_is_looked_at_paused_resumed_and_asked_for_dead_letters_by_kubectl[cluster]),
    ]
}

/// Runs `kubectl penstock` on the pipeline. The plugin finds kubectl, and kubectl the plugin, in the PATH.
fn plugin(plant: &Plant, arguments: &[&str]) -> Result<String> {
    let mut kubectl = plant.cluster.kubectl_command()?;
    let beside = Path::new(kubectl.get_program()).parent().context("a folder")?;
    let built = stack::project().join("target/release");
    let path = format!("{}:{}:/usr/bin:/bin", built.display(), beside.display());
    let (command, more) = arguments.split_first().context("a command")?;
    kubectl.env("PATH", path).args(["penstock", command, "-n", &plant.namespace, "ipl/plant"]).args(more);
    process::output(&mut kubectl)
}

/// The plan's ConfigMap.
fn plan_map(plant: &Plant) -> Result<Value> {
    Ok(plant.object("configmap", "plant-plan")?["data"].take())
}

fn owners(plan: &Value) -> Result<BTreeMap<String, u32>> {
    let plan: Plan = serde_json::from_str(plan["plan.json"].as_str().context("a plan")?)?;
    Ok(plan.keys.into_iter().map(|(key, place)| (key, place.owner)).collect())
}

/// The same question without a cluster, of what is stored in it.
fn offline(bed: &Bed, map: &Value, replicas: &str) -> Result<Preview> {
    let mut operator = Command::new(operator::binary());
    operator.args(["plan", "--json", "--replicas", replicas]);
    for (argument, key) in [("--file", "manifest.yaml"), ("--observed", "plan.json")] {
        let file = bed.folder.join(key);
        std::fs::write(&file, map[key].as_str().context(key.to_owned())?)?;
        operator.arg(argument).arg(file);
    }
    Ok(serde_json::from_str(&process::output(&mut operator)?)?)
}

async fn what_a_plan_shows_before_is_exactly_what_moves_then_under_load(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(2).await.with_context(|| plant.logs())?;
    let load = Load::mixed(bed, 200.0);
    for (replicas, shards) in [("5", 5), ("3", 3), ("9", 8)] {
        let map = plan_map(&plant)?;
        let shown: Preview =
            serde_json::from_str(&plugin(&plant, &["plan", "--replicas", replicas, "--json"])?)?;
        ensure!(offline(bed, &map, replicas)? == shown, "with a cluster and without it is not the same");
        let before = owners(&map)?;
        plant.scale(replicas.parse()?)?;
        plant
            .until("all moves are done", |ipl| {
                let settled = condition(ipl, "PlanApplied").0 == "True";
                settled && ipl["status"]["shards"].as_array().is_some_and(|all| all.len() == shards)
            })
            .await
            .with_context(|| plant.logs())?;
        let after = owners(&plan_map(&plant)?)?;
        let moved = after.iter().filter(|(key, to)| before.get(*key) != Some(to)).map(|(key, to)| Move {
            key: key.clone(),
            from: before.get(key).copied(),
            to: Some(*to),
        });
        let moved: Vec<Move> = moved.collect();
        ensure!(!moved.is_empty() && moved == shown.moves, "shown {:?}, moved {moved:?}", shown.moves);
    }
    let again = plugin(&plant, &["plan"])?;
    ensure!(again.contains("0 of 8 keys move."), "{again}");
    let Err(refused) = plugin(&plant, &["plan", "--replicas", "1000"]) else { bail!("1000 shards") };
    ensure!(refused.to_string().contains("spec.replicas"), "{refused}");
    load.progress.stop.store(true, Ordering::SeqCst);
    stored(bed, &load.ledger().await?).await
}

async fn a_pipeline_is_looked_at_paused_resumed_and_asked_for_dead_letters_by_kubectl(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(1).await.with_context(|| plant.logs())?;
    let bad = |n: u32| Outgoing {
        topic: "traksense/t0/s/d/telem".into(),
        payload: format!("{{{n}").into(),
        qos: 1,
    };
    bed.publish((0..3).map(bad).collect()).await?;
    let listed = until_async("dead letters are listed", PATIENCE, || async {
        plugin(&plant, &["dead-letters", "list", "--since", "1h"])
            .is_ok_and(|said| said.matches("parse_error").count() >= 3)
    });
    listed.await?;
    let status = plugin(&plant, &["status"])?;
    ensure!(status.contains("1/1 shards ready") && status.contains("PlanApplied"), "{status}");
    let said = plugin(&plant, &["pause"])?;
    ensure!(said.contains("paused"), "{said}");
    let parked =
        |ipl: &Value| condition(ipl, "Suspended").0 == "True" && ipl["status"]["shards"][0]["pod"].is_null();
    plant.until("nothing runs", parked).await?;
    let Err(nobody) = plugin(&plant, &["dead-letters", "list"]) else { bail!("a worker answers") };
    ensure!(nobody.to_string().contains("no worker of plant runs"), "{nobody}");
    let nothing = plugin(&plant, &["plan", "--replicas", "4"])?;
    ensure!(nothing.contains("Nothing moves"), "{nothing}");
    plugin(&plant, &["resume"])?;
    plant.ready(1).await.with_context(|| plant.logs())?;
    Ok(())
}
