//! Asks workers for their status, beside the reconciles: one that does not answer keeps nothing waiting.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use penstock_crds::report::WorkerStatus;
use tokio::sync::Semaphore;

use crate::caches::{Caches, Triggers, WorkerPod};
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
/// At the start nobody is judged before it was asked once, for so long.
const FIRST: Duration = Duration::from_secs(5);

/// The workers' last answers, by the UIDs of their pods.
#[derive(Debug, Clone, Default)]
pub struct Reports(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    answers: HashMap<String, (Instant, WorkerStatus)>,
    /// Pipelines that change, by namespace, then by label.
    busy: HashMap<String, HashSet<String>>,
}

impl State {
    fn is_busy(&self, pod: &WorkerPod) -> bool {
        self.busy.get(&pod.namespace).is_some_and(|pipelines| pipelines.contains(&pod.pipeline))
    }
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
        let mut state = self.state();
        if busy {
            state.busy.entry(namespace.to_owned()).or_default().insert(names::label(pipeline));
        } else if let Some(pipelines) = state.busy.get_mut(namespace) {
            pipelines.remove(&names::label(pipeline));
            if pipelines.is_empty() {
                state.busy.remove(namespace);
            }
        }
    }
}

/// Asks each worker once. Those that are silent do not keep the rest waiting for long.
pub async fn first(caches: &Caches, reports: &Reports, metrics: &Metrics) {
    let client = client();
    let all = stream::iter(caches.workers()).for_each_concurrent(AT_ONCE, |pod| {
        let client = client.clone();
        async move {
            let answer = ask(&client, &pod).await;
            metrics.polled(answer.is_some());
            if let Some(answer) = answer {
                reports.state().answers.insert(pod.uid.clone(), (Instant::now(), answer));
            }
        }
    });
    let _ = tokio::time::timeout(FIRST, all).await;
}

/// Asks all workers, for ever.
pub async fn run(caches: Caches, reports: Reports, triggers: Triggers, metrics: Metrics) {
    let client = client();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(TICK).await;
        let pods = caches.workers();
        let there: HashSet<&String> = pods.iter().map(|pod| &pod.uid).collect();
        asked.retain(|uid, _| there.contains(uid));
        reports.state().answers.retain(|uid, _| there.contains(uid));
        for pod in &pods {
            let busy = reports.state().is_busy(pod);
            let pause = if busy { BUSY } else { REST };
            if asked.get(&pod.uid).is_some_and(|at| at.elapsed() < pause) {
                continue;
            }
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            asked.insert(pod.uid.clone(), Instant::now());
            let (client, reports, triggers, metrics, pod) =
                (client.clone(), reports.clone(), triggers.clone(), metrics.clone(), Arc::clone(pod));
            tokio::spawn(async move {
                let answer = ask(&client, &pod).await;
                drop(place);
                metrics.polled(answer.is_some());
                let Some(answer) = answer else { return };
                let bucket = bucket(&answer);
                let before = reports.state().answers.insert(pod.uid.clone(), (Instant::now(), answer));
                if before.is_none_or(|(_, before)| self::bucket(&before) != bucket) {
                    triggers.pipeline(&pod.namespace, &pod.pipeline);
                }
            });
        }
    }
}

type Asker = Client<HttpConnector, Empty<Bytes>>;

/// Without connections that stay: they would be as many as there are workers, and cost more memory than
/// all else.
fn client() -> Asker {
    Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http()
}

async fn ask(client: &Asker, pod: &WorkerPod) -> Option<WorkerStatus> {
    let question = async {
        let address = &pod.address;
        let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
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
