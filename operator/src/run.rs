//! The controllers of one namespace, or of all.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use futures_util::{StreamExt, TryFuture};
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use penstock_crds::{IngestPipeline, TelemetryStore};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::apply::Applier;
use crate::caches::{Caches, Triggers};
use crate::context::{Context, Shared};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::poller::{self, Reports};
use crate::resolve::Config;
use crate::{pipeline, readable, store};

/// Reconciles of a kind at a time.
const AT_ONCE: u16 = 8;

/// Fills the caches, waits until this replica leads, and runs until told to stop. With warm caches a
/// replica is ready only if it could take over: a rollout ends no old one before.
pub async fn run(
    client: Client,
    config: Config,
    namespace: Option<String>,
    metrics: Metrics,
    ready: Arc<AtomicBool>,
    mut leads: tokio::sync::watch::Receiver<bool>,
    mut stop: tokio::sync::watch::Receiver<bool>,
) {
    let (pipelines, mut pipelines_asked) = mpsc::unbounded_channel();
    let (stores, mut stores_asked) = mpsc::unbounded_channel();
    let triggers = Triggers { pipelines, stores, metrics: metrics.clone() };
    let (caches, watches) = Caches::start(&client, namespace.as_deref(), &triggers);
    let mut tasks = tokio::task::JoinSet::new();
    for watch in watches {
        tasks.spawn(watch);
    }
    let reports = Reports::default();
    let begin = async {
        caches.ready().await;
        ready.store(true, Ordering::Relaxed);
        if leads.wait_for(|leads| *leads).await.is_err() {
            return false;
        }
        poller::first(&caches, &reports, &metrics).await;
        true
    };
    tokio::select! {
        begins = begin => if !begins { return },
        _ = stop.wait_for(|stop| *stop) => return,
        // At the beginning all is reconciled, asked for or not.
        () = forget(&mut pipelines_asked, &metrics) => {}
        () = forget(&mut stores_asked, &metrics) => {}
    }
    tasks.spawn(poller::run(caches.clone(), reports.clone(), triggers.clone(), metrics.clone()));
    let reporter = Reporter { controller: "penstock".to_owned(), instance: std::env::var("POD_NAME").ok() };
    let context = Arc::new(Context {
        applier: Applier::new(client.clone(), caches.clone(), metrics.clone()),
        recorder: Recorder::new(client.clone(), reporter),
        pipelines: OnceLock::new(),
        stores: OnceLock::new(),
        unreadable: Arc::default(),
        failures: crate::context::Strikes::default(),
        last: crate::context::Times::default(),
        turns: crate::turns::Turns::default(),
        memories: crate::scaling::Memories::default(),
        told: crate::context::Told::default(),
        listed: tokio::sync::watch::Sender::default(),
        client,
        config,
        caches,
        reports,
        triggers,
        metrics,
    });
    let scope = namespace.as_deref();
    let of_pipelines =
        controller::<IngestPipeline>(&context, scope, pipelines_asked, &context.pipelines, &stop, |listed| {
            listed.0 = true;
        });
    let of_stores =
        controller::<TelemetryStore>(&context, scope, stores_asked, &context.stores, &stop, |listed| {
            listed.1 = true;
        });
    if let (Some(pipelines), Some(stores)) = (context.pipelines.get(), context.stores.get()) {
        context.metrics.objects.add(pipelines.clone(), stores.clone());
    }
    // Stores are reconciled with the pipelines' cache, and the other way round: both are set by now.
    let pipelines = drive(of_pipelines, &context, pipeline::reconcile);
    let stores = drive(of_stores, &context, store::reconcile);
    tokio::select! {
        _ = futures_util::future::join(pipelines, stores) => {}
        () = told_too_early(&context, stop) => {}
    }
    tasks.shutdown().await;
}

/// Told to stop before all is listed. A controller that is told so waits for its list for ever; and until
/// all is listed no reconcile has begun: nothing is cut off.
async fn told_too_early(context: &Context, mut stop: tokio::sync::watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
    if context.is_known() {
        std::future::pending::<()>().await;
    }
}

