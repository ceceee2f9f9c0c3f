//! A shard's Deployment: one pod.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::{Owner, Wanted, digest, files, pod};
use crate::kinds::Kind;
use crate::names;
use crate::resolve::{Config, Resolved};

/// How long a worker that is told to stop goes on until another took over.
const HANDOVER: Duration = Duration::from_secs(20);
/// How long it then has to commit what it holds, and a little more.
const GRACE: Duration = Duration::from_secs(70);
/// Annotation: digest of what only a new start takes over.
const RESTART: &str = "penstock.dev/restart";

/// A shard's Deployment. Only a change that a running worker cannot follow changes its template.
pub fn deployment(owner: &Owner, resolved: &Resolved, config: &Config, shard: u32, running: bool) -> Wanted {
    let worker = &resolved.manifest.pipeline.spec.worker;
    let handover = worker.handover.as_ref().map_or(HANDOVER, penstock_crds::Duration::get);
    let labels = names::of_shard(&owner.name, "worker", shard);
    let mut arguments = vec!["run".to_owned()];
    arguments.extend(files::arguments(shard));
    arguments.extend(["--handover".to_owned(), handover.as_secs().to_string()]);
    let name = names::shard(&owner.name, shard);
    let mut template = pod::of_shard(owner, resolved, config, ("worker", shard), arguments, name.clone());
    template["metadata"]["annotations"][RESTART] = json!(resolved.restart);
    serve(&mut template["spec"]["containers"][0]);
    template["spec"]["topologySpreadConstraints"] = spread(owner, worker);
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
    let mut wanted = owner.child(Kind::Deployment, name, &labels, json!({"spec": spec}));
    // Beside the rest and with a digest of its own: a shard that waits for its turn keeps its template.
    wanted.object["metadata"]["annotations"][names::TEMPLATE] = json!(digest(&template));
    wanted.object["spec"]["template"] = template;
    wanted
}

/// Has a Deployment keep the template that it has, as long as nobody writes another meanwhile.
pub fn keep_template(wanted: &mut Wanted, live: &DynamicObject) {
    let metadata = &mut wanted.object["metadata"];
    metadata["annotations"][names::TEMPLATE] = json!(live.annotations().get(names::TEMPLATE));
    metadata["resourceVersion"] = json!(live.resource_version());
    wanted.object["spec"]["template"] = live.data["spec"]["template"].clone();
}

fn serve(container: &mut Value) {
    container["ports"] = json!([{"name": "http", "containerPort": 9100, "protocol": "TCP"}]);
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "http"},
            "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures,
        })
    };
    container["readinessProbe"] = probe("/readyz", 2, 2);
    container["livenessProbe"] = probe("/livez", 10, 6);
}

fn spread(owner: &Owner, worker: &penstock_crds::operations::Worker) -> Value {
    if !worker.topology_spread_constraints.is_empty() {
        return json!(worker.topology_spread_constraints);
    }
    json!([{
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": names::worker_selector(&owner.name)},
    }])
}
