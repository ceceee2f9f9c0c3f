//! A broker and a database that stay until they are stopped: `up`, `down`, `status`, `psql`.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::bed::{broker_url, write_secrets};
use crate::stack::mosquitto::{Mosquitto, Setup};
use crate::stack::postgres::{self, Postgres};
use crate::stack::{self, free_port, install};
use crate::wait::until_blocking;
use crate::worker;

/// The folder of the local stack inside the Debian root.
const FOLDER: &str = "/srv/local";
const DATABASE: &str = "plant";
const PATIENCE: Duration = Duration::from_secs(60);

/// What `up` started.
#[derive(Debug, Serialize, Deserialize)]
struct Running {
    broker: Server,
    database: Server,
}

#[derive(Debug, Serialize, Deserialize)]
struct Server {
    pid: u32,
    port: u16,
}

impl Server {
    /// Whether the process is still the one that was started: ids are used again.
    fn is_alive(&self) -> bool {
        fs::read(format!("/proc/{}/cmdline", self.pid))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(FOLDER))
    }

    fn stop(&self, signal: Signal) -> Result<()> {
        if self.is_alive() {
            let pid = Pid::from_raw(self.pid.cast_signed()).context("a process id")?;
            kill_process(pid, signal)?;
            until_blocking("the process ended", PATIENCE, || !self.is_alive())?;
        }
        Ok(())
    }
}

fn state_file() -> PathBuf {
    stack::folder().join("local.json")
}

fn state() -> Option<Running> {
    serde_json::from_str(&fs::read_to_string(state_file()).ok()?).ok()
}

fn files() -> PathBuf {
    stack::folder().join("local")
}

/// The port that users expect, if nothing else has it.
fn port(usual: u16) -> Result<u16> {
    if TcpListener::bind(("127.0.0.1", usual)).is_ok() { Ok(usual) } else { free_port() }
}

/// Starts both servers and makes the schema.
pub async fn up() -> Result<bool> {
    if state().is_some_and(|running| running.broker.is_alive() && running.database.is_alive()) {
        println!("Already running.");
        return Ok(status());
    }
    down(false)?;
    crate::suite::build()?;
    let root = install::root()?;
    let fresh = !inside(&root, "postgres").join("data").exists();
    let broker = Mosquitto::start(
        root.clone(),
        &format!("{FOLDER}/mosquitto"),
        port(1883)?,
        &Setup::default(),
        false,
    )?;
    let setup = postgres::Setup { preload: postgres::TIMESCALEDB, bound: false };
    let database = Postgres::start(root.clone(), &format!("{FOLDER}/postgres"), port(5432)?, setup).await?;
    let admin = database.admin_url("postgres");
    let urls = if fresh {
        postgres::create_database(&admin, DATABASE).await?
    } else {
        postgres::database_urls(&admin, DATABASE)?
    };
    let running = Running {
        broker: Server { pid: broker.id(), port: broker.port },
        database: Server { pid: database.id(), port: database.port },
    };
    fs::write(state_file(), serde_json::to_string_pretty(&running)?)?;
    broker.leave_running();
    database.leave_running();

    let manifest = files().join("plant.yaml");
    write_secrets(&files().join("secrets"), &urls)?;
    let example = fs::read_to_string(stack::project().join("examples/worker.yaml"))?;
    fs::write(&manifest, broker_url(&example, &format!("127.0.0.1:{}", running.broker.port)))?;
    let (good, said) = worker::command(&["migrate"], &manifest, &files().join("secrets")).await?;
    ensure!(good, "migrate: {said}");
    Ok(status())
}

fn inside(root: &Path, part: &str) -> PathBuf {
    root.join(FOLDER.trim_start_matches('/')).join(part)
}

/// Stops both servers.
pub fn down(wipe: bool) -> Result<bool> {
    if let Some(running) = state() {
        // SIGINT is PostgreSQL's fast shutdown.
        running.database.stop(Signal::INT)?;
        running.broker.stop(Signal::TERM)?;
        fs::remove_file(state_file())?;
        println!("Stopped.");
    }
    if wipe {
        let data = stack::folder().join(install::SUITE).join(FOLDER.trim_start_matches('/'));
        if data.exists() {
            fs::remove_dir_all(data)?;
            println!("Removed what they stored.");
        }
    }
    Ok(true)
}

/// Says what runs and how to use it. False if something does not.
pub fn status() -> bool {
    let Some(running) = state() else {
        println!("Nothing is running. Start it with: cargo e2e up");
        return false;
    };
    let mut all = true;
    for (name, server) in [("Mosquitto", &running.broker), ("PostgreSQL with TimescaleDB", &running.database)]
    {
        all &= server.is_alive();
        let state = if server.is_alive() { "running" } else { "not running" };
        println!("{name}: {state}, 127.0.0.1:{}, process {}", server.port, server.pid);
    }
    let worker = worker::binary();
    let files = files();
    println!(
        "\nRun a worker:\n  {} run -f {}/plant.yaml --secrets {}/secrets --http 127.0.0.1:9100\n\
         Look at its rows:\n  cargo e2e psql -c 'SELECT * FROM penstock.sample LIMIT 5'\nStop:\n  cargo e2e down",
        worker.display(),
        files.display(),
        files.display()
    );
    all
}

/// psql as a superuser, on this terminal.
pub fn psql(arguments: &[String]) -> Result<bool> {
    let Some(running) = state().filter(|running| running.database.is_alive()) else {
        bail!("no database is running; start one with: cargo e2e up");
    };
    let url = format!("postgres://postgres:postgres@127.0.0.1:{}/{DATABASE}", running.database.port);
    let status = Command::new("chroot")
        .arg(stack::folder().join(install::SUITE))
        .args(["/usr/bin/psql", &url])
        .args(arguments)
        .status()?;
    Ok(status.success())
}
