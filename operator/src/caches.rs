//! What the API server has, as far as the operator made it: one watch for each kind, read without a call.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use futures_util::StreamExt;
use kube::api::{Api, DynamicObject};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use penstock_crds::{IngestPipeline, TelemetryStore};
use tokio::sync::mpsc;

use crate::kinds::Kind;
use crate::metrics::Metrics;
use crate::names;

/// Asks for reconciles.
#[derive(Debug, Clone)]
pub struct Triggers {
    /// Of pipelines.
    pub pipelines: mpsc::UnboundedSender<ObjectRef<IngestPipeline>>,
    /// Of stores.
    pub stores: mpsc::UnboundedSender<ObjectRef<TelemetryStore>>,
    /// How many wait.
    pub metrics: Metrics,
}

impl Triggers {
    /// Of a pipeline.
    pub fn pipeline(&self, namespace: &str, name: &str) {
        self.metrics.waiting.inc();
        let _ = self.pipelines.send(ObjectRef::new(name).within(namespace));
    }

    /// Of a store.
    pub fn store(&self, namespace: &str, name: &str) {
        self.metrics.waiting.inc();
        let _ = self.stores.send(ObjectRef::new(name).within(namespace));
    }

    fn of(&self, object: &DynamicObject) {
        let namespace = object.namespace().unwrap_or_default();
        if let Some(pipeline) = object.labels().get(names::PIPELINE) {
            self.pipeline(&namespace, pipeline);
        }
        if let Some(store) = object.labels().get(names::STORE) {
            self.store(&namespace, store);
        }
    }
}

/// What belongs to one pipeline or store.
pub type Children = BTreeMap<(Kind, String), Arc<DynamicObject>>;

/// The caches of all kinds.
#[derive(Debug, Clone)]
pub struct Caches(BTreeMap<Kind, Store<DynamicObject>>);

impl Caches {
    /// The caches, and the watches that fill them for ever.
    pub fn start(
        client: &Client,
        namespace: Option<&str>,
        triggers: &Triggers,
    ) -> (Self, Vec<impl Future<Output = ()> + Send + 'static>) {
        let (mut stores, mut watches) = (BTreeMap::new(), Vec::new());
        for kind in Kind::ALL {
            let resource = kind.resource();
            let api: Api<DynamicObject> = match namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                None => Api::all_with(client.clone(), &resource),
            };
            let writer = Writer::new(resource);
            stores.insert(kind, writer.as_reader());
            let ours =
                watcher::Config::default().labels(&format!("{}={}", names::MANAGED_BY, names::PENSTOCK));
            let triggers = triggers.clone();
            watches.push(async move {
                let touched = watcher(api, ours)
                    .default_backoff()
                    .modify(|object| object.managed_fields_mut().clear())
                    .reflect(writer)
                    .touched_objects();
                touched
                    .for_each(|event| {
                        match event {
                            Ok(object) => triggers.of(&object),
                            Err(error) => {
                                tracing::warn!(kind = kind.as_str(), %error, "a watch ended; again");
                            }
                        }
                        std::future::ready(())
                    })
                    .await;
            });
        }
        (Self(stores), watches)
    }

    /// Waits until all are filled.
    pub async fn ready(&self) {
        for store in self.0.values() {
            let _ = store.wait_until_ready().await;
        }
    }

    /// All objects of a kind.
    pub fn all(&self, kind: Kind) -> Vec<Arc<DynamicObject>> {
        self.0.get(&kind).map(Store::state).unwrap_or_default()
    }

    /// What belongs to one owner, by its label.
    pub fn of(&self, label: &str, namespace: &str, owner: &str) -> Children {
        let value = names::label(owner);
        let belongs = |object: &DynamicObject| {
            object.namespace().as_deref() == Some(namespace) && object.labels().get(label) == Some(&value)
        };
        Kind::ALL
            .into_iter()
            .flat_map(|kind| self.all(kind).into_iter().map(move |object| (kind, object)))
            .filter(|(_, object)| belongs(object))
            .map(|(kind, object)| ((kind, object.name_any()), object))
            .collect()
    }
}
