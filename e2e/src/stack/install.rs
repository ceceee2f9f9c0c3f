//! A Debian root with Mosquitto, PostgreSQL 17 and TimescaleDB, in a folder of the project.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::process::output;

/// The Debian release, and the root's folder.
pub const SUITE: &str = "trixie";
const PACKAGES: &str = "ca-certificates,postgresql-17,postgresql-17-timescaledb,mosquitto";
const PROGRAMS: [&str; 3] =
    ["usr/lib/postgresql/17/bin/postgres", "usr/lib/postgresql/17/lib/timescaledb.so", "usr/sbin/mosquitto"];

/// The root, installed if it is not there yet.
pub fn root() -> Result<PathBuf> {
    let root = super::folder().join(SUITE);
    let _lock = lock("install.lock")?;
    if !PROGRAMS.iter().all(|program| root.join(program).exists()) {
        install(&root)?;
    }
    Ok(root)
}

/// Held until it is dropped; others wait.
fn lock(name: &str) -> Result<fs::File> {
    fs::create_dir_all(super::folder())?;
    let lock = fs::File::create(super::folder().join(name))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(lock)
}

/// What this machine lacks for a stack of its own; empty if nothing.
pub fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("root (for debootstrap and chroot): run as root, or in a container as root".to_owned());
    }
    if !Path::new("/etc/debian_version").exists() {
        missing.push("Debian or a derivative (for debootstrap)".to_owned());
    }
    missing
}

fn install(root: &Path) -> Result<()> {
    let missing = missing();
    ensure!(
        missing.is_empty(),
        "this machine cannot start the local stack. Missing:\n  - {}\nSet DATABASE_URL (a superuser of a PostgreSQL server) and MQTT_URL to use parts of your own.",
        missing.join("\n  - ")
    );
    eprintln!(
        "Installing Debian {SUITE} with PostgreSQL 17, TimescaleDB and Mosquitto (about 500 MB) into {}",
        root.display()
    );
    if Command::new("debootstrap").arg("--version").output().is_err() {
        eprintln!("Installing the Debian package debootstrap on this machine");
        packages(None, &["debootstrap"])?;
    }
    let fresh = root.with_extension("partial");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    let started = Instant::now();
    let mut bootstrap = Command::new("debootstrap");
    bootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE]).arg(&fresh);
    bootstrap.args(mirror());
    let mut child =
        bootstrap.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().context("debootstrap")?;
    let output = child.stdout.take().context("debootstrap's output")?;
    let mut lines = 0;
    for line in BufReader::new(output).lines() {
        lines += 1;
        if lines % 40 == 0 {
            eprintln!("  {:>3.0} s  {}", started.elapsed().as_secs_f64(), line?);
        }
    }
    ensure!(
        child.wait()?.success(),
        "debootstrap failed; see {}/debootstrap/debootstrap.log",
        fresh.display()
    );
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    fs::rename(&fresh, root)?;
    eprintln!("Installed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Installs Debian packages inside a root, or on this machine.
pub fn packages(root: Option<&Path>, names: &[&str]) -> Result<()> {
    // apt does not wait for another of itself.
    let _lock = lock("apt.lock")?;
    let install = [&["install", "-y", "--no-install-recommends"], names].concat();
    if apt_get(root, &install).is_err() {
        // What it knows of the mirror may be old, or nothing yet.
        apt_get(root, &["update"])?;
        apt_get(root, &install)?;
    }
    Ok(())
}

fn apt_get(root: Option<&Path>, arguments: &[&str]) -> Result<()> {
    let mut command = match root {
        Some(root) => {
            let mut command = Command::new("chroot");
            command.arg(root).arg("apt-get");
            command
        }
        None => Command::new("apt-get"),
    };
    output(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}

/// The Debian mirror that this machine uses itself, if it can be told.
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir("/etc/apt/sources.list.d").ok()?.flatten().map(|entry| entry.path()));
    let words =
        files.into_iter().filter_map(|file| fs::read_to_string(file).ok()).collect::<Vec<_>>().join("\n");
    words
        .split_whitespace()
        .find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}
