//! What a pipeline's status says. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use penstock_crds::report::{Limit, WorkerStatus};
use penstock_crds::status::{IngestPipelineStatus, ShardStatus};

use crate::conditions::{self, Say};
use crate::names;
use crate::plan::{Role, Wish};
use crate::rollout::Part;
use crate::scaling::Scaling;

/// The reason where nothing is wrong, but for the time that it takes.
const STARTING: &str = "starting";

/// The reason of a pipeline that is deleted.
const ENDING: &str = "ending";

/// A pod, as its status tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: Option<String>,
    /// Whether Kubernetes holds it ready.
    pub ready: bool,
    /// Why it does not run: a word of Kubernetes', and its message.
    pub problem: Option<(String, String)>,
}

/// All that is known of a shard.
#[derive(Debug, Clone)]
pub struct ShardView {
    /// Its number.
    pub shard: u32,
    /// What it is to be.
    pub role: Role,
    /// Keys that it is to subscribe.
    pub keys: usize,
    /// Its client id.
    pub client_id: String,
    /// Its pod.
    pub pod: Option<PodView>,
    /// Why no pod is made.
    pub unmade: Option<(String, String)>,
    /// What the worker says.
    pub report: Option<WorkerStatus>,
    /// It follows its newest files, and the Deployment is rolled out.
    pub settled: bool,
    /// How a changed pod template gets to it.
    pub rollout: Part,
    /// Its retire Job exists.
    pub retiring: bool,
    /// Why its retire Job failed.
    pub retire_failure: Option<(String, String)>,
}

impl ShardView {
    /// It consumes and stores.
    pub fn is_ready(&self) -> bool {
        let pod = self.pod.as_ref().is_some_and(|pod| pod.ready);
        self.role == Role::Active && pod && self.report.as_ref().is_none_or(|report| report.ready)
    }

    fn phase(&self) -> &'static str {
        match self.role {
            Role::Parked => "Parked",
            Role::Leaving if self.retiring => "Retiring",
            Role::Leaving => "Leaving",
            Role::Active if self.is_ready() => "Running",
            Role::Active if self.report.is_none() => "Starting",
            Role::Active => "NotReady",
        }
    }

    /// Why it is not as it should be.
    fn trouble(&self) -> Option<(String, String)> {
        if let Some(failure) = &self.retire_failure {
            return Some(failure.clone());
        }
        if self.role != Role::Active || self.is_ready() {
            return None;
        }
        let said = self.report.as_ref().and_then(|report| report.reasons.first().cloned());
        let problem = self.pod.as_ref().and_then(|pod| pod.problem.clone());
        let starting = match &self.pod {
            None if self.unmade.is_some() => return self.unmade.clone(),
            None => (STARTING, "there is no pod yet"),
            Some(pod) if self.report.is_none() && !pod.ready => (STARTING, "the pod does not answer yet"),
            Some(_) => (STARTING, "the pod gets ready"),
        };
        said.or(problem).or_else(|| Some((starting.0.to_owned(), starting.1.to_owned())))
    }

    fn status(&self) -> ShardStatus {
        let report = self.report.as_ref();
        ShardStatus {
            shard: self.shard as i32,
            phase: self.phase().to_owned(),
            keys: self.keys as i32,
            client_id: self.client_id.clone(),
            pod: self.pod.as_ref().map(|pod| pod.name.clone()),
            node: self.pod.as_ref().and_then(|pod| pod.node.clone()),
            reason: self.trouble().map(|(reason, _)| reason),
            rate: report.map_or(0, |report| rounded(report.rate)),
            fill: report.map_or(0, |report| percent(report.queue_fill)),
            lag: age(report.map_or(0.0, |report| report.oldest_unacked_seconds)),
            limited_by: report
                .filter(|report| report.limited_by != Limit::Nothing)
                .map(|report| report.limited_by.as_str().to_owned()),
            gap: report.and_then(|report| report.takeover_gap_seconds).map(|gap| format!("{gap:.1}s")),
        }
    }
}

/// What keeps a pipeline from being acted on: a bounded word, and for a person.
pub type Blocked = Option<(String, String)>;

/// All that a status is made of.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The pipeline's name.
    pub name: &'a str,
    /// Its generation.
    pub generation: Option<i64>,
    /// What the spec asks for.
    pub wish: &'a Wish,
    /// Replicas that are asked for.
    pub replicas: i32,
    /// What the autoscaler says, where it is on.
    pub scaling: Option<&'a Scaling>,
    /// What is known of its shards.
    pub shards: &'a [ShardView],
    /// The plan's generation, and whether keys are on their way.
    pub plan: (i64, bool),
    /// Why nothing more is done.
    pub blocked: Blocked,
    /// The store's schema, as its own condition says.
    pub schema: Say,
}

