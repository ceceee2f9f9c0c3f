//! A shard's Deployment: one pod.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::pod::Pod;
use super::{Owner, Wanted, digest, files};
use crate::kinds::Kind;
use crate::names;
use crate::resolve::{Config, Resolved};

/// How long a worker that is told to stop goes on until another took over.
const HANDOVER: Duration = Duration::from_secs(20);
/// How long it then has to commit what it holds, and a little more.
const GRACE: Duration = Duration::from_secs(70);
/// How long a pod stays bound to a node that is not heard of.
const LOST_NODE: i64 = 30;
/// Annotation: digest of what only a new start takes over.
const RESTART: &str = "penstock.dev/restart";

/// A shard's Deployment. Only a change that a running worker cannot follow changes its template.
pub fn deployment(owner: &Owner, resolved: &Resolved, config: &Config, shard: u32, running: bool) -> Wanted {
    let worker = &resolved.manifest.pipeline.spec.worker;
    let handover = worker.handover.as_ref().map_or(HANDOVER, penstock_crds::Duration::get);
    let labels = names::of_shard(&owner.name, "worker", shard);
    let mut annotations = worker.annotations.clone();
    annotations.insert(RESTART.to_owned(), resolved.restart.clone());
    let mut arguments = vec!["run".to_owned()];
    arguments.extend(files::arguments(shard));
    arguments.extend(["--handover".to_owned(), handover.as_secs().to_string()]);
    let pod = Pod {
        labels: labels.clone(),
        annotations,
        image: worker.image.as_deref().unwrap_or(&config.worker_image),
        pull_policy: worker.image_pull_policy.map_or(&config.pull_policy, |policy| policy.as_str()),
        account: names::child(&owner.name, "worker"),
        arguments,
        files: names::shard(&owner.name, shard),
        credentials: &resolved.credentials,
    };
    let mut template = pod.template();
    container(&mut template["spec"]["containers"][0], worker);
    place(&mut template["spec"], owner, worker);
    template["spec"]["terminationGracePeriodSeconds"] = json!((handover + GRACE).as_secs());
    let spec = json!({
        "replicas": i32::from(running),
        "revisionHistoryLimit": 2,
        // The new pod takes the shard's lease when it is able to run; until then the old one consumes.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "selector": {"matchLabels": {
            names::PIPELINE: labels[names::PIPELINE],
            names::SHARD: labels[names::SHARD],
            names::COMPONENT: labels[names::COMPONENT],
        }},
    });
    let name = names::shard(&owner.name, shard);
    let mut wanted = owner.child(Kind::Deployment, name, &labels, json!({"spec": spec}));
    // Beside the rest and with a digest of its own: a shard that waits for its turn keeps its template.
    wanted.object["metadata"]["annotations"][names::TEMPLATE] = json!(digest(&template));
    wanted.object["spec"]["template"] = template;
    wanted
}

/// Whether a Deployment was given this template last.
pub fn has_template(live: &DynamicObject, wanted: &Wanted) -> bool {
    let digest = wanted.object["metadata"]["annotations"][names::TEMPLATE].as_str();
    digest.is_some() && live.annotations().get(names::TEMPLATE).map(String::as_str) == digest
}

/// Has a Deployment keep the template that it has, as long as nobody writes another meanwhile.
pub fn keep_template(wanted: &mut Wanted, live: &DynamicObject) {
    let metadata = &mut wanted.object["metadata"];
    metadata["annotations"][names::TEMPLATE] = json!(live.annotations().get(names::TEMPLATE));
    metadata["resourceVersion"] = json!(live.resource_version());
    wanted.object["spec"]["template"] = live.data["spec"]["template"].clone();
}

fn container(container: &mut Value, worker: &penstock_crds::operations::Worker) {
    container["ports"] = json!([{"name": "http", "containerPort": 9100, "protocol": "TCP"}]);
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "http"},
            "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures,
        })
    };
    container["readinessProbe"] = probe("/readyz", 2, 2);
    container["livenessProbe"] = probe("/livez", 10, 6);
    if let Some(resources) = &worker.resources {
        container["resources"] = json!(resources);
    }
    if let Some(env) = container["env"].as_array_mut() {
        env.extend(worker.env.iter().map(|variable| json!(variable)));
    }
}

fn place(spec: &mut Value, owner: &Owner, worker: &penstock_crds::operations::Worker) {
    if !worker.image_pull_secrets.is_empty() {
        spec["imagePullSecrets"] = json!(worker.image_pull_secrets);
    }
    if !worker.node_selector.is_empty() {
        spec["nodeSelector"] = json!(worker.node_selector);
    }
    if let Some(affinity) = &worker.affinity {
        spec["affinity"] = json!(affinity);
    }
    spec["topologySpreadConstraints"] = if worker.topology_spread_constraints.is_empty() {
        json!([{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": names::worker_selector(&owner.name)},
        }])
    } else {
        json!(worker.topology_spread_constraints)
    };
    let lost = |taint: &str| json!({"key": format!("node.kubernetes.io/{taint}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE});
    let mut tolerations = vec![lost("not-ready"), lost("unreachable")];
    tolerations.extend(worker.tolerations.iter().map(|toleration| json!(toleration)));
    spec["tolerations"] = json!(tolerations);
}
