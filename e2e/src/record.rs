//! What was seen of a pipeline while it changed under load, kept for `cargo e2e report`.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;

use crate::publisher::Progress;
use crate::report::{Mark, Page, Plot, Series};
use crate::stack;

const PERIOD: Duration = Duration::from_millis(500);
/// What is stored: rows, and how old the newest row of the device is that is furthest behind, in seconds.
/// Devices send all the time, so it is the longest delay of a message, and the pause between two.
const STORED: &str = "SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(newest)), 0)::float8 \
     FROM (SELECT device_id, max(ts) AS newest FROM penstock.series AS s, LATERAL \
             (SELECT ts FROM penstock.sample WHERE series_id = s.series_id AND ts > now() - interval '3 minutes' \
              ORDER BY ts DESC LIMIT 1) AS last \
           GROUP BY device_id) AS d";

/// A moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds since the start.
    pub at: f64,
    /// Messages that the broker has taken.
    pub published: u64,
    /// Age of the newest row of the device that is furthest behind, in seconds.
    pub lag: Option<f64>,
    /// Shards that are ready.
    pub ready: Option<u32>,
}

/// A run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Record {
    /// What was done.
    pub title: String,
    /// What was found.
    pub findings: Vec<(String, String)>,
    /// What was seen.
    pub moments: Vec<Moment>,
    /// What happened: from, until, what.
    pub marks: Vec<(f64, Option<f64>, String)>,
}

impl Record {
    /// The longest delay, in seconds.
    pub fn longest_lag(&self) -> f64 {
        self.moments.iter().filter_map(|moment| moment.lag).fold(0.0, f64::max)
    }

    fn rate(&self) -> Series {
        let pairs = self.moments.windows(2);
        let points = pairs.map(|pair| {
            let messages = pair[1].published.saturating_sub(pair[0].published) as f64;
            (pair[1].at, Some(messages / (pair[1].at - pair[0].at).max(1e-3)))
        });
        Series { name: "published".into(), points: points.collect() }
    }

    fn series(&self, name: &str, value: impl Fn(&Moment) -> Option<f64>) -> Vec<Series> {
        let points = self.moments.iter().map(|moment| (moment.at, value(moment))).collect();
        vec![Series { name: name.to_owned(), points }]
    }

    fn plots(&self) -> Vec<Plot> {
        let marks: Vec<Mark> = (self.marks.iter())
            .map(|(at, until, label)| Mark { at: *at, until: *until, label: label.clone() })
            .collect();
        let plot = |title, unit, series| Plot::new(title, unit, &marks, series);
        vec![
            plot("Rate", "messages/s", vec![self.rate()]),
            plot("Longest delay of a device", "s", self.series("delay", |moment| moment.lag)),
            plot("Shards", "ready", self.series("ready", |moment| moment.ready.map(f64::from))),
        ]
    }
}

/// Takes notes in the background until it is dropped.
pub struct Recorder {
    began: Instant,
    record: Arc<Mutex<Record>>,
    task: JoinHandle<()>,
}

impl Recorder {
    /// Begins. `ready` tells how many shards are ready.
    pub fn start<F, R>(title: &str, database: String, progress: Arc<Progress>, ready: F) -> Self
    where
        F: Fn() -> R + Send + 'static,
        R: Future<Output = Option<u32>> + Send,
    {
        let began = Instant::now();
        let record = Arc::new(Mutex::new(Record { title: title.to_owned(), ..Record::default() }));
        let notes = Arc::clone(&record);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(PERIOD);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut connection = None;
            loop {
                ticks.tick().await;
                // Nothing while the API server does not answer.
                let ready = tokio::time::timeout(PERIOD, ready()).await.ok().flatten();
                let moment = Moment {
                    at: began.elapsed().as_secs_f64(),
                    published: progress.acknowledged.load(Ordering::Relaxed),
                    lag: lag(&mut connection, &database).await,
                    ready,
                };
                lock(&notes).moments.push(moment);
            }
        });
        Self { began, record, task }
    }

    /// Something happens now; returns its number.
    pub fn mark(&self, label: &str) -> usize {
        let mut record = lock(&self.record);
        record.marks.push((self.began.elapsed().as_secs_f64(), None, label.to_owned()));
        record.marks.len() - 1
    }

    /// It is over.
    pub fn over(&self, mark: usize) {
        let at = self.began.elapsed().as_secs_f64();
        if let Some(mark) = lock(&self.record).marks.get_mut(mark) {
            mark.1 = Some(at);
        }
    }

    /// A finding.
    pub fn found(&self, what: &str, value: String) {
        lock(&self.record).findings.push((what.to_owned(), value));
    }

    /// What was seen so far.
    pub fn so_far(&self) -> Record {
        lock(&self.record).clone()
    }

    /// Keeps it under a name.
    pub fn keep(self, name: &str) -> Result<Record> {
        let record = self.so_far();
        let folder = folder();
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name).with_extension("json"), serde_json::to_vec(&record)?)?;
        Ok(record)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(record: &Mutex<Record>) -> std::sync::MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nothing while the database is away.
async fn lag(connection: &mut Option<PgConnection>, database: &str) -> Option<f64> {
    if connection.is_none() {
        *connection = PgConnection::connect(database).await.ok();
    }
    let asked = sqlx::query_as::<_, (i64, f64)>(STORED).fetch_one(connection.as_mut()?).await;
    let Ok((rows, lag)) = asked else {
        *connection = None;
        return None;
    };
    (rows > 0).then_some(lag)
}

fn folder() -> PathBuf {
    stack::project().join("target/report/runs")
}

/// One page of all runs that are kept.
pub fn report() -> Result<bool> {
    let mut page = Page::new("Penstock: nothing is lost while everything changes");
    let files =
        std::fs::read_dir(folder()).context("no run is kept; make some: cargo e2e test under_load")?;
    let mut paths: Vec<PathBuf> = files.filter_map(|file| Some(file.ok()?.path())).collect();
    paths.sort();
    page.text(
        "Each run publishes at QoS 1 throughout, and compares the tables with what was published, row by row, at its end. \
         A run that lost or doubled a row is not here: its scenario failed.",
    );
    for path in &paths {
        let record: Record = serde_json::from_slice(&std::fs::read(path)?)
            .with_context(|| format!("{} is of another version: remove it", path.display()))?;
        page.heading(&record.title);
        let rows: Vec<Vec<String>> =
            record.findings.iter().map(|(what, value)| vec![what.clone(), value.clone()]).collect();
        page.table(&[], &rows);
        for plot in record.plots() {
            page.plot(&plot)?;
        }
    }
    println!("{} runs: {}", paths.len(), page.write("changes.html")?.display());
    Ok(true)
}
