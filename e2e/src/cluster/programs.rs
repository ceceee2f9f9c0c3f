//! Kubernetes and helm: built from their Go modules, once, into the user's cache folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::stack;

/// How often a long build says that it still runs.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// A Go module of the project that pins programs of another.
struct Module {
    /// Its folder under e2e/, and the folder of the cache.
    name: &'static str,
    /// Its go.mod, which says the version.
    pinned: &'static str,
    /// The module of the programs.
    path: &'static str,
    /// The packages: `path` with this in between and the program's name.
    packages: &'static str,
    /// What the programs are told to say when asked for their version.
    version_names: &'static [(&'static str, Part)],
    /// Each program, and how many seconds its build takes on 2 cores with nothing built before.
    programs: &'static [(&'static str, u32)],
}

#[derive(Clone, Copy)]
enum Part {
    Whole,
    Major,
    Minor,
}

const KUBERNETES: Module = Module {
    name: "kubernetes",
    pinned: include_str!("../../kubernetes/go.mod"),
    path: "k8s.io/kubernetes",
    packages: "cmd",
    version_names: &[
        ("k8s.io/component-base/version.gitVersion", Part::Whole),
        ("k8s.io/component-base/version.gitMajor", Part::Major),
        ("k8s.io/component-base/version.gitMinor", Part::Minor),
    ],
    programs: &[
        ("kube-apiserver", 193),
        ("kube-controller-manager", 45),
        ("kubelet", 14),
        ("kube-proxy", 11),
        ("kubectl", 8),
        ("kube-scheduler", 4),
    ],
};

const HELM: Module = Module {
    name: "helm",
    pinned: include_str!("../../helm/go.mod"),
    path: "helm.sh/helm/v3",
    packages: "cmd",
    version_names: &[("helm.sh/helm/v3/internal/version.version", Part::Whole)],
    programs: &[("helm", 60)],
};

/// The folder with Kubernetes' programs, built if they are not there yet.
pub fn kubernetes() -> Result<PathBuf> {
    KUBERNETES.built(|_| true)
}

/// The program kubectl, built if it is not there yet.
pub fn kubectl() -> Result<PathBuf> {
    Ok(KUBERNETES.built(|program| program == "kubectl")?.join("kubectl"))
}

/// The program helm, built if it is not there yet.
pub fn helm() -> Result<PathBuf> {
    Ok(HELM.built(|_| true)?.join("helm"))
}

/// Whether it is there or can be built.
pub fn has_helm() -> bool {
    HELM.folder().is_ok_and(|folder| HELM.unbuilt(&folder, |_| true).is_empty())
        || Command::new("go").arg("version").output().is_ok()
}

/// Kubernetes' version.
pub fn kubernetes_version() -> Result<&'static str> {
    KUBERNETES.version()
}

/// Whether nothing has to be built to start a cluster.
pub fn are_built() -> bool {
    KUBERNETES.folder().is_ok_and(|folder| KUBERNETES.unbuilt(&folder, |_| true).is_empty())
}

impl Module {
    fn version(&self) -> Result<&'static str> {
        let mut words = self.pinned.split_whitespace().skip_while(|word| *word != self.path);
        words.nth(1).with_context(|| format!("e2e/{}/go.mod does not require {}", self.name, self.path))
    }

    fn folder(&self) -> Result<PathBuf> {
        let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
        };
        Ok(cache.join(format!("penstock/{}-{}", self.name, self.version()?.trim_start_matches('v'))))
    }

    fn unbuilt(&self, folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<(&'static str, u32)> {
        let programs = self.programs.iter().copied();
        programs.filter(|(program, _)| wanted(program) && !folder.join(program).exists()).collect()
    }

    fn built(&self, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
        let folder = self.folder()?;
        if self.unbuilt(&folder, &wanted).is_empty() {
            return Ok(folder);
        }
        fs::create_dir_all(&folder)?;
        let lock = fs::File::create(folder.join(".lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        for (program, seconds) in self.unbuilt(&folder, &wanted) {
            self.build(program, seconds, &folder)?;
        }
        Ok(folder)
    }

    /// Under another name until it is whole.
    fn build(&self, program: &str, seconds: u32, folder: &Path) -> Result<()> {
        let version = self.version()?;
        eprintln!("Building {program} {version} from Go modules ({seconds} s on 2 cores)…");
        let (started, mut said) = (Instant::now(), Duration::ZERO);
        let partial = folder.join(format!(".{program}"));
        let mut go = Command::new("go")
            .args(["build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags"])
            .arg(self.linker_flags(version))
            .arg("-o")
            .arg(&partial)
            .arg(format!("{}/{}/{program}", self.path, self.packages))
            .current_dir(stack::project().join("e2e").join(self.name))
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .env_remove("GOFLAGS")
            .spawn()
            .context("starting go: it builds Kubernetes and helm; install Go (https://go.dev/dl)")?;
        let status = loop {
            if let Some(status) = go.try_wait()? {
                break status;
            }
            if started.elapsed() > said + SIGN_OF_LIFE {
                said = started.elapsed();
                eprintln!("  {:>3.0} s", said.as_secs_f64());
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        ensure!(status.success(), "go build of {program} failed");
        fs::rename(&partial, folder.join(program))?;
        eprintln!("Built {program} in {:.0} s", started.elapsed().as_secs_f64());
        Ok(())
    }

    fn linker_flags(&self, version: &str) -> String {
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        let value = |part: &Part| match part {
            Part::Whole => version,
            Part::Major => major,
            Part::Minor => minor,
        };
        let names = self.version_names.iter().map(|(name, part)| format!(" -X {name}={}", value(part)));
        format!("-s -w{}", names.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_go_mod_requires() {
        for module in [KUBERNETES, HELM] {
            let version = module.version().unwrap();
            let numbers: Vec<&str> = version.strip_prefix('v').unwrap().split('.').collect();
            assert_eq!(numbers.len(), 3, "{version}");
            assert!(numbers.iter().all(|number| number.parse::<u32>().is_ok()), "{version}");
            assert!(module.folder().unwrap().ends_with(format!("{}-{}", module.name, &version[1..])));
        }
    }

    #[test]
    fn kubernetes_is_told_its_version_whole_and_in_parts() {
        let flags = KUBERNETES.linker_flags("v1.34.2");
        for part in ["gitVersion=v1.34.2", "gitMajor=1", "gitMinor=34"] {
            assert!(flags.contains(&format!(" -X k8s.io/component-base/version.{part}")), "{flags}");
        }
    }
}
