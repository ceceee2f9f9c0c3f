//! The end of a pipeline: its sessions are drained and ended, then its finalizer goes. Where that cannot
//! be, the finalizer goes all the same, and an Event names the client ids that are left at the broker.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject};
use kube::runtime::controller::Action;
use penstock_crds::{IngestPipeline, Manifest};

use crate::caches::Children;
use crate::children::{files, shared};
use crate::conditions::Say;
use crate::context::{Context, Times};
use crate::error::Error;
use crate::kinds::Kind;
use crate::names;
use crate::pipeline::{self, Work, act};
use crate::plan::{Plan, Wish};
use crate::resolve::{self, Resolved};
use crate::status;

const AGAIN: Duration = Duration::from_secs(2);

/// Brings a pipeline that is deleted one step nearer to its end.
pub async fn reconcile(work: &Work<'_>, ctx: &Context) -> Result<Action, Error> {
    if !work.pipeline.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
        return Ok(Action::await_change());
    }
    if work.pipeline.status.as_ref().is_some_and(status::has_ended) {
        return finish(work, ctx, None).await;
    }
    let wish = Wish { ending: true, ..Wish::new(BTreeSet::new(), true, 0, false) };
    // A hand may have taken it.
    let plan = work.stored_plan.clone().unwrap_or_else(|| Plan {
        shards: work.told_shards().chain(work.shards.keys().copied()).collect(),
        ..Plan::default()
    });
    let resolved = resolved(work);
    let seen = resolved.as_ref().map(|resolved| work.seen(&plan, resolved)).unwrap_or_default();
    let plan = plan.step(&wish, &seen);
    let schema = Say { holds: None, reason: "ending".into(), message: "the pipeline is deleted".into() };
    if plan.shards.is_empty() {
        // Told before anything goes, so that the rest can be tried again: it is seen in the next reconcile.
        pipeline::write_status(work, ctx, &wish, &[], &plan, None, schema).await?;
        return Ok(Action::requeue(AGAIN));
    }
    let Some(resolved) = resolved else {
        return finish(work, ctx, Some((&plan, "nothing tells how to reach the broker and the database")))
            .await;
    };
    if is_overdue(work.pipeline, Duration::from_secs(ctx.config.retire_deadline), &ctx.last) {
        return finish(work, ctx, Some((&plan, "the deadline passed"))).await;
    }
    if is_terminating(&work.owner.namespace, ctx).await? {
        return finish(work, ctx, Some((&plan, "its namespace ends, which takes no new Jobs"))).await;
    }
    let shards = pipeline::views(work, &plan, &wish, None);
    let applied = apply(work, ctx, &resolved, &plan).await;
    let blocked = applied.as_ref().err().and_then(Error::blocked);
    let written = pipeline::write_status(work, ctx, &wish, &shards, &plan, blocked, schema).await;
    applied?;
    written?;
    ctx.reports.set_busy(&work.owner.namespace, &work.owner.name, false);
    Ok(Action::requeue(AGAIN))
}

/// By the manifest that was stored with the plan: the store may be gone already.
fn resolved(work: &Work<'_>) -> Option<Resolved> {
    let Manifest { mut pipeline, store } = work.stored_manifest()?;
    pipeline.spec.worker = work.pipeline.spec.worker.clone();
    pipeline.metadata.uid.clone_from(&work.pipeline.metadata.uid);
    resolve::pipeline(&pipeline, Some(&store), &[] as &[std::sync::Arc<IngestPipeline>]).ok()
}

/// Whether this process has tried for so long. While no operator was there, or the pipeline was paused, nobody did:
/// the time of its deletion says nothing of that.
fn is_overdue(pipeline: &IngestPipeline, deadline: Duration, last: &Times) -> bool {
    last.is_past(&tries(pipeline), deadline)
}

/// The pipeline is left alone: its deadline begins anew when it is not any more.
pub fn pause(pipeline: &IngestPipeline, last: &Times) {
    last.forget(&tries(pipeline));
}

fn tries(pipeline: &IngestPipeline) -> String {
    format!("{}/retire", pipeline.uid().unwrap_or_default())
}

async fn is_terminating(namespace: &str, ctx: &Context) -> Result<bool, Error> {
    let api: Api<Namespace> = Api::all(ctx.client.clone());
    let namespace = api.get_opt(namespace).await?;
    Ok(namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()))
}

