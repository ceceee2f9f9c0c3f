//! What the API server has, as far as the operator made it: one watch for each kind, read without a call.
//!
//! Objects are found by their owner, kept as compressed text, and read anew only by a reconcile of their owner.

mod stored;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::StreamExt;
use kube::api::{Api, DynamicObject, TypeMeta};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use penstock_crds::{IngestPipeline, TelemetryStore};
use tokio::sync::mpsc;
use zstd::bulk::Decompressor;

use self::stored::Stored;
use crate::kinds::Kind;
use crate::metrics::Metrics;
use crate::{names, observe};

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

    fn of(&self, owner: &Owner) {
        if owner.label == names::PIPELINE {
            self.pipeline(&owner.namespace, &owner.value);
        } else {
            self.store(&owner.namespace, &owner.value);
        }
    }
}

/// What belongs to one pipeline or store.
pub type Children = BTreeMap<(Kind, String), Arc<DynamicObject>>;

/// Who an object belongs to, by its label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Owner {
    label: &'static str,
    namespace: String,
    value: String,
}

impl Owner {
    fn of(object: &DynamicObject) -> Option<Self> {
        [names::PIPELINE, names::STORE].into_iter().find_map(|label| {
            let value = object.labels().get(label)?.clone();
            Some(Self { label, namespace: object.namespace().unwrap_or_default(), value })
        })
    }
}

/// A worker's pod that can be asked.
#[derive(Debug, Clone)]
pub struct WorkerPod {
    /// UID of the pod.
    pub uid: String,
    /// Its address.
    pub address: String,
    /// Its namespace.
    pub namespace: String,
    /// The label that names its pipeline.
    pub pipeline: String,
}

impl WorkerPod {
    pub(crate) fn of(pod: &DynamicObject) -> Option<Self> {
        let label = |name: &str| pod.labels().get(name);
        label(names::COMPONENT).filter(|component| *component == "worker" && !observe::is_over(pod))?;
        Some(Self {
            uid: pod.uid()?,
            address: pod.data["status"]["podIP"].as_str()?.to_owned(),
            namespace: pod.namespace()?,
            pipeline: label(names::PIPELINE)?.clone(),
        })
    }
}

/// Objects of a list that are read at a time: as trees they take ten times the memory that they do afterwards.
pub const PAGE: u32 = 50;

/// Versions count up.
fn number(version: Option<&str>) -> Option<u64> {
    version?.parse().ok()
}

/// More versions of objects that are gone are forgotten.
const MOST_GONE: usize = 4096;

/// Namespace and name.
type Place = (String, String);

#[derive(Debug, Default)]
struct Tables {
    objects: HashMap<Owner, BTreeMap<(Kind, String), Stored>>,
    owners: HashMap<(Kind, Place), Owner>,
    workers: HashMap<Place, Arc<WorkerPod>>,
    /// Versions of objects that are gone: an answer to a write may come after their end.
    gone: HashMap<(Kind, Place), u64>,
    /// What a list that is under way had so far, and what was written meanwhile: it may not have that.
    listed: HashMap<Kind, HashSet<Place>>,
}

impl Tables {
    /// Whether something newer is known. What the operator wrote is known before its watch tells it.
    fn is_old(&self, kind: Kind, object: &DynamicObject) -> bool {
        let key = (kind, (object.namespace().unwrap_or_default(), object.name_any()));
        let stored = self.owners.get(&key).and_then(|owner| self.objects.get(owner));
        let stored = stored.and_then(|objects| objects.get(&(kind, object.name_any())));
        let known = stored.and_then(|stored| number(stored.version.as_deref()));
        let known = known.or_else(|| self.gone.get(&key).copied());
        number(object.metadata.resource_version.as_deref()).zip(known).is_some_and(|(is, known)| is < known)
    }

