//! The twelve steps by which the original service was validated, each on a broker and a database of
//! its own, with what is expected, what was measured, and the evidence.

mod behaviour;
mod finding;
mod load;
mod outcome;
mod pressure;

use std::pin::Pin;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use self::finding::Finding;
use self::outcome::{Done, Outcome};
use crate::bed::{Bed, Needs, Stack};
use crate::stack::mosquitto::Setup;
use crate::suite;

/// What a step does.
type Run = for<'a> fn(&'a mut Bed, &'a mut Finding) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A step.
struct Step {
    title: &'static str,
    /// What must come out.
    expected: &'static str,
    needs: Needs,
    run: Run,
}

/// A step from an async function; its needs in brackets.
macro_rules! step {
    ($run:path $([$($need:ident),*])?, $title:literal, $expected:literal) => {
        Step {
            title: $title,
            expected: $expected,
            #[allow(clippy::needless_update)]
            needs: Needs { $($($need: true,)*)? ..Needs::default() },
            run: |bed, finding| Box::pin($run(bed, finding)),
        }
    };
}

/// Steps 1 to 11; step 12 is that this command runs them all and says how it went.
fn steps() -> Vec<Step> {
    vec![
        step!(
            behaviour::starts,
            "It starts, shows metrics, and logs in a structured way",
            "ready within 10 s; /livez, /readyz, /status and /metrics answer; every log line is a JSON object"
        ),
        step!(
            behaviour::reconnects[broker, server],
            "It reconnects by itself",
            "after a restart of the broker and of the database rows are stored again, and none is lost or doubled"
        ),
        step!(
            behaviour::normalized_payload,
            "Normalized payload",
            "each point of a v1 message is one row with its declared type, its unit and its time; metadata is kept"
        ),
        step!(
            behaviour::vendor_payloads,
            "Vendor payloads",
            "parsec in its three spellings and JE02 DATA and INFO are stored by their documents' rules: FAULT wins over RUN and STOP"
        ),
        step!(
            behaviour::dead_letters,
            "Dead letters with a reason",
            "each bad message is one dead letter with its whole payload, a bounded reason and a readable detail, also when it comes twice"
        ),
        step!(
            behaviour::acks,
            "Answers to commands are idempotent",
            "three times the same answer is one row; an older one after a newer one changes nothing"
        ),
        step!(
            load::throughput,
            "Throughput at QoS 1",
            "of 10,000, 100,000 and 1,000,000 points every one is stored, once, with its value"
        ),
        step!(
            load::latency,
            "Latency",
            "device time to commit, by the database's clock, at three rates: p50 at most 10 ms, p99 at most 100 ms"
        ),
        step!(
            behaviour::out_of_order,
            "Out of order",
            "rows are stored by their own time, whatever the order of arrival; of two values for one time the first wins"
        ),
        step!(
            pressure::backpressure[broker],
            "Backpressure",
            "more than 50,000 messages a second offered for 30 s to a throttled database: the unacknowledged window and the worker's memory stay bounded, the broker holds the rest, and all of it is stored afterwards"
        ),
        step!(
            behaviour::metrics,
            "Every metric is populated",
            "each family that /metrics exposes has counted something after all that can happen has happened"
        ),
    ]
}

/// Runs all steps, or those with these numbers. True if all are good.
pub fn run(only: &[usize]) -> Result<bool> {
    let steps = steps();
    let last = steps.len();
    if only.iter().any(|&number| number == 0 || number > last) {
        bail!("steps are 1 to {last}; step 12 is this command itself");
    }
    println!(
        "Validates the worker in {} steps on a Mosquitto and a PostgreSQL of its own, on 127.0.0.1.",
        last + 1
    );
    suite::build()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let stack = Stack::start().await.context("starting the local stack")?;
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        // Dropping what it holds ends all processes and removes their files.
        tokio::select! {
            result = on_stack(&stack, steps, only) => result,
            _ = interrupt.recv() => bail!("interrupted; all that was started is ended"),
            _ = terminate.recv() => bail!("terminated; all that was started is ended"),
        }
    })
}

async fn on_stack(stack: &Stack, steps: Vec<Step>, only: &[usize]) -> Result<bool> {
    let mut outcome = Outcome::new(stack);
    for (number, step) in (1..).zip(steps) {
        if !only.is_empty() && !only.contains(&number) {
            continue;
        }
        println!("{number:>2}/12 {}", step.title);
        let done = take(stack, number, step).await;
        done.print();
        outcome.steps.push(done);
    }
    if only.is_empty() {
        outcome.conclude();
    }
    let files = outcome.write()?;
    println!(
        "\n{}\n{}",
        outcome.verdict(),
        files.map(|file| format!("Written to {}", file.display())).join("\n")
    );
    Ok(outcome.is_good())
}

async fn take(stack: &Stack, number: usize, step: Step) -> Done {
    let started = Instant::now();
    let mut finding = Finding::default();
    let setup = Setup::default();
    let result = match stack.lacks(step.needs) {
        Some(why) => Err(anyhow::anyhow!("{why}")),
        None => {
            async {
                let mut bed = stack.bed(&format!("validate-{number}"), step.needs, &setup).await?;
                let result = (step.run)(&mut bed, &mut finding).await;
                result.and_then(|()| bed.require_no_secret_in_logs()).with_context(|| bed.logs())
            }
            .await
        }
    };
    if let Err(error) = result {
        finding.require("the step runs to its end", false);
        finding.evidence("error", format!("{error:#}"));
    }
    Done {
        number,
        title: step.title,
        expected: step.expected,
        seconds: started.elapsed().as_secs_f64(),
        finding,
    }
}
