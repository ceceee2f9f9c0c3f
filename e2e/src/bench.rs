//! What the worker does on this machine, against what the parts around it can do at most. Marks are
//! reported, not asserted: the machine may be busy. Exactness is asserted.

mod bounds;
mod distance;
mod measure;
mod operator;
mod page;
mod report;
mod scale;
mod window;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::measure::{Rate, Run};
use self::report::{Latency, Mark, Report, Throughput, Window, Windows};
use crate::bed::{Bed, Needs, Stack};
use crate::source::{Plan, Source};
use crate::stack::mosquitto::{Release, Setup};

/// Deliveries that the broker may leave unacknowledged in the throughput runs.
const RECEIVE_MAXIMUM: u16 = 20_000;
/// Messages in the worker and in the broker's queue.
const BACKLOG: u64 = 60_000;
const DEVICES: u32 = 1000;
const THROUGHPUT: Duration = Duration::from_secs(15);
/// Bounds are measured before and after a run, each for so long.
const BOUND: Duration = Duration::from_secs(5);
const STEADY: Duration = Duration::from_secs(10);
const STEADY_RATE: f64 = 1000.0;
const LATENCY: &str = "ingest_latency_seconds";
const WINDOW: u32 = 20;
const FEW_SERIES: u32 = 10_000;
const MANY_SERIES: u32 = 1_000_000;
/// Messages that wait in the broker's queue before the worker with the small window connects.
const QUEUED: u64 = 150_000;
/// The same where the broker is far.
const QUEUED_FAR: u64 = 50_000;
/// To a broker that is far: what another zone of a cloud is away.
const ONE_WAY: Duration = Duration::from_millis(1);

/// Measures all, prints and plots it, and writes target/report/bench.json and bench.html. `part` is one
/// part alone, for whoever works on it.
pub async fn run(part: Option<&str>, release: Release) -> Result<bool> {
    crate::suite::build()?;
    if part == Some("operator") {
        return operator::run().await.map(|()| true);
    }
    let stack = Stack::start().await?;
    ensure!(
        stack.server_id().is_some() && stack.external_broker.is_none(),
        "the bench measures a broker and a database of its own; unset DATABASE_URL and MQTT_URL"
    );
    let broker = stack.broker_version(release)?;
    println!("with Mosquitto {broker}");
    let bench = Bench { stack, release };
    if let Some(part) = part {
        return bench.part(part).await.map(|()| true);
    }
    let load_before = load()?;
    let plan = plan(10);

    println!("1/8 bare COPY, a bare subscriber and the worker at 10 points a message");
    let copy_before = bench.copy().await?;
    let ten = bench.throughput(&plan).await?;
    let copy_after = bench.copy().await?;
    let bare_ten = bench.bare(&plan).await?;

    println!("2/8 a bare subscriber and the worker at 1 point a message");
    let plan = Plan { points: 1, ..plan };
    let bare_before = bench.bare(&plan).await?;
    let one = bench.throughput(&plan).await?;
    let bare_after = bench.bare(&plan).await?;

    println!("3/8 latency at {STEADY_RATE} messages a second");
    let latency = bench.latency().await?;
    println!("4/8 window {WINDOW}");
    let windows = bench.windows().await?;

    println!("5/8 {FEW_SERIES} and {MANY_SERIES} series, one row of each preloaded");
    let few = bench.series(FEW_SERIES).await?.rate.points_a_second();
    let many = bench.series(MANY_SERIES).await?.rate.points_a_second();
    println!("6/8 three of ten messages come again");
    let storm = bench.storm().await?.rate.messages_a_second();
    println!("7/8 memory");
    let memory = bench.memory().await?.map(|bytes| bytes as f64 / f64::from(1 << 20));

    println!("8/8 report");
    let processors = std::thread::available_parallelism()?.get();
    let mean = |a: f64, b: f64| f64::midpoint(a, b);
    let bare = mean(bare_before.messages_a_second(), bare_after.messages_a_second());
    let throughput = [Throughput::new(&ten, 10), Throughput::new(&one, 1)];
    let marks = vec![
        Mark::at_least(
            "share of the machine in use, 10 points a message",
            ten.rate.share_of_machine(processors),
            0.85,
        ),
        Mark::at_least(
            "share of the machine in use, 1 point a message",
            one.rate.share_of_machine(processors),
            0.85,
        ),
        Mark::at_least(
            "share of bare COPY, 10 points a message",
            ten.rate.points_a_second() / mean(copy_before, copy_after),
            0.7,
        ),
        Mark::at_least(
            "share of bare subscriber, 1 point a message",
            one.rate.messages_a_second() / bare,
            0.8,
        ),
        Mark::at_least("share of W/(RTT+L), window 20, broker far", windows.far.share(), 0.9),
        Mark::at_least("share of W/(RTT+L), window 20, broker near", windows.near.share(), 0.9),
        Mark::at_most(
            "worker CPU s per million points, 10 a message",
            throughput[0].cpu_seconds_of_a_million_points.worker,
            1.5,
        ),
        Mark::at_most("p50 latency at 1,000 messages a second, ms", latency.p50_ms, 10.0),
        Mark::at_most("p99 latency at 1,000 messages a second, ms", latency.p99_ms, 50.0),
        Mark::at_most("peak memory idle, MiB", memory[0], 30.0),
        Mark::at_most("peak memory with a full window of 1,000, MiB", memory[1], 120.0),
        Mark::at_most("rate with 10 k series / with 1 M", few / many, 2.0),
        Mark::at_least("rate with 30 % duplicates / without", storm / ten.rate.messages_a_second(), 0.5),
    ];
    let report = Report {
        processors,
        broker,
        load: [load_before, load()?],
        receive_maximum: RECEIVE_MAXIMUM,
        bare_copy: [copy_before, copy_after],
        bare_subscriber: [bare_before.messages_a_second(), bare_after.messages_a_second()],
        bare_subscriber_cost: [bare_ten.cost_of_a_million(), bare_before.cost_of_a_million()],
        throughput,
        latency,
        windows,
        marks,
    };
    let table = report.table()?;
    println!("{table}");
    let folder = crate::stack::project().join("target/report");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join("bench.json");
    std::fs::write(&file, serde_json::to_string_pretty(&report)?)?;
    println!("written to {} and {}", file.display(), page::write(&report, &table)?.display());
    Ok(true)
}

