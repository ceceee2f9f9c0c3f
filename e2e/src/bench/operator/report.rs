//! What was measured of the operator, for a person and as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::calls::Counted;
use crate::bench::report::Mark;

/// Pipelines that were applied.
#[derive(Debug, Clone, Serialize)]
pub struct Applied {
    /// How many.
    pub pipelines: u32,
    /// Their shards.
    pub shards: u32,
    /// From the first `create` until all that belongs to them is made.
    pub children_seconds: f64,
    /// Until all are ready.
    pub ready_seconds: f64,
    /// Reconciles of a pipeline.
    pub reconciles: f64,
    /// Median reconcile, which makes a dozen calls when it is the first.
    pub p50_ms: f64,
    /// 99 of 100 reconciles took no longer.
    pub p99_ms: f64,
    /// Share of the reconciles' time in which the API server had a write of theirs.
    pub server_share: f64,
    /// Calls of a pipeline.
    pub calls: Counted,
    /// Reconciles that failed.
    pub failures: f64,
    /// The operator's processor time.
    pub cpu_seconds: f64,
    /// Resident afterwards.
    pub memory_mib: f64,
}

/// A start with everything there.
#[derive(Debug, Clone, Serialize)]
pub struct Cold {
    /// From the start of the process until each pipeline was reconciled and nothing was left to do.
    pub seconds: f64,
    /// Reconciles.
    pub reconciles: f64,
    /// Median reconcile.
    pub p50_ms: f64,
    /// 99 of 100 reconciles took no longer.
    pub p99_ms: f64,
    /// Calls that write.
    pub writes: f64,
    /// Calls.
    pub calls: f64,
    /// The operator's processor time.
    pub cpu_seconds: f64,
    /// Resident afterwards.
    pub memory_mib: f64,
    /// Resident at most.
    pub peak_memory_mib: f64,
}

/// A minute without a change.
#[derive(Debug, Clone, Serialize)]
pub struct Rest {
    /// Calls that write.
    pub writes: f64,
    /// Calls: watches that began anew.
    pub calls: f64,
    /// Reconciles.
    pub reconciles: f64,
    /// Questions to workers.
    pub polls: f64,
    /// Median reconcile.
    pub p50_ms: f64,
    /// 99 of 100 reconciles took no longer.
    pub p99_ms: f64,
    /// The operator's processor time.
    pub cpu_seconds: f64,
    /// Resident.
    pub memory_mib: f64,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    applied: Vec<Applied>,
    cold: Cold,
    rest: Rest,
    marks: Vec<Mark>,
}

impl Report {
    /// With its marks.
    pub fn new(applied: Vec<Applied>, cold: Cold, rest: Rest) -> Self {
        let marks = vec![
            Mark::at_most("cold start, s", cold.seconds, 15.0),
            Mark::at_most("p99 of reconciles at a cold start, ms", cold.p99_ms, 50.0),
            Mark::at_most("p99 of reconciles at rest, ms", rest.p99_ms, 50.0),
            Mark::at_most("writes of a minute at rest", rest.writes, 0.0),
            Mark::at_most("writes of a cold start", cold.writes, 0.0),
            Mark::at_most("resident memory, MiB", rest.memory_mib.max(cold.memory_mib), 95.4),
        ];
        Self { applied, cold, rest, marks }
    }

    /// For a person, in Markdown.
    pub fn table(&self) -> String {
        let mut text = "| pipelines | shards | children applied, s | ready, s | calls of a pipeline | writes | reconciles | p50 / p99, ms | of it the API server's | CPU, s | memory, MiB |\n|---|---|---|---|---|---|---|---|---|---|---|\n".to_owned();
        for one in &self.applied {
            let _ = writeln!(
                text,
                "| {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} / {:.1} | {:.0} % | {:.1} | {:.0} |",
                one.pipelines,
                one.shards,
                one.children_seconds,
                one.ready_seconds,
                one.calls.all(),
                one.calls.writes(),
                one.reconciles,
                one.p50_ms,
                one.p99_ms,
                one.server_share * 100.0,
                one.cpu_seconds,
                one.memory_mib
            );
        }
        let (cold, rest) = (&self.cold, &self.rest);
        let _ = writeln!(
            text,
            "\ncold start: {:.1} s, {:.0} reconciles, p50 / p99 {:.1} / {:.1} ms, {:.0} calls, {:.0} writes, CPU {:.1} s, {:.0} MiB (peak {:.0})",
            cold.seconds,
            cold.reconciles,
            cold.p50_ms,
            cold.p99_ms,
            cold.calls,
            cold.writes,
            cold.cpu_seconds,
            cold.memory_mib,
            cold.peak_memory_mib
        );
        let _ = writeln!(
            text,
            "a minute at rest: {:.0} calls, {:.0} writes, {:.0} reconciles, p50 / p99 {:.1} / {:.1} ms, {:.0} questions to workers, CPU {:.1} s, {:.0} MiB\n",
            rest.calls,
            rest.writes,
            rest.reconciles,
            rest.p50_ms,
            rest.p99_ms,
            rest.polls,
            rest.cpu_seconds,
            rest.memory_mib
        );
        for mark in &self.marks {
            let said = if mark.met { "met" } else { "MISSED" };
            let _ = writeln!(text, "{said:>7}  {}: {:.1} (goal ≤ {})", mark.name, mark.value, mark.wanted);
        }
        text
    }
}
