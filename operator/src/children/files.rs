//! The ConfigMaps: a shard's files, and the plan. Both are state: they are written by replacing a version
//! that was read, never by server-side apply, by which one who comes late would turn them back.

use penstock_crds::plan::{ShardPlan, files_digest};
use serde_json::json;

use super::{Owner, Wanted};
use crate::kinds::Kind;
use crate::names;
use crate::plan::Plan;
use crate::resolve::Resolved;

/// Key of the plan.
pub const PLAN: &str = "plan.json";
/// Key of the manifest.
pub const MANIFEST: &str = "manifest.yaml";
const SHARD_PLAN: &str = "plan.yaml";

/// Name of the plan's ConfigMap.
pub fn plan_name(pipeline: &str) -> String {
    names::child(pipeline, "plan")
}

/// The plan, and the manifest that a retire Job reads. It outlives the pipeline.
pub fn plan(owner: &Owner, plan: &Plan, manifest: &str) -> Wanted {
    let data = json!({PLAN: format!("{:#}", json!(plan)), MANIFEST: manifest});
    let labels = names::of_pipeline(&owner.name, "plan");
    owner.free(Kind::ConfigMap, plan_name(&owner.name), &labels, json!({"data": data}))
}

/// The files of a shard, and their digest.
pub fn shard(owner: &Owner, resolved: &Resolved, plan: &Plan, shard: u32) -> (Wanted, String) {
    let own = ShardPlan { generation: plan.generation, shard, keys: plan.keys_of(shard) };
    let text = format!("{:#}\n", json!(own));
    let digest = files_digest(&resolved.file, &text);
    let data = json!({MANIFEST: resolved.file, SHARD_PLAN: text});
    let labels = names::of_shard(&owner.name, "worker", shard);
    let name = names::shard(&owner.name, shard);
    (owner.child(Kind::ConfigMap, name, &labels, json!({"data": data})), digest)
}

/// What a shard was told: generation and keys.
pub fn told(data: &serde_json::Value) -> Option<(i64, Vec<String>)> {
    let plan = ShardPlan::parse(data.get(SHARD_PLAN)?.as_str()?).ok()?;
    Some((plan.generation, plan.keys))
}

/// The arguments that name the files.
pub fn arguments(shard: u32) -> [String; 6] {
    let file = |name: &str| format!("{}/{name}", super::pod::FILES);
    ["-f".into(), file(MANIFEST), "--plan".into(), file(SHARD_PLAN), "--shard".into(), shard.to_string()]
}

/// The argument that names the manifest alone.
pub fn manifest_argument() -> [String; 2] {
    ["-f".into(), format!("{}/{MANIFEST}", super::pod::FILES)]
}

/// A store's manifest.
pub fn store(owner: &Owner, manifest: &str) -> Wanted {
    let labels = names::of_store(&owner.name, "store");
    let name = names::child(&owner.name, "store");
    owner.child(Kind::ConfigMap, name, &labels, json!({"data": {MANIFEST: manifest}}))
}
