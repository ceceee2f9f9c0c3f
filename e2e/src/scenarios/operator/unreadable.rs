//! A pipeline that the operator cannot read, because other definitions let it in: all others go on. On a
//! real API server without nodes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use penstock_crds::{IngestPipeline, Manifest};
use serde_json::json;

use crate::bed::Bed;
use crate::cluster::Cluster;
use crate::operator;
use crate::plant::PIPELINE;
use crate::scenario;
use crate::stack::{self, free_port};
use crate::standin;
use crate::suite::Scenario;
use crate::wait::until_async;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![scenario!(a_pipeline_that_cannot_be_read_is_left_alone_and_stops_no_other[control_plane])]
}

const PATIENCE: Duration = Duration::from_secs(30);
/// How the definition refuses what is no duration.
const RULE: &str = "rule: self.matches('^[0-9]{1,9}(ms|s|m|h|d)$')";
const BAD: &str = "bad";

async fn a_pipeline_that_cannot_be_read_is_left_alone_and_stops_no_other(bed: &mut Bed) -> Result<()> {
    let cluster = bed.cluster()?;
    cluster.define_kinds()?;
    let client = standin::client(cluster.kubeconfig()).await?;
    let namespace = format!("unreadable-{:06x}", fastrand::u32(..1 << 24));
    let made = make(&cluster, &client, &namespace).await;
    // As they were, for who uses the cluster after us.
    cluster.define_kinds()?;
    made?;
    let log = stack::folder().join("unreadable.log");
    let operator = operator::start(&cluster, &namespace, &["--no-election".to_owned()], free_port()?, &log)?;
    let pipelines = pipelines(&client, &namespace);
    let is_known = async |name: &str| {
        let pipeline = pipelines.get(name).await;
        pipeline.is_ok_and(|pipeline| !pipeline.finalizers().is_empty() && !pipeline.data["status"].is_null())
    };
    let check = async {
        until_async("the good one is reconciled", PATIENCE, || is_known(PIPELINE)).await?;
        let events: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(client.clone(), &namespace);
        until_async("the bad one has an Event", PATIENCE, async || {
            let events = events.list(&ListParams::default()).await;
            events.is_ok_and(|events| {
                events.iter().any(|event| {
                    let name = event.regarding.as_ref().and_then(|regarding| regarding.name.as_deref());
                    name == Some(BAD) && event.reason.as_deref() == Some("unreadable")
                })
            })
        })
        .await?;
        let bad = pipelines.get(BAD).await?;
        ensure!(bad.finalizers().is_empty() && bad.data["status"].is_null(), "it was touched: {bad:?}");
        let corrected = Patch::Merge(json!({"spec": {"batch": {"linger": "5ms"}}}));
        pipelines.patch(BAD, &PatchParams::default(), &corrected).await?;
        until_async("the corrected one is reconciled", PATIENCE, || is_known(BAD)).await
    };
    check.await.with_context(|| operator.tail(20))
}

/// Pipelines, whatever is in them.
fn pipelines(client: &Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<IngestPipeline>(&()))
}

/// A namespace with a store, a good pipeline, and one that only a weaker definition takes.
async fn make(cluster: &Cluster, client: &Client, namespace: &str) -> Result<()> {
    let Manifest { pipeline, store } = operator::example()?;
    operator::make_namespace(client, namespace, &store).await?;
    let typed: Api<IngestPipeline> = Api::namespaced(client.clone(), namespace);
    typed.create(&PostParams::default(), &pipeline).await?;
    let definition = std::fs::read_to_string(stack::project().join("crds/yaml/ingestpipeline.yaml"))?;
    ensure!(definition.contains(RULE), "the definition has no {RULE}");
    let weaker = stack::folder().join("weaker.yaml");
    std::fs::write(&weaker, definition.replace(RULE, "rule: 'true'"))?;
    cluster.kubectl(&["apply", "--server-side", "-f", &weaker.to_string_lossy()])?;
    let mut bad = json!(pipeline);
    bad["metadata"] = json!({"name": BAD});
    bad["spec"]["source"]["mqtt"]["clientIdPrefix"] = json!(BAD);
    bad["spec"]["batch"]["linger"] = json!("soon");
    let bad: DynamicObject = serde_json::from_value(bad)?;
    let pipelines = pipelines(client, namespace);
    // The definition is in force a moment after it was written.
    until_async("the bad one is made", PATIENCE, async || {
        pipelines.create(&PostParams::default(), &bad).await.is_ok()
    })
    .await
}
