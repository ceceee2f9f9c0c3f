//! The `penstock-worker` command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use penstock_worker::dead_letters::command::DeadLetters;
use penstock_worker::http::router;
use penstock_worker::settings::{Access, Reload, Settings, Sources, Work};
use penstock_worker::shard::{Shard, Stop, WRITERS};
use penstock_worker::store::lease::Me;
use penstock_worker::store::{maintain, schema};
use penstock_worker::{check, logging};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Files are looked at this often.
const RELOAD_EVERY: Duration = Duration::from_secs(1);

/// Moves device telemetry from MQTT into TimescaleDB: a message is acknowledged only after the
/// transaction that holds it is committed.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Format of log lines on standard error. RUST_LOG sets the level.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "PENSTOCK_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Consume, store and acknowledge until told to stop.
    Run {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        identity: Identity,
        /// Where /livez, /readyz, /metrics and /status listen.
        #[arg(long, default_value = "0.0.0.0:9100")]
        http: SocketAddr,
        /// Seconds to go on consuming after SIGTERM until another worker took over.
        #[arg(long, default_value_t = 0)]
        handover: u64,
    },
    /// Make the schema, or bring it up to date, and apply the store's policies, as the schema's owner.
    Migrate {
        #[command(flatten)]
        files: Files,
    },
    /// Apply the store's policies and remove what is older than its retention; to be run on a schedule.
    Maintain {
        #[command(flatten)]
        files: Files,
    },
    /// Validate a manifest.
    Check {
        #[command(flatten)]
        files: Files,
        /// Also ask broker and database what they grant.
        #[arg(long)]
        connect: bool,
        /// Minutes of an outage that the broker's queue is to outlast.
        #[arg(long, default_value_t = 10)]
        outage: u64,
        /// Messages a second, if not as in the last minutes.
        #[arg(long)]
        rate: Option<f64>,
    },
    /// End a shard's session for good, after storing all that it holds.
    Retire {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        identity: Identity,
        /// Seconds of silence that mean empty, where this login may not publish.
        #[arg(long)]
        idle: Option<u64>,
    },
    /// Look at, replay or remove what could not be stored.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
}

#[derive(Args)]
struct Files {
    /// The manifest: an IngestPipeline and its TelemetryStore.
    #[arg(short = 'f', long = "file")]
    manifest: PathBuf,
    /// The shard's number.
    #[arg(long, default_value_t = 0)]
    shard: u32,
    /// The shard's plan; without one it owns all keys.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// Folder of secrets: <folder>/<name>/<key>.
    #[arg(long, default_value = "/etc/penstock/secrets", env = "PENSTOCK_SECRETS")]
    secrets: PathBuf,
}

#[derive(Args)]
struct Identity {
    /// Who this worker is across restarts; the pod's UID, or the machine's id.
    #[arg(long, env = "PENSTOCK_INSTANCE")]
    instance: Option<String>,
}

impl From<Files> for Sources {
    fn from(files: Files) -> Self {
        Self { manifest: files.manifest, plan: files.plan, secrets: files.secrets, shard: files.shard }
    }
}

impl Identity {
    fn me(self) -> Me {
        let instance = self
            .instance
            .or_else(|| std::fs::read_to_string("/etc/machine-id").ok().map(|id| id.trim().to_owned()))
            .filter(|instance| !instance.is_empty())
            .unwrap_or_else(|| "local".to_owned());
        Me { instance, incarnation: uuid::Uuid::new_v4() }
    }
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(matches!(cli.log_format, LogFormat::Json));
    match start(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("penstock-worker: {fault}");
            ExitCode::FAILURE
        }
    }
}

/// The session has this thread to itself, with an I/O driver of its own, so that no other thread must be
/// woken for what the broker sends; the writers have a pool.
fn start(command: Command) -> Result<(), Fault> {
    let writers = tokio::runtime::Builder::new_multi_thread().worker_threads(WRITERS).enable_all().build()?;
    let own = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = own.block_on(obey(command, writers.handle()));
    writers.shutdown_background();
    result
}

async fn obey(command: Command, writers: &Handle) -> Result<(), Fault> {
    match command {
        Command::Run { files, identity, http, handover } => {
            Box::pin(run(files.into(), identity.me(), http, Duration::from_secs(handover), writers)).await
        }
        Command::Migrate { files } => migrate(&files.into()).await,
        Command::Maintain { files } => maintain(&files.into()).await,
        Command::Check { files, connect, outage, rate } => {
            check(&files.into(), connect, Duration::from_secs(outage * 60), rate).await
        }
        Command::Retire { files, identity, idle } => {
            retire(&files.into(), identity.me(), idle.map(Duration::from_secs), writers).await
        }
        Command::DeadLetters(what) => Box::pin(what.run()).await,
    }
}

