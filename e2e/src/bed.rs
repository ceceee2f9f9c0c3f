//! What a scenario gets: a broker and a database of its own, and workers between them.

mod shared;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use sqlx::{Connection, PgConnection};

pub use self::shared::{Needs, Stack};
use crate::cluster::Cluster;
use crate::publisher::{self, Outgoing};
use crate::stack;
use crate::stack::mosquitto::Mosquitto;
use crate::stack::postgres::{Database, Postgres};
use crate::worker::{self, Metrics, Start, Worker};

/// What a scenario gets.
#[derive(Debug)]
pub struct Bed {
    number: u32,
    /// A folder for files and logs.
    pub folder: PathBuf,
    broker: Option<Mosquitto>,
    server: Option<Postgres>,
    /// The database.
    pub database: Database,
    /// The broker's address.
    pub address: String,
    cluster: Option<Arc<Cluster>>,
    started: Vec<PathBuf>,
}

impl Bed {
    /// A number that no other bed has.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The cluster.
    pub fn cluster(&self) -> Result<Arc<Cluster>> {
        self.cluster.clone().context("the scenario did not say that it needs a cluster")
    }

    /// The broker's process.
    pub fn broker(&mut self) -> Result<&mut Mosquitto> {
        self.broker.as_mut().context("the scenario did not say that it needs the broker")
    }

    /// The database's process.
    pub fn server(&mut self) -> Result<&mut Postgres> {
        self.server.as_mut().context("the scenario did not say that it needs the server")
    }

    /// Has workers reach the database through a proxy.
    pub fn reach_database_through(&self, port: u16) -> Result<()> {
        let mut through = self.database.clone();
        let mut url = url::Url::parse(&through.worker_url)?;
        url.set_port(Some(port)).ok().context("a port")?;
        through.worker_url = url.to_string();
        write_secrets(&self.secrets(), &through)
    }

    /// The folder of secrets.
    pub fn secrets(&self) -> PathBuf {
        self.folder.join("secrets")
    }

    /// Writes a secret, as a kubelet does: readers see the old value or the new one.
    pub fn secret(&self, name: &str, key: &str, value: &str) -> Result<()> {
        let folder = self.secrets().join(name);
        std::fs::create_dir_all(&folder)?;
        let next = folder.join(format!(".{key}"));
        std::fs::write(&next, value)?;
        Ok(std::fs::rename(next, folder.join(key))?)
    }

    /// Writes the example manifest with the scenario's broker and changes of `edit`.
    pub fn manifest(&self, edit: impl FnOnce(String) -> String) -> Result<PathBuf> {
        let example = std::fs::read_to_string(stack::project().join("examples/worker.yaml"))?;
        let text = broker_url(&example, &self.address)
            .replace("clientIdPrefix: plant", &format!("clientIdPrefix: bed-{}", self.number));
        let path = self.folder.join("plant.yaml");
        std::fs::write(&path, edit(text))?;
        Ok(path)
    }

    /// The client id of shard 0.
    pub fn client_id(&self) -> String {
        self.client_id_of(0)
    }

    /// The same of any shard.
    pub fn client_id_of(&self, shard: u32) -> String {
        format!("bed-{}-{shard}", self.number)
    }

    /// Makes the schema.
    pub async fn migrate(&self) -> Result<()> {
        let manifest = self.manifest(|text| text)?;
        let (good, said) = worker::command(&["migrate"], &manifest, &self.secrets()).await?;
        ensure!(good, "migrate: {said}");
        Ok(())
    }

    /// Makes the schema and starts a worker that is ready.
    pub async fn worker(&mut self) -> Result<Worker> {
        self.worker_with(|text| text).await
    }

    /// The same with a changed manifest.
    pub async fn worker_with(&mut self, edit: impl FnOnce(String) -> String) -> Result<Worker> {
        self.migrate().await?;
        self.manifest(edit)?;
        let worker = self.start("one", &[])?;
        worker.ready().await?;
        Ok(worker)
    }

    /// Starts a worker on the manifest as it is.
    pub fn start(&mut self, instance: &str, more: &[&str]) -> Result<Worker> {
        let log = self.folder.join(format!("worker-{instance}.log"));
        if !self.started.contains(&log) {
            self.started.push(log.clone());
        }
        Worker::start(&Start {
            manifest: self.folder.join("plant.yaml"),
            secrets: self.secrets(),
            instance: instance.to_owned(),
            log,
            more: more.iter().map(|&argument| argument.to_owned()).collect(),
        })
    }

