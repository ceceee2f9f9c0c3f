//! What the operator asked of the API server, by the server's own audit log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

/// The log, read from where it was read last.
#[derive(Debug)]
pub struct Calls {
    log: BufReader<File>,
}

/// Calls by verb and resource.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counted(BTreeMap<String, f64>);

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
        *self.0.entry(format!("{verb} {resource}{separator}{part}")).or_default() += 1.0;
    }

    /// All calls.
    pub fn all(&self) -> f64 {
        self.0.values().sum()
    }

    /// Calls that write.
    pub fn writes(&self) -> f64 {
        let writes = ["create ", "update ", "patch ", "delete "];
        let of = |name: &str| writes.iter().any(|verb| name.starts_with(verb));
        self.0.iter().filter(|(name, _)| of(name)).map(|(_, count)| count).sum()
    }

    /// For each of so many.
    pub fn per(&self, count: u32) -> Self {
        Self(self.0.iter().map(|(name, calls)| (name.clone(), calls / f64::from(count))).collect())
    }
}
