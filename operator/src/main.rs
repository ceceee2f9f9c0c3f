//! The `penstock-operator` command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use penstock_crds::Manifest;
use penstock_operator::election::Terms;
use penstock_operator::http::{Pages, router};
use penstock_operator::leader::{Election, Leadership};
use penstock_operator::metrics::Metrics;
use penstock_operator::plan::Plan;
use penstock_operator::preview::Preview;
use penstock_operator::release::release;
use penstock_operator::resolve::Config;
use penstock_operator::run::run;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Runs IngestPipelines and TelemetryStores on Kubernetes.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Namespaces to work in, separated by commas; all, if not given.
    #[arg(long, global = true, env = "PENSTOCK_NAMESPACES", value_delimiter = ',', num_args = 0..)]
    namespaces: Vec<String>,
    /// Format of log lines on standard error. RUST_LOG sets the level.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "PENSTOCK_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Reconcile until told to stop.
    Run(Run),
    /// Tell which keys would move from where to where, and which shards start and end. Without a cluster.
    Plan(Offline),
    /// Stop the operator and let its pipelines go, before it is uninstalled.
    Release {
        /// The operator's Deployment.
        #[arg(long, env = "PENSTOCK_OPERATOR_DEPLOYMENT")]
        deployment: String,
        /// The operator's namespace.
        #[arg(long, env = "POD_NAMESPACE")]
        own_namespace: String,
    },
}

#[derive(Args)]
struct Run {
    /// The workers' image, where a manifest names none.
    #[arg(long, env = "PENSTOCK_WORKER_IMAGE")]
    worker_image: String,
    /// When it is pulled.
    #[arg(long, env = "PENSTOCK_WORKER_PULL_POLICY", default_value = "IfNotPresent")]
    worker_pull_policy: String,
    /// Seconds for which it is tried to end the sessions of a deleted pipeline before they are left behind.
    #[arg(long, env = "PENSTOCK_RETIRE_DEADLINE", default_value_t = 600)]
    retire_deadline: u64,
    /// Pipelines whose shards are rolled at the same time, after a change of their pods.
    #[arg(long, env = "PENSTOCK_PIPELINES_AT_ONCE", default_value_t = 5)]
    pipelines_at_once: usize,
    /// Where /livez, /readyz and /metrics listen.
    #[arg(long, env = "PENSTOCK_HTTP", default_value = "0.0.0.0:8080")]
    http: SocketAddr,
    #[command(flatten)]
    elect: Elect,
}

#[derive(Args)]
struct Offline {
    /// The manifest: an IngestPipeline and its TelemetryStore.
    #[arg(short, long)]
    file: PathBuf,
    /// The plan as it is: `plan.json` of the ConfigMap `<pipeline>-plan`. A new pipeline has none.
    #[arg(long)]
    observed: Option<PathBuf>,
    /// So many shards instead of the manifest's.
    #[arg(long)]
    replicas: Option<i32>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Of several replicas one works.
#[derive(Args)]
struct Elect {
    /// Namespace of the Lease that the replicas share.
    #[arg(long, env = "POD_NAMESPACE", required_unless_present = "no_election")]
    lease_namespace: Option<String>,
    /// Its name.
    #[arg(long, env = "PENSTOCK_LEASE", default_value = "penstock-operator")]
    lease: String,
    /// Seconds that others wait for a leader of which nothing is heard. It stops itself after two thirds.
    #[arg(long, env = "PENSTOCK_LEASE_DURATION", default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=3600))]
    lease_duration: u16,
    /// What this replica is called in it; something that no other has is appended.
    #[arg(long, env = "POD_NAME", default_value = "operator")]
    name: String,
    /// Work without a Lease. Only where no other operator looks after the same namespaces.
    #[arg(long)]
    no_election: bool,
}

impl Elect {
    fn election(self) -> Option<Election> {
        let namespace = self.lease_namespace.filter(|_| !self.no_election)?;
        let me = format!("{}_{}", self.name, uuid::Uuid::new_v4());
        Some(Election { namespace, lease: self.lease, me, terms: Terms::new(self.lease_duration) })
    }
}

/// How long reconciles may go on after the signal to stop.
const GRACE: Duration = Duration::from_secs(10);

type Fault = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.log_format);
    let namespaces: Vec<String> =
        cli.namespaces.into_iter().filter(|namespace| !namespace.is_empty()).collect();
    let result = match cli.command {
        Command::Run(options) => reconcile(options, namespaces).await,
        Command::Plan(options) => plan(&options),
        Command::Release { deployment, own_namespace } => {
            uninstall(&deployment, &own_namespace, &namespaces).await
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("penstock-operator: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn log(format: LogFormat) {
    let level = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).init(),
    }
}

