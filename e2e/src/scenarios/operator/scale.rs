//! Shards come and go under load.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::bed::Bed;
use crate::compare::compare;
use crate::fleet::POINTS;
use crate::plant::{Plant, condition};
use crate::scenario;
use crate::scenarios::load::Load;
use crate::suite::Scenario;
use crate::wait::until_async;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![scenario!(
        a_pipeline_is_applied_scaled_to_four_and_to_one_under_load_and_every_message_is_stored_once[cluster]
    )]
}

async fn a_pipeline_is_applied_scaled_to_four_and_to_one_under_load_and_every_message_is_stored_once(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(2).await?;
    let nodes: std::collections::BTreeSet<_> = plant.pipeline().await?["status"]["shards"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|shard| shard["node"].as_str().map(str::to_owned))
        .collect();
    ensure!(nodes.len() == 2, "two shards are on {nodes:?}");
    let load = Load::mixed(bed, 300.0);
    for replicas in [4, 1, 3] {
        plant.scale(replicas)?;
        plant.ready(replicas).await?;
        let keys: Vec<i64> = plant.pipeline().await?["status"]["shards"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|shard| shard["keys"].as_i64())
            .collect();
        ensure!(
            keys.len() == replicas as usize
                && keys.iter().all(|keys| *keys > 0)
                && keys.iter().sum::<i64>() == 8,
            "{keys:?}"
        );
        for gone in replicas..4 {
            ensure!(!plant.has_session(gone).await?, "shard {gone} left a session on the broker");
        }
    }
    load.progress.stop.store(true, Ordering::SeqCst);
    let ledger = load.ledger().await?;
    stored(bed, &ledger).await?;
    ensure!(condition(&plant.pipeline().await?, "Stalled").0 == "False");
    Ok(())
}

/// Waits until all is stored, and compares row by row.
pub async fn stored(bed: &Bed, ledger: &[crate::fleet::Entry]) -> Result<()> {
    let same = until_async("the tables hold what was published", Duration::from_secs(30), || async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        compare(&bed.database.admin_url, ledger, POINTS)
            .await
            .is_ok_and(|found| found.require_exact().is_ok())
    });
    if same.await.is_err() {
        compare(&bed.database.admin_url, ledger, POINTS).await?.require_exact()?;
    }
    Ok(())
}
