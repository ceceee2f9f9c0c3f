//! A PostgreSQL server with TimescaleDB.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use sqlx::{Connection, Executor, PgConnection};

use super::certificates::Authority;
use super::process::{Process, run_in};
use crate::wait::until_async;

const BIN: &str = "/usr/lib/postgresql/17/bin";

/// The library that makes a server TimescaleDB.
pub const TIMESCALEDB: &str = "timescaledb";

const SETTINGS: [&str; 12] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "timescaledb.telemetry_level=off",
    "dynamic_shared_memory_type=mmap",
    "max_connections=200",
    "max_worker_processes=40",
    "shared_buffers=512MB",
    "max_wal_size=8GB",
    "checkpoint_timeout=15min",
    "log_min_messages=warning",
    "log_checkpoints=off",
    "wal_recycle=on",
];

/// A PostgreSQL server on a port of its own.
#[derive(Debug)]
pub struct Postgres {
    root: PathBuf,
    folder: String,
    /// Its port on loopback.
    pub port: u16,
    setup: Setup,
    process: Process,
}

/// How a server is started.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// `shared_preload_libraries`.
    pub preload: &'static str,
    /// It ends with this process.
    pub bound: bool,
}

/// A database, and who may use it.
#[derive(Debug, Clone)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// As the owner of the schema.
    pub owner_url: String,
    /// As a worker.
    pub worker_url: String,
    /// As a superuser.
    pub admin_url: String,
}

impl Database {
    /// Host and port of the server.
    pub fn address(&self) -> Result<String> {
        let url = url::Url::parse(&self.admin_url)?;
        Ok(format!("{}:{}", url.host_str().context("a host")?, url.port().unwrap_or(5432)))
    }

    /// As somebody else.
    pub fn url_of(&self, user: &str, password: &str) -> Result<String> {
        let mut url = url::Url::parse(&self.admin_url)?;
        url.set_username(user).ok().context("user name")?;
        url.set_password(Some(password)).ok().context("password")?;
        Ok(url.to_string())
    }
}

impl Postgres {
    /// Starts a server on its data directory, which is made if it is not there.
    pub async fn start(root: PathBuf, folder: &str, port: u16, setup: Setup) -> Result<Self> {
        run_in(&root, &["install", "-d", "-o", "postgres", "-g", "postgres", "-m", "700", folder])?;
        let data = format!("{folder}/data");
        if !root.join(data.trim_start_matches('/')).exists() {
            let user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"];
            let initdb = format!("{BIN}/initdb");
            let make = [&initdb, "-D", &data, "--no-sync", "--auth=trust", "--locale=C.UTF-8", "-E", "UTF8"];
            run_in(&root, &[&user[..], &make[..]].concat())?;
        }
        let process = launch(&root, folder, port, setup)?;
        let server = Self { root, folder: folder.to_owned(), port, setup, process };
        server.wait().await?;
        Ok(server)
    }

    async fn wait(&self) -> Result<()> {
        let url = self.admin_url("postgres");
        until_async("PostgreSQL answers", Duration::from_secs(60), || async {
            match PgConnection::connect(&url).await {
                Ok(connection) => connection.close().await.is_ok(),
                Err(_) => false,
            }
        })
        .await
    }

