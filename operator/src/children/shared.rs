//! What the shards of a pipeline have in common.

use serde_json::{Value, json};

use super::{Owner, Wanted};
use crate::kinds::Kind;
use crate::names;
use crate::resolve::Resolved;

/// ServiceAccounts, the Service for scrapes, the budget of evictions and, if asked for, a NetworkPolicy.
pub fn all(owner: &Owner, resolved: &Resolved) -> Vec<Wanted> {
    let labels = names::of_pipeline(&owner.name, "worker");
    let selector = names::worker_selector(&owner.name);
    let mut all = vec![
        owner.child(Kind::ServiceAccount, names::child(&owner.name, "worker"), &labels, nobody()),
        retire_account(owner),
        owner.child(
            Kind::Service,
            names::child(&owner.name, "metrics"),
            &labels,
            json!({"spec": {
                "clusterIP": "None",
                "selector": selector,
                "ports": [{"name": "http", "port": 9100, "targetPort": "http", "protocol": "TCP"}],
            }}),
        ),
        owner.child(
            Kind::PodDisruptionBudget,
            names::child(&owner.name, "workers"),
            &labels,
            json!({"spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": selector},
                // A pod that is not ready must not keep a node from being drained.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            }}),
        ),
    ];
    if resolved.manifest.pipeline.spec.worker.network_policy {
        all.push(owner.child(
            Kind::NetworkPolicy,
            names::child(&owner.name, "workers"),
            &labels,
            json!({"spec": {
                "podSelector": {"matchLabels": selector},
                "policyTypes": ["Ingress"],
                "ingress": [{"ports": [{"port": "http", "protocol": "TCP"}]}],
            }}),
        ));
    }
    all
}

/// The ServiceAccount of retire Jobs. It outlives the pipeline.
pub fn retire_account(owner: &Owner) -> Wanted {
    let labels = names::of_pipeline(&owner.name, "retire");
    owner.free(Kind::ServiceAccount, names::child(&owner.name, "retire"), &labels, nobody())
}

/// A worker never talks to Kubernetes.
fn nobody() -> Value {
    json!({"automountServiceAccountToken": false})
}
