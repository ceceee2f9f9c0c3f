//! What a reconcile of a pipeline does to its children.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::ResourceExt;
use kube::api::DynamicObject;
use penstock_crds::report::WorkerStatus;

use super::{ShardFiles, Work};
use crate::children::{Wanted, files, job, shard, shared};
use crate::context::Context;
use crate::error::Error;
use crate::kinds::Kind;
use crate::observe::ShardObjects;
use crate::plan::{Plan, Role, Wish};
use crate::resolve::Resolved;
use crate::rollout::{self, Rollout};
use crate::turns;

/// A pod is asked again to look at its files.
const NUDGE: Duration = Duration::from_secs(3);
/// One that follows no files yet.
const NUDGE_WAITING: Duration = Duration::from_secs(30);

/// The Deployments of the shards that stay, and how far a changed template of theirs may go.
pub(super) struct Workers {
    deployments: BTreeMap<u32, Wanted>,
    pub(super) rollout: Rollout,
}

impl Workers {
    pub(super) fn new(work: &Work<'_>, ctx: &Context, resolved: &Resolved, plan: &Plan, wish: &Wish) -> Self {
        let (mut deployments, mut seen, mut behind) = (BTreeMap::new(), BTreeMap::new(), None);
        for number in &plan.shards {
            let (role, objects) = (plan.role(wish, *number), work.shards.get(number));
            // Never beside a retire Job of the same shard.
            let retires = |shard: &ShardObjects| shard.job.is_some() || !shard.retire_pods.is_empty();
            if role == Role::Leaving || objects.is_some_and(retires) {
                continue;
            }
            let running = role == Role::Active;
            let wanted = shard::deployment(&work.owner, resolved, &ctx.config, *number, running);
            if let Some(objects) = objects.filter(|_| running) {
                seen.insert(*number, objects.rollout(&wanted));
                let is_old = objects.deployment.as_ref().is_some_and(|live| !ctx.applier.has_seen(live));
                behind = behind.or(is_old.then_some(*number));
            }
            deployments.insert(*number, wanted);
        }
        // A cache that is behind shows no roll that has just begun.
        let mut rollout = rollout::decide(&seen, behind.is_none());
        let own = turns::name(work.pipeline);
        if rollout.needs_turn() {
            if !ctx.may_roll(&own) {
                rollout = rollout::decide(&seen, false);
            }
        } else if seen.values().all(|shard| shard.finished) {
            ctx.turns.give_back(&own);
        }
        rollout.rolling = rollout.rolling.or(behind);
        for number in &rollout.held {
            let live = work.shards.get(number).and_then(|objects| objects.deployment.as_ref());
            if let (Some(wanted), Some(live)) = (deployments.get_mut(number), live) {
                shard::keep_template(wanted, live);
            }
        }
        Self { deployments, rollout }
    }
}

/// Makes all children as they should be, and removes what should not be.
pub(super) async fn apply(
    work: &Work<'_>,
    ctx: &Context,
    resolved: &Resolved,
    plan: &Plan,
    files: &ShardFiles,
    workers: &Workers,
    wish: &Wish,
) -> Result<(), Error> {
    let namespace = &work.owner.namespace;
    let mut keep: BTreeSet<(Kind, String)> = BTreeSet::new();
    // State first: what follows from it must never be ahead of it.
    let mut wanted = vec![files::plan(&work.owner, plan, &resolved.file)];
    wanted.extend(shared::all(&work.owner, resolved));
    for (number, (own, _)) in &files.0 {
        if plan.role(wish, *number) == Role::Leaving {
            let objects = work.shards.get(number).cloned().unwrap_or_default();
            let by = Some(plan.generation);
            wanted.extend(retire(work, ctx, resolved, (*number, by), &objects, &mut keep));
        } else {
            wanted.push(own.clone());
            wanted.extend(workers.deployments.get(number).cloned());
        }
    }
    for wanted in &wanted {
        keep.insert((wanted.kind, wanted.name.clone()));
        ctx.applier.ensure(namespace, wanted, &work.children).await?;
    }
    nudge(work, ctx, plan, files, wish).await?;
    prune(work, ctx, &keep).await
}

/// The Job that ends a shard's session, when all of its workers stop: they hand their session over to it.
/// Beside the shard the generation of the plan that ends it, where that counts.
pub fn retire(
    work: &Work<'_>,
    ctx: &Context,
    resolved: &Resolved,
    (shard, generation): (u32, Option<i64>),
    objects: &ShardObjects,
    keep: &mut BTreeSet<(Kind, String)>,
) -> Option<Wanted> {
    let wanted = job::retire(&work.owner, resolved, &ctx.config, shard, generation);
    match &objects.job {
        // Pruned.
        Some(_) if objects.drops_retire(&wanted) => None,
        Some(_) => {
            keep.insert((Kind::Job, wanted.name));
            None
        }
        None => (!objects.has_worker()).then_some(wanted),
    }
}

fn stops(pod: &DynamicObject) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// After how long a pod is asked again, if it does not follow these files.
fn pause(report: &WorkerStatus, digest: &str) -> Option<Duration> {
    match &*report.manifest {
        followed if followed == digest => None,
        // It has none that it can follow: a Secret is missing, and no new file helps.
        "" => Some(NUDGE_WAITING),
        _ => Some(NUDGE),
    }
}

/// Pods that do not follow their newest files are asked to look, again and again.
async fn nudge(
    work: &Work<'_>,
    ctx: &Context,
    plan: &Plan,
    files: &ShardFiles,
    wish: &Wish,
) -> Result<(), Error> {
    for (number, (_, digest)) in &files.0 {
        let Some(objects) = work.shards.get(number).filter(|_| plan.role(wish, *number) == Role::Active)
        else {
            continue;
        };
        for (pod, report) in &objects.pods {
            let Some(pause) = report.as_ref().and_then(|report| pause(report, digest)) else { continue };
            let uid = pod.uid().unwrap_or_default();
            if !stops(pod) && ctx.last.is_due(format!("{uid}/{digest}"), pause) {
                let mark = format!("{digest}-{}", k8s_openapi::jiff::Timestamp::now().as_millisecond());
                ctx.applier.nudge(pod, &mark).await?;
            }
        }
    }
    Ok(())
}

/// Deletes what is ours and no longer wanted.
pub async fn prune(work: &Work<'_>, ctx: &Context, keep: &BTreeSet<(Kind, String)>) -> Result<(), Error> {
    let unwanted = work.children.iter().filter(|(key, _)| key.0 != Kind::Pod && !keep.contains(key));
    for ((kind, _), object) in unwanted {
        ctx.applier.delete(*kind, object).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_waits_for_a_secret_is_asked_seldom_to_look_at_its_files() {
        let follows = |digest: &str| WorkerStatus { manifest: digest.to_owned(), ..WorkerStatus::default() };
        assert_eq!(pause(&follows("new"), "new"), None);
        assert_eq!(pause(&follows("old"), "new"), Some(NUDGE));
        let waits = WorkerStatus::not_ready("secret_missing", "mqtt/password".to_owned());
        assert!(pause(&waits, "new") >= Some(NUDGE * 10));
    }
}
