//! A worker under test: the real binary, and what its pages say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stack::process::Process;
use crate::wait::until_async;

/// How to start a worker.
#[derive(Debug, Clone)]
pub struct Start {
    /// The manifest.
    pub manifest: PathBuf,
    /// The folder of secrets.
    pub secrets: PathBuf,
    /// Who it is.
    pub instance: String,
    /// Where it logs.
    pub log: PathBuf,
    /// More arguments.
    pub more: Vec<String>,
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    /// Its process.
    pub process: Process,
    /// Its pages.
    pub pages: Pages,
}

/// Where a worker answers; it can be asked by others than its owner.
#[derive(Debug, Clone, Copy)]
pub struct Pages {
    port: u16,
}

/// Metrics by name, or by name and label values: `ingest_errors_total/conflict`.
#[derive(Debug, Clone, Default)]
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    /// A metric's value; 0 if it is not there.
    pub fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// From Prometheus' text format.
    pub fn parse(text: &str) -> Result<Self> {
        let mut metrics = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let key = match name.split_once('{') {
                Some((name, labels)) => {
                    let values: Vec<&str> = labels.split('"').skip(1).step_by(2).collect();
                    format!("{name}/{}", values.join("/"))
                }
                None => name.to_owned(),
            };
            metrics.insert(key.replace("+Inf", "inf"), value.parse()?);
        }
        Ok(Self(metrics))
    }

    /// The sum of all values of a labelled metric.
    pub fn sum(&self, name: &str) -> f64 {
        let prefix = format!("{name}/");
        self.0.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, value)| value).sum()
    }

    /// A quantile of a histogram, interpolated within its bucket. Labels but for the bound are in the name.
    pub fn quantile(&self, name: &str, q: f64) -> f64 {
        let buckets = self.cumulative(name);
        let wanted = q * buckets.last().map_or(0.0, |(_, count)| *count);
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= wanted && count > below {
                return if bound.is_finite() {
                    low + (bound - low) * (wanted - below) / (count - below)
                } else {
                    low
                };
            }
            (low, below) = (bound, count);
        }
        low
    }

    /// The buckets of a histogram: their bounds, and the share of what was observed that fell into each.
    pub fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let mut buckets = self.cumulative(name);
        let all = buckets.last().map_or(0.0, |(_, count)| *count).max(1.0);
        let mut below = 0.0;
        for (_, count) in &mut buckets {
            (*count, below) = ((*count - below) / all, *count);
        }
        buckets
    }

    /// Bounds of a histogram, and how much was observed up to each.
    fn cumulative(&self, name: &str) -> Vec<(f64, f64)> {
        let prefix = match name.split_once('/') {
            Some((name, labels)) => format!("{name}_bucket/{labels}/"),
            None => format!("{name}_bucket/"),
        };
        let bound = |key: &str| key.strip_prefix(&prefix)?.parse::<f64>().ok();
        let mut buckets: Vec<(f64, f64)> =
            self.0.iter().filter_map(|(key, count)| Some((bound(key)?, *count))).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }

    /// What changed since.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(self.0.iter().map(|(key, value)| (key.clone(), value - earlier.get(key))).collect())
    }
}

/// The worker's binary.
pub fn binary() -> PathBuf {
    crate::stack::project().join("target/release/penstock-worker")
}

impl Pages {
    /// Of a process that listens at this port of the loopback.
    pub fn at(port: u16) -> Self {
        Self { port }
    }

    /// The port.
    pub fn port(self) -> u16 {
        self.port
    }

    /// A page's code and body.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
            let code = head.split(' ').nth(1).context("a status code")?.parse()?;
            Ok((code, body.to_owned()))
        };
        tokio::time::timeout(Duration::from_secs(5), exchange).await.with_context(|| format!("GET {path}"))?
    }

    /// `/metrics`.
    pub async fn metrics(&self) -> Result<Metrics> {
        let (_, text) = self.get("/metrics").await?;
        Metrics::parse(&text)
    }
}

impl Worker {
    /// Starts the binary.
    pub fn start(start: &Start) -> Result<Self> {
        let port = crate::stack::free_port()?;
        let mut arguments = vec!["run".to_owned(), "--http".to_owned(), format!("127.0.0.1:{port}")];
        arguments.extend(["--instance".to_owned(), start.instance.clone()]);
        arguments.extend(files(&start.manifest, &start.secrets));
        arguments.extend(start.more.clone());
        let program = binary();
        let process = Process::start("worker", None, &program.to_string_lossy(), &arguments, &start.log)?;
        Ok(Self { process, pages: Pages { port } })
    }

    /// `/metrics`.
    pub async fn metrics(&self) -> Result<Metrics> {
        self.pages.metrics().await
    }

    async fn get(&self, path: &str) -> Result<(u16, String)> {
        self.pages.get(path).await
    }

    /// `/readyz`: whether it is ready, and why not.
    pub async fn readiness(&self) -> Result<(bool, Value)> {
        let (code, body) = self.get("/readyz").await?;
        Ok((code == 200, serde_json::from_str(&body)?))
    }

