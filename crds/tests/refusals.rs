//! Every rule of the definitions refuses what it should and nothing else, and the worker agrees with it.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write;
use std::process::{Command, Stdio};

use kube_cel::Validator;
use penstock_crds::{IngestPipeline, Manifest, TelemetryStore, validate};
use serde::Deserialize;
use serde_json::Value;

const CASES: &str = include_str!("refusals.yaml");
const EXAMPLE: &str = include_str!("../../examples/worker.yaml");
const DEFINITIONS: [(&str, &str); 2] = [
    ("IngestPipeline", include_str!("../yaml/ingestpipeline.yaml")),
    ("TelemetryStore", include_str!("../yaml/telemetrystore.yaml")),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    of: String,
    by: By,
    worker: Option<String>,
    from: Option<Value>,
    good: Value,
    bad: Value,
    says: String,
}

#[derive(Deserialize, PartialEq)]
enum By {
    Rule,
    Schema,
    Server,
}

impl Case {
    fn patched(&self, patch: &Value) -> Value {
        let mut manifest = example(&self.of);
        merge(&mut manifest, self.from.as_ref().unwrap_or(&Value::Null));
        merge(&mut manifest, patch);
        manifest
    }

    /// What the rules say to a manifest, or to a change of what exists.
    fn verdict(&self, manifest: &Value) -> Vec<String> {
        let old = self.from.as_ref().map(|from| self.patched(from));
        let verdict = Validator::new().validate(&schema(&self.of), manifest, old.as_ref());
        let errors = verdict.err().map_or_else(Vec::new, kube_cel::ValidationErrors::into_vec);
        errors.into_iter().map(|error| error.message).collect()
    }

    /// Whether the worker takes the manifest from a file.
    fn worker_takes(&self, manifest: &Value) -> bool {
        match self.of.as_str() {
            "IngestPipeline" => serde_json::from_value(manifest.clone())
                .is_ok_and(|pipeline: IngestPipeline| validate::pipeline(&pipeline.spec).is_empty()),
            _ => serde_json::from_value(manifest.clone())
                .is_ok_and(|store: TelemetryStore| validate::store(&store.spec).is_empty()),
        }
    }
}

fn cases() -> Vec<Case> {
    serde_saphyr::from_str(CASES).unwrap()
}

fn example(kind: &str) -> Value {
    Manifest::parse(EXAMPLE).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(EXAMPLE).unwrap();
    documents.into_iter().find(|document| document["kind"] == kind).unwrap()
}

fn schema(kind: &str) -> Value {
    let (_, text) = DEFINITIONS.iter().find(|(name, _)| *name == kind).unwrap();
    let definition: Value = serde_saphyr::from_str(text).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// RFC 7386, but a null stays: what it means is part of the tests.
fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (_, Value::Null) => {}
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                match target.get_mut(name) {
                    Some(there) if there.is_object() && value.is_object() => merge(there, value),
                    _ => drop(target.insert(name.clone(), value.clone())),
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// As the API server does before it asks the rules.
fn without_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, value| !value.is_null());
        fields.values_mut().for_each(without_nulls);
    }
}

fn messages(schema: &Value, found: &mut Vec<String>) {
    if let Some(rules) = schema["x-kubernetes-validations"].as_array() {
        found.extend(rules.iter().map(|rule| rule["message"].as_str().unwrap().to_owned()));
    }
    match schema {
        Value::Object(fields) => fields.values().for_each(|value| messages(value, found)),
        Value::Array(items) => items.iter().for_each(|value| messages(value, found)),
        _ => {}
    }
}

#[test]
fn each_rule_takes_the_good_manifest_and_refuses_the_bad_one_with_what_would_be_right() {
    for case in cases() {
        let pruned = |patch| {
            let mut manifest = case.patched(patch);
            without_nulls(&mut manifest);
            manifest
        };
        assert_eq!(case.verdict(&pruned(&case.good)), [""; 0], "the good one for: {}", case.says);
        if case.by == By::Rule {
            assert_eq!(case.verdict(&pruned(&case.bad)), [case.says.as_str()]);
        }
    }
}

#[test]
fn the_worker_takes_and_refuses_the_same_manifests() {
    for case in cases().into_iter().filter(|case| case.worker.is_none() && case.from.is_none()) {
        assert!(case.worker_takes(&case.patched(&case.good)), "the good one for: {}", case.says);
        assert!(!case.worker_takes(&case.patched(&case.bad)), "the bad one for: {}", case.says);
    }
}

#[test]
fn every_rule_has_a_bad_manifest() {
    let told: Vec<String> = cases().into_iter().map(|case| case.says).collect();
    for (kind, _) in DEFINITIONS {
        let mut found = Vec::new();
        messages(&schema(kind), &mut found);
        assert!(!found.is_empty());
        for message in found {
            assert!(told.contains(&message), "{kind} has no bad manifest for: {message}");
        }
    }
}

const NAMESPACE: &str = "penstock-refusals";

/// Runs kubectl in a namespace of its own; whether it did what was asked, and what it said.
fn kubectl(arguments: &[&str], input: &str) -> (bool, String) {
    let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
    let mut child = Command::new(program)
        .args(["--namespace", NAMESPACE])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
#[ignore = "needs a cluster with the definitions: KUBECONFIG, and KUBECTL if it is not in the PATH"]
fn a_real_api_server_agrees() {
    let _ = kubectl(&["create", "namespace", NAMESPACE], "");
    let (taken, said) = kubectl(&["apply", "--dry-run=server", "-f", "-"], EXAMPLE);
    assert!(taken, "the example: {said}");
    for case in cases() {
        let verb = if case.from.is_some() { "replace" } else { "create" };
        if case.from.is_some() {
            let (made, said) = kubectl(&["create", "-f", "-"], &case.patched(&Value::Null).to_string());
            assert!(made, "{said}");
        }
        let ask = |patch| kubectl(&[verb, "--dry-run=server", "-f", "-"], &case.patched(patch).to_string());
        let (taken, said) = ask(&case.good);
        assert!(taken, "the good one for: {}: {said}", case.says);
        let (taken, said) = ask(&case.bad);
        assert!(!taken && said.contains(&case.says), "the bad one for: {}: {said}", case.says);
        let (_, said) = kubectl(&["delete", &case.of, "--all", "--wait=true"], "");
        assert!(!said.to_lowercase().contains("error"), "{said}");
    }
    let _ = kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"], "");
}
