//! The `penstock-worker` command.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use penstock_worker::dead_letters::command::DeadLetters;
use penstock_worker::http::{Front, router};
use penstock_worker::mqtt::nap;
use penstock_worker::settings::{Access, Follow, Reload, Settings, Sources, Terms};
use penstock_worker::shard::{Shard, Stop, WRITERS};
use penstock_worker::store::lease::Me;
use penstock_worker::{check, jobs, logging};
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
        #[command(flatten)]
        report: Report,
    },
    /// Apply the store's policies and remove what is older than its retention; to be run on a schedule.
    Maintain {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        report: Report,
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
        report: Report,
        #[command(flatten)]
        identity: Identity,
        /// Generation of the plan that ends the shard: refused where a newer one is followed.
        #[arg(long)]
        plan_generation: Option<i64>,
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

#[derive(Args)]
struct Report {
    /// Where to leave how it ended: JSON of at most 4,096 bytes, such as Kubernetes' /dev/termination-log.
    #[arg(long = "report", value_name = "FILE", env = "PENSTOCK_REPORT")]
    file: Option<PathBuf>,
}

impl Report {
    fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
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
    let own = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(nap::take).build()?;
    let result = own.block_on(obey(command, writers.handle()));
    writers.shutdown_background();
    result
}

async fn obey(command: Command, writers: &Handle) -> Result<(), Fault> {
    match command {
        Command::Run { files, identity, http, handover } => {
            // A task, because its thread would wake the future that it blocks on by a system call each time.
            tokio::spawn(run(
                files.into(),
                identity.me(),
                http,
                Duration::from_secs(handover),
                writers.clone(),
            ))
            .await?
        }
        Command::Migrate { files, report } => {
            Ok(jobs::reported(report.file(), jobs::migrate(&files.into())).await?)
        }
        Command::Maintain { files, report } => {
            Ok(jobs::reported(report.file(), jobs::maintain(&files.into())).await?)
        }
        Command::Check { files, connect, outage, rate } => {
            check(&files.into(), connect, Duration::from_secs(outage * 60), rate).await
        }
        Command::Retire { files, report, identity, plan_generation, idle } => {
            let (sources, idle) = (files.into(), idle.map(Duration::from_secs));
            Ok(jobs::reported(
                report.file(),
                Box::pin(jobs::retire(&sources, identity.me(), plan_generation, idle, writers)),
            )
            .await?)
        }
        Command::DeadLetters(what) => Box::pin(what.run()).await,
    }
}

async fn run(
    sources: Sources,
    me: Me,
    http: SocketAddr,
    handover: Duration,
    writers: Handle,
) -> Result<(), Fault> {
    // First: a container's first process that has no handler yet never hears of a signal that comes now.
    let stop = Stop { signal: signals()?, handover };
    let listener =
        tokio::net::TcpListener::bind(http).await.map_err(|error| format!("--http {http}: {error}"))?;
    tracing::info!(address = %listener.local_addr()?, "serving /livez, /readyz, /metrics and /status");
    let front = Arc::new(Front::default());
    let pages = router(Arc::clone(&front));
    tokio::spawn(async move { axum::serve(listener, pages).await });
    let settings = tokio::select! {
        settings = good_files(&sources, &front) => settings,
        () = stop.requested() => return Ok(()),
    };
    let (terms, terms_seen) = watch::channel(Arc::clone(&settings.terms));
    let (access, access_seen) = watch::channel(settings.access.clone());
    let credentials = Reload::new(sources.clone(), settings.manifest.clone());
    let follow = Follow::new(sources, &settings.manifest);
    let shard = Shard::new(settings, (access_seen, terms_seen), me, writers)?;
    front.show(shard.pages());
    tokio::spawn(reload((follow, terms), (credentials, access), front));
    shard.run(stop).await;
    shard.close_traces().await;
    tracing::info!("stopped");
    Ok(())
}

/// Becomes true when the worker is to stop.
fn signals() -> Result<watch::Receiver<bool>, Fault> {
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
    Ok(stop)
}

/// Waits until manifest, plan and secrets are good: in a cluster they may come after the pod.
async fn good_files(sources: &Sources, front: &Front) -> Settings {
    let mut told = String::new();
    loop {
        match sources.settings() {
            Ok(settings) => return settings,
            Err(error) => {
                if told != error.to_string() {
                    told = error.to_string();
                    tracing::error!(reason = error.reason(), %error, "waiting for good files");
                    front.faults(vec![(error.reason().to_owned(), told.clone())]);
                }
            }
        }
        tokio::time::sleep(RELOAD_EVERY).await;
    }
}

/// Takes over what changes of manifest, plan and credentials; a wrong file changes nothing.
async fn reload(
    (mut follow, terms): (Follow, watch::Sender<Arc<Terms>>),
    (mut credentials, access): (Reload, watch::Sender<Access>),
    front: Arc<Front>,
) {
    loop {
        tokio::time::sleep(RELOAD_EVERY).await;
        let faults = [credentials.look(&access), follow.look(&terms)];
        front.faults(faults.into_iter().flatten().collect());
    }
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
