//! The operator's own process beside a control plane without nodes, and the example that it works on.

use std::path::{Path, PathBuf};

use anyhow::Result;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{Api, PostParams};
use penstock_crds::{Manifest, TelemetryStore};
use serde_json::json;

use crate::cluster::Cluster;
use crate::stack::{self, process::Process};

/// The binary.
pub fn binary() -> PathBuf {
    stack::project().join("target/release/penstock-operator")
}

/// Starts it for one namespace, as the user whom the audit log tells from others. `election` says
/// which lease it stands for, or that there is none.
pub fn start(
    cluster: &Cluster,
    namespace: &str,
    election: &[String],
    port: u16,
    log: &Path,
) -> Result<Process> {
    let mut arguments = vec![
        format!("KUBECONFIG={}", cluster.kubeconfig_of_operator()?.display()),
        binary().display().to_string(),
        format!("--namespaces={namespace}"),
        "run".to_owned(),
        "--worker-image=localhost/none".to_owned(),
        format!("--http=127.0.0.1:{port}"),
    ];
    arguments.extend_from_slice(election);
    Process::start("operator", None, "env", &arguments, log)
}

/// The pipeline of `examples/plant.yaml`, and its store.
pub fn example() -> Result<Manifest> {
    Ok(Manifest::parse(&std::fs::read_to_string(stack::project().join("examples/plant.yaml"))?)?)
}

/// Makes a namespace with a store.
pub async fn make_namespace(client: &Client, name: &str, store: &TelemetryStore) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    let stores: Api<TelemetryStore> = Api::namespaced(client.clone(), name);
    stores.create(&PostParams::default(), store).await?;
    Ok(())
}
