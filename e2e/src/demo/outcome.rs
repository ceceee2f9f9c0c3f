//! What came of it: the verdict, the numbers, and the report.

use std::path::PathBuf;

use anyhow::Result;

use crate::bed::{Bed, Stack, require_identities};
use crate::compare::Comparison;
use crate::fleet::{Entry, Kind};
use crate::report::numbers::count;
use crate::report::{Mark, Page, Plot, Series};
use crate::sampler::{Points, Timeline, mean, quantile};
use crate::worker::Metrics;

/// Seconds between the points of a plot.
const WINDOW: f64 = 0.5;

/// What was run.
pub struct Parts {
    broker: String,
    postgres: String,
    timescale: String,
    cores: usize,
}

impl Parts {
    /// Asks them.
    pub async fn of(stack: &Stack, bed: &Bed) -> Result<Self> {
        let broker = match &stack.external_broker {
            Some(address) => format!("the broker at {address}"),
            None => format!("Mosquitto {}", stack.package_version("mosquitto")?),
        };
        let version: String = bed.sql("SELECT current_setting('server_version')").await?;
        let extension = "SELECT coalesce((SELECT default_version FROM pg_available_extensions WHERE name = 'timescaledb'), 'none')";
        Ok(Self {
            broker,
            postgres: version,
            timescale: bed.sql(extension).await?,
            cores: std::thread::available_parallelism()?.get(),
        })
    }

    /// One line.
    pub fn sentence(&self) -> String {
        let Self { broker, postgres, timescale, cores } = self;
        format!("{broker}, PostgreSQL {postgres}, TimescaleDB {timescale}, {cores} cores for all")
    }
}

/// All that is known at the end.
pub struct Outcome {
    pub parts: Parts,
    pub ledger: Vec<Entry>,
    pub points: u32,
    /// How long was published.
    pub seconds: f64,
    pub comparison: Comparison,
    /// What the last process of the worker counted.
    pub last: Metrics,
    pub timeline: Timeline,
    pub marks: Vec<Mark>,
}

