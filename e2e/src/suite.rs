//! Runs all tests: unit tests, then each scenario on a bed of its own.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::bed::{Bed, Needs, Stack};
use crate::scenarios;
use crate::stack::mosquitto::Setup;

/// Scenarios at a time: most of them wait.
const PARALLEL: usize = 4;
/// Longest time of a scenario.
const DEADLINE: Duration = Duration::from_secs(900);

/// What a scenario does.
pub type Run = for<'a> fn(&'a mut Bed) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A named test on real parts.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// A sentence.
    pub name: String,
    /// What it must have for itself.
    pub needs: Needs,
    /// How its broker is set up.
    pub setup: Setup,
    /// What it does.
    pub run: Run,
}

/// A scenario from an async function; its needs in brackets.
#[macro_export]
macro_rules! scenario {
    ($name:ident $([$($need:ident),*])?) => {
        $crate::suite::Scenario {
            name: stringify!($name).to_owned(),
            #[allow(clippy::needless_update)]
            needs: $crate::bed::Needs { $($($need: true,)*)? ..Default::default() },
            setup: Default::default(),
            run: |bed| Box::pin($name(bed)),
        }
    };
}

/// Runs unit tests and scenarios whose name holds the filter. True if all passed.
pub fn run(filter: Option<&str>) -> Result<bool> {
    build()?;
    let (mut passed, mut failed) = (0, 0);
    if filter.is_none() {
        (passed, failed) = unit_tests()?;
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let stack = Arc::new(runtime.block_on(Stack::start()).context("starting the local stack")?);
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    let threads = if stack.external_broker.is_some() { 1 } else { PARALLEL };
    let started = Instant::now();
    let (mut skipped, causes) = (0, Causes::default());
    let (together, mut alone): (Vec<_>, Vec<_>) =
        scenarios::all().into_iter().partition(|scenario| !scenario.needs.is_alone());
    // There is one cluster at a time.
    alone.sort_by_key(|scenario| scenario.needs.control_plane);
    for (scenarios, threads) in [(together, threads), (alone, 1)] {
        let trials = scenarios.into_iter().map(|scenario| trial(&stack, scenario, ci, &causes)).collect();
        let filter = filter.map(str::to_owned);
        let arguments = Arguments { test_threads: Some(threads), filter, ..Arguments::default() };
        let conclusion = libtest_mimic::run(&arguments, trials);
        passed += conclusion.num_passed;
        failed += conclusion.num_failed;
        skipped += conclusion.num_ignored;
    }
    drop(stack);
    eprintln!("scenarios took {:.0} s", started.elapsed().as_secs_f64());
    // Again, without the logs between.
    for (name, cause) in causes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("FAILED {name}: {cause}");
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0)
}

/// Why scenarios failed, each with its name.
type Causes = Arc<Mutex<Vec<(String, String)>>>;

/// A scenario as a test. What this machine cannot run is skipped loudly, and fails in CI.
fn trial(stack: &Arc<Stack>, scenario: Scenario, ci: bool, causes: &Causes) -> Trial {
    let lacks = stack.lacks(scenario.needs);
    if let Some(why) = &lacks {
        eprintln!("SKIPPED {}: {why}", scenario.name);
    }
    let (stack, causes, skipped) = (Arc::clone(stack), Arc::clone(causes), lacks.is_some() && !ci);
    let trial = Trial::test(scenario.name.clone(), move || {
        let result = lacks.map_or_else(|| play(&stack, &scenario), |why| Err(anyhow::anyhow!(why)));
        result.map_err(|error| {
            let cause = (scenario.name.clone(), error.root_cause().to_string());
            causes.lock().unwrap_or_else(PoisonError::into_inner).push(cause);
            Failed::from(format!("{error:#}"))
        })
    });
    trial.with_ignored_flag(skipped)
}

/// A cargo that knows nothing of the one that runs us: build scripts such as ring's run again when
/// CARGO_MANIFEST_DIR or CARGO_PKG_* change, and all that depends on them is built again.
pub fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(crate::stack::project());
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_MANIFEST") || name.starts_with("CARGO_PKG"))
        {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Builds all at once: a part alone would be built with other features, and its dependencies again.
pub fn build() -> Result<()> {
    let built = cargo().args(["build", "--quiet", "--release", "--workspace"]).status()?;
    if !built.success() {
        bail!("the worker does not build");
    }
    Ok(())
}

/// Runs the unit tests; how many passed and failed.
fn unit_tests() -> Result<(u64, u64)> {
    let output = cargo()
        .args(["test", "--release", "--workspace", "--no-fail-fast"])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let count = |word: &str| -> u64 {
        text.lines()
            .filter(|line| line.starts_with("test result:"))
            .filter_map(|line| line.split(word).next()?.split_whitespace().last()?.parse::<u64>().ok())
            .sum()
    };
    let (passed, failed) = (count(" passed"), count(" failed"));
    let broken = u64::from(!output.status.success() && failed == 0);
    Ok((passed, failed + broken))
}

fn play(stack: &Stack, scenario: &Scenario) -> Result<()> {
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let mut bed = stack.bed(&scenario.name, scenario.needs, &scenario.setup).await?;
            let result = match tokio::time::timeout(DEADLINE, (scenario.run)(&mut bed)).await {
                Ok(result) => result.and_then(|()| bed.require_no_secret_in_logs()),
                Err(_) => Err(anyhow::anyhow!("not done within {DEADLINE:?}")),
            };
            result.with_context(|| bed.logs())
        })
    }));
    runtime.shutdown_background();
    eprintln!("  {} took {:.1} s", scenario.name, started.elapsed().as_secs_f64());
    result.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")))
}
