//! Prometheus and its tool, of Debian's packages in the root. They need nothing else of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::process::Process;
use super::{free_port, install};
use crate::wait::until_async;
use crate::worker::Pages;

const PATIENCE: Duration = Duration::from_secs(20);

/// A program of theirs, installed if it is not there yet.
fn program(name: &str) -> Result<PathBuf> {
    let root = install::root()?;
    let program = root.join("usr/bin").join(name);
    if !program.exists() {
        eprintln!("Installing Prometheus into {}", root.display());
        install::packages(Some(&root), &["prometheus"])?;
    }
    Ok(program)
}

/// promtool, which tests rules.
pub fn promtool() -> Result<Command> {
    Ok(Command::new(program("promtool")?))
}

/// A Prometheus on loopback.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    pages: Pages,
}

impl Prometheus {
    /// Starts it with this configuration; its files lie in the folder.
    pub async fn start(folder: &Path, configuration: &str) -> Result<Self> {
        let file = folder.join("prometheus.yaml");
        std::fs::write(&file, configuration)?;
        let port = free_port()?;
        let arguments = [
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", folder.join("prometheus").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let program = program("prometheus")?.display().to_string();
        let log = folder.join("prometheus.log");
        let process = Process::start("prometheus", None, &program, &arguments, &log)?;
        let prometheus = Self { process, pages: Pages::at(port) };
        let ready = until_async("Prometheus is ready", PATIENCE, || async {
            prometheus.pages.get("/-/ready").await.is_ok_and(|(code, _)| code == 200)
        });
        ready.await.with_context(|| prometheus.tail())?;
        Ok(prometheus)
    }

    async fn data(&self, path: &str) -> Result<Value> {
        let (code, body) = self.pages.get(path).await?;
        ensure!(code == 200, "{path}: {body}");
        Ok(serde_json::from_str::<Value>(&body)?["data"].take())
    }

    /// The series that an expression gives now: labels and value.
    pub async fn query(&self, expression: &str) -> Result<Vec<(Value, f64)>> {
        let query =
            url::form_urlencoded::Serializer::new(String::new()).append_pair("query", expression).finish();
        let result = self.data(&format!("/api/v1/query?{query}")).await?["result"].take();
        let series = result.as_array().cloned().unwrap_or_default();
        let parts = |mut series: Value| {
            let value = series["value"][1].as_str().context("a value")?.parse()?;
            Ok((series["metric"].take(), value))
        };
        series.into_iter().map(parts).collect()
    }

    /// Names of all metrics that it has.
    pub async fn names(&self) -> Result<Vec<String>> {
        Ok(serde_json::from_value(self.data("/api/v1/label/__name__/values").await?)?)
    }

    /// Waits until an alert fires, or until it does not any more.
    pub async fn alert(&self, name: &str, fires: bool, patience: Duration) -> Result<()> {
        let expression = format!("ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}}");
        let what = format!("{name} {}", if fires { "fires" } else { "is silent" });
        let waited = until_async(&what, patience, || async {
            tokio::time::sleep(Duration::from_millis(250)).await;
            self.query(&expression).await.is_ok_and(|found| found.is_empty() != fires)
        });
        waited.await.with_context(|| self.tail())
    }

    fn tail(&self) -> String {
        self.process.tail(20)
    }
}