/// A sum that must come out.
struct Identity {
    name: &'static str,
    left: Vec<(&'static str, f64)>,
    right: Vec<(&'static str, f64)>,
}

impl Identity {
    fn all(metrics: &Metrics) -> [Self; 2] {
        let get = |(name, metric): (&'static str, &str)| (name, metrics.get(&format!("ingest_{metric}")));
        [
            Self {
                name: "Deliveries",
                left: vec![get(("received", "received_total"))],
                right: [
                    ("committed", "committed_total"),
                    ("abandoned", "abandoned_total"),
                    ("dropped at QoS 0", "dropped_qos0_total"),
                    ("in flight", "in_flight"),
                ]
                .map(get)
                .to_vec(),
            },
            Self {
                name: "Items of committed deliveries",
                left: [
                    ("samples", "items_total/samples"),
                    ("acks", "items_total/acks"),
                    ("events", "items_total/events"),
                    ("metadata", "items_total/metadata"),
                    ("rejects", "items_total/rejects"),
                ]
                .map(get)
                .to_vec(),
                right: [
                    ("stored", "outcomes_total/stored"),
                    ("deduplicated", "outcomes_total/deduplicated"),
                    ("outdated", "outcomes_total/outdated"),
                    ("dead-lettered", "outcomes_total/dead_lettered"),
                ]
                .map(get)
                .to_vec(),
            },
        ]
    }

    fn sums(&self) -> (f64, f64) {
        let sum = |side: &[(&str, f64)]| side.iter().map(|(_, value)| value).sum();
        (sum(&self.left), sum(&self.right))
    }

    fn holds(&self) -> bool {
        let (left, right) = self.sums();
        (left - right).abs() < 0.5
    }

    fn sentence(&self) -> String {
        let side = |side: &[(&str, f64)]| {
            side.iter()
                .map(|(name, value)| format!("{name} {}", count(*value)))
                .collect::<Vec<_>>()
                .join(" + ")
        };
        let sign = if self.holds() { "=" } else { "IS NOT" };
        format!("{}: {} {sign} {}", self.name, side(&self.left), side(&self.right))
    }

    /// Both sides next to each other, and their sums.
    fn rows(&self) -> Vec<Vec<String>> {
        let cell = |side: &[(&str, f64)], row: usize| match side.get(row) {
            Some((name, value)) => [(*name).to_owned(), count(*value)],
            None => [String::new(), String::new()],
        };
        let (left, right) = self.sums();
        let length = self.left.len().max(self.right.len());
        let row = |row| [cell(&self.left, row), cell(&self.right, row)].concat();
        let sums = [cell(&[("sum", left)], 0), cell(&[("sum", right)], 0)].concat();
        (0..length).map(row).chain([sums]).collect()
    }
}

impl Outcome {
    fn published(&self, kind: Kind) -> usize {
        self.ledger.iter().filter(|entry| entry.kind == kind).count()
    }

    fn is_exact(&self) -> bool {
        let nothing = [Kind::Telemetry, Kind::Ack, Kind::Event, Kind::Bad]
            .into_iter()
            .any(|kind| self.published(kind) == 0);
        self.comparison.require_exact().is_ok() && !nothing
    }

    /// Nothing lost, doubled, wrong or unexpected, and all is accounted for.
    pub fn is_good(&self) -> bool {
        self.is_exact() && require_identities(&self.last).is_ok()
    }

    fn verdict(&self) -> String {
        let Comparison { lost, doubled, wrong, unexpected, .. } = self.comparison;
        let faults = self.marks.iter().map(|mark| mark.label.as_str()).collect::<Vec<_>>().join(", ");
        let accounts = if require_identities(&self.last).is_ok() {
            "both accounts hold"
        } else {
            "AN ACCOUNT DOES NOT HOLD"
        };
        format!(
            "{lost} lost, {doubled} doubled, {wrong} wrong, {unexpected} unexpected; {accounts}. Faults: {faults}."
        )
    }

    fn load(&self) -> String {
        let acknowledged = self.ledger.iter().filter(|entry| entry.acknowledged).count();
        format!(
            "{} messages in {:.0} s: {} of {} points, {} answers to commands, {} events, {} not valid. The broker acknowledged {} of them.",
            count(self.ledger.len() as f64),
            self.seconds,
            count(self.published(Kind::Telemetry) as f64),
            self.points,
            count(self.published(Kind::Ack) as f64),
            count(self.published(Kind::Event) as f64),
            count(self.published(Kind::Bad) as f64),
            count(acknowledged as f64)
        )
    }

    /// Sums over all processes of the worker.
    fn totals(&self) -> Vec<(&'static str, f64)> {
        let total = |metric: &str| {
            let name = format!("ingest_{metric}");
            self.timeline.total(|metrics| metrics.get(&name)).last().copied().unwrap_or_default()
        };
        vec![
            ("received", total("received_total")),
            ("of these with the DUP flag", total("redelivered_total")),
            ("items stored", total("outcomes_total/stored")),
            ("items deduplicated", total("outcomes_total/deduplicated")),
            ("items dead-lettered", total("outcomes_total/dead_lettered")),
        ]
    }

    /// The numbers, for a terminal.
    pub fn print(&self) {
        let totals: Vec<String> =
            self.totals().into_iter().map(|(name, value)| format!("{name} {}", count(value))).collect();
        println!("\nPublished: {}", self.load());
        println!(
            "Both worker processes, at least (a killed one takes its last counts with it):\n  {}",
            totals.join(", ")
        );
        println!("\nThe process that was started after the SIGKILL accounts for all it received:");
        for identity in Identity::all(&self.last) {
            println!("  {}", identity.sentence());
        }
        println!(
            "\nAcross the SIGKILL the tables decide. Every row, against what the publishers sent\nand the broker acknowledged to them:\n  {}",
            self.comparison
        );
        for example in &self.comparison.examples {
            println!("  {example}");
        }
        println!("\n{}: {}", if self.is_good() { "GOOD" } else { "BAD" }, self.verdict());
    }

    /// Writes the report. Returns its path.
    pub fn report(&self) -> Result<PathBuf> {
        let mut page = Page::new("Penstock demo");
        page.verdict(self.is_good(), &self.verdict());
        page.text(&format!("{}.", self.parts.sentence())).text(&format!("Published: {}", self.load()));
        self.add_accounts(&mut page);
        page.heading("Faults").table(
            &["", "at", "rows stored again after"],
            &self
                .marks
                .iter()
                .map(|mark| {
                    let after =
                        mark.until.map_or_else(String::new, |until| format!("{:.1} s", until - mark.at));
                    vec![mark.label.clone(), format!("{:.1} s", mark.at), after]
                })
                .collect::<Vec<_>>(),
        );
        page.heading("Over time").text("Red: from a fault until rows are stored again.");
        for plot in self.plots() {
            page.plot(&plot)?;
        }
        page.write("index.html")
    }

    fn add_accounts(&self, page: &mut Page) {
        let Comparison { acknowledged, found, lost, doubled, wrong, unexpected, .. } = self.comparison;
        page.heading("Tables against publishers, row by row")
            .text("Items are samples, answers, events and dead letters. What the broker acknowledged to its publisher must be there, once and with its value. What it did not acknowledge may be there. Nothing else may.");
        let row = |name: &str, value: u64| vec![name.to_owned(), count(value as f64)];
        page.table(
            &[],
            &[
                row("acknowledged to publishers", acknowledged),
                row("found", found),
                row("lost", lost),
                row("doubled", doubled),
                row("wrong", wrong),
                row("unexpected", unexpected),
            ],
        );
        if !self.comparison.examples.is_empty() {
            page.verbatim(&self.comparison.examples.join("\n"));
        }
        page.heading("Accounts")
            .text("Of the process that was started after the SIGKILL: counters end with their process. Across the SIGKILL the comparison above decides.");
        for identity in Identity::all(&self.last) {
            page.table(&[identity.name, "", "became", ""], &identity.rows());
        }
        page.text("Both processes together, as far as the first could be asked before it was killed:");
        let rows: Vec<Vec<String>> =
            self.totals().into_iter().map(|(name, value)| vec![name.to_owned(), count(value)]).collect();
        page.table(&[], &rows);
    }

    fn plots(&self) -> Vec<Plot> {
        let line = &self.timeline;
        let series = |name: &str, points: Points| Series { name: name.to_owned(), points };
        let sent: Vec<f64> = line.0.iter().map(|sample| sample.sent as f64).collect();
        let acknowledged: Vec<f64> = line.0.iter().map(|sample| sample.acknowledged as f64).collect();
        let committed = line.total(|metrics| metrics.get("ingest_committed_total"));
        let of = |histogram: &'static str, q: f64| {
            line.changes(WINDOW, move |change| quantile(change, histogram, q))
        };
        let gauge = |name: &'static str| line.gauge(move |metrics| metrics.get(name));
        let plot = |title, unit, log, series| Plot { log, ..Plot::new(title, unit, &self.marks, series) };
        vec![
            plot(
                "Rate",
                "messages/s",
                false,
                vec![
                    series("published", line.rate(&sent, WINDOW)),
                    series("acknowledged by the broker", line.rate(&acknowledged, WINDOW)),
                    series("committed", line.rate(&committed, WINDOW)),
                ],
            ),
            plot(
                "Latency, from device time to commit",
                "s",
                true,
                vec![
                    series("p50", of("ingest_latency_seconds", 0.5)),
                    series("p99", of("ingest_latency_seconds", 0.99)),
                ],
            ),
            plot(
                "In hand of the worker",
                "messages",
                false,
                vec![
                    series("not yet acknowledged to the broker", gauge("ingest_mqtt_unacked")),
                    series("in flight", gauge("ingest_in_flight")),
                ],
            ),
            plot(
                "Batch size, mean",
                "messages",
                false,
                vec![series(
                    "messages in a batch",
                    line.changes(WINDOW, |change| mean(change, "ingest_batch_size")),
                )],
            ),
            plot(
                "Time of a transaction",
                "s",
                true,
                vec![
                    series("p50", of("ingest_commit_seconds", 0.5)),
                    series("p99", of("ingest_commit_seconds", 0.99)),
                ],
            ),
        ]
    }
}
