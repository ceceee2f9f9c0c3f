//! What a step measured, checked and shows.

use anyhow::Result;

use crate::bed::Bed;
use crate::report::{Bars, Plot};

/// What a step measured, checked and shows.
#[derive(Debug, Default)]
pub struct Finding {
    /// Name and value.
    pub measured: Vec<(String, String)>,
    /// What must hold, and whether it does.
    pub checks: Vec<(String, bool)>,
    /// Queries, metrics and log lines.
    pub evidence: Vec<(String, String)>,
    /// Values over time.
    pub plots: Vec<Plot>,
    /// Distributions.
    pub bars: Vec<Bars>,
}

impl Finding {
    /// Whether all holds, and something was checked.
    pub fn is_good(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|(_, good)| *good)
    }

    /// Notes a number.
    pub fn measured(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.measured.push((name.into(), value.into()));
    }

    /// Notes whether something holds.
    pub fn require(&mut self, what: impl Into<String>, good: bool) {
        self.checks.push((what.into(), good));
    }

    /// Shows something.
    pub fn evidence(&mut self, title: impl Into<String>, text: impl Into<String>) {
        self.evidence.push((title.into(), text.into()));
    }

    /// Asks the database, shows question and answer, and returns the rows as JSON.
    pub async fn query(&mut self, bed: &Bed, query: &str) -> Result<Vec<serde_json::Value>> {
        let rows: Vec<(String,)> = bed.rows(&format!("SELECT row_to_json(q)::text FROM ({query}) q")).await?;
        let lines: Vec<&str> = rows.iter().map(|(row,)| row.as_str()).collect();
        self.evidence(query, lines.join("\n"));
        Ok(lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?)
    }
}
