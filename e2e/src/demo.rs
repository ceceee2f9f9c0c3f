//! A load, three faults, a live view, and the comparison of all tables with all that was published.

mod outcome;
mod view;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::bed::{Bed, Needs, Stack};
use crate::compare::compare;
use crate::fleet::{Entry, Fleet};
use crate::publisher::Progress;
use crate::report::Mark;
use crate::sampler::Sampler;
use crate::stack::mosquitto::Setup;
use crate::suite;
use crate::worker::Worker;
use outcome::{Outcome, Parts};
use view::View;

const DEVICES: u32 = 200;
const POINTS: u32 = 10;
/// Messages a second.
const RATE: f64 = 1500.0;
/// How long the fleet publishes, in seconds; longer if a part takes longer to recover.
const LENGTH: f64 = 30.0;
/// When the faults are, in seconds.
const FAULTS: [f64; 3] = [6.0, 13.0, 20.0];
/// How long broker and database stay away, in seconds: long enough to be seen.
const OUTAGE: f64 = 2.0;
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demo to its end, or until it is interrupted. True if nothing was lost or doubled.
pub fn run() -> Result<bool> {
    println!(
        "This starts a Mosquitto, a PostgreSQL with TimescaleDB and a Penstock worker of its own on free ports of\n\
         127.0.0.1, and ends them again. Where they are missing, it first installs, as Debian packages in a folder\n\
         (about 500 MB), Mosquitto, PostgreSQL 17 and TimescaleDB under target/stack, and with apt-get the package\n\
         debootstrap, which it needs for that.\n\
         {DEVICES} devices then publish {RATE} messages a second for {LENGTH} s: {POINTS} points each, answers to commands,\n\
         events, and some that are not valid. Meanwhile the worker is killed, and the broker and the database each restarted.\n"
    );
    println!("Building the worker");
    suite::build()?;
    let stack = Stack::bare()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        // Dropping what it holds ends all processes and removes their files.
        tokio::select! {
            result = on_stack(&stack) => result,
            _ = interrupt.recv() => bail!("interrupted; all that was started is ended"),
            _ = terminate.recv() => bail!("terminated; all that was started is ended"),
        }
    })
}

async fn on_stack(stack: &Stack) -> Result<bool> {
    let needs = Needs {
        broker: stack.external_broker.is_none(),
        server: !stack.has_external_database(),
        ..Needs::default()
    };
    println!("Starting the broker and the database, and making the schema");
    let mut bed = stack.bed("demo", needs, &Setup::default()).await?;
    let parts = Parts::of(stack, &bed).await?;
    println!("{}", parts.sentence());
    let shown = show(&mut bed, needs, parts).await;
    let outcome = shown.with_context(|| bed.logs())?;
    outcome.print();
    println!("\nReport: {}", outcome.report()?.display());
    Ok(outcome.is_good())
}

/// What runs meanwhile; it ends when this is dropped.
struct Background<T>(JoinHandle<T>);

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Show<'a> {
    bed: &'a mut Bed,
    worker: Worker,
    sampler: Arc<Sampler>,
    view: Arc<Mutex<View>>,
    marks: Vec<Mark>,
}

async fn show(bed: &mut Bed, needs: Needs, parts: Parts) -> Result<Outcome> {
    let worker = bed.worker().await?;
    let fleet = Fleet {
        devices: DEVICES,
        points: POINTS,
        mixed: true,
        ..Fleet::steady(&bed.address, RATE, u64::MAX)
    };
    let progress = Arc::new(Progress::default());
    let sampler = Arc::new(Sampler::start(Arc::clone(&progress)));
    sampler.follow(worker.pages);
    let mut fleet_task = Background(tokio::spawn({
        let progress = Arc::clone(&progress);
        async move { fleet.run(progress).await }
    }));
    let view = Arc::new(Mutex::new(View::new()));
    let view_task = Background(tokio::spawn(view::keep(Arc::clone(&view), Arc::clone(&sampler))));

    let mut show = Show { bed, worker, sampler, view, marks: Vec::new() };
    show.event(&format!("{DEVICES} devices publish"));
    show.until(FAULTS[0]).await;
    show.kill_worker().await?;
    if needs.broker {
        show.until(FAULTS[1]).await;
        show.restart_broker().await?;
    } else {
        show.event("the broker is not restarted: MQTT_URL names one that is not ours");
    }
    if needs.server {
        show.until(FAULTS[2]).await;
        show.restart_database().await?;
    } else {
        show.event("the database is not restarted: DATABASE_URL names one that is not ours");
    }
    show.until(LENGTH).await;
    progress.stop.store(true, Ordering::SeqCst);
    let ledger: Vec<Entry> = (&mut fleet_task.0).await??;
    show.event("publishing has ended, waiting until the worker has stored all");
    let seconds = show.sampler.elapsed();
    let last = show.worker.idle().await?;
    show.event("the worker is idle, comparing all rows");
    drop(view_task);
    let timeline = show.sampler.timeline();
    let comparison = compare(&show.bed.database.admin_url, &ledger, POINTS).await?;
    show.bed.require_no_secret_in_logs()?;
    Ok(Outcome { parts, ledger, points: POINTS, seconds, comparison, last, timeline, marks: show.marks })
}

impl Show<'_> {
    fn event(&self, what: &str) {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).event(self.sampler.elapsed(), what);
    }

    async fn until(&self, second: f64) {
        tokio::time::sleep(Duration::from_secs_f64((second - self.sampler.elapsed()).max(0.0))).await;
    }

    async fn kill_worker(&mut self) -> Result<()> {
        self.sampler.take().await;
        let at = self.sampler.elapsed();
        self.event("SIGKILL to the worker");
        self.worker.kill();
        self.worker = self.bed.start("one", &[])?;
        self.sampler.follow(self.worker.pages);
        self.event("worker started again");
        self.flows_again(at, "worker killed", (0.0, 0.0)).await
    }

    async fn restart_broker(&mut self) -> Result<()> {
        let at = self.sampler.elapsed();
        self.event("the broker stops");
        self.bed.broker()?.stop()?;
        self.worker.not_ready("broker_away").await?;
        self.until(at + OUTAGE).await;
        let before = self.counted().await?;
        self.bed.broker()?.start_again()?;
        self.event("broker started again");
        self.flows_again(at, "broker restarted", before).await
    }

    async fn restart_database(&mut self) -> Result<()> {
        let at = self.sampler.elapsed();
        self.event("the database stops");
        self.bed.server()?.stop()?;
        self.worker.not_ready("database").await?;
        self.until(at + OUTAGE).await;
        let before = self.counted().await?;
        self.bed.server()?.start_again().await?;
        self.event("database started again");
        self.flows_again(at, "database restarted", before).await
    }

    /// Messages taken in and committed by this process of the worker.
    async fn counted(&self) -> Result<(f64, f64)> {
        let metrics = self.worker.metrics().await?;
        Ok((metrics.get("ingest_received_total"), metrics.get("ingest_committed_total")))
    }

    /// Waits until messages are taken in and stored again.
    async fn flows_again(&mut self, at: f64, label: &str, (received, committed): (f64, f64)) -> Result<()> {
        self.worker
            .metric(&format!("messages flow after: {label}"), PATIENCE, |metrics| {
                metrics.get("ingest_received_total") > received
                    && metrics.get("ingest_committed_total") > committed
            })
            .await?;
        let until = self.sampler.elapsed();
        self.event(&format!("rows are stored again, {:.1} s after the fault", until - at));
        self.marks.push(Mark { at, until: Some(until), label: label.to_owned() });
        Ok(())
    }
}
