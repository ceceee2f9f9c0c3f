//! The reconcile of a pipeline: resolve, plan, apply, status; one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use penstock_crds::pipeline::ShardBy;
use penstock_crds::status::IngestPipelineStatus;
use penstock_crds::{IngestPipeline, Manifest, TelemetryStore};
use serde_json::json;

use crate::apply::MANAGER;
use crate::caches::Children;
use crate::children::{Owner, Wanted, files};
use crate::conditions::{self, Say};
use crate::context::{Context, Shared, now};
use crate::error::Error;
use crate::kinds::Kind;
use crate::observe::{self, ShardObjects};
use crate::plan::{Plan, Role, Seen, Wish};
use crate::resolve::{self, Resolved};
use crate::rollout::Rollout;
use crate::scaling::{self, Scaling};
use crate::status::{self, Facts, ShardView};
use crate::{ending, names};

pub mod act;

/// Until the next look, while something is on its way and at rest. All else comes by triggers.
const BUSY: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_mins(1);
/// Until it is asked whether other pipelines have been rolled.
const TURN: Duration = Duration::from_secs(10);
/// Until the autoscaler looks again.
const LOOK: Duration = Duration::from_secs(4);
/// Keys of shards at rest move no more often, and not so soon after other moves.
const LEVEL: Duration = Duration::from_mins(10);
/// Rates of a key that has another shard, or of a worker that has just begun, are wrong for so long.
const CALM: Duration = Duration::from_mins(2);
/// Numbers in a status are written this often.
const NUMBERS: Duration = Duration::from_mins(1);

/// What a reconcile works on.
pub struct Work<'a> {
    /// The pipeline.
    pub pipeline: &'a IngestPipeline,
    /// Who children belong to.
    pub owner: Owner,
    /// All that there is of it.
    pub children: Children,
    /// The same by shard.
    pub shards: BTreeMap<u32, ShardObjects>,
    /// The stored plan; none if it was deleted or never made.
    pub stored_plan: Option<Plan>,
    /// What the autoscaler says, where it is on.
    scaling: Option<Scaling>,
}

impl<'a> Work<'a> {
    fn new(pipeline: &'a IngestPipeline, ctx: &Context) -> Result<Self, Error> {
        let owner = Owner::of(pipeline);
        let children =
            ctx.caches.of(names::PIPELINE, &owner.namespace, &owner.name).map_err(Error::Unreadable)?;
        let shards = observe::shards(&owner.name, &children, |uid| ctx.reports.of(uid));
        let text = plan_data(&children, &owner.name, files::PLAN);
        let stored_plan = text.and_then(|text| serde_json::from_str(text).ok());
        let seconds = now().0.as_second();
        let scaling = scaling::decide(&ctx.memories, pipeline, stored_plan.as_ref(), &shards, seconds);
        Ok(Self { pipeline, owner, children, shards, stored_plan, scaling })
    }

    /// Shards that are asked for: by the autoscaler, else by the spec.
    fn replicas(&self) -> i32 {
        self.scaling.as_ref().map_or(self.pipeline.spec.replicas, |scaling| scaling.kept.replicas)
    }

    /// The manifest beside the plan.
    pub fn stored_manifest(&self) -> Option<Manifest> {
        Manifest::parse(plan_data(&self.children, &self.owner.name, files::MANIFEST)?).ok()
    }

    /// Shards that the last status spoke of.
    pub fn told_shards(&self) -> impl Iterator<Item = u32> {
        let shards = self.pipeline.status.iter().flat_map(|status| &status.shards);
        shards.filter_map(|shard| u32::try_from(shard.shard).ok())
    }

    /// What the choreography needs to see.
    pub fn seen(&self, plan: &Plan, resolved: &Resolved) -> BTreeMap<u32, Seen> {
        let spec = &resolved.manifest.pipeline.spec;
        let group = resolved.manifest.client_id_prefix();
        self.shards
            .iter()
            .map(|(shard, objects)| (*shard, objects.seen(*shard, plan, spec, &group)))
            .collect()
    }
}

/// What the plan's ConfigMap holds.
fn plan_data<'a>(children: &'a Children, pipeline: &str, key: &str) -> Option<&'a str> {
    children.get(&(Kind::ConfigMap, files::plan_name(pipeline)))?.data["data"][key].as_str()
}

