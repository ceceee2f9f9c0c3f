//! A folder of control groups for each node, so that none meets the other's pods.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::until_blocking;

const MOUNT: &str = "/sys/fs/cgroup";
/// All folders of nodes begin with this.
const PREFIX: &str = "penstock-";
const PATIENCE: Duration = Duration::from_secs(30);
/// What the kubelet asks for.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// Version 2 has one hierarchy with all controllers, version 1 one for each.
fn is_version_2() -> bool {
    Path::new(MOUNT).join("cgroup.controllers").exists()
}

fn hierarchies() -> Vec<PathBuf> {
    if is_version_2() {
        return vec![PathBuf::from(MOUNT)];
    }
    let folders = fs::read_dir(MOUNT).into_iter().flatten().flatten();
    folders
        .filter(|folder| folder.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|folder| folder.path())
        .filter(|folder| folder.join("cgroup.procs").exists())
        .collect()
}

/// Controllers that are not there.
pub fn missing() -> Vec<&'static str> {
    let there = if is_version_2() {
        fs::read_to_string(Path::new(MOUNT).join("cgroup.controllers")).unwrap_or_default()
    } else {
        let names =
            hierarchies().into_iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        names.collect::<Vec<_>>().join(" ").replace(',', " ")
    };
    CONTROLLERS.into_iter().filter(|name| !there.split_whitespace().any(|word| word == *name)).collect()
}

/// Makes the folder of a node in each hierarchy. Returns what the kubelet calls it.
pub fn make(node: &str) -> Result<String> {
    let name = format!("{PREFIX}{node}");
    for hierarchy in hierarchies() {
        let folder = hierarchy.join(&name);
        if is_version_2() {
            fs::write(hierarchy.join("cgroup.subtree_control"), "+cpu +cpuset +io +memory +pids")
                .context("/sys/fs/cgroup/cgroup.subtree_control")?;
        }
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        // Version 1: nothing can enter a cpuset that has none.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if !is_version_2() && hierarchy.join(file).exists() {
                fs::write(folder.join(file), fs::read(hierarchy.join(file))?)
                    .with_context(|| folder.join(file).display().to_string())?;
            }
        }
    }
    Ok(format!("/{name}"))
}

/// The folders of all nodes that are there.
pub fn left() -> Vec<PathBuf> {
    let inside = hierarchies().into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    inside
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)))
        .map(|entry| entry.path())
        .collect()
}

/// Removes the folders of all nodes. The kernel lets go of processes a little after they ended.
pub fn remove() -> Result<()> {
    until_blocking("the nodes' control groups are empty", PATIENCE, || {
        left().iter().all(|folder| remove_tree(folder).is_ok())
    })
}

/// Removes what is in a killed node's folders: a power cut would leave nothing there, and the kubelet
/// waits three seconds for each pod that it finds again.
pub fn empty(node: &str) -> Result<()> {
    let name = format!("{PREFIX}{node}");
    until_blocking("the node's control groups are empty", PATIENCE, || {
        left().iter().filter(|folder| folder.ends_with(&name)).all(|folder| remove_inside(folder).is_ok())
    })
}

/// Files in a control group cannot be removed; folders go from the inside out.
fn remove_tree(folder: &Path) -> io::Result<()> {
    remove_inside(folder)?;
    fs::remove_dir(folder)
}

fn remove_inside(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}
