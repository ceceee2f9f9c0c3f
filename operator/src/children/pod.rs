//! The pod of a worker, and of every job.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Owner;
use crate::names;
use crate::resolve::{Config, Credential, Resolved};

/// Where the shard's ConfigMap is mounted.
pub const FILES: &str = "/etc/penstock/shard";
const SECRETS: &str = "/etc/penstock/secrets";
/// A number that the image's user has; any other than 0 would do.
const USER: i64 = 65_532;
/// How long a pod stays bound to a node that is not heard of.
const LOST_NODE: i64 = 30;

/// The template of a pod that works for a shard: its worker's, and that of the Job that ends its session, which
/// must run where the worker did, with what it had.
pub fn of_shard(
    owner: &Owner,
    resolved: &Resolved,
    config: &Config,
    (component, shard): (&str, u32),
    arguments: Vec<String>,
    files: String,
) -> Value {
    let worker = &resolved.manifest.pipeline.spec.worker;
    let pod = Pod {
        labels: names::of_shard(&owner.name, component, shard),
        annotations: worker.annotations.clone(),
        image: worker.image.as_deref().unwrap_or(&config.worker_image),
        pull_policy: worker.image_pull_policy.map_or(&config.pull_policy, |policy| policy.as_str()),
        account: names::child(&owner.name, component),
        arguments,
        files,
        credentials: &resolved.credentials,
    };
    let mut template = pod.template();
    let container = &mut template["spec"]["containers"][0];
    if let Some(resources) = &worker.resources {
        container["resources"] = json!(resources);
    }
    if let Some(env) = container["env"].as_array_mut() {
        env.extend(worker.env.iter().map(|variable| json!(variable)));
    }
    let spec = &mut template["spec"];
    if !worker.image_pull_secrets.is_empty() {
        spec["imagePullSecrets"] = json!(worker.image_pull_secrets);
    }
    if !worker.node_selector.is_empty() {
        spec["nodeSelector"] = json!(worker.node_selector);
    }
    if let Some(affinity) = &worker.affinity {
        spec["affinity"] = json!(affinity);
    }
    let lost = |taint: &str| json!({"key": format!("node.kubernetes.io/{taint}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE});
    let mut tolerations = vec![lost("not-ready"), lost("unreachable")];
    tolerations.extend(worker.tolerations.iter().map(|toleration| json!(toleration)));
    spec["tolerations"] = json!(tolerations);
    template
}

/// What a pod runs, and with which files.
#[derive(Debug)]
pub struct Pod<'a> {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The image.
    pub image: &'a str,
    /// When it is pulled.
    pub pull_policy: &'a str,
    /// Its ServiceAccount.
    pub account: String,
    /// The worker's arguments.
    pub arguments: Vec<String>,
    /// The ConfigMap with its files.
    pub files: String,
    /// What it reads of Secrets and ConfigMaps.
    pub credentials: &'a BTreeSet<Credential>,
}

impl Pod<'_> {
    /// The template. It passes the Pod Security level `restricted`.
    pub fn template(&self) -> Value {
        let mut container = json!({
            "name": "worker",
            "image": self.image,
            "imagePullPolicy": self.pull_policy,
            "command": ["/usr/local/bin/penstock-worker"],
            "args": self.arguments,
            "env": [
                // Its identity in the shard's lease.
                {"name": "PENSTOCK_INSTANCE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                {"name": "PENSTOCK_LOG_FORMAT", "value": "json"},
            ],
            "resources": {
                "requests": {"cpu": "100m", "memory": "64Mi"},
                "limits": {"memory": "256Mi"},
            },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "files", "mountPath": FILES, "readOnly": true}],
        });
        let mut volumes = vec![json!({"name": "files", "configMap": {"name": self.files}})];
        if !self.credentials.is_empty() {
            volumes.push(json!({"name": "secrets", "projected": {"sources": self.sources()}}));
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.push(json!({"name": "secrets", "mountPath": SECRETS, "readOnly": true}));
            }
        }
        json!({
            "metadata": {"labels": self.labels, "annotations": self.annotations},
            "spec": {
                "serviceAccountName": self.account,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": USER,
                    "runAsGroup": USER,
                    "fsGroup": USER,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [container],
                "volumes": volumes,
            },
        })
    }

    /// One volume for all of them, each file under `<name>/<key>`. A missing one does not keep the pod
    /// from starting: the worker says which it is.
    fn sources(&self) -> Vec<Value> {
        let mut by_object: BTreeMap<(&str, &str), Vec<Value>> = BTreeMap::new();
        for Credential { source, name, key } in self.credentials {
            let item = json!({"key": key, "path": format!("{name}/{key}")});
            by_object.entry((source, name)).or_default().push(item);
        }
        by_object
            .into_iter()
            .map(
                |((source, name), items)| json!({ source: {"name": name, "items": items, "optional": true} }),
            )
            .collect()
    }
}
