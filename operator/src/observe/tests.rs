use penstock_crds::report::LeaseStatus;
use serde_json::json;

use super::*;
use crate::caches::WorkerPod;

/// Of the first shard of `works/plant`.
fn object(kind: Kind, component: &str, name: &str, rest: Value) -> ((Kind, String), Arc<DynamicObject>) {
    let resource = kind.resource();
    let mut object = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {
            "name": name, "namespace": "works", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": names::of_shard("plant", component, 0), "generation": 1,
        },
    });
    object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    ((kind, name.to_owned()), Arc::new(serde_json::from_value(object).unwrap()))
}

fn deployment() -> ((Kind, String), Arc<DynamicObject>) {
    let status = json!({"observedGeneration": 1, "updatedReplicas": 1, "replicas": 1});
    object(Kind::Deployment, "worker", "plant-shard-0", json!({"status": status}))
}

fn running(name: &str) -> ((Kind, String), Arc<DynamicObject>) {
    let status = json!({
        "phase": "Running", "podIP": "10.0.0.7",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"state": {"running": {}}}],
    });
    object(Kind::Pod, "worker", name, json!({"status": status}))
}

/// No ReplicaSet deletes such a pod, and each has made another for it.
fn evicted(name: &str) -> ((Kind, String), Arc<DynamicObject>) {
    let status = json!({"phase": "Failed", "reason": "Evicted", "podIP": "10.0.0.7"});
    object(Kind::Pod, "worker", name, json!({"status": status}))
}

/// What a worker says that consumes this shard.
fn consumes(shard: &str) -> Option<WorkerStatus> {
    let lease = LeaseStatus { held: true, ..LeaseStatus::default() };
    Some(WorkerStatus { shard: shard.to_owned(), ready: true, lease, ..WorkerStatus::default() })
}

fn first(
    children: impl IntoIterator<Item = ((Kind, String), Arc<DynamicObject>)>,
    answer: impl Fn(&str) -> Option<WorkerStatus>,
) -> ShardObjects {
    shards("plant", &children.into_iter().collect(), answer).remove(&0).unwrap_or_default()
}

/// Its Deployment as it is.
fn wanted() -> Wanted {
    Wanted { kind: Kind::Deployment, name: "plant-shard-0".to_owned(), object: json!({}) }
}

#[test]
fn a_pod_that_was_evicted_holds_up_no_rollout_and_no_end_of_its_shard() {
    let seen = first([deployment(), evicted("old"), running("new")], |uid| {
        (uid == "new").then(|| consumes("works/plant/0")).flatten()
    });
    let rollout = seen.rollout(&wanted());
    assert!(rollout.finished && !rollout.turning, "{rollout:?}");
    assert_eq!(seen.pod().map(|pod| pod.name).as_deref(), Some("new"));
    assert!(!first([evicted("old")], |_| None).has_worker(), "its session is nobody's");
    let asked = |pod: ((Kind, String), Arc<DynamicObject>)| WorkerPod::of(&pod.1).is_some();
    assert_eq!((asked(running("new")), asked(evicted("old"))), (true, false));
}

#[test]
fn what_another_shards_worker_says_at_an_address_that_was_given_anew_is_not_heard() {
    for (shard, heard) in
        [("works/plant/0", true), ("", true), ("works/plant/1", false), ("yard/plant/0", false)]
    {
        let seen = first([deployment(), running("one")], |_| consumes(shard));
        assert_eq!(seen.report().is_some(), heard, "{shard}");
    }
}
