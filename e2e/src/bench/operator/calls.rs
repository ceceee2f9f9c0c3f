//! What the operator asked of the API server, by the server's own audit log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

/// The log, read from where it was read last.
#[derive(Debug)]
pub struct Calls {
    log: BufReader<File>,
}

/// Calls by verb and resource.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counted {
    calls: BTreeMap<String, f64>,
    /// How long the server took for all that write.
    pub writing_seconds: f64,
}

const WRITES: [&str; 4] = ["create", "update", "patch", "delete"];

impl Calls {
    /// From the beginning.
    pub fn new(log: &Path) -> Result<Self> {
        let log = File::open(log).with_context(|| log.display().to_string())?;
        Ok(Self { log: BufReader::new(log) })
    }

    /// What was asked since it was read last.
    pub fn read(&mut self, namespace: &str) -> Result<Counted> {
        let (mut counted, mut line) = (Counted::default(), String::new());
        let user = format!("\"username\":\"{}\"", crate::cluster::OPERATOR);
        while self.log.read_line(&mut line)? > 0 {
            if line.contains(&user) && line.contains(namespace) {
                counted.add(&serde_json::from_str(&line)?, namespace);
            }
            line.clear();
        }
        Ok(counted)
    }
}

impl Counted {
    fn add(&mut self, call: &Value, namespace: &str) {
        let object = &call["objectRef"];
        if call["stage"] != "ResponseComplete" || object["namespace"] != namespace {
            return;
        }
        let [verb, resource, part] = [&call["verb"], &object["resource"], &object["subresource"]]
            .map(|text| text.as_str().unwrap_or_default());
        let separator = if part.is_empty() { "" } else { "/" };
        *self.calls.entry(format!("{verb} {resource}{separator}{part}")).or_default() += 1.0;
        let time = |field: &str| call[field].as_str().and_then(|time| time.parse::<Timestamp>().ok());
        if let (true, Some(from), Some(to)) =
            (WRITES.contains(&verb), time("requestReceivedTimestamp"), time("stageTimestamp"))
        {
            self.writing_seconds += to.duration_since(from).as_secs_f64();
        }
    }

    /// All calls.
    pub fn all(&self) -> f64 {
        self.counted(|_| true)
    }

    /// Calls that write.
    pub fn writes(&self) -> f64 {
        self.counted(|name| name.split_once(' ').is_some_and(|(verb, _)| WRITES.contains(&verb)))
    }

    /// From 0.0, as the sum of no floats is -0.0 and would be printed so.
    fn counted(&self, of: impl Fn(&str) -> bool) -> f64 {
        self.calls.iter().filter(|(name, _)| of(name)).fold(0.0, |sum, (_, count)| sum + count)
    }

    /// For each of so many.
    pub fn per(&self, count: u32) -> Self {
        let calls = self.calls.iter().map(|(name, calls)| (name.clone(), calls / f64::from(count)));
        Self { calls: calls.collect(), writing_seconds: self.writing_seconds / f64::from(count) }
    }
}
