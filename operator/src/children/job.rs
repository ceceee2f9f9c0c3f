//! The Job that ends a shard's session.

use serde_json::json;

use super::pod::Pod;
use super::{Owner, Wanted, files};
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
    let worker = &resolved.manifest.pipeline.spec.worker;
    let labels = names::of_shard(&owner.name, "retire", shard);
    let mut arguments = vec!["retire".to_owned()];
    arguments.extend(files::manifest_argument());
    arguments.extend(["--shard".to_owned(), shard.to_string()]);
    arguments.extend(generation.map(|generation| format!("--plan-generation={generation}")));
    arguments.extend(report());
    let pod = Pod {
        labels: labels.clone(),
        annotations: worker.annotations.clone(),
        image: worker.image.as_deref().unwrap_or(&config.worker_image),
        pull_policy: worker.image_pull_policy.map_or(&config.pull_policy, |policy| policy.as_str()),
        account: names::child(&owner.name, "retire"),
        arguments,
        files: files::plan_name(&owner.name),
        credentials: &resolved.credentials,
    };
    let mut template = pod.template();
    let spec = &mut template["spec"];
    spec["restartPolicy"] = json!("Never");
    if !worker.image_pull_secrets.is_empty() {
        spec["imagePullSecrets"] = json!(worker.image_pull_secrets);
    }
    if !worker.node_selector.is_empty() {
        spec["nodeSelector"] = json!(worker.node_selector);
    }
    if !worker.tolerations.is_empty() {
        spec["tolerations"] = json!(worker.tolerations);
    }
    let spec = json!({"backoffLimit": 2, "template": template});
    owner.free(Kind::Job, retire_name(&owner.name, shard), &labels, json!({"spec": spec}))
}

/// Where a job says how it ended: Kubernetes keeps it in the pod's status.
pub fn report() -> [String; 2] {
    ["--report".into(), "/dev/termination-log".into()]
}
