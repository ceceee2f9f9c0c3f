//! The local stack of real parts, and everything that runs on it.

// Counters come as floats and are whole numbers.
#![allow(clippy::float_cmp)]

mod adapter;
mod bed;
mod bench;
mod cluster;
mod collector;
mod compare;
mod demo;
mod faults;
mod fleet;
mod listener;
mod local;
mod operator;
mod plant;
mod proxy;
mod publisher;
mod record;
mod report;
mod sampler;
mod scenarios;
mod simulate;
mod source;
mod stack;
mod standin;
mod suite;
mod validate;
mod wait;
mod worker;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::stack::mosquitto::Release;

/// Real Mosquitto, PostgreSQL and TimescaleDB on this machine, and what runs on them.
///
/// The parts are Debian packages in a folder under target/. DATABASE_URL (a superuser of a
/// PostgreSQL server) and MQTT_URL name parts of your own instead.
#[derive(Parser)]
#[command(name = "cargo e2e")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a broker and a database, and say how to run a worker on them.
    Up,
    /// Stop them; `--wipe` also removes what they stored.
    Down {
        /// Remove the broker's and the database's data.
        #[arg(long)]
        wipe: bool,
    },
    /// What is running.
    Status,
    /// A psql on the database that `up` started, as a superuser.
    Psql {
        /// Arguments for psql.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// A Kubernetes cluster of real parts. KUBECONFIG names one of your own instead.
    Cluster {
        #[command(subcommand)]
        action: cluster::command::Action,
    },
    /// A load, three faults, a live view, a comparison row by row, and a report.
    Demo,
    /// Run all tests, or those whose name holds the filter.
    Test {
        /// Part of a scenario's name.
        filter: Option<String>,
    },
    /// Validate the worker in twelve steps, each with what is expected and measured, and write a report.
    Validate {
        /// These steps alone: 1 to 11.
        steps: Vec<usize>,
    },
    /// One page with plots of the runs that the tests kept: rate, delay and shards while all changes.
    Report,
    /// Play the autoscaler through load, slow pods and bottlenecks, and write a page with plots.
    Simulate,
    /// Measure the worker against what broker and database can do at most; or the operator.
    Bench {
        /// One part alone: points10, points1, copy, bare, latency, window, series, storm or memory; or `operator`,
        /// with up to 1,000 pipelines on a real API server.
        part: Option<String>,
        /// Which Mosquitto.
        #[arg(long, default_value = "newest")]
        mosquitto: Release,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Up => runtime()?.block_on(local::up()),
        Command::Down { wipe } => local::down(wipe),
        Command::Status => Ok(local::status()),
        Command::Psql { arguments } => local::psql(&arguments),
        Command::Cluster { action } => cluster::command::run(action),
        Command::Demo => demo::run(),
        Command::Test { filter } => suite::run(filter.as_deref()),
        Command::Validate { steps } => validate::run(&steps),
        Command::Report => record::report(),
        Command::Simulate => simulate::run(),
        Command::Bench { part, mosquitto } => runtime()?.block_on(bench::run(part.as_deref(), mosquitto)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Runtime::new()?)
}
