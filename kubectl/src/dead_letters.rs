//! Dead letters by a worker's pod: it has the manifest, the login and the way to the database, which a
//! user of kubectl need not have.

use std::process::{Command, ExitCode};

use kube::ResourceExt;
use penstock_crds::IngestPipeline;
use penstock_operator::children::files;

use crate::Cluster;
use crate::error::Error;

/// Runs the worker's own command in a pod, and takes over what it ends with.
pub fn run(
    cluster: &Cluster,
    namespace: &str,
    pipeline: &IngestPipeline,
    arguments: &[String],
) -> Result<ExitCode, Error> {
    let pod = pod(pipeline).ok_or_else(|| Error::NoWorker(pipeline.name_any()))?;
    let mut kubectl = Command::new("kubectl");
    for (flag, value) in [("--kubeconfig", &cluster.kubeconfig), ("--context", &cluster.context)] {
        kubectl.args(value.iter().flat_map(|value| [flag, value]));
    }
    kubectl.args(["exec", "--namespace", namespace, pod, "--", "penstock-worker", "dead-letters"]);
    kubectl.args(arguments).args(files::manifest_argument());
    let status = kubectl.status().map_err(Error::Kubectl)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A pod that runs: of a shard that is ready, if there is one.
fn pod(pipeline: &IngestPipeline) -> Option<&str> {
    let shards = &pipeline.status.as_ref()?.shards;
    let ready = shards.iter().filter(|shard| shard.phase == "Running");
    ready.chain(shards).find_map(|shard| shard.pod.as_deref())
}
