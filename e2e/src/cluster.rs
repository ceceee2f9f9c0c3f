//! A real Kubernetes cluster on this machine: one at a time, each node in namespaces of its own.

mod cgroups;
pub mod command;
mod control_plane;
pub mod image;
mod machine;
mod namespace;
mod network;
mod node;
mod pki;
mod programs;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::stack::process::output;
use crate::stack::{self, install};
use crate::wait::until_blocking;
use control_plane::ControlPlane;
use namespace::Namespace;
use node::{Node, Parts};
pub use pki::OPERATOR;
use pki::Pki;

/// Held by every process of a cluster: its bridge and its addresses are the machine's.
const LOCK: &str = "/run/penstock-cluster.lock";
const PATIENCE: Duration = Duration::from_secs(300);

/// A cluster that tests run on.
#[derive(Debug)]
pub struct Cluster {
    kubeconfig: PathBuf,
    /// What this process started, and stops when this is dropped.
    own: Option<ControlPlane>,
    nodes: Vec<Node>,
}

/// What `cargo e2e cluster` and tests need and this machine lacks; empty if nothing.
pub fn missing() -> Vec<String> {
    if foreign_kubeconfig().is_some() { Vec::new() } else { machine::missing() }
}

/// The cluster that KUBECONFIG names, if it names one.
fn foreign_kubeconfig() -> Option<PathBuf> {
    std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn folder() -> PathBuf {
    stack::folder().join("cluster")
}

/// The kubeconfig of the cluster of this checkout.
fn own_kubeconfig() -> PathBuf {
    folder().join("pki/admin.kubeconfig")
}

/// helm without a cluster, built if it is not there yet.
pub fn helm() -> Result<Command> {
    let folder = folder().join("helm");
    let mut helm = Command::new(programs::helm()?);
    // Nothing of the user's own.
    for (name, inside) in
        [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
    {
        helm.env(name, folder.join(inside));
    }
    Ok(helm)
}

/// Whether KUBECONFIG names a cluster that is not ours.
pub fn is_foreign() -> bool {
    foreign_kubeconfig().is_some()
}

/// Whether helm is there or can be built.
pub fn has_helm() -> bool {
    programs::has_helm()
}

impl Cluster {
    /// Starts a control plane that ends with this process. Pods are made and never run: [`StandIn`] plays
    /// their part.
    ///
    /// [`StandIn`]: crate::standin::StandIn
    pub fn start_without_nodes() -> Result<Self> {
        ensure!(foreign_kubeconfig().is_none(), "it needs a control plane of its own; unset KUBECONFIG");
        Self::start(0)
    }

    /// Starts one that ends with this process. Uses the one that KUBECONFIG names instead, if it does.
    pub fn start(nodes: u8) -> Result<Self> {
        match foreign_kubeconfig() {
            Some(kubeconfig) => Ok(Self::attach(kubeconfig)),
            None if is_up() => bail!(
                "a cluster of this checkout runs already. Stop it (cargo e2e cluster down), or have it used: export KUBECONFIG={}",
                own_kubeconfig().display()
            ),
            None => Self::launch(nodes, true),
        }
    }

    /// One that runs already, and goes on.
    fn attach(kubeconfig: PathBuf) -> Self {
        let own = fs::canonicalize(&kubeconfig).ok() == fs::canonicalize(own_kubeconfig()).ok();
        let nodes = if own { running_nodes() } else { Vec::new() };
        Self { kubeconfig, own: None, nodes }
    }

    fn launch(nodes: u8, bound: bool) -> Result<Self> {
        ensure!(nodes <= 9, "at most 9 nodes, not {nodes}");
        let root = machine::prepare()?;
        let lock = clean()?;
        remove_folder(&folder())?;
        fs::create_dir_all(folder())?;
        let parts = Parts {
            folder: folder(),
            programs: programs::kubernetes()?,
            pki: Pki::write(folder().join("pki"), nodes)?,
            nodes,
            pause: image::pause(&root)?,
        };
        let control_plane = ControlPlane::start(&parts, &root, lock, bound)?;
        let mut cluster = Self { kubeconfig: own_kubeconfig(), own: Some(control_plane), nodes: Vec::new() };
        for number in 1..=nodes {
            cluster.add_node(&parts, number, bound).with_context(|| cluster.logs())?;
        }
        cluster.wait(usize::from(nodes)).with_context(|| cluster.logs())?;
        Ok(cluster)
    }

    fn add_node(&mut self, parts: &Parts, number: u8, bound: bool) -> Result<()> {
        let control_plane = self.own.as_ref().context("a cluster of our own")?;
        self.nodes.push(Node::start(parts, number, control_plane, bound)?);
        Ok(())
    }

    /// Until all nodes take pods and pods can be made.
    fn wait(&self, nodes: usize) -> Result<()> {
        until_blocking("the API server answers", PATIENCE, || folder().join(control_plane::READY).exists())?;
        until_blocking("all nodes take pods", PATIENCE, || {
            self.nodes_that_take_pods().is_ok_and(|names| names.len() == nodes)
        })?;
        until_blocking("the namespace default has its ServiceAccount", PATIENCE, || {
            self.kubectl(&["get", "serviceaccount", "default", "-n", "default"]).is_ok()
        })
    }

    /// The names of nodes that are ready and without a taint. One that was away keeps its taint for a while
    /// after it is ready, and gets no pods.
    pub fn nodes_that_take_pods(&self) -> Result<Vec<String>> {
        let path = r#"jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{.spec.taints} {.metadata.name}{"\n"}{end}"#;
        let nodes = self.kubectl(&["get", "nodes", "-o", path])?;
        Ok(nodes.lines().filter_map(|node| node.strip_prefix("True ")).map(str::to_owned).collect())
    }

    /// Lets it outlive this process.
    pub fn leave_running(self) {
        std::mem::forget(self);
    }

    /// How to reach it as an administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// How to reach it as a named user who may do all, whom the audit log tells from others.
    pub fn kubeconfig_of_operator(&self) -> Result<PathBuf> {
        ensure!(self.is_own(), "a cluster that is not ours has no user for this");
        Ok(folder().join(format!("pki/{OPERATOR}.kubeconfig")))
    }

    /// The address of this machine for pods. What tests start for pods listens there.
    pub fn host_address(&self) -> Result<IpAddr> {
        if self.is_own() {
            return Ok(network::HOST.into());
        }
        // The address from which its API server is reached; no packet is sent.
        let server =
            self.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
        let server = url::Url::parse(&server)?;
        let port = server.port_or_known_default().unwrap_or(443);
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((server.host_str().context("the API server has no address")?, port))?;
        Ok(socket.local_addr()?.ip())
    }

    /// Whether its parts are ours.
    fn is_own(&self) -> bool {
        self.own.is_some() || !self.nodes.is_empty()
    }

    /// Runs kubectl, and returns what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        output(self.kubectl_command()?.args(arguments))
    }

    /// kubectl, for more than a result: standard input, a child that goes on.
    pub fn kubectl_command(&self) -> Result<Command> {
        kubectl(&self.kubeconfig)
    }

    /// Makes Penstock's own kinds, without its chart. They are served a moment after they are made.
    pub fn define_kinds(&self) -> Result<()> {
        let definitions = stack::project().join("crds/yaml");
        self.kubectl(&["apply", "--server-side", "-f", &definitions.to_string_lossy()])?;
        let kinds = ["get", "ingestpipelines.penstock.dev,telemetrystores.penstock.dev"];
        until_blocking("Penstock's kinds are served", PATIENCE, || self.kubectl(&kinds).is_ok())
    }

    /// Runs helm, and returns what it prints.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        output(self.helm_command()?.args(arguments))
    }

    fn helm_command(&self) -> Result<Command> {
        let mut helm = helm()?;
        helm.env("KUBECONFIG", &self.kubeconfig);
        Ok(helm)
    }

    /// Builds the image of Penstock from target/release and brings it to all nodes. Returns its name.
    pub fn load_penstock(&self) -> Result<&'static str> {
        self.load_image(&image::penstock(&install::root()?)?)?;
        Ok(image::PENSTOCK)
    }

    /// Brings an image's archive to all nodes.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        ensure!(
            self.is_own(),
            "the cluster of KUBECONFIG has its own way to images; only one that `cargo e2e cluster up` started can be given an archive"
        );
        self.nodes.iter().try_for_each(|node| node.load_image(archive))
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("no node {name} of ours"))
    }

    /// Ends a node at once with all that runs on it, as a power cut does.
    pub fn kill_node(&self, number: u8) -> Result<()> {
        ensure!(self.own.is_some(), "only a node that this process started can be started again");
        namespace::kill(&node::script_path(&folder(), number))?;
        cgroups::empty(&node::name(number))
    }

    /// Starts it again.
    pub fn restart_node(&self, number: u8) -> Result<()> {
        let control_plane = self.own.as_ref().context("a cluster of our own")?;
        Node::restart(&folder(), number, control_plane)
    }

    /// Has the API server answer nobody, or everybody again.
    pub fn freeze_api_server(&self, frozen: bool) -> Result<()> {
        ensure!(self.is_own(), "the API server of a cluster that is not ours goes on");
        let control_plane =
            Namespace::of(control_plane::script_path(&folder())).context("the control plane is not there")?;
        let signal = if frozen { "STOP" } else { "CONT" };
        output(control_plane.command("pkill").args(["--signal", signal, "--exact", "kube-apiserver"]))
            .map(drop)
    }

    /// Gives an image that all nodes have a second name.
    pub fn tag_image(&self, image: &str, second: &str) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.tag_image(image, second))
    }

    /// Every request to the API server, one JSON document a line.
    pub fn audit_log(&self) -> Result<PathBuf> {
        ensure!(self.is_own(), "the audit log of a cluster that is not ours cannot be read");
        Ok(folder().join(control_plane::AUDIT))
    }

    /// The end of all logs.
    pub fn logs(&self) -> String {
        let control_plane = control_plane::logs(&folder()).into_iter().map(|log| namespace::tail(&log));
        control_plane.chain(self.nodes.iter().map(Node::tail)).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(ControlPlane { lock, mut namespace }) = self.own.take() else { return };
        drop(lock);
        let stopped = self
            .nodes
            .iter_mut()
            .try_for_each(Node::kill)
            .and_then(|()| namespace.kill())
            .and_then(|()| clean().map(drop));
        if let Err(error) = stopped {
            eprintln!("stopping the cluster: {error:#}");
        }
    }
}

