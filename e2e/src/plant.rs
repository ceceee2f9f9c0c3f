//! A pipeline on the cluster, with a namespace, a broker and a database of its own.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::Client;
use penstock_operator::names;
use serde_json::Value;

use crate::bed::{Bed, require_identities};
use crate::cluster::Cluster;
use crate::cluster::image::PENSTOCK;
use crate::proxy::Proxy;
use crate::publisher;
use crate::stack;
use crate::stack::prometheus::Prometheus;
use crate::standin;
use crate::wait::until_async;
use crate::worker::Metrics;

/// Namespace and release of the operator.
pub const SYSTEM: &str = "penstock-system";
/// Selects the operator's pods.
pub const OPERATOR: &str = "app.kubernetes.io/component=operator";
/// The pipeline of `examples/plant.yaml`.
pub const PIPELINE: &str = "plant";
/// Until what is applied is as it should be: on two slow cores, with three other scenarios beside it.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Installs the operator from the chart, as a user does.
pub fn install(cluster: &Cluster) -> Result<()> {
    install_with(cluster, &[])
}

/// The same with values of the chart.
pub fn install_with(cluster: &Cluster, more: &[&str]) -> Result<()> {
    cluster.load_penstock()?;
    let chart = stack::project().join("charts/penstock").to_string_lossy().into_owned();
    let (repository, tag) = PENSTOCK.split_once(':').context("an image's tag")?;
    let values = [
        format!("image.repository={repository}"),
        format!("image.tag={tag}"),
        "image.pullPolicy=Never".to_owned(),
        "log.level=info,penstock_operator=debug".replace(',', "\\,"),
    ]
    .join(",");
    let more = more.iter().flat_map(|value| ["--set", *value]);
    let install = [
        "upgrade",
        "--install",
        "penstock",
        &chart,
        "-n",
        SYSTEM,
        "--create-namespace",
        "--set",
        &values,
        "--wait",
        "--timeout",
        "180s",
    ];
    cluster.helm(&install.into_iter().chain(more).collect::<Vec<_>>())?;
    Ok(())
}

/// A namespace with a pipeline in it.
pub struct Plant {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// For what is asked again and again: a kubectl each time would take the machine from what is tested.
    client: Client,
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
    pub async fn new(bed: &Bed) -> Result<Arc<Self>> {
        let cluster = bed.cluster()?;
        let host = cluster.host_address()?;
        let broker = Proxy::start_at(host, bed.address.clone()).await?;
        let to_database =
            format!("127.0.0.1:{}", url::Url::parse(&bed.database.worker_url)?.port().unwrap_or(5432));
        let database = Proxy::start_at(host, to_database).await?;
        let namespace = format!("e2e-{}", bed.number());
        let plant = Self {
            client: standin::client(cluster.kubeconfig()).await?,
            broker_url: format!("mqtt://{host}:{}", broker.port),
            prefix: format!("plant-{}", bed.number()),
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
        Ok(Arc::new(plant))
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
        let example = std::fs::read_to_string(stack::project().join("examples/plant.yaml"))?;
        let text = example
            .replace("mqtt://broker:1883", &self.broker_url)
            .replace("clientIdPrefix: plant", &format!("clientIdPrefix: {}", self.prefix));
        Ok(edit(text))
    }

    /// `kubectl apply` of a text.
    pub fn apply(&self, text: &str) -> Result<String> {
        self.apply_in(&self.namespace, text)
    }

    /// The same in another namespace.
    pub fn apply_in(&self, namespace: &str, text: &str) -> Result<String> {
        let mut command = self.cluster.kubectl_command()?;
        command.args(["-n", namespace, "apply", "-f", "-"]);
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

    /// What the API server has under a path.
    async fn get(&self, path: &str) -> Result<String> {
        Ok(self.client.request_text(hyper::Request::get(path).body(Vec::new())?).await?)
    }

    /// The pipeline as it is.
    pub async fn pipeline(&self) -> Result<Value> {
        let path =
            format!("/apis/penstock.dev/v1alpha1/namespaces/{}/ingestpipelines/{PIPELINE}", self.namespace);
        Ok(serde_json::from_str(&self.get(&path).await?)?)
    }

    /// The pods of its shards' workers.
    pub async fn workers(&self) -> Result<Vec<Value>> {
        let labels = format!("{}={PIPELINE},{}=worker", names::PIPELINE, names::COMPONENT);
        let query: String = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("labelSelector", &labels)
            .finish();
        let path = format!("/api/v1/namespaces/{}/pods?{query}", self.namespace);
        let mut list: Value = serde_json::from_str(&self.get(&path).await?)?;
        Ok(serde_json::from_value(list["items"].take())?)
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
            self.pipeline().await.is_ok_and(|pipeline| holds(&pipeline))
        });
        let Err(waited) = waited.await else { return Ok(()) };
        let status = self.pipeline().await.map(|ipl| ipl["status"].clone()).unwrap_or_default();
        Err(waited.context(format!("{status:#}")))
    }

