//! The Job that ends a shard's session.

use serde_json::json;

use super::{Owner, Wanted, digest, files, pod};
use crate::kinds::Kind;
use crate::names;
use crate::resolve::{Config, Resolved};

/// Name of a shard's retire Job.
pub fn retire_name(pipeline: &str, shard: u32) -> String {
    names::child(pipeline, &format!("retire-{shard}"))
}

/// Ends a shard's session for good, unless a newer plan than this generation's is followed. It outlives the
/// pipeline.
pub fn retire(
    owner: &Owner,
    resolved: &Resolved,
    config: &Config,
    shard: u32,
    generation: Option<i64>,
) -> Wanted {
    let template = |generation: Option<i64>| {
        let mut arguments = vec!["retire".to_owned()];
        arguments.extend(files::manifest_argument());
        arguments.extend(["--shard".to_owned(), shard.to_string()]);
        arguments.extend(generation.map(|generation| format!("--plan-generation={generation}")));
        arguments.extend(report());
        let files = files::plan_name(&owner.name);
        let mut template = pod::of_shard(owner, resolved, config, ("retire", shard), arguments, files);
        template["spec"]["restartPolicy"] = json!("Never");
        // It keeps away from no worker, and near to none.
        if let Some(affinity) = template["spec"]["affinity"].as_object_mut() {
            affinity.retain(|of, _| of == "nodeAffinity");
        }
        template
    };
    let spec = json!({"backoffLimit": 2, "template": template(generation)});
    let labels = names::of_shard(&owner.name, "retire", shard);
    let mut wanted = owner.free(Kind::Job, retire_name(&owner.name, shard), &labels, json!({"spec": spec}));
    // By whichever plan: one that is there is not made anew for another.
    wanted.object["metadata"]["annotations"][names::TEMPLATE] = json!(digest(&template(None)));
    wanted
}

/// Where a job says how it ended: Kubernetes keeps it in the pod's status.
pub fn report() -> [String; 2] {
    ["--report".into(), "/dev/termination-log".into()]
}