fn plan(points: u32) -> Plan {
    Plan {
        address: String::new(),
        devices: DEVICES,
        points,
        publishers: 2,
        rate: None,
        backlog: BACKLOG,
        repeats: 0,
    }
}

fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').take(2).collect::<Vec<_>>().join(" "))
}

struct Bench {
    stack: Stack,
    release: Release,
}

impl Bench {
    fn database(&self) -> Result<u32> {
        self.stack.server_id().context("a database server of our own")
    }

    async fn part(&self, part: &str) -> Result<()> {
        match part {
            "points10" => self.throughput(&plan(10)).await.map(drop),
            "points1" => self.throughput(&plan(1)).await.map(drop),
            "copy" => self.copy().await.map(drop),
            "bare" => self.bare(&plan(1)).await.map(drop),
            "latency" => self.latency().await.map(drop),
            "series" => {
                self.series(FEW_SERIES).await?;
                self.series(MANY_SERIES).await.map(drop)
            }
            "storm" => self.storm().await.map(drop),
            "memory" => self.memory().await.map(drop),
            "window" => self.windows().await.map(drop),
            other => anyhow::bail!(
                "no part '{other}': points10, points1, copy, bare, latency, window, series, storm, memory, operator"
            ),
        }
    }

    /// With a broker that grants clients of MQTT 3.1.1 the small window.
    async fn bed(&self, name: &str) -> Result<Bed> {
        let setup = Setup { window: WINDOW, release: self.release, ..Setup::default() };
        self.stack.bed(name, Needs::default(), &setup).await
    }

    async fn copy(&self) -> Result<f64> {
        let bed = self.bed("bench-copy").await?;
        let rate = bounds::copy(&bed, DEVICES * 10, BOUND).await?;
        println!("  bare COPY: {rate:.0} rows/s");
        Ok(rate)
    }