async fn apply(work: &Work<'_>, ctx: &Context, resolved: &Resolved, plan: &Plan) -> Result<(), Error> {
    let stored = files::plan(&work.owner, plan, &resolved.file);
    let mut wanted = vec![stored];
    wanted.push(shared::retire_account(&work.owner));
    let mut keep = BTreeSet::new();
    for number in &plan.shards {
        let objects = work.shards.get(number).cloned().unwrap_or_default();
        wanted.extend(act::retire(work, ctx, resolved, (*number, None), &objects, &mut keep));
    }
    for wanted in &wanted {
        keep.insert((wanted.kind, wanted.name.clone()));
        ctx.applier.ensure(&work.owner.namespace, wanted, &work.children).await?;
    }
    act::prune(work, ctx, &keep).await
}

/// Removes what outlives the pipeline, says what is left at the broker, and lets the pipeline go.
async fn finish(work: &Work<'_>, ctx: &Context, left: Option<(&Plan, &str)>) -> Result<Action, Error> {
    if let Some((plan, why)) = left {
        let ids = client_ids(work.pipeline, plan.shards.iter().copied());
        let note = format!("{why}: sessions are left at the broker, with all that it queues for them: {ids}");
        tracing::warn!(
            pipeline = work.owner.name,
            namespace = work.owner.namespace,
            note,
            "sessions are left"
        );
        ctx.say(work.pipeline, false, "sessions_left", note).await;
    } else {
        ctx.say(work.pipeline, true, "retired", "all sessions are drained and ended".to_owned()).await;
    }
    for (kind, object) in leftovers(&work.owner.name, &work.children) {
        ctx.applier.delete(kind, object).await?;
    }
    pipeline::set_finalizers(work.pipeline, ctx, &other_finalizers(work.pipeline)).await?;
    let uid = work.pipeline.uid().unwrap_or_default();
    ctx.last.forget(&uid);
    ctx.memories.forget(&uid);
    Ok(Action::await_change())
}

/// What goes with a pipeline; the plan last, which tells what sessions there are.
fn leftovers<'a>(
    pipeline: &str,
    children: &'a Children,
) -> impl Iterator<Item = (Kind, &'a DynamicObject)> + use<'a> {
    let plan = (Kind::ConfigMap, files::plan_name(pipeline));
    let last = children.get_key_value(&plan);
    let rest = children.iter().filter(move |(key, _)| key.0 != Kind::Pod && **key != plan);
    rest.chain(last).map(|((kind, _), object)| (*kind, &**object))
}

/// The finalizers but for ours.
pub fn other_finalizers(pipeline: &impl ResourceExt) -> Vec<String> {
    let all = pipeline.finalizers().iter();
    all.filter(|finalizer| *finalizer != names::FINALIZER).cloned().collect()
}

/// The client ids of shards, for a person.
pub fn client_ids(pipeline: &IngestPipeline, shards: impl Iterator<Item = u32>) -> String {
    let prefix = Manifest::client_id_prefix_of(pipeline);
    let sessions = pipeline.spec.source.mqtt.sessions;
    let ids = shards.flat_map(|shard| {
        let first = format!("{prefix}-{shard}");
        let more = (1..sessions).map(move |session| format!("-{session}"));
        std::iter::once(first.clone()).chain(more.map(move |suffix| format!("{first}{suffix}")))
    });
    ids.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deleted() -> IngestPipeline {
        let example = include_str!("../../examples/plant.yaml");
        let mut pipeline = Manifest::parse(example).unwrap().pipeline;
        let metadata = json!({"name": "plant", "namespace": "works", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        pipeline.metadata = serde_json::from_value(metadata).unwrap();
        pipeline
    }

    #[test]
    fn the_plan_goes_last_and_pods_go_with_what_made_them() {
        let child = |(kind, name): (Kind, &str)| {
            let object: DynamicObject = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            ((kind, name.to_owned()), std::sync::Arc::new(object))
        };
        let all = [
            (Kind::ConfigMap, "plant-plan"),
            (Kind::ConfigMap, "plant-shard-0"),
            (Kind::Job, "plant-retire-0"),
            (Kind::Pod, "plant-retire-0-x"),
        ];
        let children = all.map(child).into();
        let gone = leftovers("plant", &children).map(|(_, object)| object.name_any());
        assert_eq!(gone.collect::<Vec<_>>(), ["plant-shard-0", "plant-retire-0", "plant-plan"]);
    }

    #[test]
    fn a_deletion_is_overdue_only_after_this_process_has_tried_for_as_long() {
        let (pipeline, last) = (deleted(), Times::default());
        assert!(
            !is_overdue(&pipeline, Duration::from_mins(10), &last),
            "no operator was there, or it was paused"
        );
        let short = Duration::from_millis(100);
        std::thread::sleep(short);
        assert!(is_overdue(&pipeline, short, &last));
        pause(&pipeline, &last);
        assert!(!is_overdue(&pipeline, short, &last), "nobody tried while it was paused");
    }
}