    /// Keeps an object. Those whom it belongs to, and belonged to, where that changed something.
    fn put(&mut self, kind: Kind, mut object: DynamicObject) -> Vec<Owner> {
        let place = (object.namespace().unwrap_or_default(), object.name_any());
        let Some(owner) = Owner::of(&object) else { return self.remove(kind, &place).into_iter().collect() };
        object.metadata.managed_fields = None;
        // A list does not say of what.
        let resource = kind.resource();
        object.types = Some(TypeMeta { api_version: resource.api_version, kind: resource.kind });
        if kind == Kind::Pod {
            match WorkerPod::of(&object) {
                Some(pod) => _ = self.workers.insert(place.clone(), Arc::new(pod)),
                None => _ = self.workers.remove(&place),
            }
        }
        let stored = Stored::pack(object);
        let mut touched = Vec::new();
        if self.owners.get(&(kind, place.clone())).is_some_and(|before| *before != owner) {
            touched.extend(self.take_out(kind, &place));
        }
        let (all, key) = (self.objects.entry(owner.clone()).or_default(), (kind, place.1.clone()));
        if all.get(&key).is_none_or(|before| before.packed != stored.packed) {
            touched.push(owner.clone());
        }
        all.insert(key, stored);
        self.owners.insert((kind, place), owner);
        touched
    }

    /// Forgets an object. Whom it belonged to.
    fn remove(&mut self, kind: Kind, place: &Place) -> Option<Owner> {
        if kind == Kind::Pod {
            self.workers.remove(place);
        }
        self.take_out(kind, place)
    }

    fn take_out(&mut self, kind: Kind, place: &Place) -> Option<Owner> {
        let owner = self.owners.remove(&(kind, place.clone()))?;
        if let Some(objects) = self.objects.get_mut(&owner) {
            objects.remove(&(kind, place.1.clone()));
            if objects.is_empty() {
                self.objects.remove(&owner);
            }
        }
        Some(owner)
    }

    /// Forgets all of a kind that are not there any more.
    fn retain(&mut self, kind: Kind) -> Vec<Owner> {
        let there = self.listed.remove(&kind).unwrap_or_default();
        let of_kind = self.owners.keys().filter(|(of, _)| *of == kind);
        let gone: Vec<Place> =
            of_kind.filter(|(_, place)| !there.contains(place)).map(|(_, place)| place.clone()).collect();
        gone.iter().filter_map(|place| self.remove(kind, place)).collect()
    }
}

/// The caches of all kinds.
#[derive(Debug, Clone)]
pub struct Caches {
    tables: Arc<RwLock<Tables>>,
    triggers: Triggers,
    /// Kinds that are filled.
    filled: tokio::sync::watch::Receiver<usize>,
}

impl Caches {
    /// The caches, and the watches that fill them for ever.
    pub fn start(
        client: &Client,
        namespace: Option<&str>,
        triggers: &Triggers,
    ) -> (Self, Vec<impl Future<Output = ()> + Send + 'static>) {
        let tables = Arc::new(RwLock::new(Tables::default()));
        let (filling, filled) = tokio::sync::watch::channel(0);
        let fill = |kind: Kind| {
            let resource = kind.resource();
            let api: Api<DynamicObject> = match namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                None => Api::all_with(client.clone(), &resource),
            };
            let ours = watcher::Config::default()
                .labels(&format!("{}={}", names::MANAGED_BY, names::PENSTOCK))
                .page_size(PAGE);
            let (tables, triggers, filling) = (Arc::clone(&tables), triggers.clone(), filling.clone());
            async move {
                let mut is_filled = false;
                let mut events = std::pin::pin!(watcher(api, ours).default_backoff());
                while let Some(event) = events.next().await {
                    let touched = match event {
                        Ok(event) => {
                            if matches!(event, Event::InitDone) && !is_filled {
                                is_filled = true;
                                filling.send_modify(|filled| *filled += 1);
                            }
                            take_in(&tables, kind, event)
                        }
                        Err(error) => {
                            tracing::warn!(kind = kind.as_str(), %error, "a watch ended; again");
                            continue;
                        }
                    };
                    for owner in &touched {
                        triggers.of(owner);
                    }
                }
            }
        };
        let watches = Kind::ALL.into_iter().map(fill).collect();
        (Self { tables, triggers: triggers.clone(), filled }, watches)
    }

    /// Waits until all are filled.
    pub async fn ready(&self) {
        let _ = self.filled.clone().wait_for(|filled| *filled == Kind::ALL.len()).await;
    }

    /// Keeps what the API server answered to a write: the next reconcile must not miss it.
    pub fn wrote(&self, kind: Kind, object: DynamicObject) {
        let touched = take_in(&self.tables, kind, Event::Apply(object));
        for owner in &touched {
            self.triggers.of(owner);
        }
    }

    /// All workers that can be asked.
    pub fn workers(&self) -> Vec<Arc<WorkerPod>> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.workers.values().cloned().collect()
    }

    /// What belongs to one owner, by its label.
    pub fn of(&self, label: &'static str, namespace: &str, owner: &str) -> io::Result<Children> {
        let owner = Owner { label, namespace: namespace.to_owned(), value: names::label(owner) };
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let mut decompressor = Decompressor::new()?;
        let objects = tables.objects.get(&owner).into_iter().flatten();
        let read = |(key, stored): (&(Kind, String), &Stored)| {
            Ok((key.clone(), Arc::new(stored.unpack(&mut decompressor)?)))
        };
        objects.map(read).collect()
    }
}

