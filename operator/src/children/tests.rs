use penstock_crds::{IngestPipeline, Manifest, TelemetryStore};
use serde_json::{Value, json};

use super::*;
use crate::plan::{Plan, Wish};
use crate::resolve::{self, Config, Resolved, Unresolved};

const EXAMPLE: &str = include_str!("../../../examples/plant.yaml");
pub(super) const NOBODY: &[std::sync::Arc<IngestPipeline>] = &[];

pub(super) fn config() -> Config {
    Config {
        worker_image: "penstock:1".into(),
        pull_policy: "IfNotPresent".into(),
        retire_deadline: 600,
        pipelines_at_once: 5,
    }
}

fn example(edit: impl FnOnce(String) -> String) -> (IngestPipeline, TelemetryStore) {
    let Manifest { mut pipeline, store } = Manifest::parse(&edit(EXAMPLE.to_owned())).unwrap();
    pipeline.metadata.namespace = Some("plant".into());
    pipeline.metadata.uid = Some("1".into());
    (pipeline, store)
}

fn built(edit: impl FnOnce(String) -> String) -> (Resolved, Value) {
    let (pipeline, store) = example(edit);
    let resolved = resolve::pipeline(&pipeline, Some(&store), NOBODY).unwrap();
    let deployment = shard::deployment(&Owner::of(&pipeline), &resolved, &config(), 2, true);
    (resolved, deployment.object)
}

#[test]
fn a_worker_gets_the_keys_that_its_pipeline_names_and_no_others() {
    let (_, deployment) = built(|text| text);
    let sources = &deployment["spec"]["template"]["spec"]["volumes"][1]["projected"]["sources"];
    let item = json!([{"key": "url", "path": "timescale/url"}]);
    assert_eq!(*sources, json!([{"secret": {"name": "timescale", "items": item, "optional": true}}]));
}

#[test]
fn scaling_limits_and_filters_change_no_pod_and_another_broker_does() {
    let template = |edit: &dyn Fn(String) -> String| built(edit).1["spec"]["template"].clone();
    let before = template(&|text| text);
    for (old, new) in [
        ("replicas: 3", "replicas: 5"),
        ("replicas: 3", "suspend: true"),
        ("traksense/t0/+/+/telem", "other/t0/+/+/telem"),
        ("sharding:", "batch: {maxRows: 7}\n  readiness: {maxQueueFill: 50}\n  sharding:"),
        ("retention: 365d", "retention: 300d"),
    ] {
        assert_eq!(template(&|text| text.replace(old, new)), before, "{new}");
    }
    assert_ne!(template(&|text| text.replace("mqtt://broker", "mqtt://other")), before);
    assert_ne!(template(&|text| text.replace("sharding:", "worker: {image: other}\n  sharding:")), before);
}

#[test]
fn a_shards_files_are_a_manifest_that_a_worker_takes_and_its_own_part_of_the_plan() {
    let (resolved, _) = built(|text| text);
    assert!(Manifest::parse(&resolved.file).is_ok(), "{}", resolved.file);
    let (pipeline, _) = example(|text| text);
    let all: std::collections::BTreeSet<_> = penstock_crds::plan::keys(&pipeline.spec).into_iter().collect();
    let plan = Plan::default().step(&Wish::new(all.clone(), false, 3, false), &BTreeMap::new());
    let told: Vec<_> = (0..3)
        .map(|number| {
            files::told(&files::shard(&Owner::of(&pipeline), &resolved, &plan, number).0.object["data"])
        })
        .collect();
    let keys: usize = told.iter().map(|told| told.as_ref().unwrap().1.len()).sum();
    assert_eq!(keys, all.len());
}

#[test]
fn what_the_end_of_a_session_needs_has_no_owner_and_all_else_has() {
    let (pipeline, store) = example(|text| text);
    let resolved = resolve::pipeline(&pipeline, Some(&store), NOBODY).unwrap();
    let owner = Owner::of(&pipeline);
    let mut wanted = shared::all(&owner, &resolved);
    wanted.push(job::retire(&owner, &resolved, &config(), 0, Some(1)));
    wanted.push(files::plan(&owner, &Plan::default(), &resolved.file));
    wanted.push(shard::deployment(&owner, &resolved, &config(), 0, true));
    for Wanted { name, object, .. } in wanted {
        let goes = object["metadata"].get("ownerReferences").is_some();
        assert_eq!(
            goes,
            !["plant-retire", "plant-retire-0", "plant-plan"].contains(&name.as_str()),
            "{name}"
        );
    }
}

