//! Debian roots in a folder of the project: one with Mosquitto, PostgreSQL 17 and TimescaleDB, one with
//! the newest Mosquitto.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::process::output;

/// The Debian release of the stack's root, and its folder.
pub const SUITE: &str = "trixie";

/// What a root holds.
struct Contents {
    /// The Debian release, and the root's folder.
    suite: &'static str,
    packages: &'static str,
    /// There when it is complete.
    programs: &'static [&'static str],
    /// For who waits for it.
    title: &'static str,
}

const STACK: Contents = Contents {
    suite: SUITE,
    packages: "ca-certificates,postgresql-17,postgresql-17-timescaledb,mosquitto",
    programs: &[
        "usr/lib/postgresql/17/bin/postgres",
        "usr/lib/postgresql/17/lib/timescaledb.so",
        "usr/sbin/mosquitto",
    ],
    title: "PostgreSQL 17, TimescaleDB and Mosquitto (about 500 MB)",
};

/// Debian's next release. A root of its own: it would replace the other's C library.
const NEWEST_BROKER: Contents = Contents {
    suite: "forky",
    packages: "mosquitto",
    programs: &["usr/sbin/mosquitto"],
    title: "the newest Mosquitto (about 300 MB)",
};

/// The root of the stack, installed if it is not there yet.
pub fn root() -> Result<PathBuf> {
    installed(&STACK)
}

/// The root of the newest Mosquitto, likewise.
pub fn newest_broker() -> Result<PathBuf> {
    installed(&NEWEST_BROKER)
}

fn installed(contents: &Contents) -> Result<PathBuf> {
    let root = super::folder().join(contents.suite);
    let _lock = lock("install.lock")?;
    if !contents.programs.iter().all(|program| root.join(program).exists()) {
        install(&root, contents)?;
    }
    Ok(root)
}

/// Removes what the servers of a run left in the roots.
pub fn clean(run: &str) {
    for contents in [STACK, NEWEST_BROKER] {
        let _ = fs::remove_dir_all(super::folder().join(contents.suite).join("srv").join(run));
    }
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

fn install(root: &Path, contents: &Contents) -> Result<()> {
    let Contents { suite, packages: names, title, .. } = contents;
    let missing = missing();
    ensure!(
        missing.is_empty(),
        "this machine cannot start the local stack. Missing:\n  - {}\nSet DATABASE_URL (a superuser of a PostgreSQL server) and MQTT_URL to use parts of your own.",
        missing.join("\n  - ")
    );
    eprintln!("Installing Debian {suite} with {title} into {}", root.display());
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
    bootstrap.args(["--variant=minbase", &format!("--include={names}"), suite]).arg(&fresh);
    // An older debootstrap has no script by the name of the next release; sid's is that of all since buster.
    bootstrap.args([mirror().as_str(), "/usr/share/debootstrap/scripts/sid"]);
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

/// The Debian mirror that this machine uses itself, or Debian's own if it cannot be told.
fn mirror() -> String {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let folder = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    files.extend(folder.flatten().map(|entry| entry.path()));
    let words =
        files.into_iter().filter_map(|file| fs::read_to_string(file).ok()).collect::<Vec<_>>().join("\n");
    words
        .split_whitespace()
        .find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
        .map_or_else(|| "http://deb.debian.org/debian".to_owned(), str::to_owned)
}
