//! Namespaces: what runs in them ends with their first process, and takes its mounts and links along.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::stack::process;
use crate::wait::until_blocking;

const PATIENCE: Duration = Duration::from_secs(30);
/// A script's last line: without a child left, the first process, and with it the namespaces, would end.
const WAIT: &str = "wait\n";

/// A shell script that is the first process of namespaces of its own.
#[derive(Debug, Clone)]
pub struct Script {
    path: PathBuf,
    text: String,
}

impl Script {
    /// An empty one. It lies where it can be read when something is wrong. Go's programs collect their
    /// garbage seldom: memory is cheaper here than the time of two cores.
    pub fn new(path: PathBuf) -> Self {
        Self { path, text: "set -eu\nexport GOGC=400\n".to_owned() }
    }

    /// One that ran before.
    pub fn read(path: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&path)?;
        Ok(Self { text: text.trim_end_matches(WAIT).to_owned(), path })
    }

    /// Runs these lines.
    pub fn lines(&mut self, lines: &str) {
        self.text.push_str(lines.trim());
        self.text.push('\n');
    }

    /// Starts a program that goes on meanwhile.
    pub fn start(&mut self, program: &Path, arguments: &[String], log: &Path) {
        let mut words = vec![quoted(&program.display().to_string())];
        words.extend(arguments.iter().map(|argument| quoted(argument)));
        self.lines(&format!("{} >>{} 2>&1 &", words.join(" \\\n  "), quoted(&log.display().to_string())));
    }

    /// Runs it. Its standard input is `lock`: a lock on it is held until the last process has
    /// ended. `bound` says whether it ends with this process.
    pub fn run(mut self, lock: &File, bound: bool) -> Result<Namespace> {
        self.text.push_str(WAIT);
        fs::write(&self.path, &self.text)?;
        let log = File::options().create(true).append(true).open(self.path.with_extension("log"))?;
        let mut command = Command::new("setpriv");
        if bound {
            command.args(["--pdeathsig", "KILL"]);
        }
        // Away from this terminal and its Ctrl-C.
        command.args(["--", "setsid", "unshare", "--net", "--mount", "--pid", "--ipc", "--uts"]);
        command.args(["--fork", "--kill-child", "--mount-proc", "sh"]);
        command.arg(&self.path).env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(lock.try_clone()?).stdout(log.try_clone()?).stderr(log);
        let child = process::spawn(command).context("starting unshare")?;
        let mut namespace = Namespace { script: self.path, first: 0, child: Some(child) };
        let script = namespace.script.clone();
        until_blocking("a namespace has its first process", PATIENCE, || {
            first_process(&script).is_some_and(|first| {
                namespace.first = first;
                true
            })
        })?;
        Ok(namespace)
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Running namespaces.
#[derive(Debug)]
pub struct Namespace {
    script: PathBuf,
    first: i32,
    /// `unshare`, if this process started it.
    child: Option<Child>,
}

impl Namespace {
    /// Those of a script that runs already.
    pub fn of(script: PathBuf) -> Option<Self> {
        let first = first_process(&script)?;
        Some(Self { script, first, child: None })
    }

    /// The id of the first process; of another one if they were started again.
    pub fn process(&self) -> i32 {
        first_process(&self.script).unwrap_or(self.first)
    }

    /// A program inside of them.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.process().to_string(),
            "--mount",
            "--pid",
            "--net",
            "--ipc",
            "--uts",
            "--",
        ]);
        command.arg(program).stdin(Stdio::null());
        command
    }

    /// Kills all that is inside, at once.
    pub fn kill(&mut self) -> Result<()> {
        kill(&self.script)?;
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// What the script and its programs said last.
    pub fn tail(&self) -> String {
        tail(&self.script.with_extension("log"))
    }
}

/// The end of a file.
pub fn tail(log: &Path) -> String {
    let mut end = vec![0; 4000];
    let read = File::open(log).and_then(|file| {
        let length = file.metadata()?.len();
        file.read_at(&mut end, length.saturating_sub(4000))
    });
    end.truncate(read.unwrap_or_default());
    format!("--- {}\n{}", log.display(), String::from_utf8_lossy(&end))
}

/// The processes that a script was started with: `unshare` and the shell.
fn processes(script: &Path) -> Vec<(i32, String)> {
    let folders = fs::read_dir("/proc").into_iter().flatten().flatten();
    folders
        .filter_map(|folder| {
            let id: i32 = folder.file_name().to_str()?.parse().ok()?;
            let line = fs::read_to_string(folder.path().join("cmdline")).ok()?;
            let mut words = line.split('\0');
            let program = words.next()?.to_owned();
            let ours = ["sh", "unshare"].contains(&&*program) && words.any(|word| Path::new(word) == script);
            ours.then_some((id, program))
        })
        .collect()
}

fn first_process(script: &Path) -> Option<i32> {
    processes(script).into_iter().find(|(_, program)| program == "sh").map(|(id, _)| id)
}

/// Whether a script runs.
pub fn is_running(script: &Path) -> bool {
    first_process(script).is_some()
}

/// Kills all that runs in a script's namespaces, whoever started it, and waits until it is gone.
pub fn kill(script: &Path) -> Result<()> {
    let all = processes(script);
    for (id, _) in &all {
        if let Some(pid) = Pid::from_raw(*id) {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    for (id, program) in all {
        if until_blocking("a namespace ended", PATIENCE, || has_ended(id)).is_err() {
            bail!("{program} (process {id}) does not end");
        }
    }
    Ok(())
}

/// A first process is gone, or a zombie, only after all others of its namespaces.
fn has_ended(id: i32) -> bool {
    match fs::read_to_string(format!("/proc/{id}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_passes_arguments_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("it's a log");
        let arguments = ["%s\\n", "two words", "it's", "$HOME", "--flag=\"x\""].map(str::to_owned);
        let mut script = Script::new(folder.path().join("test.sh"));
        script.start(Path::new("printf"), &arguments, &log);
        script.lines("wait");
        assert!(Command::new("sh").args(["-c", &script.text]).status().unwrap().success());
        assert_eq!(fs::read_to_string(log).unwrap(), arguments[1..].join("\n") + "\n");
    }

    #[test]
    fn a_process_that_only_names_a_script_is_not_one_of_its_own() {
        let script = Path::new("/nowhere/node-1.sh");
        let mut other = Command::new("sleep").args(["60"]).env("SCRIPT", script).spawn().unwrap();
        let mut reader = Command::new("tail")
            .args(["-q", "-f", "/dev/null"])
            .arg(script)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(!is_running(script));
        kill(script).unwrap();
        for child in [&mut other, &mut reader] {
            assert!(child.try_wait().unwrap().is_none(), "it still runs");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