    /// Publishes messages and waits for their acknowledgements.
    pub async fn publish(&self, messages: Vec<Outgoing>) -> Result<()> {
        publisher::publish_all(&self.address, messages).await
    }

    /// Publishes one message at QoS 1.
    pub async fn publish_one(&self, topic: &str, payload: impl Into<bytes::Bytes>) -> Result<()> {
        self.publish(vec![Outgoing { topic: topic.to_owned(), payload: payload.into(), qos: 1 }]).await
    }

    /// The one value that a query gives, as a superuser.
    pub async fn sql<T>(&self, query: &str) -> Result<T>
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        let mut connection = PgConnection::connect(&self.database.admin_url).await?;
        let value = sqlx::query_scalar(query).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(value)
    }

    /// The first row that a query gives, as a superuser.
    pub async fn row<T>(&self, query: &str) -> Result<T>
    where
        T: Send + Unpin + for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
    {
        self.rows(query).await?.into_iter().next().with_context(|| format!("no row: {query}"))
    }

    /// All rows that a query gives, as a superuser.
    pub async fn rows<T>(&self, query: &str) -> Result<Vec<T>>
    where
        T: Send + Unpin + for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
    {
        let mut connection = PgConnection::connect(&self.database.admin_url).await?;
        let rows = sqlx::query_as(query).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(rows)
    }

    /// Runs statements, as a superuser.
    pub async fn execute(&self, statements: &str) -> Result<()> {
        let mut connection = PgConnection::connect(&self.database.admin_url).await?;
        sqlx::raw_sql(statements).execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }

    /// Has whoever writes samples wait until it is released or dropped; reading goes on.
    pub async fn hold_writers(&self) -> Result<Held> {
        let mut connection = PgConnection::connect(&self.database.admin_url).await?;
        sqlx::raw_sql("BEGIN; LOCK TABLE penstock.sample IN SHARE MODE").execute(&mut connection).await?;
        Ok(Held(connection))
    }

    /// All logs' ends, after a failure.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for log in &self.started {
            let lines = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = lines.lines().collect();
            let end = lines[lines.len().saturating_sub(25)..].join("\n");
            let _ = writeln!(text, "--- {}\n{end}", log.display());
        }
        if let Some(broker) = &self.broker {
            text += &broker.tail();
        }
        if let Some(server) = &self.server {
            text += &server.tail();
        }
        text
    }

    /// Fails if a log holds a secret.
    pub fn require_no_secret_in_logs(&self) -> Result<()> {
        for log in &self.started {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            ensure!(!text.contains("-secret"), "{} holds a secret", log.display());
        }
        Ok(())
    }
}

/// Writers of samples wait.
pub struct Held(PgConnection);

impl Held {
    /// They go on.
    pub async fn release(self) -> Result<()> {
        Ok(self.0.close().await?)
    }
}

/// The example manifest with another broker.
pub fn broker_url(example: &str, address: &str) -> String {
    example.replace("mqtt://127.0.0.1:1883", &format!("mqtt://{address}"))
}

/// Writes the secrets that the example manifest names.
pub fn write_secrets(folder: &Path, database: &Database) -> Result<()> {
    let folder = folder.join("timescale");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("url"), &database.worker_url)?;
    std::fs::write(folder.join("owner-url"), &database.owner_url)?;
    Ok(())
}

/// Fails unless both accounting identities hold.
pub fn require_identities(metrics: &Metrics) -> Result<()> {
    let get = |name: &str| metrics.get(name);
    let received = get("ingest_received_total");
    let accounted = get("ingest_committed_total")
        + get("ingest_abandoned_total")
        + get("ingest_dropped_qos0_total")
        + get("ingest_in_flight");
    ensure!((received - accounted).abs() < 0.5, "received {received}, accounted for {accounted}");
    let (items, outcomes) = (metrics.sum("ingest_items_total"), metrics.sum("ingest_outcomes_total"));
    ensure!((items - outcomes).abs() < 0.5, "items {items}, outcomes {outcomes}");
    Ok(())
}