fn kubectl(kubeconfig: &Path) -> Result<Command> {
    let mut command = Command::new(programs::kubectl()?);
    command.env("KUBECONFIG", kubeconfig);
    Ok(command)
}

/// Whether a cluster of this checkout runs.
fn is_up() -> bool {
    namespace::is_running(&control_plane::script_path(&folder()))
}

fn running_nodes() -> Vec<Node> {
    (1..=9).filter_map(|number| Node::running(&folder(), number)).collect()
}

/// Ends all that runs of this checkout's cluster, and removes what it made outside of its
/// namespaces. Returns the lock.
fn clean() -> Result<File> {
    for number in 1..=9 {
        namespace::kill(&node::script_path(&folder(), number))?;
    }
    namespace::kill(&control_plane::script_path(&folder()))?;
    let lock = File::options().create(true).append(true).open(LOCK).context(LOCK)?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "another checkout's cluster runs on this machine; there can be one at a time. \
             Stop it there (cargo e2e cluster down); `fuser {LOCK}` names its processes"
        );
    }
    network::remove()?;
    cgroups::remove()?;
    // Logs stay until the next one starts.
    for number in 1..=9 {
        remove_folder(&folder().join(node::name(number)).join("var"))?;
    }
    Ok(lock)
}

fn remove_folder(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    Ok(())
}
