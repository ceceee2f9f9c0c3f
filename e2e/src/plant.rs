//! A pipeline on the cluster, with a namespace, a broker and a database of its own.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use penstock_operator::names;

use crate::bed::Bed;
use crate::cluster::Cluster;
use crate::cluster::image::PENSTOCK;
use crate::proxy::Proxy;
use crate::publisher;
use crate::stack;
use crate::wait::until_async;

/// Namespace and release of the operator.
pub const SYSTEM: &str = "penstock-system";
/// The pipeline of `examples/fleet.yaml`.
pub const PIPELINE: &str = "fleet";
/// Until what is applied is as it should be.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Installs the operator from the chart, as a user does.
pub fn install(cluster: &Cluster) -> Result<()> {
    cluster.load_penstock()?;
    let chart = stack::project().join("charts/penstock");
    let (repository, tag) = PENSTOCK.split_once(':').context("an image's tag")?;
    let values = [
        format!("image.repository={repository}"),
        format!("image.tag={tag}"),
        "image.pullPolicy=Never".to_owned(),
        "log.level=info,penstock_operator=debug".replace(',', "\\,"),
    ]
    .join(",");
    cluster.helm(&[
        "upgrade",
        "--install",
        "penstock",
        &chart.to_string_lossy(),
        "-n",
        SYSTEM,
        "--create-namespace",
        "--set",
        &values,
        "--wait",
        "--timeout",
        "90s",
    ])?;
    Ok(())
}

/// A namespace with a pipeline in it.
pub struct Plant {
    cluster: Arc<Cluster>,
    /// The namespace; it enforces the Pod Security level `restricted`.
    pub namespace: String,
    /// Between workers and broker.
    pub broker: Proxy,
    /// Between workers and database.
    pub database: Proxy,
    broker_url: String,
    /// What client ids begin with.
    pub prefix: String,
    address: String,
}

impl Plant {
    /// A namespace with the Secrets that the example names, and nothing else.
    pub async fn new(bed: &Bed) -> Result<Self> {
        let cluster = bed.cluster()?;
        let host = cluster.host_address()?;
        let broker = Proxy::start_at(host, bed.address.clone()).await?;
        let to_database =
            format!("127.0.0.1:{}", url::Url::parse(&bed.database.worker_url)?.port().unwrap_or(5432));
        let database = Proxy::start_at(host, to_database).await?;
        let namespace = format!("e2e-{}", bed.number());
        let plant = Self {
            broker_url: format!("mqtt://{host}:{}", broker.port),
            prefix: format!("fleet-{}", bed.number()),
            address: bed.address.clone(),
            cluster,
            namespace,
            broker,
            database,
        };
        plant.cluster.kubectl(&["create", "namespace", &plant.namespace])?;
        plant.cluster.kubectl(&[
            "label",
            "namespace",
            &plant.namespace,
            "pod-security.kubernetes.io/enforce=restricted",
        ])?;
        plant.secrets(bed, host)?;
        Ok(plant)
    }

    /// The Secrets that the example names.
    pub fn secrets(&self, bed: &Bed, host: IpAddr) -> Result<()> {
        let through = |url: &str| {
            let mut url = url::Url::parse(url)?;
            url.set_ip_host(host).ok().context("a host")?;
            url.set_port(Some(self.database.port)).ok().context("a port")?;
            anyhow::Ok(url.to_string())
        };
        let (worker, owner) = (through(&bed.database.worker_url)?, through(&bed.database.owner_url)?);
        self.kubectl(&[
            "create",
            "secret",
            "generic",
            "timescale",
            &format!("--from-literal=url={worker}"),
            &format!("--from-literal=owner-url={owner}"),
        ])?;
        Ok(())
    }

