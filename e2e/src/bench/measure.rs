//! Rates and costs of a worker under load.

use std::ops::Sub;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::bounds::round_trip;
use crate::bed::{Bed, require_identities};
use crate::source::{Counts, Plan, Source};
use crate::worker::{Metrics, Worker, cpu_seconds, cpu_seconds_of_tree};

/// Publishing before anything is measured.
pub const WARM_UP: Duration = Duration::from_millis(1500);
/// How often the consumer is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

const ROWS: &str = "SELECT count(*) FROM penstock.sample";

/// Seconds of processor time.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Cost {
    /// The worker, or the bare subscriber.
    pub worker: f64,
    /// Mosquitto.
    pub broker: f64,
    /// PostgreSQL with all its processes.
    pub database: f64,
    /// The publishers.
    pub publishers: f64,
}

impl Cost {
    /// Of all parts.
    pub fn total(&self) -> f64 {
        let Self { worker, broker, database, publishers } = self;
        worker + broker + database + publishers
    }
}

impl Sub for Cost {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            worker: self.worker - earlier.worker,
            broker: self.broker - earlier.broker,
            database: self.database - earlier.database,
            publishers: self.publishers - earlier.publishers,
        }
    }
}

/// What was done in a stretch of time, and what it cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rate {
    /// Messages committed.
    pub messages: f64,
    /// Points stored.
    pub points: f64,
    /// Seconds.
    pub seconds: f64,
    /// Processor time.
    pub cost: Cost,
}

impl Rate {
    /// Messages a second.
    pub fn messages_a_second(&self) -> f64 {
        self.messages / self.seconds
    }

    /// Points a second.
    pub fn points_a_second(&self) -> f64 {
        self.points / self.seconds
    }

    /// How much of the machine all parts together used: 1 is all of its processors.
    pub fn share_of_machine(&self, processors: usize) -> f64 {
        self.cost.total() / (self.seconds * processors as f64)
    }

    /// Processor seconds for a million points.
    pub fn cost_of_a_million(&self) -> Cost {
        let share = |seconds: f64| seconds * 1e6 / self.points;
        Cost {
            worker: share(self.cost.worker),
            broker: share(self.cost.broker),
            database: share(self.cost.database),
            publishers: share(self.cost.publishers),
        }
    }
}

/// A worker under load.
#[derive(Debug, Clone)]
pub struct Run {
    /// Messages and points.
    pub rate: Rate,
    /// What the worker counted in the same stretch.
    pub metrics: Metrics,
    /// What was committed since the start of that stretch: seconds, and messages.
    pub progress: Vec<(f64, f64)>,
    /// The worker's largest resident memory, in bytes.
    pub peak_memory: u64,
}

/// Has publishers send to the bed's worker, measures for so long, stops, and compares the number of
/// rows with what the broker acknowledged.
pub async fn run(
    bed: &mut Bed,
    worker: &Worker,
    database: u32,
    plan: &Plan,
    length: Duration,
) -> Result<Run> {
    let broker = bed.broker()?.id();
    let preloaded: i64 = bed.sql(ROWS).await?;
    let source = Source::start(&Plan { address: bed.address.clone(), ..plan.clone() });
    let (before, _) = follow(worker, &source.counts, WARM_UP).await?;
    let cost = || Cost {
        worker: cpu_seconds(worker.process.id()),
        broker: cpu_seconds(broker),
        database: cpu_seconds_of_tree(database),
        publishers: source.counts.cpu_seconds(),
    };
    let (start, cost_before) = (Instant::now(), cost());
    let (after, progress) = follow(worker, &source.counts, length).await?;
    let (seconds, cost) = (start.elapsed().as_secs_f64(), cost() - cost_before);
    let repeated = Arc::clone(&source.counts);
    let new = source.finish()? - repeated.repeated.load(Ordering::Relaxed);
    require_identities(&worker.idle().await?)?;
    let stored = bed.sql::<i64>(ROWS).await? - preloaded;
    let expected = new * u64::from(plan.points);
    ensure!(
        stored as u64 == expected,
        "{stored} rows are stored, {expected} different points were acknowledged"
    );

    let metrics = after.since(&before);
    let rate = Rate {
        messages: metrics.get("ingest_committed_total"),
        points: metrics.get("ingest_points_total"),
        seconds,
        cost,
    };
    Ok(Run { rate, metrics, progress, peak_memory: worker.peak_memory()? })
}

/// Tells the publishers how far the worker is, for so long. Returns what it counts at the end, and what it
/// had committed meanwhile: seconds, and messages.
async fn follow(worker: &Worker, counts: &Counts, length: Duration) -> Result<(Metrics, Vec<(f64, f64)>)> {
    let (start, mut progress) = (Instant::now(), Vec::new());
    loop {
        let metrics = worker.metrics().await?;
        let committed = metrics.get("ingest_committed_total");
        progress.push((start.elapsed().as_secs_f64(), committed));
        counts.taken.store(committed as u64, Ordering::Relaxed);
        if start.elapsed() >= length {
            return Ok((metrics, progress));
        }
        tokio::time::sleep(POLL.min(length.saturating_sub(start.elapsed()))).await;
    }
}

/// A queue that was drained.
#[derive(Debug, Clone)]
pub struct Drained {
    /// Messages of the stretch that was measured.
    pub messages: f64,
    /// Its length.
    pub seconds: f64,
    /// Processor time of the worker and of the broker in it.
    pub cost: Cost,
    /// Mean round trip to the broker meanwhile, in seconds.
    pub round_trip: f64,
    /// What the worker counted in it.
    pub metrics: Metrics,
}

/// Measures a worker that drains the broker's queue of so many messages of one point, and compares the
/// number of rows with it.
pub async fn drain(bed: &mut Bed, worker: &Worker, queued: u64) -> Result<Drained> {
    let broker = bed.broker()?.id();
    let cost =
        || Cost { worker: cpu_seconds(worker.process.id()), broker: cpu_seconds(broker), ..Cost::default() };
    let committed = |share: f64| {
        let wanted = queued as f64 * share;
        worker.metric("the queue drains", Duration::from_secs(60), move |metrics| {
            metrics.get("ingest_committed_total") >= wanted
        })
    };
    let before = committed(0.1).await?;
    let (start, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let cost_before = cost();
    let pings = std::thread::spawn({
        let (address, stop) = (bed.address.clone(), Arc::clone(&stop));
        move || round_trip(&address, &stop)
    });
    let after = committed(0.9).await?;
    let (seconds, cost) = (start.elapsed().as_secs_f64(), cost() - cost_before);
    stop.store(true, Ordering::Relaxed);
    let round_trip = pings.join().map_err(|_| anyhow::anyhow!("the pings panicked"))??;
    require_identities(&worker.idle().await?)?;
    let stored: i64 = bed.sql(ROWS).await?;
    ensure!(stored as u64 == queued, "{stored} rows are stored, {queued} points were acknowledged");
    let metrics = after.since(&before);
    Ok(Drained { messages: metrics.get("ingest_committed_total"), seconds, cost, round_trip, metrics })
}