/// The status, from the one before.
pub fn status(before: &IngestPipelineStatus, facts: &Facts<'_>, now: &Time) -> IngestPipelineStatus {
    let Facts { wish, shards, generation, .. } = facts;
    let active = shards.iter().filter(|shard| shard.role == Role::Active).count();
    let ready = shards.iter().filter(|shard| shard.is_ready()).count();
    let reports = || shards.iter().filter_map(|shard| shard.report.as_ref());
    let wanted = if wish.parked || wish.ending { 0 } else { wish.shards };
    let selector = names::worker_selector(facts.name);
    let selector = selector.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    let mut next = IngestPipelineStatus {
        observed_generation: *generation,
        replicas: active as i32,
        ready_replicas: ready as i32,
        ready: format!("{ready}/{wanted}"),
        selector,
        plan_generation: facts.plan.0,
        rate: rounded(reports().map(|report| report.rate).sum()),
        lag: age(reports().map(|report| report.oldest_unacked_seconds).fold(0.0, f64::max)),
        fill: percent(reports().map(|report| report.queue_fill).fold(0.0, f64::max)),
        shards: shards.iter().map(ShardView::status).collect(),
        autoscaling: facts.scaling.map(|scaling| scaling.kept.clone()),
        conditions: before.conditions.clone(),
    };
    next.shards.sort_by_key(|shard| shard.shard);
    for (kind, say) in says(facts, ready, wanted as usize) {
        conditions::set(&mut next.conditions, kind, &say, *generation, now.clone());
    }
    next
}

/// Whether all sessions of a pipeline that is deleted have ended, by what was told of it last: true also when its
/// plan is gone already.
pub fn has_ended(status: &IngestPipelineStatus) -> bool {
    let ready = conditions::get(&status.conditions, "Ready");
    status.shards.is_empty() && ready.is_some_and(|ready| ready.reason == ENDING)
}

fn says(facts: &Facts<'_>, ready: usize, wanted: usize) -> Vec<(&'static str, Say)> {
    let Facts { wish, shards, blocked, .. } = facts;
    let trouble =
        shards.iter().find_map(|shard| shard.trouble().map(|(reason, why)| (shard.shard, reason, why)));
    // A shard that cannot start yet is the least of it.
    let trouble = trouble.filter(|(_, reason, _)| blocked.is_none() || reason != STARTING);
    let stuck = rollout_stalled(shards);
    let rolling = shards.iter().find(|shard| shard.rollout == Part::Rolling).map(|shard| shard.shard);
    let held = shards.iter().filter(|shard| shard.rollout == Part::Held).count();
    let failed = shards.iter().find_map(|shard| shard.retire_failure.clone());
    let leaving = shards.iter().filter(|shard| shard.role == Role::Leaving).count();
    let behind = shards.iter().any(|shard| shard.role == Role::Active && !shard.settled);
    let (_, moving) = facts.plan;
    let ready_say = if wish.ending {
        Say::that(false, ENDING, format!("{leaving} sessions are drained and ended"))
    } else if wish.parked {
        Say::that(
            false,
            "suspended",
            "nothing is consumed; the broker queues for the sessions up to its own limit, and ends them after spec.source.mqtt.sessionExpiry",
        )
    } else if let Some((shard, reason, why)) = trouble.filter(|_| ready < wanted) {
        Say::that(false, reason, format!("{ready} of {wanted} shards are ready; shard {shard}: {why}"))
    } else if ready < wanted || wanted == 0 {
        let (reason, why) = blocked.clone().unwrap_or_else(|| (STARTING.into(), "shards start".into()));
        Say::that(false, reason, format!("{ready} of {wanted} shards are ready; {why}"))
    } else {
        Say::that(true, "ready", format!("{ready} of {wanted} shards are ready"))
    };
    let reconciling = if blocked.is_some() {
        Say::that(false, "blocked", "nothing is changed; see Stalled")
    } else if stuck.is_some() {
        Say::that(false, "rollout_stalled", "a changed pod template goes no further; see Stalled")
    } else if moving {
        Say::that(true, "moving", "keys are on their way to other shards")
    } else if leaving > 0 {
        Say::that(true, "retiring", format!("{leaving} shards end their sessions"))
    } else if let Some(shard) = rolling {
        let why = format!("a new pod takes shard {shard} over, and {held} shards wait for their turn");
        Say::that(true, "rolling", why)
    } else if held > 0 {
        let why = "its shards are rolled after other pipelines: so many at a time as the chart's value rollouts.pipelinesAtOnce says";
        Say::that(true, "rollout_waiting", why)
    } else if behind || (ready < wanted && !wish.parked) {
        Say::that(true, STARTING, "shards take over what changed")
    } else {
        Say::that(false, "done", "all is as the spec asks")
    };
    let stalled = match blocked.clone().or(failed).or(stuck) {
        Some((reason, why)) => Say::that(true, reason, why),
        None => Say::that(false, "progressing", "nothing is in the way"),
    };
    let plan = if let Some((reason, why)) = blocked {
        Say::that(false, reason.clone(), why.clone())
    } else if moving {
        Say::that(false, "moving", "keys are on their way to other shards")
    } else if behind {
        Say::that(false, STARTING, "not all shards follow the plan yet")
    } else {
        Say::that(true, "applied", format!("all shards follow plan {}", facts.plan.0))
    };
    let few = !wish.parked && !wish.ending && (wish.shards as i32) < facts.replicas;
    let limited = facts.scaling.and_then(|scaling| scaling.limited).filter(|_| !wish.parked);
    let scaling = if let Some(limited) = limited {
        Say::that(true, limited.as_str(), limited.explain())
    } else if few {
        Say::that(
            true,
            "not_enough_keys",
            format!(
                "{} replicas are asked for, and there are {} keys to divide",
                facts.replicas, wish.shards
            ),
        )
    } else {
        Say::that(false, "enough_keys", "every shard has keys, or the subscription is shared")
    };
    let full: Vec<String> = shards
        .iter()
        .filter(|shard| shard.report.as_ref().is_some_and(|report| report.backpressured))
        .map(|shard| shard.shard.to_string())
        .collect();
    let pressed = if full.is_empty() {
        Say::that(false, "keeping_up", "no queue is full")
    } else {
        Say::that(true, "queue_full", format!("the queues of shards {} are full; they move", full.join(", ")))
    };
    let suspended = if wish.parked && !wish.ending {
        Say::that(true, "suspended", "by spec.suspend, or by spec.replicas: 0")
    } else {
        Say::that(false, "running", "not suspended")
    };
    vec![
        ("Ready", ready_say),
        ("Reconciling", reconciling),
        ("Stalled", stalled),
        ("SchemaReady", facts.schema.clone()),
        ("PlanApplied", plan),
        ("ScalingLimited", scaling),
        ("Backpressured", pressed),
        ("Suspended", suspended),
    ]
}

