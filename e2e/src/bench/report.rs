//! What was measured, for a person and as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::measure::{Cost, Run};

/// A first mark, and whether it is met.
#[derive(Debug, Clone, Serialize)]
pub struct Mark {
    /// What is measured.
    pub name: &'static str,
    /// Measured.
    pub value: f64,
    /// Wanted.
    pub wanted: f64,
    /// Whether more is better.
    pub at_least: bool,
    /// Whether it is met.
    pub met: bool,
}

impl Mark {
    /// Wants this much or more.
    pub fn at_least(name: &'static str, value: f64, wanted: f64) -> Self {
        Self { name, value, wanted, at_least: true, met: value >= wanted }
    }

    /// Wants this much or less.
    pub fn at_most(name: &'static str, value: f64, wanted: f64) -> Self {
        Self { name, value, wanted, at_least: false, met: value <= wanted }
    }
}

/// A worker under load.
#[derive(Debug, Clone, Serialize)]
pub struct Throughput {
    /// Points of a message.
    pub points_of_a_message: u32,
    /// Points a second.
    pub points_a_second: f64,
    /// Messages a second.
    pub messages_a_second: f64,
    /// Processor seconds for a million points.
    pub cpu_seconds_of_a_million_points: Cost,
    /// The worker's largest resident memory.
    pub peak_memory_mib: f64,
    /// Rows of a batch, on average.
    pub rows_of_a_batch: f64,
    /// Median commit, in milliseconds.
    pub commit_ms: f64,
    /// Seconds, and messages committed until then.
    pub progress: Vec<(f64, f64)>,
}

impl Throughput {
    /// What a run says.
    pub fn new(run: &Run, points: u32) -> Self {
        let count = run.metrics.get("ingest_batch_rows_count");
        Self {
            points_of_a_message: points,
            points_a_second: run.rate.points_a_second(),
            messages_a_second: run.rate.messages_a_second(),
            cpu_seconds_of_a_million_points: run.rate.cost_of_a_million(),
            peak_memory_mib: run.peak_memory as f64 / f64::from(1 << 20),
            rows_of_a_batch: run.metrics.get("ingest_batch_rows_sum") / count.max(1.0),
            commit_ms: run.metrics.quantile("ingest_commit_seconds", 0.5) * 1e3,
            progress: run.progress.clone(),
        }
    }

    /// How much of the time the broker's only thread computes.
    fn use_of_broker(&self) -> f64 {
        self.points_a_second * self.cpu_seconds_of_a_million_points.broker / 1e6
    }
}

/// At a steady rate.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// Messages a second.
    pub messages_a_second: f64,
    /// Points of a message.
    pub points_of_a_message: u32,
    /// Device time to commit, in milliseconds.
    pub p50_ms: f64,
    /// Device time to commit, in milliseconds.
    pub p99_ms: f64,
    /// Upper bounds in seconds, and the share of samples in each bucket.
    pub distribution: Vec<(f64, f64)>,
}

/// A queue drained through a small window.
#[derive(Debug, Clone, Serialize)]
pub struct Window {
    /// W.
    pub size: u32,
    /// Messages a second.
    pub messages_a_second: f64,
    /// Mean RTT, in milliseconds.
    pub round_trip_ms: f64,
    /// Mean L, in milliseconds.
    pub commit_ms: f64,
    /// Worker CPU of a message, in microseconds.
    pub cpu_us: f64,
    /// Broker CPU of a message, in microseconds.
    pub broker_cpu_us: f64,
}

impl Window {
    /// The rate against W/(RTT+L): as if the worker's own work took no time.
    pub fn share(&self) -> f64 {
        self.messages_a_second * (self.round_trip_ms + self.commit_ms) / 1e3 / f64::from(self.size)
    }

    /// How long the broker computes to fill half of the window, which is a batch, in milliseconds.
    fn fill_ms(&self) -> f64 {
        self.broker_cpu_us * f64::from(self.size) / 2.0 / 1e3
    }

    /// The share that a worker would reach whose own work takes no time, with a broker whose work does.
    fn possible_share(&self) -> f64 {
        let bound = self.round_trip_ms + self.commit_ms;
        bound / (bound + self.fill_ms())
    }
}

/// With the window that a broker of MQTT 3.1.1 grants.
#[derive(Debug, Clone, Serialize)]
pub struct Windows {
    /// The broker on this machine.
    pub near: Window,
    /// The broker some way off.
    pub far: Window,
    /// Messages a second of a bare loop, near, that commits half the window at a time, and all of it.
    pub bare: [f64; 2],
}