/// Brings a pipeline one step nearer to what its spec asks for.
pub async fn reconcile(pipeline: Arc<IngestPipeline>, ctx: Shared) -> Result<Action, Error> {
    if pipeline.annotations().get(names::PAUSED).is_some_and(|paused| paused == "true") {
        ending::pause(&pipeline, &ctx.last);
        return Ok(Action::await_change());
    }
    let work = Work::new(&pipeline, &ctx)?;
    if pipeline.metadata.deletion_timestamp.is_some() {
        return ending::reconcile(&work, &ctx).await;
    }
    if !pipeline.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
        add_finalizer(&pipeline, &ctx).await?;
    }
    let store = ctx.store_of(&pipeline);
    let resolved = resolve::pipeline(&pipeline, store.as_deref(), &ctx.all_pipelines());
    let mut wish = wish(&pipeline, work.replicas());
    let schema = schema(&pipeline, store.as_deref());
    let resolved = match resolved {
        Ok(resolved) => resolved,
        Err(fault) => {
            let stored = work.stored_plan.clone().unwrap_or_default();
            // What runs goes on by the plan that it has.
            wish.keys = stored.keys.keys().cloned().collect();
            let blocked = Some((fault.reason().to_owned(), fault.to_string()));
            let shards = views(&work, &stored, &wish, None);
            write_status(&work, &ctx, &wish, &shards, &stored, blocked, schema).await?;
            return Ok(Action::requeue(REST));
        }
    };
    let stored = match work.stored_plan.clone() {
        Some(plan) => plan,
        None => match rebuild(&work) {
            Ok(plan) => plan,
            Err(shard) => {
                let why = format!("the plan is gone, and shard {shard} does not tell its keys yet");
                let blocked = Some(("plan_rebuilding".to_owned(), why));
                let none = Plan::default();
                let shards = views(&work, &none, &wish, None);
                write_status(&work, &ctx, &wish, &shards, &none, blocked, schema).await?;
                return Ok(Action::requeue(BUSY));
            }
        },
    };
    let uid = pipeline.uid().unwrap_or_default();
    let (calm, level) = (format!("{uid}/calm"), format!("{uid}/level"));
    if ctx.last.is_past(&calm, CALM) {
        wish.rates = scaling::rates(&stored, &work.shards);
    }
    if stored.is_moving() {
        ctx.last.set(level.clone());
    }
    wish.level = wish.rates.len() == wish.keys.len() && ctx.last.is_due(level, LEVEL);
    let plan = stored.step(&wish, &work.seen(&stored, &resolved));
    let files = ShardFiles::new(&work.owner, &resolved, &plan);
    let workers = act::Workers::new(&work, &ctx, &resolved, &plan, &wish);
    let applied = act::apply(&work, &ctx, &resolved, &plan, &files, &workers, &wish).await;
    let blocked = applied.as_ref().err().and_then(Error::blocked);
    let is_blocked = blocked.is_some();
    let shards = views(&work, &plan, &wish, Some((&files, &workers.rollout)));
    let written = write_status(&work, &ctx, &wish, &shards, &plan, blocked, schema).await;
    match applied {
        Err(Error::Foreign(..)) | Ok(()) => written?,
        Err(error) => return Err(error),
    }
    let active = || shards.iter().filter(|shard| shard.role == Role::Active);
    let waits = workers.rollout.waits();
    let busy = plan.is_moving()
        || shards.iter().any(|shard| shard.role == Role::Leaving)
        || active().any(|shard| !shard.settled && !waits)
        || plan != stored;
    let watch = work.scaling.as_ref().is_some_and(|scaling| scaling.watch);
    ctx.reports.set_busy(&work.owner.namespace, &work.owner.name, busy || watch);
    let unready = active().any(|shard| !shard.is_ready());
    if busy || unready {
        ctx.last.set(calm);
    }
    let rest = match (waits, &work.scaling) {
        (_, Some(_)) => LOOK,
        (true, None) => TURN,
        (false, None) => REST,
    };
    Ok(Action::requeue(if busy || watch || unready || is_blocked { BUSY } else { rest }))
}

/// What its spec asks for, with so many shards.
pub fn wish(pipeline: &IngestPipeline, replicas: i32) -> Wish {
    let spec = &pipeline.spec;
    let keys: BTreeSet<String> = penstock_crds::plan::keys(spec).into_iter().collect();
    let replicas = u32::try_from(replicas).unwrap_or_default();
    Wish::new(keys, spec.sharding.by == ShardBy::Shared, replicas, spec.suspend)
}

/// What the store's own condition says.
fn schema(pipeline: &IngestPipeline, store: Option<&TelemetryStore>) -> Say {
    let Some(store) = store else {
        let name = &pipeline.spec.sink.store_ref.name;
        return Say::that(false, "store_missing", format!("there is no TelemetryStore '{name}'"));
    };
    let conditions = store.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    match conditions::get(conditions, "SchemaReady") {
        Some(condition) => Say {
            holds: match condition.status.as_str() {
                "True" => Some(true),
                "False" => Some(false),
                _ => None,
            },
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        },
        None => Say { holds: None, reason: "pending".into(), message: "not looked at yet".into() },
    }
}

/// A plan that was lost, from what its shards were told or tell; else a shard that tells nothing yet.
fn rebuild(work: &Work<'_>) -> Result<Plan, u32> {
    let mut told = BTreeMap::new();
    for (shard, objects) in &work.shards {
        let reported = objects.report().and_then(|report| report.plan.as_ref());
        let reported = reported.and_then(|plan| Some((plan.generation, plan.keys.clone()?)));
        match (&objects.told, reported) {
            (_, Some(reported)) => _ = told.insert(*shard, reported),
            (Some(files), None) => _ = told.insert(*shard, files.clone()),
            (None, None) if objects.deployment.is_some() => return Err(*shard),
            (None, None) => _ = told.insert(*shard, (0, Vec::new())),
        }
    }
    let mut plan = Plan::rebuilt(&told);
    plan.shards.extend(work.told_shards());
    Ok(plan)
}

