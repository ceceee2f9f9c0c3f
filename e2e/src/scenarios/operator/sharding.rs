//! The three ways to divide the work.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};

use super::scale::stored;
use crate::bed::Bed;
use crate::plant::{Plant, condition};
use crate::scenario;
use crate::scenarios::load::Load;
use crate::suite::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_pipeline_is_divided_by_tenants[cluster]),
        scenario!(a_shared_pipeline_grows_and_shrinks_and_stores_all_once[cluster]),
    ]
}

const FILTERS: &str =
    "      subscriptions:                                # what is divided among the shards\n";

/// The example with one filter of each kind of message, so that each is for all tenants.
fn plain(text: &str) -> String {
    let (head, rest) = text.split_once(FILTERS).unwrap_or((text, ""));
    let (_, tail) = rest.split_once("      layout:").unwrap_or(("", rest));
    let kinds =
        ["telem", "ack", "event"].map(|kind| format!("      - {{filter: \"traksense/+/+/+/{kind}\"}}\n"));
    format!("{head}      subscriptions:\n{}      layout:{tail}", kinds.concat())
}

async fn under_load(bed: &Bed, plant: &Plant, text: &str, replicas: [u32; 3]) -> Result<()> {
    let [first, more, fewer] = replicas;
    plant.apply(text)?;
    plant.ready(first).await.with_context(|| plant.logs())?;
    let load = Load::mixed(bed, 200.0);
    for replicas in [more, fewer] {
        plant.scale(replicas)?;
        plant.ready(replicas).await.with_context(|| plant.logs())?;
    }
    load.progress.stop.store(true, Ordering::SeqCst);
    stored(bed, &load.ledger().await?).await
}

async fn a_pipeline_is_divided_by_tenants(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    let text = plant.manifest(|text| {
        plain(&text)
            .replace("{by: Topic}", "{by: Tenant, tenants: [t0, t1, t2, t3, t4, t5]}")
            .replace("replicas: 3", "replicas: 2")
    })?;
    under_load(bed, &plant, &text, [2, 3, 1]).await?;
    plant.scale(8)?;
    plant
        .until("more shards than tenants are not started, and it says so", |ipl| {
            condition(ipl, "ScalingLimited") == ("True", "not_enough_keys") && ipl["status"]["ready"] == "6/6"
        })
        .await?;
    Ok(())
}

async fn a_shared_pipeline_grows_and_shrinks_and_stores_all_once(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    let text = plant.manifest(|text| {
        plain(&text)
            .replace("{by: Topic}", "{by: Shared}")
            .replace("      layout:", "      sessionExpiry: 5m\n      layout:")
            .replace("replicas: 3", "replicas: 2")
    })?;
    under_load(bed, &plant, &text, [2, 3, 1]).await?;
    let shards = plant.pipeline().await?["status"]["shards"].clone();
    ensure!(shards.as_array().is_some_and(|shards| shards.len() == 1), "{shards}");
    Ok(())
}
