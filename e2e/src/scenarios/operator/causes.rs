//! Why a pipeline is not ready is in its condition within ten seconds, and gone again when it is over.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::bed::Bed;
use crate::plant::{PIPELINE, Plant, condition};
use crate::proxy::Mode;
use crate::scenario;
use crate::stack::mosquitto::Setup;
use crate::suite::Scenario;

const SOON: Duration = Duration::from_secs(10);

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
    let auth = |text: String| {
        text.replace("replicas: 3", "replicas: 1").replace(
            "      subscriptions:",
            "      auth:\n        username: {secretKeyRef: {name: broker, key: username}}\n        password: {secretKeyRef: {name: broker, key: password}}\n      subscriptions:",
        )
    };
    plant.apply(&plant.manifest(auth)?)?;
    plant
        .until("the missing Secret is told", |ipl| {
            let said = ipl["status"]["conditions"].to_string();
            said.contains("secret_missing") && said.contains("broker/")
        })
        .await
        .with_context(|| plant.logs())?;
    plant.kubectl(&[
        "create",
        "secret",
        "generic",
        "broker",
        "--from-literal=username=u",
        "--from-literal=password=p-secret",
    ])?;
    plant.ready(1).await.with_context(|| plant.logs())
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
    let second = plant.manifest(|text| text.replace("metadata: {name: fleet}", "metadata: {name: twin}"))?;
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
        .until("the refused filter is named", |ipl| {
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
