//! An operator is told to stop soon after it began to lead, as in the middle of a rollout of its own
//! Deployment: it ends in good order, and the next one leads at once. On a real API server without nodes.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use penstock_crds::{IngestPipeline, Manifest};
use penstock_operator::names;
use rustix::process::Signal;
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
    vec![scenario!(an_operator_told_to_stop_as_soon_as_it_leads_ends_and_gives_its_lease_back[control_plane])]
}

/// When it is told, after it began to lead: while it asks workers, lists, and reconciles for the first time.
const MOMENTS: [u64; 20] =
    [0, 5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 80, 100, 125, 150, 200, 300, 500, 1000, 2000];
const PATIENCE: Duration = Duration::from_secs(30);
/// A worker that takes the question and does not answer.
const SILENT: Ipv4Addr = Ipv4Addr::new(127, 83, 76, 84);

async fn an_operator_told_to_stop_as_soon_as_it_leads_ends_and_gives_its_lease_back(
    bed: &mut Bed,
) -> Result<()> {
    let cluster = bed.cluster()?;
    cluster.define_kinds()?;
    let client = standin::client(cluster.kubeconfig()).await?;
    let quick = namespace(&client, "quick").await?;
    let slow = namespace(&client, "slow").await?;
    let _never_accepts = TcpListener::bind((SILENT, standin::PORT)).context("a worker's port")?;
    silent_worker(&client, &slow).await?;
    for (number, after) in MOMENTS.into_iter().enumerate() {
        for namespace in [&quick, &slow] {
            stop_after(
                &cluster,
                &client,
                namespace,
                &format!("lease-{number}"),
                Duration::from_millis(after),
            )
            .await
            .with_context(|| format!("in {namespace}, {after} ms after it began to lead"))?;
        }
    }
    Ok(())
}

/// A namespace with a pipeline and its store.
async fn namespace(client: &Client, title: &str) -> Result<String> {
    let name = format!("stop-{title}-{:06x}", fastrand::u32(..1 << 24));
    let Manifest { pipeline, store, .. } = operator::example()?;
    operator::make_namespace(client, &name, &store).await?;
    let pipelines: Api<IngestPipeline> = Api::namespaced(client.clone(), &name);
    pipelines.create(&PostParams::default(), &pipeline).await?;
    Ok(name)
}

async fn silent_worker(client: &Client, namespace: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let labels = json!({
        names::MANAGED_BY: names::PENSTOCK, names::COMPONENT: "worker", names::PIPELINE: PIPELINE, names::SHARD: "0",
    });
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "silent", "labels": labels},
        "spec": {"containers": [{"name": "worker", "image": "localhost/none"}]},
    }))?;
    // Refused until the namespace has its ServiceAccount.
    until_async("a pod is made", PATIENCE, || async {
        pods.create(&PostParams::default(), &pod).await.is_ok()
    })
    .await?;
    let address = SILENT.to_string();
    let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
    pods.patch_status("silent", &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// Runs an operator until it has led for so long.
async fn stop_after(
    cluster: &Cluster,
    client: &Client,
    namespace: &str,
    lease: &str,
    after: Duration,
) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let election = [format!("--lease-namespace={namespace}"), format!("--lease={lease}")];
    let log = stack::folder().join("stop.log");
    let mut operator = operator::start(cluster, namespace, &election, free_port()?, &log)?;
    // A watch: one who looks now and then would miss the first moments.
    let leads = |lease: Option<&Lease>| lease.is_some_and(|lease| holder(lease).is_some());
    let leads = tokio::time::timeout(PATIENCE, await_condition(leases.clone(), lease, leads));
    leads.await.with_context(|| format!("it does not lead: {}", operator.tail(20)))??;
    tokio::time::sleep(after).await;
    let ended = operator.end(Signal::TERM, PATIENCE)?;
    ensure!(ended, "it failed: {}", operator.tail(20));
    let lease = leases.get(lease).await?;
    ensure!(holder(&lease).is_none(), "it has the lease still: {}", operator.tail(20));
    Ok(())
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}
