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

    /// Makes the object if it is not there; else applies what differs; of Jobs only labels can change.
    /// Refuses what is not ours.
    pub async fn ensure(&self, namespace: &str, wanted: &Wanted, children: &Children) -> Result<(), Error> {
        let Some(live) = children.get(&(wanted.kind, wanted.name.clone())) else {
            return self.create(namespace, wanted).await;
        };
        let owners = wanted.object["metadata"].get("ownerReferences");
        require_ours(wanted, live, owners)?;
        if live.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        if wanted.kind == Kind::Job {
            return if has_labels(wanted, live) { Ok(()) } else { self.relabel(namespace, wanted).await };
        }
        let is = json!(**live);
        if wanted.kind == Kind::ConfigMap {
            return self.replace(namespace, wanted, live, &is).await;
        }
        let digest = digest_of(&wanted.object);
        if is_part(&wanted.object, &is) || (self.is_same(live, &digest) && has_labels(wanted, live)) {
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
                if !has_labels(wanted, &live) {
                    self.relabel(namespace, wanted).await?;
                }
                Err(Error::Changed(wanted.kind, wanted.name.clone()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives an object back the labels by which it is found.
    async fn relabel(&self, namespace: &str, wanted: &Wanted) -> Result<(), Error> {
        let labels = json!({"metadata": {"labels": wanted.object["metadata"]["labels"]}});
        let api = self.api(wanted.kind, namespace);
        let live = api.patch(&wanted.name, &PatchParams::default(), &Patch::Merge(labels)).await?;
        self.metrics.wrote(wanted.kind.as_str(), "patch");
        self.caches.wrote(wanted.kind, live);
        Ok(())
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

fn has_labels(wanted: &Wanted, live: &DynamicObject) -> bool {
    is_part(&wanted.object["metadata"]["labels"], &json!(live.labels()))
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
    use std::convert::Infallible;
    use std::sync::Arc;

    use http_body_util::BodyExt;
    use hyper::{Method, Request, Response};
    use kube::client::Body;
    use tokio::sync::mpsc;

    use super::*;
    use crate::caches::Triggers;

    /// An applier on an API server that has one object, and takes every patch. Beside it the methods of its calls.
    fn applier(has: Value) -> (Applier, Arc<Mutex<Vec<Method>>>) {
        let (has, calls) = (Arc::new(Mutex::new(has)), Arc::new(Mutex::new(Vec::new())));
        let log = Arc::clone(&calls);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (has, log) = (Arc::clone(&has), Arc::clone(&log));
            async move {
                let method = request.method().clone();
                log.lock().unwrap().push(method.clone());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut has = has.lock().unwrap();
                let (code, answer) = match method {
                    Method::POST => {
                        (409, json!({"status": "Failure", "reason": "AlreadyExists", "code": 409}))
                    }
                    Method::PATCH => {
                        let patch: Value = serde_json::from_slice(&body).unwrap();
                        has["metadata"]["labels"] = patch["metadata"]["labels"].clone();
                        (200, has.clone())
                    }
                    _ => (200, has.clone()),
                };
                let answer =
                    Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, Infallible>(answer.unwrap())
            }
        });
        let client = Client::new(service, "works");
        let metrics = Metrics::new().unwrap();
        let (pipelines, stores) = (mpsc::unbounded_channel().0, mpsc::unbounded_channel().0);
        let triggers = Triggers { pipelines, stores, metrics: metrics.clone() };
        let (caches, _) = Caches::start(&client, None, &triggers);
        (Applier::new(client, caches, metrics), calls)
    }

    #[tokio::test]
    async fn an_object_that_lost_a_label_by_which_it_is_found_gets_it_back_and_is_found() {
        let owners = json!([{"apiVersion": "x", "kind": "x", "name": "x", "uid": "1", "controller": true}]);
        let labels = json!(names::of_shard("plant", "worker", 0));
        let metadata = json!({"name": "plant-shard-0", "namespace": "works", "labels": labels, "ownerReferences": owners});
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata});
        let wanted =
            Wanted { kind: Kind::Deployment, name: "plant-shard-0".to_owned(), object: object.clone() };
        for (label, value) in [
            (names::MANAGED_BY, Value::Null),
            (names::PIPELINE, Value::Null),
            (names::PIPELINE, json!("other")),
            (names::SHARD, json!("7")),
        ] {
            let mut live = object.clone();
            live["metadata"]["uid"] = json!("2");
            live["metadata"]["resourceVersion"] = json!("5");
            live["metadata"]["labels"][label] = value.clone();
            if value.is_null() {
                live["metadata"]["labels"].as_object_mut().unwrap().remove(label);
            }
            let (applier, calls) = applier(live);
            let children = |applier: &Applier| applier.caches.of(names::PIPELINE, "works", "plant").unwrap();
            let first = applier.ensure("works", &wanted, &children(&applier)).await;
            assert!(matches!(first, Err(Error::Changed(..))), "{first:?}");
            let found = children(&applier);
            assert_eq!(found.len(), 1, "{label}: {:?}", calls.lock().unwrap());
            assert!(applier.ensure("works", &wanted, &found).await.is_ok());
            assert_eq!(*calls.lock().unwrap(), [Method::POST, Method::GET, Method::PATCH], "{label}");
        }
    }

    #[tokio::test]
    async fn the_shard_of_a_job_and_of_an_object_that_reads_otherwise_is_put_right() {
        for kind in [Kind::Job, Kind::Deployment] {
            let metadata =
                json!({"name": "x", "namespace": "works", "labels": names::of_shard("plant", "retire", 0)});
            let resource = kind.resource();
            let object = json!({"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "spec": {"cpu": "1000m"}});
            let wanted = Wanted { kind, name: "x".to_owned(), object: object.clone() };
            let mut live = object;
            live["spec"]["cpu"] = json!("1");
            (live["metadata"]["generation"], live["metadata"]["uid"]) = (json!(3), json!("2"));
            let (applier, calls) = applier(live.clone());
            let before = (digest_of(&wanted.object), Some(3), Instant::now());
            applier.same.lock().unwrap().insert("2".to_owned(), before);
            for (shard, patches) in [("0", 0), ("7", 1)] {
                live["metadata"]["labels"][names::SHARD] = json!(shard);
                let live: DynamicObject = serde_json::from_value(live.clone()).unwrap();
                let children = Children::from([((kind, "x".to_owned()), Arc::new(live))]);
                applier.ensure("works", &wanted, &children).await.unwrap();
                assert_eq!(calls.lock().unwrap().len(), patches, "{kind:?} {shard}");
            }
        }
    }

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
