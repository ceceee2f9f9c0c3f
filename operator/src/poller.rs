//! Asks workers for their status, beside the reconciles: one that does not answer keeps nothing waiting.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::ResourceExt;
use kube::api::DynamicObject;
use penstock_crds::report::WorkerStatus;
use tokio::sync::Semaphore;

use crate::caches::{Caches, Triggers};
use crate::kinds::Kind;
use crate::metrics::Metrics;
use crate::names;

/// How often a worker is asked, while its pipeline changes and at rest.
const BUSY: Duration = Duration::from_millis(500);
const REST: Duration = Duration::from_secs(4);
/// How long an answer is worth something.
const FRESH: Duration = Duration::from_secs(12);
const DEADLINE: Duration = Duration::from_secs(3);
/// Questions at a time.
const AT_ONCE: usize = 32;
const MOST_BYTES: usize = 4 << 20;
const TICK: Duration = Duration::from_millis(250);

/// The workers' last answers, by the UIDs of their pods.
#[derive(Debug, Clone, Default)]
pub struct Reports(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    answers: HashMap<String, (Instant, WorkerStatus)>,
    /// Pipelines that change, as namespace and label.
    busy: HashSet<(String, String)>,
}

impl Reports {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a pod said lately.
    pub fn of(&self, pod_uid: &str) -> Option<WorkerStatus> {
        let state = self.state();
        state.answers.get(pod_uid).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, status)| status.clone())
    }

    /// Has the workers of a pipeline asked more often, or no longer.
    pub fn set_busy(&self, namespace: &str, pipeline: &str, busy: bool) {
        let key = (namespace.to_owned(), names::label(pipeline));
        let mut state = self.state();
        if busy {
            state.busy.insert(key);
        } else {
            state.busy.remove(&key);
        }
    }
}

/// Asks all workers, for ever.
pub async fn run(caches: Caches, reports: Reports, triggers: Triggers, metrics: Metrics) {
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(TICK).await;
        let pods: Vec<_> = caches.all(Kind::Pod).into_iter().filter(|pod| is_worker(pod)).collect();
        let there: HashSet<String> = pods.iter().filter_map(|pod| pod.uid()).collect();
        asked.retain(|uid, _| there.contains(uid));
        reports.state().answers.retain(|uid, _| there.contains(uid));
        for pod in pods {
            let (Some(uid), Some(address)) = (pod.uid(), pod.data["status"]["podIP"].as_str()) else {
                continue;
            };
            let namespace = pod.namespace().unwrap_or_default();
            let pipeline = pod.labels().get(names::PIPELINE).cloned().unwrap_or_default();
            let busy = reports.state().busy.contains(&(namespace.clone(), pipeline.clone()));
            let pause = if busy { BUSY } else { REST };
            if asked.get(&uid).is_some_and(|at| at.elapsed() < pause) {
                continue;
            }
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            asked.insert(uid.clone(), Instant::now());
            let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
            let (client, reports, triggers, metrics) =
                (client.clone(), reports.clone(), triggers.clone(), metrics.clone());
            tokio::spawn(async move {
                let answer = ask(&client, &host).await;
                drop(place);
                metrics.polled(answer.is_some());
                let Some(answer) = answer else { return };
                let bucket = bucket(&answer);
                let before = reports.state().answers.insert(uid, (Instant::now(), answer));
                if before.is_none_or(|(_, before)| self::bucket(&before) != bucket) {
                    triggers.pipeline(&namespace, &pipeline);
                }
            });
        }
    }
}

fn is_worker(pod: &DynamicObject) -> bool {
    pod.labels().get(names::COMPONENT).is_some_and(|component| component == "worker")
}

async fn ask(client: &Client<HttpConnector, Empty<Bytes>>, host: &str) -> Option<WorkerStatus> {
    let question = async {
        let answer = client.get(format!("http://{host}:9100/status").parse().ok()?).await.ok()?;
        let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await.ok()?.to_bytes();
        serde_json::from_slice(&body).ok()
    };
    tokio::time::timeout(DEADLINE, question).await.ok().flatten()
}

/// What of an answer is worth a reconcile.
fn bucket(status: &WorkerStatus) -> impl PartialEq + use<> {
    let reasons: BTreeSet<_> = status.reasons.iter().map(|(reason, _)| reason.clone()).collect();
    let subscribed: BTreeSet<_> = status.subscribed.iter().cloned().collect();
    (
        (status.ready, status.backpressured, status.lease.held, reasons, subscribed),
        (status.manifest.clone(), status.plan.as_ref().map(|plan| plan.generation)),
        (status.limited_by.as_str(), status.unfollowed.clone()),
    )
}
