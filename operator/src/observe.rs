//! From cached objects and workers' answers to what is seen of each shard. Pure, but for the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::DynamicObject;
use penstock_crds::IngestPipelineSpec;
use penstock_crds::plan::ShardPlan;
use penstock_crds::report::{Failure, Outcome, Reason, WorkerStatus};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::caches::Children;
use crate::children::{Wanted, files, has_template, job};
use crate::kinds::Kind;
use crate::names;
use crate::plan::{Plan, Seen};
use crate::rollout;
use crate::status::PodView;

/// A retire Job that failed is made anew after so long.
const RETIRE_AGAIN: Duration = Duration::from_mins(1);

/// What there is of one shard.
#[derive(Debug, Clone, Default)]
pub struct ShardObjects {
    /// Its Deployment.
    pub deployment: Option<Arc<DynamicObject>>,
    /// Its workers' pods: the one that holds the lease first, then the newest.
    pub pods: Vec<(Arc<DynamicObject>, Option<WorkerStatus>)>,
    /// Its retire Job.
    pub job: Option<Arc<DynamicObject>>,
    /// The pods of its retire Job.
    pub retire_pods: Vec<Arc<DynamicObject>>,
    /// Generation and keys that its ConfigMap tells it.
    pub told: Option<(i64, Vec<String>)>,
}

/// All shards of which there is anything. `answer`: what the pod with a UID said lately.
pub fn shards(
    pipeline: &str,
    children: &Children,
    answer: impl Fn(&str) -> Option<WorkerStatus>,
) -> BTreeMap<u32, ShardObjects> {
    let mut shards: BTreeMap<u32, ShardObjects> = BTreeMap::new();
    for ((kind, name), object) in children {
        let labels = object.labels();
        let Some(number) = labels.get(names::SHARD).and_then(|shard| shard.parse().ok()) else { continue };
        let shard = shards.entry(number).or_default();
        let component = labels.get(names::COMPONENT).map(String::as_str);
        match (kind, component) {
            (Kind::Deployment, _) => shard.deployment = Some(Arc::clone(object)),
            (Kind::Pod, Some("worker")) if !is_over(object) => {
                let own = format!("{}/{pipeline}/{number}", object.namespace().unwrap_or_default());
                // An address may have been given to another pod. Before it has read its files a worker names none.
                let report = answer(&object.uid().unwrap_or_default())
                    .filter(|report| report.shard.is_empty() || report.shard == own);
                shard.pods.push((Arc::clone(object), report));
            }
            (Kind::Pod, Some("retire")) => shard.retire_pods.push(Arc::clone(object)),
            (Kind::Job, _) if *name == job::retire_name(pipeline, number) => {
                shard.job = Some(Arc::clone(object));
            }
            (Kind::ConfigMap, _) => shard.told = files::told(&object.data["data"]),
            _ => {}
        }
    }
    for shard in shards.values_mut() {
        shard.pods.sort_by_key(|(pod, report)| {
            let held = report.as_ref().is_some_and(|report| report.lease.held);
            (!held, std::cmp::Reverse(pod.creation_timestamp()))
        });
    }
    shards
}

impl ShardObjects {
    /// The worker's last answer.
    pub fn report(&self) -> Option<&WorkerStatus> {
        self.pods.iter().find_map(|(_, report)| report.as_ref())
    }

    /// What the choreography needs to see.
    pub fn seen(&self, shard: u32, plan: &Plan, spec: &IngestPipelineSpec, group: &str) -> Seen {
        let report = self.report();
        let generation = report.map_or(0, |report| {
            let plan = report.plan.as_ref().map_or(0, |plan| plan.generation);
            plan.max(report.lease.plan_generation)
        });
        Seen {
            serves: report.map(|report| serves(report, shard, plan, spec, group)).unwrap_or_default(),
            generation: generation.max(self.told.as_ref().map_or(0, |(generation, _)| *generation)),
            retiring: self.job.is_some() || !self.retire_pods.is_empty(),
            retired: self.job.as_ref().is_some_and(|job| has_condition(job, "Complete"))
                && !self.has_worker(),
        }
    }

    /// A worker may run or start: what a retire Job beside it came to says nothing of its session.
    pub fn has_worker(&self) -> bool {
        let stops = |pod: &DynamicObject| pod.metadata.deletion_timestamp.is_some();
        self.deployment.is_some() || !self.pods.iter().all(|(pod, _)| stops(pod))
    }

    /// Its Deployment is rolled out, and its one worker follows the files with this digest.
    pub fn is_settled(&self, digest: &str) -> bool {
        self.is_rolled_out() && self.report().is_some_and(|report| report.manifest == digest)
    }

