//! Before the operator is uninstalled: pipelines that nobody could end any more must not hang when they
//! are deleted. Their workers go on.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, ResourceExt};
use penstock_crds::IngestPipeline;
use serde_json::json;

use crate::context::publish;
use crate::ending::{client_ids, other_finalizers};

const PATIENCE: Duration = Duration::from_mins(2);
const LOOK: Duration = Duration::from_millis(500);

/// Why the pipelines could not be released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The API server refused, or could not be reached.
    #[error("the API server: {0}")]
    Api(#[from] Box<kube::Error>),
    /// The operator does not stop.
    #[error("the operator's pods are still there after {PATIENCE:?}")]
    StillThere,
}

/// A pipeline, though its spec cannot be read: its finalizers can.
type Pipeline = DeserializeGuard<IngestPipeline>;

/// Stops the operator, and removes its finalizer from all pipelines.
pub async fn release(
    client: &Client,
    own_namespace: &str,
    deployment: &str,
    namespaces: &[String],
) -> Result<(), ReleaseError> {
    stop(client, own_namespace, deployment).await?;
    let reporter = Reporter { controller: "penstock".to_owned(), instance: std::env::var("POD_NAME").ok() };
    let recorder = Recorder::new(client.clone(), reporter);
    let scopes: Vec<Api<Pipeline>> = if namespaces.is_empty() {
        vec![Api::all(client.clone())]
    } else {
        namespaces.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect()
    };
    for api in scopes {
        for pipeline in api.list(&ListParams::default()).await.map_err(Box::new)? {
            let rest = other_finalizers(&pipeline);
            if rest.len() == pipeline.finalizers().len() {
                continue;
            }
            let namespace = pipeline.namespace().unwrap_or_default();
            let own: Api<Pipeline> = Api::namespaced(client.clone(), &namespace);
            let patch = json!({"metadata": {"finalizers": rest}});
            own.patch(&pipeline.name_any(), &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map_err(Box::new)?;
            let ids = match &pipeline.0 {
                Ok(pipeline) => {
                    let shards = pipeline.status.iter().flat_map(|status| &status.shards);
                    client_ids(pipeline, shards.filter_map(|shard| u32::try_from(shard.shard).ok()))
                }
                Err(error) => format!("it cannot be read, so its client ids are not known: {error}"),
            };
            let note = format!(
                "the operator is uninstalled: the workers go on, and nobody ends their sessions when this pipeline is deleted: {ids}"
            );
            println!("{namespace}/{}: {note}", pipeline.name_any());
            publish(&recorder, &pipeline, "Release", false, "sessions_left", &note).await;
        }
    }
    Ok(())
}

async fn stop(client: &Client, namespace: &str, name: &str) -> Result<(), ReleaseError> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
    let stopped = match deployments.patch(name, &PatchParams::default(), &none).await {
        Ok(stopped) => stopped,
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
        Err(error) => return Err(Box::new(error).into()),
    };
    let selector = serde_json::to_value(&stopped.spec).unwrap_or_default();
    let labels = selector["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
    let labels: Vec<_> =
        labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let ours = ListParams::default().labels(&labels.join(","));
    let gone = async {
        while !pods.list(&ours).await.map_err(Box::new)?.items.is_empty() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap_or(Err(ReleaseError::StillThere))
}