    /// kubectl in the namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", &self.namespace], arguments].concat())
    }

    /// The example, with this broker and these client ids, and changes of `edit`.
    pub fn manifest(&self, edit: impl FnOnce(String) -> String) -> Result<String> {
        let example = std::fs::read_to_string(stack::project().join("examples/fleet.yaml"))?;
        let text = example
            .replace("mqtt://broker:1883", &self.broker_url)
            .replace("clientIdPrefix: fleet", &format!("clientIdPrefix: {}", self.prefix));
        Ok(edit(text))
    }

    /// `kubectl apply` of a text.
    pub fn apply(&self, text: &str) -> Result<String> {
        let mut command = self.cluster.kubectl_command()?;
        command.args(["-n", &self.namespace, "apply", "-f", "-"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("standard input")?.write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "kubectl apply: {said}");
        Ok(said)
    }

    /// Applies the example with so many shards, and waits until it is ready.
    pub async fn start(&self, replicas: u32) -> Result<()> {
        let text = self.manifest(|text| text.replace("replicas: 3", &format!("replicas: {replicas}")))?;
        self.apply(&text)?;
        self.ready(replicas).await
    }

    /// Waits until so many shards are ready and nothing is on its way.
    pub async fn ready(&self, replicas: u32) -> Result<()> {
        let wanted = format!("{replicas}/{replicas}");
        self.until(&format!("{wanted} shards are ready and settled"), |ipl| is_settled(ipl, replicas)).await
    }

    /// The pipeline as it is.
    pub fn pipeline(&self) -> Result<Value> {
        self.object("ingestpipelines.penstock.dev", PIPELINE)
    }

    /// An object as it is.
    pub fn object(&self, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"])?)?)
    }

    /// Names of all objects of a kind that belong to the pipeline.
    pub fn names(&self, kind: &str) -> Result<Vec<String>> {
        let label = format!("{}={PIPELINE}", names::PIPELINE);
        let text = self.kubectl(&["get", kind, "-l", &label, "-o", "name"])?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Waits until the pipeline is so.
    pub async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
        self.until_within(what, PATIENCE, holds).await
    }

    /// Waits not so long.
    pub async fn until_within(
        &self,
        what: &str,
        patience: Duration,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        let waited = until_async(what, patience, || async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            self.pipeline().is_ok_and(|pipeline| holds(&pipeline))
        });
        waited.await.with_context(|| {
            format!("{:#}", self.pipeline().map(|ipl| ipl["status"].clone()).unwrap_or_default())
        })
    }

    /// Whether the broker has a session of the shard. Asked only where no worker has it.
    pub async fn has_session(&self, shard: u32) -> Result<bool> {
        publisher::has_session(&self.address, &format!("{}-{shard}", self.prefix)).await
    }

    /// What is told after a failure.
    pub fn logs(&self) -> String {
        let label = format!("{}={PIPELINE}", names::PIPELINE);
        let workers = self.kubectl(&["logs", "-l", &label, "--tail=12", "--prefix"]).unwrap_or_default();
        let objects = self.kubectl(&["get", "deploy,pods,jobs,cm", "-o", "wide"]).unwrap_or_default();
        let events = self.kubectl(&["get", "events"]).unwrap_or_default();
        let operator =
            self.cluster.kubectl(&["logs", "-n", SYSTEM, "deploy/penstock", "--tail=40"]).unwrap_or_default();
        format!("--- workers\n{workers}--- objects\n{objects}--- events\n{events}--- operator\n{operator}")
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]);
    }
}

/// Whether so many shards of a pipeline are ready, and nothing is on its way.
pub fn is_settled(pipeline: &Value, replicas: u32) -> bool {
    let status = &pipeline["status"];
    status["ready"] == format!("{replicas}/{replicas}").as_str()
        && status["observedGeneration"] == pipeline["metadata"]["generation"]
        && condition(pipeline, "Ready").0 == "True"
        && condition(pipeline, "Reconciling").0 == "False"
        && condition(pipeline, "PlanApplied").0 == "True"
        && status["shards"].as_array().is_some_and(|shards| shards.len() == replicas as usize)
}

/// Status and reason of a pipeline's condition.
pub fn condition<'a>(object: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    found.map_or(("", ""), |found| {
        (found["status"].as_str().unwrap_or_default(), found["reason"].as_str().unwrap_or_default())
    })
}
