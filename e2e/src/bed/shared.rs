//! What all beds stand on: the servers that scenarios share, and the one cluster.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use super::{Bed, write_secrets};
use crate::cluster::{self, Cluster};
use crate::plant;
use crate::stack::mosquitto::{Mosquitto, Release, Setup};
use crate::stack::postgres::{self, Postgres};
use crate::stack::process::run_in;
use crate::stack::{self, free_port, install};

/// Servers that scenarios share.
#[derive(Debug)]
pub struct Stack {
    root: Option<PathBuf>,
    run: String,
    server: Option<Postgres>,
    admin_url: String,
    /// A broker that is not ours, from MQTT_URL.
    pub external_broker: Option<String>,
    /// Started when the first scenario asks for it; whether it has nodes, and with them the operator.
    cluster: Mutex<Option<(bool, Arc<Cluster>)>>,
}

/// What a scenario faults, and must therefore have for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// The broker's process.
    pub broker: bool,
    /// The database's process.
    pub server: bool,
    /// A server without TimescaleDB.
    pub plain: bool,
    /// A Kubernetes cluster with the operator.
    pub cluster: bool,
    /// A Kubernetes cluster without nodes or an operator: alone, and after those with nodes.
    pub control_plane: bool,
    /// No other scenario beside it, and all others before.
    pub alone: bool,
    /// Helm alone.
    pub helm: bool,
    /// Prometheus, of the Debian root.
    pub prometheus: bool,
}

impl Needs {
    /// Whether no other scenario may run beside it.
    pub fn is_alone(self) -> bool {
        self.alone || self.control_plane
    }
}

impl Stack {
    /// Starts what is shared, or takes what DATABASE_URL and MQTT_URL name.
    pub async fn start() -> Result<Self> {
        let mut stack = Self::bare()?;
        if stack.admin_url.is_empty() {
            let server = stack.postgres("shared", postgres::TIMESCALEDB).await?;
            stack.admin_url = server.admin_url("postgres");
            stack.server = Some(server);
        }
        Ok(stack)
    }

    /// The same with nothing shared: for one bed that has a server of its own, or DATABASE_URL's.
    pub fn bare() -> Result<Self> {
        let external_broker =
            std::env::var("MQTT_URL").ok().map(|url| url.trim_start_matches("mqtt://").to_owned());
        let external = std::env::var("DATABASE_URL").ok();
        let needs_root = external_broker.is_none() || external.is_none();
        let root = if needs_root { Some(install::root()?) } else { None };
        let run = format!("run-{}", std::process::id());
        Ok(Self {
            root,
            run,
            server: None,
            admin_url: external.unwrap_or_default(),
            external_broker,
            cluster: Mutex::default(),
        })
    }

