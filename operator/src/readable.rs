//! Pipelines and stores as they are watched. One that cannot be read, as the API server may have taken it by
//! other definitions, spoils nothing but itself: it is left alone until it is corrected, and all others go on.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::ready;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{Stream, StreamExt};
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::caches::PAGE;

/// Objects that cannot be read now, by UID, and the version that was told of.
#[derive(Debug, Default)]
pub struct Unreadable(Mutex<HashMap<String, Option<String>>>);

impl Unreadable {
    /// Whether it is one of them. What is cached of it is what could be read last.
    pub fn has(&self, uid: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(uid)
    }

    /// Whether this version was not told of.
    fn is_new(&self, object: &impl ResourceExt) -> bool {
        let version = object.resource_version();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(object.uid().unwrap_or_default(), version.clone()) != Some(version)
    }

    fn forget(&self, object: &impl ResourceExt) {
        let uid = object.uid().unwrap_or_default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
    }
}

/// What happens to the objects of a kind, kept in a cache. Each version that cannot be read is told once.
pub fn events<K>(
    api: Api<DeserializeGuard<K>>,
    writer: Writer<K>,
    unreadable: Arc<Unreadable>,
    tell: impl Fn(&DeserializeGuard<K>, &InvalidObject) + Send + 'static,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let cached = writer.as_reader();
    watcher(api, watcher::Config::default().page_size(PAGE))
        .modify(|object| object.meta_mut().managed_fields = None)
        .filter_map(move |event| {
            let event = event.map(|event| readable(event, &cached, &unreadable, &tell));
            ready(event.transpose())
        })
        .reflect(writer)
}