    fn is_rolled_out(&self) -> bool {
        let Some(deployment) = &self.deployment else { return false };
        let status = &deployment.data["status"];
        let count = |field: &str| status[field].as_i64().unwrap_or_default();
        status["observedGeneration"].as_i64() == deployment.metadata.generation
            && count("updatedReplicas") == 1
            && count("replicas") == 1
    }

    /// How far its Deployment is with the template that is wanted.
    pub fn rollout(&self, wanted: &Wanted) -> rollout::Shard {
        let deployment = self.deployment.as_ref().filter(|live| live.metadata.deletion_timestamp.is_none());
        let pods: Vec<_> = self.pods.iter().filter(|(pod, _)| !is_lost(pod)).collect();
        let consumed = pods.iter().any(|(pod, report)| match report {
            Some(report) => report.lease.held,
            None => has_condition(pod, "Ready") || is_running(pod),
        });
        let well = match pods.as_slice() {
            [(pod, Some(report))] => has_condition(pod, "Ready") && report.lease.held,
            _ => false,
        };
        let finished = self.is_rolled_out() && well;
        rollout::Shard {
            current: deployment.is_some_and(|live| has_template(live, wanted)),
            consumed: deployment.is_some() && consumed,
            turning: pods.len() > 1 || (consumed && !self.is_rolled_out()),
            finished,
            trouble: if finished { None } else { self.rollout_trouble() },
        }
    }

    /// The pod that a status shows.
    pub fn pod(&self) -> Option<PodView> {
        let (pod, _) = self.pods.first()?;
        Some(PodView {
            name: pod.name_any(),
            node: pod.data["spec"]["nodeName"].as_str().map(str::to_owned),
            ready: has_condition(pod, "Ready"),
            problem: problem(pod),
        })
    }

    /// Why its Deployment makes no pod.
    pub fn unmade(&self) -> Option<Reason> {
        let deployment = self.deployment.as_ref().filter(|_| self.pods.is_empty())?;
        condition(deployment, "ReplicaFailure", "True").and_then(said)
    }

    /// Why its newest pod does not take over, or there is none.
    fn rollout_trouble(&self) -> Option<Reason> {
        let deployment = self.deployment.as_ref()?;
        // One that stops goes as it should; one that holds the lease took over.
        let waits = |(pod, report): &&(Arc<DynamicObject>, Option<WorkerStatus>)| {
            let holds = report.as_ref().is_some_and(|report| report.lease.held);
            pod.metadata.deletion_timestamp.is_none() && !has_condition(pod, "Ready") && !holds
        };
        let new = self.pods.iter().filter(waits).max_by_key(|(pod, _)| pod.creation_timestamp());
        let of_pod = new.and_then(|(pod, report)| {
            let said = report.iter().flat_map(|report| &report.reasons);
            // It waits for its turn: nothing is wrong with that.
            let mut said = said
                .filter(|(reason, _)| !["lease_not_held", "broker_away", "starting"].contains(&&**reason));
            said.next().cloned().or_else(|| problem(pod)).or_else(|| ended(pod))
        });
        let of_deployment = || {
            let failure = condition(deployment, "ReplicaFailure", "True");
            failure.or_else(|| condition(deployment, "Progressing", "False")).and_then(said)
        };
        of_pod.or_else(of_deployment)
    }

    /// Whether its retire Job goes; one as it is wanted now is made then, where one is.
    pub fn drops_retire(&self, wanted: &Wanted) -> bool {
        let Some(job) = &self.job else { return false };
        self.has_worker()
            || failed_for(job).is_some_and(|time| time > RETIRE_AGAIN)
            || (!has_template(job, wanted) && !self.retires())
    }

    /// Its retire Job does its work, or has done it.
    fn retires(&self) -> bool {
        let count = |field: &str| {
            self.job.as_ref().map_or(0, |job| job.data["status"][field].as_i64().unwrap_or_default())
        };
        let ran = |pod: &DynamicObject| container(pod)["state"]["terminated"]["exitCode"] == 0;
        count("ready") + count("succeeded") > 0
            || self.retire_pods.iter().any(|pod| is_running(pod) || ran(pod))
    }