    /// The cluster, started for the first that asks: with nodes and the operator, or without both.
    fn cluster(&self, with_nodes: bool) -> Result<Arc<Cluster>> {
        let mut cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cluster)) = cluster.as_ref().filter(|(has_nodes, _)| *has_nodes == with_nodes) {
            return Ok(Arc::clone(cluster));
        }
        // There is one at a time.
        drop(cluster.take());
        let started = Arc::new(if with_nodes { Cluster::start(2)? } else { Cluster::start_without_nodes()? });
        if with_nodes {
            plant::install(&started).with_context(|| started.logs())?;
        }
        *cluster = Some((with_nodes, Arc::clone(&started)));
        Ok(started)
    }

    /// Whether the database is DATABASE_URL's.
    pub fn has_external_database(&self) -> bool {
        self.server.is_none() && !self.admin_url.is_empty()
    }

    /// The Debian package of a part of our own, with its version.
    pub fn package_version(&self, package: &str) -> Result<String> {
        package_version(self.root.as_ref().context("no part is our own")?, package)
    }

    /// The version of this Mosquitto's Debian package.
    pub fn broker_version(&self, release: Release) -> Result<String> {
        package_version(&self.broker_root(release)?, "mosquitto")
    }

    fn broker_root(&self, release: Release) -> Result<PathBuf> {
        match release {
            Release::Stable => self.root.clone().context("no part is our own"),
            Release::Newest => install::newest_broker(),
        }
    }

    /// Why a scenario with these needs cannot run here.
    pub fn lacks(&self, needs: Needs) -> Option<String> {
        let why = if needs.broker && self.external_broker.is_some() {
            "it needs a broker of its own, and MQTT_URL names one that is not ours"
        } else if needs.server && self.server.is_none() {
            "it stops the database, and DATABASE_URL names one that is not ours"
        } else if needs.helm && !cluster::has_helm() {
            "it runs helm, which is built with Go: install Go (https://go.dev/dl)"
        } else if needs.prometheus && self.root.is_none() {
            "it runs Prometheus, which is installed beside a broker or a database of our own"
        } else if needs.cluster && (self.external_broker.is_some() || self.has_external_database()) {
            "pods reach parts of our own only, and MQTT_URL or DATABASE_URL names others"
        } else if needs.control_plane && cluster::is_foreign() {
            "it needs a control plane without nodes, and KUBECONFIG names a cluster that is not ours"
        } else {
            let missing = if needs.cluster || needs.control_plane { cluster::missing() } else { Vec::new() };
            return (!missing.is_empty())
                .then(|| format!("it needs a cluster, and this machine lacks: {}", missing.join("; ")));
        };
        Some(why.to_owned())
    }

    /// The shared server's process, if it is ours.
    pub fn server_id(&self) -> Option<u32> {
        self.server.as_ref().map(Postgres::id)
    }

    async fn postgres(&self, name: &str, preload: &'static str) -> Result<Postgres> {
        let root = self.root.clone().context("a root")?;
        let setup = postgres::Setup { preload, bound: true };
        Postgres::start(root, &format!("/srv/{}/{name}", self.run), free_port()?, setup).await
    }

    fn mosquitto(&self, name: &str, setup: &Setup) -> Result<Mosquitto> {
        let root = self.broker_root(setup.release)?;
        Mosquitto::start(root, &format!("/srv/{}/{name}", self.run), free_port()?, setup, true)
    }

    /// A bed for one scenario.
    pub async fn bed(&self, name: &str, needs: Needs, setup: &Setup) -> Result<Bed> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = stack::folder().join(&self.run).join(format!("{number}-{name}"));
        std::fs::create_dir_all(&folder)?;
        let broker = match &self.external_broker {
            Some(_) => None,
            None => Some(self.mosquitto(&format!("broker-{number}"), setup)?),
        };
        let preload = if needs.plain { "" } else { postgres::TIMESCALEDB };
        let server =
            if needs.server { Some(self.postgres(&format!("pg-{number}"), preload).await?) } else { None };
        let admin =
            server.as_ref().map_or_else(|| self.admin_url.clone(), |server| server.admin_url("postgres"));
        let database =
            postgres::create_database(&admin, &format!("e2e_{}_{number}", std::process::id())).await?;
        let address = match (&broker, &self.external_broker) {
            (Some(broker), _) => format!("127.0.0.1:{}", broker.port),
            (None, Some(address)) => address.clone(),
            (None, None) => anyhow::bail!("no broker"),
        };
        let cluster =
            if needs.cluster || needs.control_plane { Some(self.cluster(needs.cluster)?) } else { None };
        let bed = Bed { number, folder, broker, server, database, address, cluster, started: Vec::new() };
        write_secrets(&bed.secrets(), &bed.database)?;
        Ok(bed)
    }
}

fn package_version(root: &Path, package: &str) -> Result<String> {
    run_in(root, &["dpkg-query", "-W", "-f", "${Version}", package])
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.server = None;
        install::clean(&self.run);
        // Kept after a failure, for its logs.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(stack::folder().join(&self.run));
        }
    }
}
