//! What belongs to a pipeline is put back, and nothing is written where nothing changes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bed::Bed;
use crate::plant::{PATIENCE, PIPELINE, Plant, condition};
use crate::scenario;
use crate::suite::Scenario;
use crate::wait::until_async;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(what_a_hand_deletes_or_edits_is_put_back_and_the_plan_from_what_workers_tell[cluster]),
        scenario!(an_object_that_is_not_ours_is_left_alone_and_named[cluster]),
        scenario!(a_pipeline_at_rest_makes_no_writes[cluster]),
    ]
}

async fn what_a_hand_deletes_or_edits_is_put_back_and_the_plan_from_what_workers_tell(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(2).await?;
    let keys = |plan: &str| -> Result<serde_json::Value> {
        let plan: serde_json::Value = serde_json::from_str(plan)?;
        Ok(plan["keys"].clone())
    };
    let plan = || -> Result<String> {
        let object = plant.object("configmap", "plant-plan")?;
        Ok(object["data"]["plan.json"].as_str().context("a plan")?.to_owned())
    };
    let before = keys(&plan()?)?;
    for (kind, name) in [
        ("service", "plant-metrics"),
        ("poddisruptionbudget", "plant-workers"),
        ("serviceaccount", "plant-worker"),
        ("serviceaccount", "plant-retire"),
        ("configmap", "plant-shard-1"),
        ("deployment", "plant-shard-1"),
        ("configmap", "plant-plan"),
    ] {
        let uid = plant.object(kind, name)?["metadata"]["uid"].clone();
        plant.kubectl(&["delete", kind, name, "--wait=false"])?;
        until_async(&format!("{kind} {name} is put back"), PATIENCE, || async {
            plant.object(kind, name).is_ok_and(|object| object["metadata"]["uid"] != uid)
        })
        .await
        .with_context(|| plant.logs())?;
    }
    ensure!(keys(&plan()?)? == before, "the plan was rebuilt with other owners");
    for (kind, name, patch) in [
        ("deployment", "plant-shard-0", r#"{"spec":{"replicas":3}}"#),
        (
            "deployment",
            "plant-shard-0",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"worker","image":"other"}]}}}}"#,
        ),
        ("service", "plant-metrics", r#"{"spec":{"selector":{"app":"other"}}}"#),
        ("configmap", "plant-shard-0", r#"{"data":{"plan.yaml":"other"}}"#),
        ("poddisruptionbudget", "plant-workers", r#"{"spec":{"maxUnavailable":7}}"#),
        ("service", "plant-metrics", r#"{"metadata":{"labels":{"app.kubernetes.io/managed-by":null}}}"#),
    ] {
        let wanted = part(&plant.object(kind, name)?);
        plant.kubectl(&["patch", kind, name, "--type=strategic", "-p", patch])?;
        until_async(&format!("{kind} {name} is as it was, after {patch}"), PATIENCE, || async {
            plant.object(kind, name).is_ok_and(|object| part(&object) == wanted)
        })
        .await
        .with_context(|| plant.logs())?;
    }
    plant.ready(2).await
}

/// What of an object is compared.
fn part(object: &serde_json::Value) -> serde_json::Value {
    let mut spec = object["spec"].clone();
    // A merge leaves the keys of a hand beside ours.
    if let Some(selector) = spec["selector"].as_object_mut() {
        selector.remove("app");
    }
    serde_json::json!([spec, object["data"], object["metadata"]["labels"]])
}

async fn an_object_that_is_not_ours_is_left_alone_and_named(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.kubectl(&["create", "service", "clusterip", "plant-metrics", "--tcp=80"])?;
    let foreign = plant.object("service", "plant-metrics")?["spec"].clone();
    plant.apply(&plant.manifest(|text| text)?)?;
    plant
        .until("the condition names it", |ipl| condition(ipl, "Stalled") == ("True", "foreign_object"))
        .await?;
    let conditions = plant.pipeline().await?["status"]["conditions"].to_string();
    ensure!(conditions.contains("Service plant-metrics"), "{conditions}");
    ensure!(plant.object("service", "plant-metrics")?["spec"] == foreign, "it was changed");
    plant.kubectl(&["delete", "service", "plant-metrics"])?;
    plant.ready(3).await
}

async fn a_pipeline_at_rest_makes_no_writes(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(2).await?;
    let cluster = bed.cluster()?;
    let writes = || -> Result<Vec<String>> {
        let log = std::fs::read_to_string(cluster.audit_log()?)?;
        let ours = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(ours
            .filter(|call| {
                call["user"]["username"].as_str().is_some_and(|user| user.contains(":penstock-system:"))
                    && call["objectRef"]["namespace"] == plant.namespace.as_str()
                    && ["create", "update", "patch", "delete"].iter().any(|verb| call["verb"] == *verb)
                    && call["stage"] == "ResponseComplete"
            })
            .map(|call| format!("{} {}", call["verb"], call["requestURI"]))
            .collect())
    };
    // Until the last Event and the first numbers are written.
    let (mut seen, mut since) = (writes()?.len(), std::time::Instant::now());
    let deadline = since + Duration::from_secs(200);
    while since.elapsed() < Duration::from_secs(61) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = writes()?;
        if now.len() != seen {
            ensure!(std::time::Instant::now() < deadline, "it goes on writing: {:?}", &now[seen..]);
            (seen, since) = (now.len(), std::time::Instant::now());
        }
    }
    ensure!(plant.pipeline().await?["metadata"]["name"] == PIPELINE);
    Ok(())
}