    /// Kills the first process of a pod's container, as a crash does.
    pub fn crash(&self, namespace: &str, pod: &str) -> Result<()> {
        self.signal(namespace, pod, "SIGKILL")
    }

    /// Sends it a signal.
    pub fn signal(&self, namespace: &str, pod: &str, signal: &str) -> Result<()> {
        let path = "jsonpath={.spec.nodeName} {.status.containerStatuses[0].containerID}";
        let said = self.cluster.kubectl(&["get", "pod", pod, "-n", namespace, "-o", path])?;
        let (node, container) =
            said.split_once(" containerd://").with_context(|| format!("{pod} runs not: {said}"))?;
        let mut kill = self.cluster.node(node)?.command("ctr");
        kill.args(["--namespace", "k8s.io", "task", "kill", "--signal", signal, container]);
        stack::process::output(&mut kill).map(drop)
    }

    /// Asks for so many shards.
    pub fn scale(&self, replicas: u32) -> Result<()> {
        let (pipeline, replicas) =
            (format!("ingestpipelines.penstock.dev/{PIPELINE}"), format!("--replicas={replicas}"));
        self.kubectl(&["scale", &pipeline, &replicas]).map(drop)
    }

    /// A Prometheus that looks at the cluster by the example's configuration, often.
    pub async fn prometheus(&self, folder: &Path) -> Result<Prometheus> {
        let example = std::fs::read_to_string(stack::project().join("examples/prometheus.yaml"))?;
        let found = format!("{{role: pod, kubeconfig_file: {}}}", self.cluster.kubeconfig().display());
        Prometheus::start(folder, &example.replace("15s", "1s").replace("{role: pod}", &found)).await
    }

    /// Asks for workers of this image.
    pub fn set_image(&self, image: &str) -> Result<()> {
        let patch = format!(r#"{{"spec":{{"worker":{{"image":"{image}"}}}}}}"#);
        self.kubectl(&["patch", "ingestpipelines.penstock.dev", PIPELINE, "--type=merge", "-p", &patch])
            .map(drop)
    }

    /// What a worker's pod counts.
    async fn metrics(&self, pod: &str) -> Result<Metrics> {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}:9100/proxy/metrics", self.namespace);
        Metrics::parse(&self.get(&path).await?)
    }

    /// Both sums hold in every worker that runs now, once nothing is in hand.
    pub async fn identities(&self) -> Result<()> {
        let pods = self.workers().await?;
        for pod in pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()) {
            until_async(&format!("{pod} has nothing in hand"), PATIENCE, || async {
                self.metrics(pod).await.is_ok_and(|metrics| metrics.get("ingest_in_flight") == 0.0)
            })
            .await?;
            require_identities(&self.metrics(pod).await?).context(pod.to_owned())?;
        }
        Ok(())
    }

    /// Whether the broker has a session of the shard. Asked only where no worker has it.
    pub async fn has_session(&self, shard: u32) -> Result<bool> {
        publisher::has_session(&self.address, &format!("{}-{shard}", self.prefix)).await
    }

    /// The end of the logs of the operator's replicas.
    pub fn operator_log(&self) -> Result<String> {
        self.cluster.kubectl(&["logs", "-n", SYSTEM, "-l", OPERATOR, "--tail=40", "--prefix"])
    }

    /// What is told after a failure.
    pub fn logs(&self) -> String {
        let label = format!("{}={PIPELINE}", names::PIPELINE);
        let workers = self.kubectl(&["logs", "-l", &label, "--tail=12", "--prefix"]).unwrap_or_default();
        let objects = self.kubectl(&["get", "deploy,pods,jobs,cm", "-o", "wide"]).unwrap_or_default();
        let events = self.kubectl(&["get", "events"]).unwrap_or_default();
        let operator = self.operator_log().unwrap_or_default();
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
    (part(object, kind, "status"), part(object, kind, "reason"))
}

/// What a pipeline's condition says.
pub fn message<'a>(object: &'a Value, kind: &str) -> &'a str {
    part(object, kind, "message")
}

fn part<'a>(object: &'a Value, kind: &str, field: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    found.and_then(|found| found[field].as_str()).unwrap_or_default()
}
