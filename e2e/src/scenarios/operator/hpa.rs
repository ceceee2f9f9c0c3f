//! A real HorizontalPodAutoscaler scales a pipeline by its queue, through `/scale`.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::scale::stored;
use crate::adapter::Adapter;
use crate::bed::Bed;
use crate::fleet::Fleet;
use crate::plant::{PATIENCE, PIPELINE, Plant};
use crate::scenario;
use crate::scenarios::load::Load;
use crate::stack;
use crate::suite::Scenario;
use crate::wait::until_async;

const MOST: i64 = 4;
/// What the API server says to who scales what scales itself.
const REFUSAL: &str = "spec.replicas is the autoscaler's while spec.autoscaling is set";

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![scenario!(
        an_hpa_scales_by_the_queue_up_and_down_under_load_and_is_refused_beside_the_autoscaler
            [cluster, prometheus]
    )]
}

/// The example, without patience and for a small queue.
fn hpa() -> Result<Value> {
    let text = std::fs::read_to_string(stack::project().join("examples/hpa.yaml"))?;
    let mut hpa: Value = serde_saphyr::from_str(&text)?;
    hpa["spec"]["maxReplicas"] = json!(MOST);
    hpa["spec"]["metrics"][0]["external"]["target"]["averageValue"] = json!("20");
    for way in ["scaleUp", "scaleDown"] {
        let policies = json!([{"type": "Pods", "value": MOST, "periodSeconds": 1}]);
        hpa["spec"]["behavior"][way] = json!({"stabilizationWindowSeconds": 0, "policies": policies});
    }
    Ok(hpa)
}

async fn an_hpa_scales_by_the_queue_up_and_down_under_load_and_is_refused_beside_the_autoscaler(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(1).await.with_context(|| plant.logs())?;
    let prometheus = plant.prometheus(&bed.folder).await?;
    let _adapter = Adapter::start(&plant, prometheus).await?;
    let load = Load::start(Fleet::steady(&bed.address, 300.0, 1_000_000));
    let mut hpa = hpa()?;
    plant.apply(&hpa.to_string())?;
    // It answers, and lets nobody write: the queue grows.
    let held = bed.hold_writers().await?;
    let told = |what: &str| format!("{what}\n{}", plant.kubectl(&["describe", "hpa"]).unwrap_or_default());
    let grown = |ipl: &Value| ipl["spec"]["replicas"] == MOST && ipl["status"]["replicas"] == MOST;
    plant.until("the HPA asked for more", grown).await.with_context(|| told("up"))?;
    held.release().await?;
    let shrunk = |ipl: &Value| ipl["spec"]["replicas"] == 1;
    plant.until("the HPA asked for fewer", shrunk).await.with_context(|| told("down"))?;
    plant.ready(1).await.with_context(|| plant.logs())?;
    load.progress.stop.store(true, Ordering::SeqCst);
    stored(bed, &load.ledger().await?).await?;
    // A second scaler: the HPA wants more, and may not.
    let patch = json!({"spec": {"autoscaling": {"minReplicas": 1, "maxReplicas": 2}}}).to_string();
    plant.kubectl(&["patch", "ingestpipelines.penstock.dev", PIPELINE, "--type=merge", "-p", &patch])?;
    hpa["spec"]["minReplicas"] = json!(3);
    plant.apply(&hpa.to_string())?;
    let refused = until_async("the HPA tells why it may not", PATIENCE, || async {
        plant
            .object("hpa", PIPELINE)
            .is_ok_and(|hpa| hpa["status"]["conditions"].to_string().contains(REFUSAL))
    });
    refused.await.with_context(|| told("refused"))?;
    let Err(refusal) = plant.scale(2) else { bail!("two scalers at once") };
    ensure!(format!("{refusal:#}").contains(REFUSAL), "{refusal:#}");
    ensure!(plant.pipeline().await?["spec"]["replicas"] == 1, "it was scaled");
    Ok(())
}
