//! Processes that end with this one, even when it is killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

type Job = (Command, Sender<std::io::Result<Child>>);

/// A child's death signal is bound to the thread that started it, so one thread starts them all.
static SPAWNER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (jobs, queue) = channel::<Job>();
    std::thread::spawn(move || {
        for (mut command, answer) in queue {
            let _ = answer.send(command.spawn());
        }
    });
    Mutex::new(jobs)
});

/// Starts a command so that a death signal that it asks for comes when this whole process ends.
pub fn spawn(command: Command) -> Result<Child> {
    let (answer, started) = channel();
    SPAWNER.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer))?;
    Ok(started.recv()??)
}

/// A running program, ended when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program inside the root as a user of the root; `None` for this machine's own.
    pub fn start(
        name: &str,
        root: Option<(&Path, &str)>,
        program: &str,
        arguments: &[String],
        log: &Path,
    ) -> Result<Self> {
        Self::start_with(name, root, program, arguments, log, true)
    }

    /// The same; `bound` says whether it ends with this process.
    pub fn start_with(
        name: &str,
        root: Option<(&Path, &str)>,
        program: &str,
        arguments: &[String],
        log: &Path,
        bound: bool,
    ) -> Result<Self> {
        let mut command = match root {
            Some((root, user)) => {
                let mut command = Command::new("chroot");
                command.arg(root).args(["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]);
                command
            }
            None => Command::new("setpriv"),
        };
        if bound {
            command.args(["--pdeathsig", "INT"]);
        }
        command.arg("--");
        if !bound {
            // Away from this terminal and its Ctrl-C.
            command.arg("setsid");
        }
        command.arg(program).args(arguments);
        let output =
            File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn(command).with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            let _ = kill_process(pid, signal);
        }
    }

    /// Lets it outlive this process.
    pub fn leave_running(self) {
        std::mem::forget(self);
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end by `signal`, and waits so long. Returns whether it succeeded.
    pub fn end(&mut self, signal: Signal, patience: Duration) -> Result<bool> {
        self.signal(signal);
        self.wait(patience)
    }

    /// Waits so long until it has ended. Returns whether it succeeded.
    pub fn wait(&mut self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            if Instant::now() > deadline {
                bail!("{} has not ended within {patience:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The end of its log.
    pub fn tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        format!(
            "--- {} ({})\n{}",
            self.name,
            self.log.display(),
            all[all.len().saturating_sub(lines)..].join("\n")
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A frozen process must be able to hear.
        self.signal(Signal::CONT);
        self.kill();
    }
}

/// Runs a program in the root to its end.
pub fn run_in(root: &Path, arguments: &[&str]) -> Result<String> {
    output(Command::new("chroot").arg(root).args(arguments))
}

/// Runs a program to its end. Returns what it prints; an error has what it says besides.
pub fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {program}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let arguments = command.get_args().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>();
        bail!(
            "{program} {}: {}{}",
            arguments.join(" "),
            printed,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(printed)
}
