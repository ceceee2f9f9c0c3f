use penstock_crds::report::LeaseStatus;
use serde_json::json;

use super::*;
use crate::caches::WorkerPod;

/// A child, and where it is found.
type Child = ((Kind, String), Arc<DynamicObject>);

/// Of the first shard of `works/plant`.
fn object(kind: Kind, component: &str, name: &str, rest: &Value) -> Child {
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

fn deployment() -> Child {
    let status = json!({"observedGeneration": 1, "updatedReplicas": 1, "replicas": 1});
    object(Kind::Deployment, "worker", "plant-shard-0", &json!({"status": status}))
}

fn running(name: &str) -> Child {
    let status = json!({
        "phase": "Running", "podIP": "10.0.0.7",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"state": {"running": {}}}],
    });
    object(Kind::Pod, "worker", name, &json!({"status": status}))
}

/// No ReplicaSet deletes such a pod, and each has made another for it.
fn evicted(name: &str) -> Child {
    let status = json!({"phase": "Failed", "reason": "Evicted", "podIP": "10.0.0.7"});
    object(Kind::Pod, "worker", name, &json!({"status": status}))
}

/// What a worker says that consumes this shard.
fn consumes(shard: &str) -> WorkerStatus {
    let lease = LeaseStatus { held: true, ..LeaseStatus::default() };
    WorkerStatus { shard: shard.to_owned(), ready: true, lease, ..WorkerStatus::default() }
}

fn first(
    children: impl IntoIterator<Item = Child>,
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
        (uid == "new").then(|| consumes("works/plant/0"))
    });
    let rollout = seen.rollout(&wanted());
    assert!(rollout.finished && !rollout.turning, "{rollout:?}");
    assert_eq!(seen.pod().map(|pod| pod.name).as_deref(), Some("new"));
    assert!(!first([evicted("old")], |_| None).has_worker(), "its session is nobody's");
    let asked = |pod: Child| WorkerPod::of(&pod.1).is_some();
    assert_eq!((asked(running("new")), asked(evicted("old"))), (true, false));
}

#[test]
fn the_next_shard_waits_until_a_pod_that_ended_is_gone() {
    let (key, old) = evicted("old");
    let mut old = Arc::unwrap_or_clone(old);
    old.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2100-01-01T00:00:00Z")).unwrap());
    let seen = first([deployment(), (key, Arc::new(old)), running("new")], |uid| {
        (uid == "new").then(|| consumes("works/plant/0"))
    });
    let rollout = seen.rollout(&wanted());
    assert!(rollout.turning && !rollout.finished, "{rollout:?}");
}

#[test]
fn what_another_shards_worker_says_at_an_address_that_was_given_anew_is_not_heard() {
    for (shard, heard) in
        [("works/plant/0", true), ("", true), ("works/plant/1", false), ("yard/plant/0", false)]
    {
        let seen = first([deployment(), running("one")], |_| Some(consumes(shard)));
        assert_eq!(seen.report().is_some(), heard, "{shard}");
    }
}

/// A retire Job as it is wanted, or was: by its template's digest.
fn retire(template: &str) -> Wanted {
    let annotations = json!({names::TEMPLATE: template});
    let object = json!({"metadata": {"annotations": annotations}});
    Wanted { kind: Kind::Job, name: job::retire_name("plant", 0), object }
}

fn job(template: &str, status: &Value) -> Child {
    let ((kind, name), job) = object(Kind::Job, "retire", "plant-retire-0", &json!({"status": status}));
    let mut job = Arc::unwrap_or_clone(job);
    job.annotations_mut().insert(names::TEMPLATE.to_owned(), template.to_owned());
    ((kind, name), Arc::new(job))
}

fn retire_pod(status: &Value) -> Child {
    object(Kind::Pod, "retire", "plant-retire-0-x", &json!({"status": status}))
}

fn waiting() -> Value {
    let waiting = json!({"reason": "ImagePullBackOff", "message": "no such image"});
    json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": waiting}}]})
}

#[test]
fn a_retire_job_that_cannot_start_is_made_anew_when_what_is_wanted_changes_and_one_that_ran_is_not() {
    let ended = |code: i64| json!({"phase": if code == 0 { "Succeeded" } else { "Failed" }, "containerStatuses": [{"state": {"terminated": {"exitCode": code}}}]});
    let running = json!({"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]});
    let unscheduled = json!({"phase": "Pending"});
    for (job_says, pod_says, drops) in [
        (json!({}), None, true),
        (json!({"active": 1}), Some(unscheduled), true),
        (json!({"active": 1}), Some(waiting()), true),
        (json!({"active": 1}), Some(running), false),
        (json!({"active": 1}), Some(ended(0)), false),
        (json!({"active": 1, "ready": 1}), Some(waiting()), false),
        (json!({"succeeded": 1}), None, false),
        (json!({"active": 1, "failed": 1}), Some(ended(1)), true),
    ] {
        let pod = pod_says.as_ref().map(retire_pod);
        let seen = |template: &str| {
            first([Some(job(template, &job_says)), pod.clone()].into_iter().flatten(), |_| None)
        };
        assert_eq!(seen("old").drops_retire(&retire("new")), drops, "{job_says} {pod_says:?}");
        assert!(!seen("new").drops_retire(&retire("new")), "{job_says} {pod_says:?}");
    }
}

#[test]
fn why_a_retire_job_does_not_start_is_told_and_what_its_pod_said_of_itself_comes_first() {
    let told = |pods: &[Value]| {
        let pods = (0..).zip(pods).map(|(number, status): (u32, _)| {
            let ((kind, name), pod) = retire_pod(status);
            ((kind, format!("{name}{number}")), pod)
        });
        let seen = first(pods.chain([job("as wanted", &json!({"active": 1}))]), |_| None);
        seen.retire_failure().map(|(reason, _)| reason)
    };
    let message = r#"{"error": {"reason": "broker_away", "message": "no route"}}"#;
    let failed = json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 1, "message": message}}}]});
    let unscheduled = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]});
    assert_eq!(told(&[waiting()]).as_deref(), Some("ImagePullBackOff"));
    assert_eq!(told(&[unscheduled]).as_deref(), Some("Unschedulable"));
    assert_eq!(told(&[waiting(), failed]).as_deref(), Some("broker_away"));
    assert_eq!(told(&[json!({"phase": "Running"})]), None);
}

#[test]
fn a_deployment_that_makes_no_pod_says_why() {
    let failure = json!({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"});
    let (place, live) =
        object(Kind::Deployment, "worker", "plant-shard-0", &json!({"status": {"conditions": [failure]}}));
    let why = ("FailedCreate".to_owned(), "exceeded quota".to_owned());
    assert_eq!(first([(place.clone(), Arc::clone(&live))], |_| None).unmade(), Some(why));
    assert_eq!(first([(place, live), running("one")], |_| None).unmade(), None);
}
