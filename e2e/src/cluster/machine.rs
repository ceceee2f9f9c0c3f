//! What a cluster needs of this machine: what is missing, and what can be installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::{cgroups, programs};
use crate::stack::{self, install};

/// Debian packages, each with a file that shows that it is there.
const PACKAGES: [(&str, &str); 6] = [
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/ptp"),
    ("iptables", "/usr/sbin/iptables"),
    ("iproute2", "/usr/sbin/ip"),
    ("binutils", "/usr/bin/strip"),
];

/// What this machine lacks that cannot be installed; empty if nothing.
pub fn missing() -> Vec<String> {
    let mut missing = install::missing();
    if missing.is_empty() && !can_make_namespaces() {
        missing.push(
            "network, mount and process namespaces (`unshare --net --mount --pid --fork true` fails): \
             a container needs --privileged"
                .to_owned(),
        );
    }
    let controllers = cgroups::missing();
    if !controllers.is_empty() {
        missing.push(format!(
            "the cgroup controllers {} under /sys/fs/cgroup, writable: a container needs --privileged",
            controllers.join(", ")
        ));
    }
    if !programs::are_built() && Command::new("go").arg("version").output().is_err() {
        missing.push(
            "Go 1.24 or newer in PATH (Kubernetes is built from its modules): https://go.dev/dl".to_owned(),
        );
    }
    let project = stack::project();
    if ["/var", "/run"].iter().any(|hidden| project.starts_with(hidden)) {
        missing.push(format!(
            "a checkout outside of /var and /run, which each node has of its own; this one is {}",
            project.display()
        ));
    }
    missing
}

fn can_make_namespaces() -> bool {
    Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "true"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Installs what is not there yet, and builds Kubernetes. Returns the Debian root with etcd.
pub fn prepare() -> Result<PathBuf> {
    let missing = missing();
    ensure!(
        missing.is_empty(),
        "this machine cannot start a Kubernetes cluster. Missing:\n  - {}\nSet KUBECONFIG to use a cluster of your own.",
        missing.join("\n  - ")
    );
    programs::kubernetes()?;
    let absent: Vec<&str> =
        PACKAGES.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(package, _)| *package).collect();
    if !absent.is_empty() {
        eprintln!("Installing on this machine the Debian packages: {}", absent.join(" "));
        install::packages(None, &absent)?;
    }
    let root = install::root()?;
    if !root.join("usr/bin/etcd").exists() {
        eprintln!("Installing etcd into {}", root.display());
        install::packages(Some(&root), &["etcd-server"])?;
    }
    Ok(root)
}
