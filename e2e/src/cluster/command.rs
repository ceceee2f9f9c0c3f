//! `cargo e2e cluster`: a cluster that stays until it is stopped.

use std::os::unix::process::CommandExt;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Subcommand;

use super::{
    Cluster, cgroups, folder, foreign_kubeconfig, is_up, network, own_kubeconfig, programs, running_nodes,
};

/// What to do with the cluster.
#[derive(Subcommand)]
pub enum Action {
    /// Start etcd, the control plane and nodes with containerd.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
    },
    /// Stop it, and remove all that it made.
    Down,
    /// What is running.
    Status,
    /// Build the image of Penstock from target/release and bring it to all nodes.
    Image,
    /// kubectl on this cluster.
    Kubectl {
        /// Arguments for kubectl.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// helm on this cluster.
    Helm {
        /// Arguments for helm.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Does it. False if something does not run.
pub fn run(action: Action) -> Result<bool> {
    match action {
        Action::Up { nodes } => up(nodes),
        Action::Down => {
            super::clean()?;
            println!("Stopped.");
            Ok(true)
        }
        Action::Status => status(),
        Action::Image => {
            let image = running()?.load_penstock()?;
            println!("{image} is on all nodes. In a pod: imagePullPolicy: Never");
            Ok(true)
        }
        Action::Kubectl { arguments } => Err(running()?.kubectl_command()?.args(arguments).exec().into()),
        Action::Helm { arguments } => Err(running()?.helm_command()?.args(arguments).exec().into()),
    }
}

/// The cluster of KUBECONFIG, or that of this checkout.
fn running() -> Result<Cluster> {
    match foreign_kubeconfig() {
        Some(kubeconfig) => Ok(Cluster::attach(kubeconfig)),
        None if is_up() => Ok(Cluster::attach(own_kubeconfig())),
        None => bail!("no cluster is running; start one with: cargo e2e cluster up"),
    }
}

fn up(nodes: u8) -> Result<bool> {
    if let Some(kubeconfig) = foreign_kubeconfig() {
        println!("KUBECONFIG names a cluster, {}; that one is used.", kubeconfig.display());
        return Ok(true);
    }
    if is_up() && running_nodes().len() == usize::from(nodes) {
        println!("Already running.");
        return status();
    }
    if is_up() {
        println!("Starting again, with {nodes} nodes.");
    }
    let started = Instant::now();
    Cluster::launch(nodes, false)?.leave_running();
    println!("Ready in {:.1} s.", started.elapsed().as_secs_f64());
    status()
}

fn status() -> Result<bool> {
    if !is_up() {
        println!("No cluster is running. Start it with: cargo e2e cluster up");
        let (nodes, groups) = (running_nodes().len(), cgroups::left().len());
        if network::is_connected() || nodes + groups > 0 {
            println!(
                "One ended without being stopped and left {nodes} nodes, {groups} control groups, perhaps a link.\n\
                 Remove them with: cargo e2e cluster down"
            );
        }
        return Ok(false);
    }
    let cluster = Cluster::attach(own_kubeconfig());
    println!(
        "Kubernetes {}, API server https://{}:6443, logs in {}",
        programs::kubernetes_version()?,
        network::CONTROL_PLANE,
        folder().display()
    );
    for node in &cluster.nodes {
        println!("{}: process {}, {}", node.name(), node.process(), node.address());
    }
    println!(
        "\nUse it:\n  cargo e2e cluster kubectl get nodes\n  export KUBECONFIG={}\n\
         Pods reach this machine at {}.\nStop:\n  cargo e2e cluster down",
        own_kubeconfig().display(),
        network::HOST
    );
    Ok(cluster.nodes_that_take_pods()?.len() == cluster.nodes.len())
}
