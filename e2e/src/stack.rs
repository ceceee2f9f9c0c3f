//! Real parts on this machine: a Debian root with a broker and a database, and their processes.

pub mod certificates;
pub mod install;
pub mod mosquitto;
pub mod postgres;
pub mod process;
pub mod prometheus;

use std::path::{Path, PathBuf};

/// The project's folder.
pub fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Where everything that the stack needs lies.
pub fn folder() -> PathBuf {
    project().join("target/stack")
}

/// A TCP port on loopback that is free now.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