/// The files of each shard that is in the plan, and their digests.
pub struct ShardFiles(BTreeMap<u32, (Wanted, String)>);

impl ShardFiles {
    fn new(owner: &Owner, resolved: &Resolved, plan: &Plan) -> Self {
        let of = |shard: &u32| (*shard, files::shard(owner, resolved, plan, *shard));
        Self(plan.shards.iter().map(of).collect())
    }
}

/// What each shard is to be, and is.
pub fn views(
    work: &Work<'_>,
    plan: &Plan,
    wish: &Wish,
    to_be: Option<(&ShardFiles, &Rollout)>,
) -> Vec<ShardView> {
    let prefix = Manifest::client_id_prefix_of(work.pipeline);
    let nothing = ShardObjects::default();
    plan.shards
        .iter()
        .map(|number| {
            let objects = work.shards.get(number).unwrap_or(&nothing);
            let settled = to_be.is_none_or(|(files, rollout)| {
                let digest = files.0.get(number).map(|(_, digest)| digest);
                digest.is_none_or(|digest| objects.is_settled(digest)) && !rollout.outdated.contains(number)
            });
            let rollout = to_be.map(|(_, rollout)| rollout.part(*number));
            ShardView {
                shard: *number,
                role: plan.role(wish, *number),
                keys: plan.keys_of(*number).len(),
                client_id: format!("{prefix}-{number}"),
                pod: objects.pod(),
                unmade: objects.unmade(),
                report: objects.report().cloned(),
                settled,
                rollout: rollout.unwrap_or_default(),
                retiring: objects.job.is_some(),
                retire_failure: objects.retire_failure(),
            }
        })
        .collect()
}

async fn add_finalizer(pipeline: &IngestPipeline, ctx: &Context) -> Result<(), Error> {
    let mut finalizers = pipeline.finalizers().to_vec();
    finalizers.push(names::FINALIZER.to_owned());
    set_finalizers(pipeline, ctx, &finalizers).await
}

/// Writes the finalizers, if nobody wrote the object since it was read.
pub async fn set_finalizers(
    pipeline: &IngestPipeline,
    ctx: &Context,
    finalizers: &[String],
) -> Result<(), Error> {
    let api: Api<IngestPipeline> =
        Api::namespaced(ctx.client.clone(), &pipeline.namespace().unwrap_or_default());
    let patch =
        json!({"metadata": {"finalizers": finalizers, "resourceVersion": pipeline.resource_version()}});
    api.patch(&pipeline.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    ctx.metrics.wrote("IngestPipeline", "patch");
    Ok(())
}

/// Writes the status if it says something new, and Events for what changed.
pub async fn write_status(
    work: &Work<'_>,
    ctx: &Context,
    wish: &Wish,
    shards: &[ShardView],
    plan: &Plan,
    blocked: status::Blocked,
    schema: Say,
) -> Result<(), Error> {
    let pipeline = work.pipeline;
    let before = pipeline.status.clone().unwrap_or_default();
    let facts = Facts {
        name: &work.owner.name,
        generation: pipeline.metadata.generation,
        wish,
        replicas: work.replicas(),
        scaling: work.scaling.as_ref(),
        shards,
        plan: (plan.generation, plan.is_moving()),
        blocked,
        schema,
    };
    let next = status::status(&before, &facts, &now());
    let uid = pipeline.uid().unwrap_or_default();
    let numbers = next != before && ctx.last.is_due(format!("{uid}/numbers"), NUMBERS);
    if !status::differs(&before, &next) && !numbers {
        return Ok(());
    }
    put_status(work, ctx, &next).await?;
    if let (Some(before), Some(next)) = (&before.autoscaling, &next.autoscaling)
        && before.replicas != next.replicas
    {
        let note = format!("from {} to {} shards, by spec.autoscaling", before.replicas, next.replicas);
        ctx.say(pipeline, true, "scaled", note).await;
    }
    for kind in ["Ready", "Stalled", "Backpressured", "ScalingLimited"] {
        ctx.tell(pipeline, &before.conditions, &next.conditions, kind).await;
    }
    Ok(())
}

async fn put_status(work: &Work<'_>, ctx: &Context, next: &IngestPipelineStatus) -> Result<(), Error> {
    let api: Api<IngestPipeline> = Api::namespaced(ctx.client.clone(), &work.owner.namespace);
    let object = json!({
        "apiVersion": IngestPipeline::api_version(&()),
        "kind": IngestPipeline::kind(&()),
        "metadata": {"name": work.owner.name},
        "status": next,
    });
    let parameters = PatchParams::apply(&format!("{MANAGER}-status")).force();
    api.patch_status(&work.owner.name, &parameters, &Patch::Apply(object)).await?;
    ctx.metrics.wrote("IngestPipeline", "status");
    Ok(())
}
