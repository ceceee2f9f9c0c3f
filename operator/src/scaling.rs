//! The autoscaler on a pipeline: from its status and its workers' answers to the count, and what is remembered
//! of it. And how much each key weighs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use kube::ResourceExt;
use penstock_crds::IngestPipeline;
use penstock_crds::operations::AutoscalingStatus;
use penstock_crds::pipeline::ShardBy;
use penstock_crds::report::WorkerStatus;

use crate::autoscale::{self, Limited, Load, Memory, Observed};
use crate::conditions;
use crate::observe::ShardObjects;
use crate::plan::Plan;

/// More memories than these are cleared of all; what matters of them is in the statuses.
const MOST: usize = 4096;

/// What the autoscaler remembers, by the pipelines' UIDs.
#[derive(Debug, Default)]
pub struct Memories(Mutex<HashMap<String, Memory>>);

impl Memories {
    fn of(&self, pipeline: &IngestPipeline) -> Memory {
        let kept = pipeline.status.as_ref().and_then(|status| status.autoscaling.clone());
        let first = pipeline.status.as_ref().map_or(0, |status| status.replicas).max(pipeline.spec.replicas);
        let restored = || Memory::restored(kept, u32::try_from(first).unwrap_or_default());
        let memories = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memories.get(&pipeline.uid().unwrap_or_default()).cloned().unwrap_or_else(restored)
    }

    fn keep(&self, pipeline: &IngestPipeline, memory: Memory) {
        let mut memories = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memories.len() > MOST {
            memories.clear();
        }
        memories.insert(pipeline.uid().unwrap_or_default(), memory);
    }

    /// Of a pipeline that is not scaled, or is gone.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// What the autoscaler has decided.
#[derive(Debug, Clone)]
pub struct Scaling {
    /// For the status.
    pub kept: AutoscalingStatus,
    /// Why there are not more.
    pub limited: Option<Limited>,
    /// A change is near.
    pub watch: bool,
}

/// Decides; none where `spec.autoscaling` is not set, or the pipeline ends.
pub fn decide(
    memories: &Memories,
    pipeline: &IngestPipeline,
    plan: Option<&Plan>,
    shards: &BTreeMap<u32, ShardObjects>,
    now: i64,
) -> Option<Scaling> {
    let spec = pipeline.spec.autoscaling.as_ref().filter(|_| pipeline.metadata.deletion_timestamp.is_none());
    let Some(spec) = spec else {
        memories.forget(&pipeline.uid().unwrap_or_default());
        return None;
    };
    let memory = memories.of(pipeline);
    let loads =
        shards.iter().filter(|(shard, _)| **shard < memory.replicas()).filter_map(|(shard, objects)| {
            let keys = plan.map_or(0, |plan| plan.keys_of(*shard).len());
            holds(objects).map(|report| Load::of(report, keys))
        });
    let conditions = pipeline.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let says = |kind, status| conditions::get(conditions, kind).is_some_and(|found| found.status == status);
    let shared = pipeline.spec.sharding.by == ShardBy::Shared;
    let seen = Observed {
        loads: loads.collect(),
        keys: (!shared).then(|| penstock_crds::plan::keys(&pipeline.spec).len() as u32),
        in_effect: says("Ready", "True") && says("Reconciling", "False"),
        suspended: pipeline.spec.suspend,
    };
    let decision = autoscale::decide(spec, &memory, &seen, now);
    let kept = decision.memory.kept.clone();
    memories.keep(pipeline, decision.memory);
    Some(Scaling { kept, limited: decision.limited, watch: decision.watch })
}

/// The answer of the worker that consumes.
fn holds(objects: &ShardObjects) -> Option<&WorkerStatus> {
    objects.report().filter(|report| report.lease.held)
}

/// Messages a second of each key, as far as its owner tells. A key that it does not name has none.
pub fn rates(plan: &Plan, shards: &BTreeMap<u32, ShardObjects>) -> BTreeMap<String, f64> {
    let owner = |shard: &u32| shards.get(shard).and_then(holds);
    let known = plan.keys.iter().filter_map(|(key, place)| {
        let report = owner(&place.owner)?;
        Some((key.clone(), report.key_rates.get(key).copied().unwrap_or_default()))
    });
    known.collect()
}
