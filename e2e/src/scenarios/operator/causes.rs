//! Why a pipeline is not ready is in its condition within ten seconds, and gone again when it is over.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::scale::stored;
use crate::bed::Bed;
use crate::plant::{PIPELINE, Plant, condition, message};
use crate::proxy::Mode;
use crate::scenario;
use crate::scenarios::load::Load;
use crate::stack::mosquitto::{Guard, Setup};
use crate::suite::Scenario;

const SOON: Duration = Duration::from_secs(10);
/// Until a new pipeline's worker runs: its schema is made before.
const STARTS: Duration = Duration::from_secs(30);

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_pipeline_says_that_the_broker_or_the_database_is_away_and_that_it_is_back[cluster]),
        scenario!(a_missing_secret_is_named_and_the_pipeline_heals_by_itself_when_it_is_there[cluster]),
        scenario!(a_store_that_is_missing_leaves_what_runs_and_says_so[cluster]),
        scenario!(two_pipelines_with_the_same_client_ids_do_not_fight_and_the_younger_says_so[cluster]),
        Scenario {
            setup: Setup { refused: Some("traksense/t3/+/+/telem"), ..Setup::default() },
            ..scenario!(a_filter_that_the_broker_refuses_is_named[cluster])
        },
        Scenario {
            setup: Setup { guard: Some(Guard::Password), ..Setup::default() },
            ..scenario!(a_wrong_password_is_told_and_the_pipeline_heals_when_the_secret_is_right[cluster, broker])
        },
        scenario!(a_full_queue_that_grows_old_is_told_and_drains_when_the_database_stores_again[cluster]),
    ]
}

async fn not_ready(plant: &Plant, reason: &str) -> Result<()> {
    plant
        .until_within(&format!("not ready: {reason}"), SOON, |ipl| {
            condition(ipl, "Ready") == ("False", reason)
        })
        .await
        .with_context(|| plant.logs())
}

async fn a_pipeline_says_that_the_broker_or_the_database_is_away_and_that_it_is_back(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(1).await?;
    plant.broker.set(Mode::Cut);
    not_ready(&plant, "broker_away").await?;
    plant.broker.set(Mode::Pass);
    plant.ready(1).await?;
    plant.database.set(Mode::Cut);
    not_ready(&plant, "database_away").await?;
    plant.database.set(Mode::Pass);
    plant.ready(1).await
}

async fn a_missing_secret_is_named_and_the_pipeline_heals_by_itself_when_it_is_there(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(1).await?;
    plant.apply(&plant.manifest(|text| with_login(&text))?)?;
    plant
        .until_within("the missing Secret is told", SOON, |ipl| {
            let said = ipl["status"]["conditions"].to_string();
            said.contains("secret_missing") && said.contains("broker/")
        })
        .await
        .with_context(|| plant.logs())?;
    login(&plant, "p-secret")?;
    plant.ready(1).await.with_context(|| plant.logs())
}

/// One shard that logs in to the broker.
fn with_login(text: &str) -> String {
    text.replace("replicas: 3", "replicas: 1").replace(
        "      subscriptions:",
        "      auth:\n        username: {secretKeyRef: {name: broker, key: username}}\n        password: {secretKeyRef: {name: broker, key: password}}\n      subscriptions:",
    )
}

/// The Secret that such a shard needs.
fn login(plant: &Plant, password: &str) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "broker"},
        "stringData": {"username": "worker", "password": password},
    });
    plant.apply(&secret.to_string()).map(drop)
}

async fn a_wrong_password_is_told_and_the_pipeline_heals_when_the_secret_is_right(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    bed.broker()?.set_password("worker", "first-secret")?;
    login(&plant, "first-secret")?;
    plant.apply(&plant.manifest(|text| with_login(&text))?)?;
    plant.ready(1).await.with_context(|| plant.logs())?;
    // Mosquitto ends connections whose password is no longer right.
    bed.broker()?.set_password("worker", "second-secret")?;
    plant
        .until_within("the refused login is told", SOON, |ipl| {
            condition(ipl, "Ready").0 == "False" && message(ipl, "Ready").contains("login_refused")
        })
        .await
        .with_context(|| plant.logs())?;
    login(&plant, "second-secret")?;
    plant.ready(1).await.with_context(|| plant.logs())?;
    let told = plant.pipeline().await?.to_string() + &plant.kubectl(&["get", "events", "-o", "json"])?;
    ensure!(!told.contains("second-secret"), "a status or an Event tells the password");
    Ok(())
}

async fn a_full_queue_that_grows_old_is_told_and_drains_when_the_database_stores_again(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    let impatient = |text: String| {
        text.replace("replicas: 3", "replicas: 1")
            .replace("  sharding:", "  readiness: {maxUnackedAge: 1s}\n  sharding:")
    };
    plant.apply(&plant.manifest(impatient)?)?;
    plant.ready(1).await.with_context(|| plant.logs())?;
    let load = Load::mixed(bed, 500.0);
    // It answers, and lets nobody write.
    let held = bed.hold_writers().await?;
    not_ready(&plant, "queue_stuck").await?;
    plant.until("it says that it is pressed", |ipl| condition(ipl, "Backpressured").0 == "True").await?;
    held.release().await?;
    plant.ready(1).await.with_context(|| plant.logs())?;
    load.progress.stop.store(true, Ordering::SeqCst);
    stored(bed, &load.ledger().await?).await
}

async fn a_store_that_is_missing_leaves_what_runs_and_says_so(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(1).await?;
    plant.kubectl(&["delete", "telemetrystores.penstock.dev", "main"])?;
    plant
        .until("it is stalled, and still ready", |ipl| {
            condition(ipl, "Stalled") == ("True", "store_missing") && condition(ipl, "Ready").0 == "True"
        })
        .await
        .with_context(|| plant.logs())?;
    plant.apply(&plant.manifest(|text| text.replace("replicas: 3", "replicas: 1"))?)?;
    plant.ready(1).await
}

async fn two_pipelines_with_the_same_client_ids_do_not_fight_and_the_younger_says_so(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(1).await?;
    let second = plant.manifest(|text| text.replace("metadata: {name: plant}", "metadata: {name: twin}"))?;
    plant.apply(&second)?;
    let stalled = crate::wait::until_async("the younger one says so", SOON, || async {
        plant
            .object("ingestpipelines.penstock.dev", "twin")
            .is_ok_and(|twin| condition(&twin, "Stalled") == ("True", "client_ids_claimed"))
    });
    stalled.await.with_context(|| plant.logs())?;
    plant.ready(1).await?;
    plant.kubectl(&["delete", "ingestpipelines.penstock.dev", "twin"])?;
    Ok(())
}

async fn a_filter_that_the_broker_refuses_is_named(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.apply(&plant.manifest(|text| text.replace("replicas: 3", "replicas: 1"))?)?;
    plant
        .until_within("the refused filter is named", STARTS + SOON, |ipl| {
            condition(ipl, "Ready") == ("False", "subscription_refused")
                && ipl["status"]["conditions"].to_string().contains("traksense/t3/+/+/telem")
        })
        .await
        .with_context(|| plant.logs())?;
    plant.apply(&plant.manifest(|text| {
        text.replace("replicas: 3", "replicas: 1")
            .replace("      - {filter: \"traksense/t3/+/+/telem\"}\n", "")
    })?)?;
    plant.ready(1).await?;
    plant.kubectl(&["get", "ingestpipelines.penstock.dev", PIPELINE])?;
    Ok(())
}