    /// As a superuser.
    pub fn admin_url(&self, database: &str) -> String {
        format!("postgres://postgres:postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Lets it outlive this process.
    pub fn leave_running(self) {
        self.process.leave_running();
    }

    /// Stops it fast: open transactions are rolled back.
    pub fn stop(&mut self) -> Result<()> {
        self.process.end(Signal::INT, Duration::from_secs(60)).map(drop)
    }

    /// Starts it again.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = launch(&self.root, &self.folder, self.port, self.setup)?;
        self.wait().await
    }

    /// Has it speak TLS with a certificate of this authority, and know clients by certificates of it.
    pub fn certify(&self, authority: &Authority) -> Result<()> {
        let own = authority.sign("localhost")?;
        self.put("root.crt", &authority.pem())?;
        self.put("server.crt", &own.certificate)?;
        self.put("server.key", &own.key)?;
        let lines = "ssl = on\nssl_ca_file = 'root.crt'\n";
        self.put("postgresql.auto.conf", lines)?;
        self.process.signal(Signal::HUP);
        Ok(())
    }

    /// How this user must prove who it is: a line of pg_hba.conf without the addresses. Others are trusted.
    pub fn require(&self, connection: &str, user: &str, method: &str) -> Result<()> {
        let rest = if connection == "hostssl" {
            format!("hostnossl all {user} 127.0.0.1/32 reject\n")
        } else {
            String::new()
        };
        let rules =
            format!("{connection} all {user} 127.0.0.1/32 {method}\n{rest}host all all 127.0.0.1/32 trust\n");
        self.put("pg_hba.conf", &rules)?;
        self.process.signal(Signal::HUP);
        Ok(())
    }

    fn put(&self, file: &str, text: &str) -> Result<()> {
        let inside = format!("{}/data/{file}", self.folder);
        fs::write(self.root.join(inside.trim_start_matches('/')), text)?;
        run_in(&self.root, &["chmod", "600", &inside])?;
        run_in(&self.root, &["chown", "postgres:postgres", &inside]).map(drop)
    }

    /// A folder for a tablespace, on a file system of its own of so many bytes.
    pub fn small_disk(&self, bytes: u64) -> Result<SmallDisk> {
        let inside = format!("{}/small", self.folder);
        run_in(&self.root, &["install", "-d", "-o", "postgres", "-g", "postgres", &inside])?;
        let path = self.root.join(inside.trim_start_matches('/'));
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0777"), "tmpfs"])
            .arg(&path)
            .status()?;
        anyhow::ensure!(mounted.success(), "mounting a small file system failed");
        let disk = SmallDisk { inside, path };
        run_in(&self.root, &["chown", "postgres:postgres", &disk.inside])?;
        Ok(disk)
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        self.process.tail(20)
    }
}

/// A small file system, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    /// Its path for the server.
    pub inside: String,
    path: PathBuf,
}

impl SmallDisk {
    /// Changes its size.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        let resized =
            Command::new("mount").args(["-o", &format!("remount,size={bytes}")]).arg(&self.path).status()?;
        anyhow::ensure!(resized.success(), "resizing a small file system failed");
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn launch(root: &std::path::Path, folder: &str, port: u16, setup: Setup) -> Result<Process> {
    let mut arguments = vec!["-D".to_owned(), format!("{folder}/data"), "-p".to_owned(), port.to_string()];
    let preload = format!("shared_preload_libraries={}", setup.preload);
    for setting in SETTINGS.into_iter().chain([&*preload]) {
        // The extension's settings are no settings without it.
        if !setting.starts_with("timescaledb.") || setup.preload == TIMESCALEDB {
            arguments.extend(["-c".to_owned(), setting.to_owned()]);
        }
    }
    let log = root.join(folder.trim_start_matches('/')).join("postgres.log");
    Process::start_with(
        "postgres",
        Some((root, "postgres")),
        &format!("{BIN}/postgres"),
        &arguments,
        &log,
        setup.bound,
    )
}

/// Makes a database with an owner and a worker's login of its own.
pub async fn create_database(admin_url: &str, name: &str) -> Result<Database> {
    let mut admin = PgConnection::connect(admin_url).await.context("connecting as a superuser")?;
    // Two databases may be made at once.
    admin.execute("SELECT pg_advisory_lock(7)").await?;
    for group in ["penstock_worker", "penstock_reader"] {
        admin
            .execute(format!("DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{group}') THEN CREATE ROLE {group}; END IF; END $$").as_str())
            .await?;
    }
    for statement in [
        format!("CREATE ROLE {name}_owner LOGIN PASSWORD 'owner-secret'"),
        format!("CREATE ROLE {name}_worker LOGIN PASSWORD 'worker-secret' IN ROLE penstock_worker"),
        format!("CREATE DATABASE {name} OWNER {name}_owner"),
    ] {
        admin.execute(statement.as_str()).await?;
    }
    admin.close().await?;
    database_urls(admin_url, name)
}

/// Who may use the database that was made under this name.
pub fn database_urls(admin_url: &str, name: &str) -> Result<Database> {
    let mut base = url::Url::parse(admin_url)?;
    base.set_path(name);
    let superuser = Database {
        name: name.to_owned(),
        owner_url: String::new(),
        worker_url: String::new(),
        admin_url: base.to_string(),
    };
    Ok(Database {
        owner_url: superuser.url_of(&format!("{name}_owner"), "owner-secret")?,
        worker_url: superuser.url_of(&format!("{name}_worker"), "worker-secret")?,
        ..superuser
    })
}