#[test]
fn of_two_pipelines_with_the_same_client_ids_the_older_one_has_them() {
    let (mut younger, store) = example(|text| text);
    let mut older = younger.clone();
    older.metadata.name = Some("older".into());
    older.metadata.uid = Some("2".into());
    let at = |text: &str| serde_json::from_value(json!(text)).unwrap();
    older.metadata.creation_timestamp = Some(at("2026-01-01T00:00:00Z"));
    younger.metadata.creation_timestamp = Some(at("2026-01-02T00:00:00Z"));
    let others = [std::sync::Arc::new(older.clone()), std::sync::Arc::new(younger.clone())];
    let refused = resolve::pipeline(&younger, Some(&store), &others).unwrap_err();
    assert!(matches!(&refused, Unresolved::ClientIds { other, .. } if other == "plant/older"), "{refused}");
    assert!(resolve::pipeline(&older, Some(&store), &others).is_ok());
    assert_eq!(resolve::pipeline(&older, None, &others).unwrap_err().reason(), "store_missing");
}

#[test]
fn a_shard_that_waits_for_its_turn_keeps_its_template_and_gets_all_else() {
    let (_, live) = built(|text| text);
    let live: DynamicObject = serde_json::from_value(live).unwrap();
    let (pipeline, store) = example(|text| text.replace("sharding:", "worker: {image: other}\n  sharding:"));
    let resolved = resolve::pipeline(&pipeline, Some(&store), NOBODY).unwrap();
    let mut wanted = shard::deployment(&Owner::of(&pipeline), &resolved, &config(), 2, false);
    assert!(!has_template(&live, &wanted));
    let parked = wanted.object["metadata"]["annotations"][names::WANTED].clone();
    shard::keep_template(&mut wanted, &live);
    assert!(has_template(&live, &wanted));
    assert_eq!(wanted.object["spec"]["template"], live.data["spec"]["template"]);
    assert_eq!(wanted.object["spec"]["replicas"], 0);
    assert_eq!(wanted.object["metadata"]["annotations"][names::WANTED], parked);
    let (_, same) = built(|text| text.replace("sharding:", "worker: {image: other}\n  sharding:"));
    let digest = &same["metadata"]["annotations"][names::WANTED];
    assert_eq!(*digest, live.annotations()[names::WANTED], "a template alone changes nothing else");
}

#[test]
fn a_retire_job_has_what_the_workers_have_to_run_with_and_runs_where_they_may() {
    let pipeline = include_str!("golden/full.yaml").replace(
        "      nodeAffinity:",
        "      podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone}]}\n      nodeAffinity:",
    );
    let Manifest { mut pipeline, store } = Manifest::parse(&pipeline).unwrap();
    pipeline.metadata.namespace = Some("plant".into());
    pipeline.metadata.uid = Some("1".into());
    let resolved = resolve::pipeline(&pipeline, Some(&store), NOBODY).unwrap();
    let owner = Owner::of(&pipeline);
    let worker = shard::deployment(&owner, &resolved, &config(), 0, true).object;
    let retire = job::retire(&owner, &resolved, &config(), 0, Some(1)).object;
    let of = |object: &Value, path: &str| object.pointer(&format!("/spec/template/spec{path}")).cloned();
    for same in [
        "/containers/0/image",
        "/containers/0/imagePullPolicy",
        "/containers/0/resources",
        "/containers/0/env",
        "/imagePullSecrets",
        "/nodeSelector",
        "/tolerations",
        "/affinity/nodeAffinity",
        "/volumes/1",
    ] {
        assert!(of(&worker, same).is_some(), "{same}");
        assert_eq!(of(&retire, same), of(&worker, same), "{same}");
    }
    // It is no worker that others keep away from.
    for none in ["/affinity/podAntiAffinity", "/topologySpreadConstraints", "/containers/0/readinessProbe"] {
        assert!(of(&worker, none).is_some() && of(&retire, none).is_none(), "{none}");
    }
}

#[test]
fn a_retire_job_has_the_same_template_by_every_plan_and_another_with_another_image() {
    let retire = |image: &str, generation| {
        let (pipeline, store) =
            example(|text| text.replace("sharding:", &format!("worker: {{image: {image}}}\n  sharding:")));
        let resolved = resolve::pipeline(&pipeline, Some(&store), NOBODY).unwrap();
        job::retire(&Owner::of(&pipeline), &resolved, &config(), 0, generation)
    };
    let live: DynamicObject = serde_json::from_value(retire("a", Some(1)).object).unwrap();
    assert!(has_template(&live, &retire("a", Some(2))) && has_template(&live, &retire("a", None)));
    assert!(!has_template(&live, &retire("b", Some(1))));
}