    async fn bare(&self, plan: &Plan) -> Result<Rate> {
        let mut bed = self.bed("bench-subscriber").await?;
        let rate = bounds::subscriber(&mut bed, plan, RECEIVE_MAXIMUM, BOUND).await?;
        println!("  bare subscriber: {:.0} messages/s, {}", rate.messages_a_second(), cost(&rate));
        Ok(rate)
    }

    async fn throughput(&self, plan: &Plan) -> Result<Run> {
        let mut bed = self.bed("bench").await?;
        let worker = scale::throughput_worker(&mut bed).await?;
        let run = measure::run(&mut bed, &worker, self.database()?, plan, THROUGHPUT)
            .await
            .with_context(|| bed.logs())?;
        worker.stop(Duration::from_secs(30)).await?;
        println!(
            "  worker: {:.0} points/s, {:.0} messages/s, {}",
            run.rate.points_a_second(),
            run.rate.messages_a_second(),
            cost(&run.rate)
        );
        Ok(run)
    }

    async fn latency(&self) -> Result<Latency> {
        let mut bed = self.bed("bench-latency").await?;
        let worker = bed.worker().await?;
        let plan = Plan { rate: Some(STEADY_RATE), ..plan(10) };
        let run = measure::run(&mut bed, &worker, self.database()?, &plan, STEADY)
            .await
            .with_context(|| bed.logs())?;
        worker.stop(Duration::from_secs(30)).await?;
        let quantile = |q| run.metrics.quantile(LATENCY, q) * 1e3;
        let latency = Latency {
            messages_a_second: run.rate.messages_a_second(),
            points_of_a_message: plan.points,
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            distribution: run.metrics.buckets(LATENCY),
        };
        println!("  p50 {:.1} ms, p99 {:.1} ms", latency.p50_ms, latency.p99_ms);
        Ok(latency)
    }

    async fn windows(&self) -> Result<Windows> {
        let near = self.window(QUEUED, Duration::ZERO).await?;
        println!("  near, {near}");
        let far = self.window(QUEUED_FAR, ONE_WAY).await?;
        println!("  far, {far}");
        let half = self.bare_window(WINDOW / 2).await?;
        let windows = Windows { near, far, bare: [half, self.bare_window(WINDOW).await?] };
        println!("  near, {:.2} of the better bare loop", windows.share_of_bare());
        Ok(windows)
    }

    async fn bare_window(&self, batch: u32) -> Result<f64> {
        let bed = self.bed("bench-bare-window").await?;
        window::bare(&bed, batch as usize, &Plan { backlog: QUEUED, ..plan(1) }).await
    }

    /// With the broker this far off.
    async fn window(&self, queued: u64, one_way: Duration) -> Result<Window> {
        let mut bed = self.bed("bench-window").await?;
        let old = |text: String| text.replace("protocol: V5", "protocol: V311");
        let worker = bed.worker_with(old).await?;
        // The broker queues for the session meanwhile, so that publishers take no processor time from it.
        worker.stop(Duration::from_secs(30)).await?;
        let plan = Plan { address: bed.address.clone(), backlog: queued, ..plan(1) };
        let queued = Source::fill(&plan).await?;
        if !one_way.is_zero() {
            bed.address = distance::relay(bed.address.clone(), one_way)?;
            bed.manifest(old)?;
        }
        let worker = bed.start("one", &[])?;
        let drained = measure::drain(&mut bed, &worker, queued).await.with_context(|| bed.logs())?;
        worker.stop(Duration::from_secs(30)).await?;
        Ok(Window {
            size: WINDOW,
            messages_a_second: drained.messages / drained.seconds,
            round_trip_ms: drained.round_trip * 1e3,
            commit_ms: drained.metrics.get("ingest_commit_seconds_sum")
                / drained.metrics.get("ingest_commit_seconds_count")
                * 1e3,
            cpu_us: drained.cost.worker / drained.messages * 1e6,
            broker_cpu_us: drained.cost.broker / drained.messages * 1e6,
        })
    }
}

fn cost(rate: &Rate) -> String {
    let cost = rate.cost_of_a_million();
    format!(
        "CPU s per million points: worker {:.2}, broker {:.2}, database {:.2}, publishers {:.2}",
        cost.worker, cost.broker, cost.database, cost.publishers
    )
}