async fn reconcile(options: Run, namespaces: Vec<String>) -> Result<(), Fault> {
    // First: the first process of a container does not hear a signal that it has not asked for.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let metrics = Metrics::new()?;
    let cluster = kube::Config::infer().await?;
    let leadership = match options.elect.election() {
        Some(election) => Leadership::stand(&cluster, &election, &metrics)?,
        None => Leadership::alone(cluster, &metrics)?,
    };
    let (client, leads) = (leadership.client.clone(), leadership.leads.clone());
    let config = Config {
        worker_image: options.worker_image,
        pull_policy: options.worker_pull_policy,
        retire_deadline: options.retire_deadline,
        pipelines_at_once: options.pipelines_at_once,
    };
    let (stopping, stop) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.send_replace(true);
        std::future::pending::<()>().await;
    });
    let scopes: Vec<Option<String>> =
        if namespaces.is_empty() { vec![None] } else { namespaces.into_iter().map(Some).collect() };
    let ready: Vec<_> = scopes.iter().map(|_| Arc::new(AtomicBool::new(false))).collect();
    let listener = tokio::net::TcpListener::bind(options.http)
        .await
        .map_err(|error| format!("--http {}: {error}", options.http))?;
    tracing::info!(address = %listener.local_addr()?, "serving /livez, /readyz and /metrics");
    let pages = Pages { metrics: metrics.clone(), ready: ready.clone() };
    tokio::spawn(async move { axum::serve(listener, router(pages)).await });
    let mut controllers = JoinSet::new();
    for (scope, ready) in scopes.into_iter().zip(ready) {
        let (client, config, metrics) = (client.clone(), config.clone(), metrics.clone());
        controllers.spawn(run(client, config, scope, metrics, ready, leads.clone(), stop.clone()));
    }
    let mut stop = stop;
    let overdue = async {
        let _ = stop.wait_for(|stop| *stop).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = all(&mut controllers) => ended?,
        // Not released: something may still be written.
        () = overdue => return Err(format!("reconciles did not end within {GRACE:?}; the lease is left to expire").into()),
    }
    leadership.release().await;
    tracing::info!("stopped");
    Ok(())
}

async fn all(tasks: &mut JoinSet<()>) -> Result<(), tokio::task::JoinError> {
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}

fn plan(options: &Offline) -> Result<(), Fault> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let in_file = |path: &PathBuf, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let manifest = Manifest::parse(&read(&options.file)?).map_err(|error| in_file(&options.file, &error))?;
    let stored = match &options.observed {
        Some(path) => serde_json::from_str(&read(path)?).map_err(|error| in_file(path, &error))?,
        None => Plan::default(),
    };
    let preview = Preview::of(manifest.pipeline, options.replicas, &stored)?;
    println!("{}", if options.json { serde_json::to_string_pretty(&preview)? } else { preview.to_string() });
    Ok(())
}

async fn uninstall(deployment: &str, own_namespace: &str, namespaces: &[String]) -> Result<(), Fault> {
    let client = kube::Client::try_default().await?;
    Ok(release(&client, own_namespace, deployment, namespaces).await?)
}
