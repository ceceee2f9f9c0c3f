//! The report as a page with plots.

use std::path::PathBuf;

use anyhow::Result;

use super::report::{Mark, Report, Throughput, Window};
use crate::report::numbers::{compact, count, duration};
use crate::report::{Bars, Page, Plot, Series};
use crate::sampler::{self, Points};

/// Goals that are passed by more are drawn as if by so many times.
const FAR_PASSED: f64 = 4.0;
/// Seconds between the points of a line.
const STRETCH: f64 = 0.5;

/// Writes target/report/bench.html; returns its path.
pub fn write(report: &Report, table: &str) -> Result<PathBuf> {
    let mut page = Page::new("Benchmark of the worker");
    let met = report.marks.iter().filter(|mark| mark.met).count();
    page.verdict(met == report.marks.len(), &format!("{met} of {} goals are met", report.marks.len()));
    page.text(&format!(
        "Mosquitto {}; {} processors, shared by publishers, broker, worker and database.",
        report.broker, report.processors
    ));
    page.heading("Goals")
        .bars(&goals(&report.marks))?
        .table(&["", "", "measured", "goal", ""], &rows(report));
    page.heading("Throughput").plot(&rates(&report.throughput))?.bars(&costs(report))?;
    page.heading("Latency").bars(&latency(report))?;
    page.heading("A window of 20").bars(&windows([&report.windows.near, &report.windows.far]))?;
    page.fold("All as text", table);
    page.write("bench.html")
}

/// How far a goal is reached: 1 is the goal.
fn reached(mark: &Mark) -> f64 {
    let share = if mark.at_least { mark.value / mark.wanted } else { mark.wanted / mark.value };
    share.min(FAR_PASSED)
}

fn goals(marks: &[Mark]) -> Bars {
    Bars {
        title: format!("How far each goal is reached: 1 is the goal, at most {FAR_PASSED} is drawn"),
        unit: String::new(),
        buckets: (1..=marks.len()).map(|number| number.to_string()).collect(),
        series: vec![("measured".to_owned(), marks.iter().map(reached).collect())],
    }
}

fn rows(report: &Report) -> Vec<Vec<String>> {
    let row = |(number, mark): (usize, &Mark)| {
        let Mark { name, value, wanted, at_least, met } = mark;
        let sign = if *at_least { "≥" } else { "≤" };
        let verdict = if *met { "met" } else { "missed" };
        let goal = format!("{sign} {wanted}");
        vec![(number + 1).to_string(), (*name).to_owned(), compact(*value), goal, verdict.to_owned()]
    };
    report.marks.iter().enumerate().map(row).collect()
}

fn named(points: u32) -> String {
    format!("{points} {} a message", if points == 1 { "point" } else { "points" })
}

fn rates(runs: &[Throughput]) -> Plot {
    let line =
        |run: &Throughput| Series { name: named(run.points_of_a_message), points: rate(&run.progress) };
    Plot::new("Messages committed", "a second", &[], runs.iter().map(line).collect())
}

/// Of a count over time, its growth a second in stretches.
fn rate(progress: &[(f64, f64)]) -> Points {
    let (times, counted): (Vec<f64>, Vec<f64>) = progress.iter().copied().unzip();
    sampler::rate(&times, &counted, STRETCH)
}

fn costs(report: &Report) -> Bars {
    let cost = |run: &Throughput| {
        let cost = run.cpu_seconds_of_a_million_points;
        let of_a_message = f64::from(run.points_of_a_message);
        let parts = [cost.worker, cost.broker, cost.database, cost.publishers];
        (named(run.points_of_a_message), parts.map(|seconds| seconds * of_a_message).to_vec())
    };
    Bars {
        title: "Processor time of a message".to_owned(),
        unit: "µs".to_owned(),
        buckets: ["worker", "broker", "database", "publishers"].map(str::to_owned).to_vec(),
        series: report.throughput.iter().map(cost).collect(),
    }
}

fn latency(report: &Report) -> Bars {
    let latency = &report.latency;
    let mut bars = Bars {
        title: format!(
            "From device time to commit, p50 {}, p99 {}",
            duration(latency.p50_ms / 1e3),
            duration(latency.p99_ms / 1e3)
        ),
        unit: "% of samples".to_owned(),
        buckets: Vec::new(),
        series: Vec::new(),
    };
    bars.add_shares(format!("{} messages/s", count(latency.messages_a_second)), &latency.distribution);
    bars.trim();
    bars
}

fn windows(windows: [&Window; 2]) -> Bars {
    let of = |value: fn(&Window) -> f64| windows.map(value).to_vec();
    Bars {
        title: "Messages against what the window allows".to_owned(),
        unit: "a second".to_owned(),
        buckets: windows.map(|window| format!("round trip {:.2} ms", window.round_trip_ms)).to_vec(),
        series: vec![
            ("worker".to_owned(), of(|window| window.messages_a_second)),
            ("W/(RTT+L)".to_owned(), of(|window| window.messages_a_second / window.share())),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_of_at_most_is_reached_by_less_and_a_count_becomes_a_rate_in_stretches() {
        let marks =
            [Mark::at_least("a", 0.45, 0.9), Mark::at_most("b", 10.0, 20.0), Mark::at_most("c", 1.0, 50.0)];
        assert_eq!(marks.each_ref().map(reached), [0.5, 2.0, FAR_PASSED]);
        let progress = [(0.0, 0.0), (0.25, 90.0), (0.5, 100.0), (0.75, 100.0), (1.0, 400.0), (1.25, 500.0)];
        assert_eq!(rate(&progress), [(0.5, Some(200.0)), (1.0, Some(600.0))]);
    }
}