async fn forget<T>(asked: &mut mpsc::UnboundedReceiver<T>, metrics: &Metrics) {
    while asked.recv().await.is_some() {
        metrics.waiting.dec();
    }
}

fn controller<K>(
    context: &Shared,
    namespace: Option<&str>,
    asked: mpsc::UnboundedReceiver<ObjectRef<K>>,
    store: &OnceLock<Store<K>>,
    stop: &tokio::sync::watch::Receiver<bool>,
    is_listed: fn(&mut (bool, bool)),
) -> Controller<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let api: Api<DeserializeGuard<K>> = match namespace {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    };
    let metrics = context.metrics.clone();
    let asked = UnboundedReceiverStream::new(asked).inspect(move |_| metrics.waiting.dec());
    let mut stop = stop.clone();
    let writer = Writer::default();
    let (reader, listed) = (writer.as_reader(), context.listed.clone());
    let told = Arc::clone(context);
    let tell = move |object: &DeserializeGuard<K>, error: &InvalidObject| tell(&told, object, error);
    let objects = readable::events(api, writer, Arc::clone(&context.unreadable), tell)
        .inspect(move |event| {
            if matches!(event, Ok(watcher::Event::InitDone)) {
                listed.send_modify(is_listed);
            }
        })
        .applied_objects();
    let controller = Controller::for_stream(objects, reader)
        .with_config(controller::Config::default().concurrency(AT_ONCE))
        .reconcile_on(asked)
        .graceful_shutdown_on(async move {
            let _ = stop.wait_for(|stop| *stop).await;
        });
    let _ = store.set(controller.store());
    controller
}

/// Says that an object cannot be read. The watch does not wait for its Event.
fn tell<K>(context: &Shared, object: &DeserializeGuard<K>, error: &InvalidObject)
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
    tracing::error!(kind, name, namespace = object.namespace(), %error, "an object cannot be read, and is left alone");
    let note = format!("it cannot be read, and is left alone until it is corrected: {error}");
    let (context, object) = (Arc::clone(context), object.clone());
    tokio::spawn(async move { context.say(&object, false, "unreadable", note).await });
}

async fn drive<K, F>(controller: Controller<K>, context: &Shared, reconcile: fn(Arc<K>, Shared) -> F)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    F: TryFuture<Ok = Action, Error = Error> + Future<Output = Result<Action, Error>> + Send + 'static,
{
    let kind = K::kind(&()).into_owned();
    let measured = move |object: Arc<K>, context: Shared| {
        let kind = kind.clone();
        async move {
            context.known().await;
            let (started, uid, name) = (Instant::now(), object.uid().unwrap_or_default(), object.name_any());
            // It would be reconciled as it was, and no answer of the API server could be read.
            if context.unreadable.has(&uid) {
                return Ok(Action::await_change());
            }
            context.metrics.running.inc();
            let result = reconcile(Arc::clone(&object), Arc::clone(&context)).await;
            context.metrics.running.dec();
            match &result {
                Ok(_) => context.failures.none(&uid),
                // Caches are a moment old after each write.
                Err(Error::Changed(..)) => {}
                Err(error) => {
                    tracing::warn!(kind, name, namespace = object.namespace(), reason = error.reason(), %error, "a reconcile failed");
                }
            }
            context.metrics.reconciled(&kind, started, result.as_ref().err().map(Error::reason));
            result
        }
    };
    let again = |object: Arc<K>, error: &Error, context: Shared| match error {
        Error::Changed(..) => Action::requeue(std::time::Duration::from_millis(200)),
        _ => Action::requeue(context.failures.another(object.uid().unwrap_or_default())),
    };
    controller
        .run(measured, again, Arc::clone(context))
        .for_each(|result| async move {
            match result {
                // Told where it failed; or gone meanwhile.
                Ok(_)
                | Err(controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!(%error, "a controller"),
            }
        })
        .await;
}