async fn run(
    sources: Sources,
    me: Me,
    http: SocketAddr,
    handover: Duration,
    writers: &Handle,
) -> Result<(), Fault> {
    let settings = sources.settings()?;
    let (work, work_seen) = watch::channel(settings.work.clone());
    let (access, access_seen) = watch::channel(settings.access.clone());
    let credentials = Reload::new(sources.clone(), sources.manifest()?);
    let shard = Shard::new(settings, access_seen, me, writers.clone())?;
    let listener =
        tokio::net::TcpListener::bind(http).await.map_err(|error| format!("--http {http}: {error}"))?;
    tracing::info!(address = %listener.local_addr()?, "serving /livez, /readyz, /metrics and /status");
    let pages = router(Arc::new(shard.pages()));
    tokio::spawn(async move { axum::serve(listener, pages).await });
    let (stopping, stop) = watch::channel(false);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.send_replace(true);
        // Kept open: a closed channel would read as a signal.
        std::future::pending::<()>().await;
    });
    tokio::spawn(reload(sources, work, credentials, access));
    shard.run(work_seen, Stop { signal: stop, handover }).await;
    shard.close_traces().await;
    tracing::info!("stopped");
    Ok(())
}

/// Takes over a changed plan, changed subscriptions and changed credentials; a wrong file changes nothing.
async fn reload(
    sources: Sources,
    work: watch::Sender<Work>,
    mut credentials: Reload,
    access: watch::Sender<Access>,
) {
    let mut told = None;
    loop {
        tokio::time::sleep(RELOAD_EVERY).await;
        credentials.look(&access);
        match sources.work() {
            Ok(next) => {
                told = None;
                work.send_if_modified(|current| {
                    let changed = *current != next;
                    if changed {
                        *current = next;
                    }
                    changed
                });
            }
            Err(error) => {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    tracing::error!(error, "keeping the last good plan");
                    told = Some(error);
                }
            }
        }
    }
}

async fn migrate(sources: &Sources) -> Result<(), Fault> {
    let store = sources.store()?;
    let owner = sources.database(&store.spec.migration)?;
    let worker = sources.database(&store.spec.database)?;
    let report = schema::migrate(&owner, Some(worker.get_username()), &store.spec).await?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

async fn maintain(sources: &Sources) -> Result<(), Fault> {
    let store = sources.store()?;
    let owner = sources.database(&store.spec.migration)?;
    let maintained = maintain::maintain(&owner, &store.spec).await?;
    println!("{}", serde_json::to_string_pretty(&maintained)?);
    Ok(())
}

async fn check(sources: &Sources, connect: bool, outage: Duration, rate: Option<f64>) -> Result<(), Fault> {
    let manifest = sources.manifest()?;
    println!("{}: good", sources.manifest.display());
    for note in check::not_yet(&manifest).into_iter().chain(check::hints(&manifest)) {
        println!("note: {note}");
    }
    if !connect {
        return Ok(());
    }
    let settings = sources.settings()?;
    let broker = ask_broker(&settings).await;
    let (report, fault) = check::database(&settings, &manifest.store.spec).await?;
    println!("database: {}", serde_json::to_string_pretty(&report)?);
    broker?;
    if fault.is_none() {
        println!("{}", check::outage(&settings, rate, outage).await);
    }
    fault.map_or(Ok(()), |fault| Err(fault.into()))
}

async fn ask_broker(settings: &Settings) -> Result<(), Fault> {
    let granted = check::broker(settings).await?;
    println!("broker: {}", serde_json::to_string_pretty(&granted)?);
    Ok(())
}

async fn retire(sources: &Sources, me: Me, idle: Option<Duration>, writers: &Handle) -> Result<(), Fault> {
    // An instance of its own, so that it is never mistaken for the worker of the same machine.
    let me = Me { instance: format!("retire-{}", me.incarnation), ..me };
    let settings = sources.settings()?;
    let (_access, seen) = watch::channel(settings.access.clone());
    let shard = Shard::new(settings, seen, me, writers.clone())?;
    let proof = shard.retire(idle).await;
    shard.close_traces().await;
    let proof = proof?;
    println!("retired: the session is drained ({proof:?}) and ended");
    Ok(())
}