/// What an event of a watch changes, or the answer to a write.
fn take_in(tables: &RwLock<Tables>, kind: Kind, event: Event<DynamicObject>) -> Vec<Owner> {
    let place = |object: &DynamicObject| (object.namespace().unwrap_or_default(), object.name_any());
    let mut tables = tables.write().unwrap_or_else(PoisonError::into_inner);
    match event {
        Event::Init => {
            tables.listed.insert(kind, HashSet::new());
            Vec::new()
        }
        Event::InitDone => tables.retain(kind),
        Event::InitApply(object) => {
            let is_first = tables.listed.entry(kind).or_default().insert(place(&object));
            // What a list has counts, as after a backup was restored; but not against what was written since.
            if !is_first && tables.is_old(kind, &object) { Vec::new() } else { tables.put(kind, object) }
        }
        Event::Apply(object) if tables.is_old(kind, &object) => Vec::new(),
        Event::Apply(object) => {
            if let Some(listed) = tables.listed.get_mut(&kind) {
                listed.insert(place(&object));
            }
            tables.put(kind, object)
        }
        // Of one that was made anew since.
        Event::Delete(object) if tables.is_old(kind, &object) => Vec::new(),
        Event::Delete(object) => {
            if tables.gone.len() > MOST_GONE {
                tables.gone.clear();
            }
            let version = number(object.metadata.resource_version.as_deref()).unwrap_or_default();
            tables.gone.insert((kind, place(&object)), version);
            tables.remove(kind, &place(&object)).into_iter().collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn object(name: &str, pipeline: &str, version: &str, data: &str) -> DynamicObject {
        let metadata = json!({
            "name": name, "namespace": "a", "resourceVersion": version, "labels": {names::PIPELINE: pipeline},
            "managedFields": [{"manager": "x"}],
        });
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"k": data}});
        serde_json::from_value(object).unwrap()
    }

    fn touched(tables: &RwLock<Tables>, event: Event<DynamicObject>) -> Vec<String> {
        take_in(tables, Kind::ConfigMap, event).into_iter().map(|owner| owner.value).collect()
    }

    #[test]
    fn objects_are_found_by_their_owner_and_only_what_changes_asks_for_a_reconcile() {
        let tables = RwLock::new(Tables::default());
        let see = |event| touched(&tables, event);
        assert_eq!(see(Event::Apply(object("one", "p", "1", "x"))), ["p"]);
        assert_eq!(see(Event::Apply(object("one", "p", "2", "x"))), [""; 0], "nothing but its version");
        assert_eq!(see(Event::Apply(object("one", "p", "3", "y"))), ["p"]);
        assert_eq!(see(Event::Apply(object("two", "p", "4", "y"))), ["p"]);
        assert_eq!(see(Event::Apply(object("two", "q", "5", "y"))), ["p", "q"], "it has another owner");
        assert_eq!(see(Event::Init), [""; 0]);
        assert_eq!(see(Event::InitApply(object("two", "q", "5", "y"))), [""; 0]);
        assert_eq!(see(Event::InitDone), ["p"], "one went while nobody watched");
        assert_eq!(see(Event::Delete(object("two", "q", "6", "y"))), ["q"]);
        assert_eq!(see(Event::Apply(object("two", "q", "5", "y"))), [""; 0], "an answer that came too late");
        assert_eq!(see(Event::Apply(object("two", "q", "7", "y"))), ["q"], "it is made anew");
        assert_eq!(see(Event::Apply(object("two", "q", "6", "z"))), [""; 0], "a newer one is known");
        assert_eq!(see(Event::Delete(object("two", "q", "6", "z"))), [""; 0], "the end of the one before");
        assert_eq!(see(Event::Delete(object("two", "q", "8", "y"))), ["q"]);
        let tables = tables.into_inner().unwrap();
        assert!(tables.objects.is_empty() && tables.owners.is_empty());
    }

    #[test]
    fn what_is_written_while_a_list_is_read_outlasts_it() {
        let tables = RwLock::new(Tables::default());
        let see = |event| touched(&tables, event);
        see(Event::Apply(object("one", "p", "5", "x")));
        see(Event::Init);
        see(Event::Apply(object("two", "p", "8", "x")));
        see(Event::Apply(object("three", "p", "9", "y")));
        assert_eq!(see(Event::InitApply(object("three", "p", "6", "x"))), [""; 0], "it is newer");
        assert_eq!(see(Event::InitDone), ["p"], "one is gone");
        let left: Vec<String> =
            tables.read().unwrap().owners.keys().map(|(_, (_, name))| name.clone()).collect();
        assert_eq!(BTreeSet::from_iter(left), BTreeSet::from(["two", "three"].map(str::to_owned)));
        see(Event::Init);
        assert_eq!(see(Event::InitApply(object("two", "p", "3", "w"))), ["p"], "a backup was restored");
    }

    #[test]
    fn an_object_of_a_list_is_the_same_as_one_of_a_watch() {
        let tables = RwLock::new(Tables::default());
        let see = |event| touched(&tables, event);
        let of_list = DynamicObject { types: None, ..object("one", "p", "1", "x") };
        assert_eq!(see(Event::InitApply(of_list)), ["p"]);
        assert_eq!(see(Event::Apply(object("one", "p", "2", "x"))), [""; 0]);
    }

    #[test]
    fn an_object_is_read_as_it_was_but_for_who_wrote_its_fields() {
        let tables = Arc::new(RwLock::new(Tables::default()));
        let (_, filled) = tokio::sync::watch::channel(0);
        let (pipelines, stores) = (mpsc::unbounded_channel().0, mpsc::unbounded_channel().0);
        let triggers = Triggers { pipelines, stores, metrics: Metrics::new().unwrap() };
        let caches = Caches { tables: Arc::clone(&tables), triggers, filled };
        let mut one = object("one", "p", "7", "x");
        take_in(&tables, Kind::ConfigMap, Event::Apply(one.clone()));
        one.metadata.managed_fields = None;
        let of = |label, namespace| caches.of(label, namespace, "p").unwrap();
        let children = of(names::PIPELINE, "a");
        assert_eq!(json!(*children[&(Kind::ConfigMap, "one".to_owned())]), json!(one));
        assert!(of(names::PIPELINE, "b").is_empty() && of(names::STORE, "a").is_empty());
        for stored in tables.write().unwrap().objects.values_mut().flat_map(BTreeMap::values_mut) {
            stored.packed = Box::default();
        }
        assert!(caches.of(names::PIPELINE, "a", "p").is_err(), "what cannot be read is not left out");
    }
}
