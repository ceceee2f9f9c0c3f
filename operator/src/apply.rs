//! Makes objects as they should be, and writes nothing where they are so already.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::caches::{Caches, Children};
use crate::children::Wanted;
use crate::error::Error;
use crate::kinds::Kind;
use crate::metrics::Metrics;
use crate::names;

/// Owner of the fields that the operator applies.
pub const MANAGER: &str = "penstock";

/// With more than these, those of objects that are gone are forgotten: each that is there is looked at every
/// minute.
const MOST_SAME: usize = 4096;
const LONG_AGO: Duration = Duration::from_mins(10);

/// Writes to the API server.
pub struct Applier {
    client: Client,
    caches: Caches,
    metrics: Metrics,
    /// Objects that are as wanted although they read otherwise, as quantities do: by UID the digest that
    /// was applied, the generation that came of it, and when that was looked at.
    same: Mutex<HashMap<String, Applied>>,
}

type Applied = (String, Option<i64>, Instant);

impl Applier {
    /// Nothing is written yet.
    pub fn new(client: Client, caches: Caches, metrics: Metrics) -> Self {
        Self { client, caches, metrics, same: Mutex::default() }
    }

    fn api(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &kind.resource())
    }

    /// Makes the object if it is not there; else applies what differs, but to Jobs, which cannot change.
    /// Refuses what is not ours.
    pub async fn ensure(&self, namespace: &str, wanted: &Wanted, children: &Children) -> Result<(), Error> {
        let Some(live) = children.get(&(wanted.kind, wanted.name.clone())) else {
            return self.create(namespace, wanted).await;
        };
        let owners = wanted.object["metadata"].get("ownerReferences");
        require_ours(wanted, live, owners)?;
        if wanted.kind == Kind::Job || live.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let is = json!(**live);
        if wanted.kind == Kind::ConfigMap {
            return self.replace(namespace, wanted, live, &is).await;
        }
        let digest = digest_of(&wanted.object);
        if is_part(&wanted.object, &is) || self.is_same(live, &digest) {
            return Ok(());
        }
        let parameters = PatchParams::apply(MANAGER).force();
        let api = self.api(wanted.kind, namespace);
        let applied = api.patch(&wanted.name, &parameters, &Patch::Apply(&wanted.object)).await?;
        if applied.resource_version() != live.resource_version() {
            tracing::info!(kind = wanted.kind.as_str(), name = wanted.name, "applied");
            self.metrics.wrote(wanted.kind.as_str(), "apply");
        }
        let mut same = self.same.lock().unwrap_or_else(PoisonError::into_inner);
        if same.len() > MOST_SAME {
            same.retain(|_, (_, _, at)| at.elapsed() < LONG_AGO);
        }
        same.insert(applied.uid().unwrap_or_default(), (digest, applied.metadata.generation, Instant::now()));
        drop(same);
        self.caches.wrote(wanted.kind, applied);
        Ok(())
    }

    fn is_same(&self, live: &DynamicObject, digest: &str) -> bool {
        let mut same = self.same.lock().unwrap_or_else(PoisonError::into_inner);
        live.metadata.generation.is_some()
            && same.get_mut(&live.uid().unwrap_or_default()).is_some_and(|(of, generation, at)| {
                *at = Instant::now();
                of == digest && *generation == live.metadata.generation
            })
    }

    /// Whether the object is not older than what was applied to it last.
    pub fn has_seen(&self, live: &DynamicObject) -> bool {
        let same = self.same.lock().unwrap_or_else(PoisonError::into_inner);
        same.get(&live.uid().unwrap_or_default())
            .is_none_or(|(_, generation, _)| live.metadata.generation >= *generation)
    }

    async fn create(&self, namespace: &str, wanted: &Wanted) -> Result<(), Error> {
        let api = self.api(wanted.kind, namespace);
        let object = typed(wanted.object.clone())?;
        match api.create(&written(), &object).await {
            Ok(created) => {
                self.caches.wrote(wanted.kind, created);
                tracing::info!(kind = wanted.kind.as_str(), name = wanted.name, "created");
                self.metrics.wrote(wanted.kind.as_str(), "create");
                Ok(())
            }
            // Not in the cache: a moment too old, or not ours.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let live = api.get(&wanted.name).await?;
                require_ours(wanted, &live, wanted.object["metadata"].get("ownerReferences"))?;
                let changed = Error::Changed(wanted.kind, wanted.name.clone());
                if live.labels().contains_key(names::MANAGED_BY) {
                    return Err(changed);
                }
                // Its label was taken away: no watch sees it.
                let labels = json!({"metadata": {"labels": wanted.object["metadata"]["labels"]}});
                api.patch(&wanted.name, &PatchParams::default(), &Patch::Merge(labels)).await?;
                self.metrics.wrote(wanted.kind.as_str(), "patch");
                Err(changed)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Only if nobody wrote since it was read.
    async fn replace(
        &self,
        namespace: &str,
        wanted: &Wanted,
        live: &DynamicObject,
        is: &Value,
    ) -> Result<(), Error> {
        if is_part(&wanted.object, is) && wanted.object["data"] == is["data"] {
            return Ok(());
        }
        let mut object = wanted.object.clone();
        object["metadata"]["resourceVersion"] = json!(live.resource_version());
        let object = typed(object)?;
        match self.api(wanted.kind, namespace).replace(&wanted.name, &written(), &object).await {
            Ok(replaced) => {
                self.caches.wrote(wanted.kind, replaced);
                tracing::info!(kind = wanted.kind.as_str(), name = wanted.name, "replaced");
                self.metrics.wrote(wanted.kind.as_str(), "update");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                Err(Error::Changed(wanted.kind, wanted.name.clone()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes this very object, and then what it owns.
    pub async fn delete(&self, kind: Kind, object: &DynamicObject) -> Result<(), Error> {
        if object.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let this = Preconditions { uid: object.uid(), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(this), ..DeleteParams::background() };
        let api = self.api(kind, &object.namespace().unwrap_or_default());
        match api.delete(&object.name_any(), &parameters).await {
            Ok(_) => {
                tracing::info!(kind = kind.as_str(), name = object.name_any(), "deleted");
                self.metrics.wrote(kind.as_str(), "delete");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            // Another of the same name by now. Not done: with the end of a pipeline nobody would look again.
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                Err(Error::Changed(kind, object.name_any()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Has a pod's kubelet look at its ConfigMap at once.
    pub async fn nudge(&self, pod: &DynamicObject, mark: &str) -> Result<(), Error> {
        let annotation = json!({"metadata": {"annotations": {names::LOOK: mark}}});
        let api = self.api(Kind::Pod, &pod.namespace().unwrap_or_default());
        match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(annotation)).await {
            Ok(_) => self.metrics.wrote("Pod", "patch"),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

fn typed(object: Value) -> Result<DynamicObject, Error> {
    serde_json::from_value(object).map_err(|error| kube::Error::SerdeError(error).into())
}

/// How an object is written as a whole.
pub fn written() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

/// The digests that an object carries of itself.
fn digest_of(object: &Value) -> String {
    object["metadata"]["annotations"].to_string()
}

/// Ours by its controller; or, where it has none, by its labels.
fn require_ours(wanted: &Wanted, live: &DynamicObject, owners: Option<&Value>) -> Result<(), Error> {
    let controller = |owners: &Value| {
        owners
            .as_array()
            .into_iter()
            .flatten()
            .find(|owner| owner["controller"] == true)
            .map(|owner| owner["uid"].clone())
    };
    let has = controller(&json!(live.metadata.owner_references));
    let ours = match owners.and_then(controller) {
        Some(owner) => has == Some(owner),
        None => has.is_none() && live.labels().get(names::MANAGED_BY).is_some_and(|by| by == names::PENSTOCK),
    };
    if ours { Ok(()) } else { Err(Error::Foreign(wanted.kind, wanted.name.clone())) }
}

/// Whether all that is wanted is there; the API server adds defaults.
pub fn is_part(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted
            .iter()
            .all(|(key, value)| live.get(key).map_or_else(|| is_nothing(value), |live| is_part(value, live))),
        (Value::Array(wanted), Value::Array(live)) => {
            wanted.len() == live.len() && wanted.iter().zip(live).all(|(wanted, live)| is_part(wanted, live))
        }
        _ => wanted == live,
    }
}

/// What the API server leaves out.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_that_the_server_adds_are_no_difference_and_edits_are() {
        let wanted = json!({"spec": {"replicas": 1, "ports": [{"port": 9100}], "nodeSelector": {}}});
        let mut live = json!({"spec": {"replicas": 1, "ports": [{"port": 9100, "protocol": "TCP"}], "paused": false}, "status": {}});
        assert!(is_part(&wanted, &live));
        live["spec"]["replicas"] = json!(2);
        assert!(!is_part(&wanted, &live));
        live["spec"]["replicas"] = json!(1);
        live["spec"]["ports"] = json!([{"port": 9100}, {"port": 1}]);
        assert!(!is_part(&wanted, &live), "a list has one thing more");
    }
}