/// What an event says of an object as far as it can be read. One that cannot be any more stays in the
/// cache as it was: to others it is not gone.
fn readable<K>(
    event: Event<DeserializeGuard<K>>,
    cached: &Store<K>,
    unreadable: &Unreadable,
    tell: impl Fn(&DeserializeGuard<K>, &InvalidObject),
) -> Option<Event<K>>
where
    K: Resource<DynamicType = ()> + Clone,
{
    let look = |object: &DeserializeGuard<K>| match &object.0 {
        Ok(_) => unreadable.forget(object),
        Err(error) if unreadable.is_new(object) => tell(object, error),
        Err(_) => {}
    };
    let last_read = |object: DeserializeGuard<K>| {
        let (namespace, uid) = (object.namespace().unwrap_or_default(), object.uid());
        let name = ObjectRef::new(&object.name_any()).within(&namespace);
        let before = || cached.get(&name).filter(|before| before.uid() == uid).map(Arc::unwrap_or_clone);
        object.0.ok().or_else(before)
    };
    match event {
        Event::Init => Some(Event::Init),
        Event::InitApply(object) => {
            look(&object);
            last_read(object).map(Event::InitApply)
        }
        Event::InitDone => Some(Event::InitDone),
        Event::Apply(object) => {
            look(&object);
            object.0.ok().map(Event::Apply)
        }
        Event::Delete(object) => {
            unreadable.forget(&object);
            last_read(object).map(Event::Delete)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use kube::Client;
    use kube::client::Body;
    use kube::runtime::reflector;
    use penstock_crds::IngestPipeline;
    use serde_json::{Value, json};
    use tokio::sync::mpsc;
    use tower::service_fn;

    use super::*;

    const EXAMPLE: &str = include_str!("../../examples/plant.yaml");

    /// A pipeline as the API server has it, or one that cannot be read.
    fn object(name: &str, version: u32, good: bool) -> Value {
        let mut object = json!(penstock_crds::Manifest::parse(EXAMPLE).unwrap().pipeline);
        object["metadata"] = json!({
            "name": name, "namespace": "works", "uid": name, "resourceVersion": version.to_string(),
        });
        if !good {
            object["spec"]["batch"]["linger"] = json!("soon");
        }
        object
    }

    fn changed(kind: &str, object: &Value) -> String {
        format!("{}\n", json!({"type": kind, "object": object}))
    }

    /// An API server that has one list, and then these changes and no more.
    fn api(list: &[Value], changes: &[String]) -> Api<DeserializeGuard<IngestPipeline>> {
        let list = json!({
            "apiVersion": "penstock.dev/v1alpha1", "kind": "IngestPipelineList",
            "metadata": {"resourceVersion": "9"}, "items": list,
        });
        let (list, changes) = (list.to_string(), changes.concat());
        let answer = move |request: hyper::Request<Body>| {
            let watches = request.uri().query().unwrap_or_default().contains("watch=true");
            let (list, changes) = (list.clone(), changes.clone());
            async move {
                let body = if watches { changes } else { list };
                Ok::<_, Infallible>(hyper::Response::new(Body::from(body.into_bytes())))
            }
        };
        Api::all(Client::new(service_fn(answer), "works"))
    }

    struct Seen {
        events: Vec<String>,
        told: Vec<String>,
        cached: Store<IngestPipeline>,
        unreadable: Arc<Unreadable>,
    }

    /// So many events of an operator that has these in its cache.
    async fn see(api: Api<DeserializeGuard<IngestPipeline>>, known: &[Value], count: usize) -> Seen {
        let (cached, mut writer) = reflector::store();
        for object in known {
            writer.apply_watcher_event(&Event::Apply(serde_json::from_value(object.clone()).unwrap()));
        }
        let unreadable = Arc::new(Unreadable::default());
        let (tell, mut told) = mpsc::unbounded_channel();
        let stream = events(api, writer, Arc::clone(&unreadable), move |object, error| {
            let version = object.resource_version().unwrap_or_default();
            let _ = tell.send(format!("{} {version}: {error}", object.name_any()));
        });
        let events = stream.take(count).map(|event| match event.unwrap() {
            Event::Init => "begin".to_owned(),
            Event::InitDone => "listed".to_owned(),
            Event::InitApply(object) => format!("there {}", object.name_any()),
            Event::Apply(object) => format!("changed {}", object.name_any()),
            Event::Delete(object) => format!("gone {}", object.name_any()),
        });
        let events = tokio::time::timeout(Duration::from_secs(10), events.collect()).await.unwrap();
        let told = std::iter::from_fn(|| told.try_recv().ok()).collect();
        Seen { events, told, cached, unreadable }
    }

    const WHY: &str =
        "'soon' is not a duration; write a whole number and a unit, such as 5ms, 30s, 10m, 24h or 365d";

    #[test]
    fn an_object_reads_the_same_with_the_guard_and_without() {
        let object = object("plant", 1, true);
        let guarded: DeserializeGuard<IngestPipeline> = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(
            json!(guarded.0.unwrap()),
            json!(serde_json::from_value::<IngestPipeline>(object).unwrap())
        );
    }

    #[tokio::test]
    async fn a_list_with_an_object_that_cannot_be_read_ends_and_has_all_others() {
        let list = [object("a", 1, true), object("bad", 2, false), object("z", 3, true)];
        let seen = see(api(&list, &[]), &[], 4).await;
        assert_eq!(seen.events, ["begin", "there a", "there z", "listed"]);
        assert_eq!(seen.told, [format!("bad 2: {WHY}")]);
        assert_eq!(seen.cached.state().len(), 2);
        assert!(seen.unreadable.has("bad") && !seen.unreadable.has("a"));
    }

    #[tokio::test]
    async fn an_object_that_cannot_be_read_any_more_is_not_gone_and_comes_back_when_it_is_corrected() {
        let (good, bad) = (object("plant", 1, true), object("plant", 2, false));
        let other = object("other", 3, true);
        let changes = [changed("MODIFIED", &bad), changed("MODIFIED", &other)];
        let seen = see(api(std::slice::from_ref(&good), &changes), &[], 4).await;
        assert_eq!(seen.events, ["begin", "there plant", "listed", "changed other"]);
        assert_eq!(seen.told, [format!("plant 2: {WHY}")]);
        assert!(seen.unreadable.has("plant"));
        assert_eq!(seen.cached.state().len(), 2, "it is in the cache as it was");

        let again = changed("MODIFIED", &object("plant", 4, true));
        let seen = see(api(std::slice::from_ref(&bad), &[changes[0].clone(), again]), &[good], 4).await;
        assert_eq!(seen.events, ["begin", "there plant", "listed", "changed plant"]);
        assert_eq!(seen.told.len(), 1, "one version, told once");
        assert!(!seen.unreadable.has("plant"));
    }

    #[tokio::test]
    async fn an_object_that_is_deleted_while_it_cannot_be_read_is_gone() {
        let (good, bad) = (object("plant", 1, true), object("plant", 2, false));
        let changes = [changed("MODIFIED", &bad), changed("DELETED", &object("plant", 3, false))];
        let seen = see(api(std::slice::from_ref(&good), &changes), &[], 4).await;
        assert_eq!(seen.events, ["begin", "there plant", "listed", "gone plant"]);
        assert_eq!(seen.told.len(), 1);
        assert!(seen.cached.state().is_empty() && !seen.unreadable.has("plant"));

        let mut new = bad;
        new["metadata"]["uid"] = json!("another");
        let seen = see(api(&[new], &[]), &[good], 2).await;
        assert_eq!(seen.events, ["begin", "listed"], "it is another of this name");
        assert!(seen.cached.state().is_empty());
    }
}