/// A changed pod template that gets no further, and why.
fn rollout_stalled(shards: &[ShardView]) -> Blocked {
    let held = shards.iter().filter(|shard| shard.rollout == Part::Held).count();
    shards.iter().find_map(|shard| {
        let Part::Stalled((reason, why)) = &shard.rollout else { return None };
        let goes_on = if shard.is_ready() { "its old pod goes on; " } else { "" };
        Some((
            "rollout_stalled".to_owned(),
            format!(
                "the new pod of shard {} does not take over: {reason}: {why}; {goes_on}{held} shards keep their template until it does, and a corrected one goes to this shard first",
                shard.shard
            ),
        ))
    })
}

/// Whether two statuses differ in more than numbers that change all the time.
pub fn differs(before: &IngestPipelineStatus, next: &IngestPipelineStatus) -> bool {
    without_numbers(before) != without_numbers(next)
}

fn without_numbers(status: &IngestPipelineStatus) -> IngestPipelineStatus {
    let mut status = status.clone();
    (status.rate, status.fill, status.lag) = (0, 0, String::new());
    for shard in &mut status.shards {
        (shard.rate, shard.fill, shard.lag, shard.limited_by) = (0, 0, String::new(), None);
    }
    for condition in &mut status.conditions {
        condition.message = without_measures(&condition.message);
    }
    status
}

/// Without words such as `31.5`, by which a worker says for how long something has been so.
fn without_measures(text: &str) -> String {
    let is_measure = |word: &&str| word.contains('.') && word.parse::<f64>().is_ok();
    text.split(' ').filter(|word| !is_measure(word)).collect::<Vec<_>>().join(" ")
}

/// Two digits: a number that moves less than that is not written.
fn rounded(number: f64) -> i64 {
    let whole = number.round().max(0.0) as i64;
    let step = 10_i64.pow(whole.checked_ilog10().unwrap_or_default().saturating_sub(1));
    whole / step * step
}

fn percent(share: f64) -> i32 {
    (share * 10.0).round() as i32 * 10
}

fn age(seconds: f64) -> String {
    match seconds as u64 {
        0 => "<1s".to_owned(),
        seconds @ 1..60 => format!("{}s", rounded(seconds as f64)),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds => format!("{}h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests;