    /// `/status`.
    pub async fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.get("/status").await?.1)?)
    }

    /// Waits until the worker is ready.
    pub async fn ready(&self) -> Result<()> {
        self.readiness_is("the worker is ready", |ready, _| ready).await.map(drop)
    }

    /// Waits until the worker is not ready and gives these words among its reasons.
    pub async fn not_ready(&self, words: &str) -> Result<Value> {
        let what = format!("the worker is not ready: {words}");
        self.readiness_is(&what, |ready, why| !ready && why["reasons"].to_string().contains(words)).await
    }

    async fn readiness_is(&self, what: &str, holds: impl Fn(bool, &Value) -> bool) -> Result<Value> {
        let holds = &holds;
        let found = until_async(what, Duration::from_secs(40), || async {
            matches!(self.readiness().await, Ok((ready, why)) if holds(ready, &why))
        })
        .await;
        let last = self.readiness().await.map(|(_, why)| why).unwrap_or_default();
        found.with_context(|| last.to_string())?;
        Ok(last)
    }

    /// Waits until a metric is as wanted.
    pub async fn metric(
        &self,
        what: &str,
        patience: Duration,
        holds: impl Fn(&Metrics) -> bool,
    ) -> Result<Metrics> {
        let holds = &holds;
        until_async(what, patience, || async {
            matches!(self.metrics().await, Ok(metrics) if holds(&metrics))
        })
        .await?;
        self.metrics().await
    }

    /// Waits until nothing is in hand and nothing new came for a moment.
    pub async fn idle(&self) -> Result<Metrics> {
        let mut last = (f64::NAN, std::time::Instant::now());
        let deadline = std::time::Instant::now() + Duration::from_secs(90);
        loop {
            let metrics = self.metrics().await.unwrap_or_default();
            let received = metrics.get("ingest_received_total");
            if received.to_bits() != last.0.to_bits() || metrics.get("ingest_in_flight") > 0.0 {
                last = (received, std::time::Instant::now());
            } else if last.1.elapsed() > Duration::from_millis(700)
                && metrics.get("ingest_mqtt_connected") > 0.0
            {
                return Ok(metrics);
            }
            ensure!(std::time::Instant::now() < deadline, "the worker did not become idle");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to stop, and waits. It must end by itself, and well.
    pub async fn stop(self, patience: Duration) -> Result<()> {
        self.ask_to_stop();
        self.ended(patience).await
    }

    /// Asks it to stop.
    pub fn ask_to_stop(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits until it has ended by itself, and well.
    pub async fn ended(mut self, patience: Duration) -> Result<()> {
        let ended = tokio::task::spawn_blocking(move || self.process.wait(patience)).await??;
        ensure!(ended, "the worker ended with a failure");
        Ok(())
    }

    /// `/livez`.
    pub async fn is_live(&self) -> Result<bool> {
        Ok(self.get("/livez").await?.0 == 200)
    }

    /// Names of all metrics that it exposes.
    pub async fn families(&self) -> Result<Vec<String>> {
        let (_, text) = self.get("/metrics").await?;
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Waits until its log says so.
    pub async fn logs(&self, words: &str, patience: Duration) -> Result<()> {
        until_async(&format!("the log says: {words}"), patience, || async {
            self.process.tail(50).contains(words)
        })
        .await
    }

    /// Largest resident memory so far, in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        self.memory_of("VmHWM:")
    }

    /// Resident memory now, in bytes.
    pub fn memory(&self) -> Result<u64> {
        self.memory_of("VmRSS:")
    }

    fn memory_of(&self, field: &str) -> Result<u64> {
        memory_of(self.process.id(), field)
    }
}

/// Bytes of memory of a process, by the field of its `status` in /proc.
pub fn memory_of(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field)).context("a line of /proc/PID/status")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib * 1024)
}

/// Seconds of processor time of a process and those of its children that ended.
pub fn cpu_seconds(pid: u32) -> f64 {
    cpu_seconds_in(&format!("/proc/{pid}/stat"))
}

/// The same of a process or a thread, as its file `stat` tells.
pub fn cpu_seconds_in(file: &str) -> f64 {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let stat = std::fs::read_to_string(file).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields
        .get(11..15)
        .map_or(0.0, |times| times.iter().filter_map(|time| time.parse::<f64>().ok()).sum::<f64>() / ticks)
}

/// The same of a process and all that descend from it now.
pub fn cpu_seconds_of_tree(pid: u32) -> f64 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    cpu_seconds(pid)
        + children.split_whitespace().filter_map(|child| child.parse().ok()).map(cpu_seconds).sum::<f64>()
}

fn files(manifest: &Path, secrets: &Path) -> [String; 4] {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    ["-f".to_owned(), text(manifest), "--secrets".to_owned(), text(secrets)]
}

/// Runs another command of the binary to its end. Returns whether it succeeded, and what it said.
pub async fn command(arguments: &[&str], manifest: &Path, secrets: &Path) -> Result<(bool, String)> {
    let output = tokio::process::Command::new(binary())
        .args(arguments)
        .args(files(manifest, secrets))
        .kill_on_drop(true)
        .output()
        .await?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), said))
}