    /// Why the retire Job failed, fails, or does not start.
    pub fn retire_failure(&self) -> Option<Reason> {
        let told = self.retire_pods.iter().find_map(|pod| failure(pod));
        let told = told.map(|Failure { reason, message }| (reason, message));
        let stays = |pod: &&Arc<DynamicObject>| pod.metadata.deletion_timestamp.is_none();
        let waits = || self.retire_pods.iter().filter(stays).find_map(|pod| problem(pod));
        let failed = || {
            self.job
                .as_ref()
                .filter(|job| has_condition(job, "Failed"))
                .map(|_| ("retire_failed".to_owned(), "the retire Job failed; see its pods' logs".to_owned()))
        };
        told.or_else(waits).or_else(failed)
    }
}

/// Keys whose filters are all granted.
fn serves(
    report: &WorkerStatus,
    shard: u32,
    plan: &Plan,
    spec: &IngestPipelineSpec,
    group: &str,
) -> BTreeSet<String> {
    // What was true under an older plan, a key that came and went since, says nothing of this one.
    let follows = report.plan.as_ref().is_some_and(|followed| followed.generation >= plan.generation);
    if !report.lease.held || !follows {
        return BTreeSet::new();
    }
    let granted = |key: &String| {
        let one = ShardPlan { generation: 0, shard, keys: vec![key.clone()] };
        one.subscriptions(spec, group).iter().all(|wanted| report.subscribed.contains(&wanted.filter))
    };
    plan.keys_of(shard).into_iter().filter(granted).collect()
}

/// Whether a condition of an object is true.
pub fn has_condition(object: &DynamicObject, kind: &str) -> bool {
    condition(object, kind, "True").is_some()
}

fn condition<'a>(object: &'a DynamicObject, kind: &str, status: &str) -> Option<&'a Value> {
    let conditions = object.data["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind && condition["status"] == status)
}

/// How long ago a Job failed for good.
pub fn failed_for(job: &DynamicObject) -> Option<Duration> {
    let failed = condition(job, "Failed", "True")?;
    let since: k8s_openapi::jiff::Timestamp = failed["lastTransitionTime"].as_str()?.parse().ok()?;
    k8s_openapi::jiff::Timestamp::now().duration_since(since).try_into().ok()
}

/// A reason and a message of Kubernetes'.
fn said(of: &Value) -> Option<Reason> {
    let reason = of["reason"].as_str()?;
    Some((reason.to_owned(), of["message"].as_str().unwrap_or(reason).to_owned()))
}

fn container(pod: &DynamicObject) -> &Value {
    &pod.data["status"]["containerStatuses"][0]
}

/// Why a pod's container waits, or why it is not placed.
pub fn problem(pod: &DynamicObject) -> Option<Reason> {
    if let Some(waiting) = said(&container(pod)["state"]["waiting"])
        && waiting.0 != "ContainerCreating"
    {
        return Some(waiting);
    }
    condition(pod, "PodScheduled", "False").and_then(said)
}

/// How a pod's container ended before it was started again.
fn ended(pod: &DynamicObject) -> Option<Reason> {
    let end = &container(pod)["lastState"]["terminated"];
    let (reason, code) = (end["reason"].as_str()?, end["exitCode"].as_i64()?);
    Some((reason.to_owned(), format!("its container ended with code {code}, and was started again")))
}

/// Whether a pod has ended for good and stays, as by an eviction: a ReplicaSet has made another, and leaves it
/// there. One that is deleted is soon gone.
pub fn is_over(pod: &DynamicObject) -> bool {
    let ended = matches!(pod.data["status"]["phase"].as_str(), Some("Failed" | "Succeeded"));
    ended && pod.metadata.deletion_timestamp.is_none()
}

fn is_running(pod: &DynamicObject) -> bool {
    container(pod)["state"].get("running").is_some()
}

/// Whether a pod should be gone long since: its node is not heard of.
fn is_lost(pod: &DynamicObject) -> bool {
    let end = pod.metadata.deletion_timestamp.as_ref();
    end.is_some_and(|end| end.0 < k8s_openapi::jiff::Timestamp::now())
}

/// The termination message of a pod that ended, or of its end before.
fn message(pod: &DynamicObject) -> Option<&str> {
    let ended = |state: &'static str| container(pod)[state]["terminated"]["message"].as_str();
    ended("state").or_else(|| ended("lastState"))
}

/// Why a job's pod failed.
pub fn failure(pod: &DynamicObject) -> Option<Failure> {
    match serde_json::from_str::<Outcome<Value>>(message(pod)?) {
        Ok(Outcome::Failed { error }) => Some(error),
        _ => None,
    }
}

/// The report of a job's pod that did its work.
pub fn outcome<Report: DeserializeOwned>(pod: &DynamicObject) -> Option<Report> {
    match serde_json::from_str(message(pod)?) {
        Ok(Outcome::Done(report)) => Some(report),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