impl Windows {
    /// The rate against that of the better bare loop.
    pub fn share_of_bare(&self) -> f64 {
        self.near.messages_a_second / self.bare[0].max(self.bare[1])
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { size, messages_a_second, round_trip_ms, commit_ms, cpu_us, broker_cpu_us } = self;
        write!(
            to,
            "window {size}: {messages_a_second:.0} messages a second, {:.2} of W/(RTT+L) with RTT \
             {round_trip_ms:.2} ms, L {commit_ms:.2} ms; CPU of a message: worker {cpu_us:.1} µs, broker {broker_cpu_us:.1} µs",
            self.share()
        )
    }
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Processors of the machine.
    pub processors: usize,
    /// Mosquitto's version.
    pub broker: String,
    /// Load averages before and after: others on the machine distort.
    pub load: [String; 2],
    /// Deliveries that the broker may leave unacknowledged in the throughput runs.
    pub receive_maximum: u16,
    /// Rows a second of a bare COPY, before and after the worker's run.
    pub bare_copy: [f64; 2],
    /// Messages a second of a bare subscriber, before and after the worker's run.
    pub bare_subscriber: [f64; 2],
    /// Processor seconds of it and of the broker for a million points, at 10 points a message and at 1.
    pub bare_subscriber_cost: [Cost; 2],
    /// 10 points a message, and 1.
    pub throughput: [Throughput; 2],
    /// 1,000 messages a second.
    pub latency: Latency,
    /// Window 20.
    pub windows: Windows,
    /// The first marks.
    pub marks: Vec<Mark>,
}

impl Report {
    /// For a person.
    pub fn table(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let out = &mut text;
        writeln!(
            out,
            "\nMosquitto {}; {} processors, shared by publishers, broker, worker and database",
            self.broker, self.processors
        )?;
        writeln!(out, "load before {}, after {}", self.load[0], self.load[1])?;
        writeln!(out, "\nThroughput, receiveMaximum {}      10 points      1 point", self.receive_maximum)?;
        let [ten, one] = &self.throughput;
        let mut line = |name: &str, of: &dyn Fn(&Throughput) -> f64, digits: usize| {
            writeln!(out, "  {name:<36}{:>11.digits$}{:>13.digits$}", of(ten), of(one))
        };
        line("points stored a second", &|t| t.points_a_second, 0)?;
        line("messages a second", &|t| t.messages_a_second, 0)?;
        line("rows of a batch", &|t| t.rows_of_a_batch, 0)?;
        line("median commit, ms", &|t| t.commit_ms, 1)?;
        line("worker CPU s per million points", &|t| t.cpu_seconds_of_a_million_points.worker, 2)?;
        line("broker CPU s per million points", &|t| t.cpu_seconds_of_a_million_points.broker, 2)?;
        line("database CPU s per million points", &|t| t.cpu_seconds_of_a_million_points.database, 2)?;
        line("publishers CPU s per million points", &|t| t.cpu_seconds_of_a_million_points.publishers, 2)?;
        line("worker's peak memory, MiB", &|t| t.peak_memory_mib, 0)?;
        let [before, after] = self.bare_copy;
        writeln!(out, "\nBound 1, bare COPY, rows a second: {before:.0} before, {after:.0} after")?;
        let [before, after] = self.bare_subscriber;
        let [bare_ten, Cost { worker, broker, publishers, .. }] = self.bare_subscriber_cost;
        writeln!(
            out,
            "Bound 2, bare subscriber, messages a second: {before:.0} before, {after:.0} after\n  \
             CPU s per million: subscriber {worker:.2}, broker {broker:.2}, publishers {publishers:.2}\n  \
             at 10 points a message, per million points: subscriber {:.2}; the worker takes {:.2} times that",
            bare_ten.worker,
            ten.cpu_seconds_of_a_million_points.worker / bare_ten.worker
        )?;
        let cost = one.cpu_seconds_of_a_million_points;
        writeln!(
            out,
            "Bound 3, the broker's only thread: {:.2} of it is in use at 10 points a message, {:.2} at 1 point; \
             with all of it, {:.2} of the machine would be in use at 1 point",
            ten.use_of_broker(),
            one.use_of_broker(),
            cost.total() / (cost.broker * self.processors as f64)
        )?;
        let Latency { messages_a_second, points_of_a_message, p50_ms, p99_ms, .. } = self.latency;
        writeln!(
            out,
            "Latency at {messages_a_second:.0} messages a second of {points_of_a_message} points: \
             p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms"
        )?;
        let Windows { near, far, bare: [half, whole] } = &self.windows;
        writeln!(
            out,
            "Broker near: {near}\n  bare loop {half:.0} with half the window at a time, {whole:.0} with all of it\n\
             Broker far: {far}\n\
             Bound 4, the broker near needs {:.2} ms to fill half the window: a worker whose own work takes no \
             time would reach {:.2} of W/(RTT+L)\n\n\
             Mark                                             measured   wanted",
            near.fill_ms(),
            near.possible_share()
        )?;
        for Mark { name, value, wanted, at_least, met } in &self.marks {
            let sign = if *at_least { ">=" } else { "<=" };
            let verdict = if *met { "met" } else { "MISSED" };
            writeln!(out, "  {name:<46}{value:>9.2}   {sign} {wanted:<6} {verdict}")?;
        }
        Ok(text)
    }
}
