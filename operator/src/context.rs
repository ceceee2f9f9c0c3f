//! What reconciles share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use penstock_crds::{IngestPipeline, TelemetryStore};

use crate::apply::Applier;
use crate::caches::{Caches, Triggers};
use crate::conditions;
use crate::metrics::Metrics;
use crate::poller::Reports;
use crate::readable::Unreadable;
use crate::resolve::Config;
use crate::scaling::Memories;
use crate::turns::{Name, Turns};

/// More times than these are cleared of those that nobody asked for long since.
const MOST_TIMES: usize = 4096;
const LONG_AGO: Duration = Duration::from_mins(10);

/// Pipelines and stores were listed.
const ALL: (bool, bool) = (true, true);

/// What reconciles share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What the operator was told at its start.
    pub config: Config,
    /// Children.
    pub caches: Caches,
    /// Pipelines; set when their controller is made.
    pub pipelines: OnceLock<Store<IngestPipeline>>,
    /// Stores; set when their controller is made.
    pub stores: OnceLock<Store<TelemetryStore>>,
    /// Pipelines and stores that cannot be read now.
    pub unreadable: Arc<Unreadable>,
    /// Writes children.
    pub applier: Applier,
    /// What workers say.
    pub reports: Reports,
    /// Asks for reconciles.
    pub triggers: Triggers,
    /// Events.
    pub recorder: Recorder,
    /// Counters.
    pub metrics: Metrics,
    /// Failures one after the other, by UID.
    pub failures: Strikes,
    /// When something was done last, by UID.
    pub last: Times,
    /// Pipelines that roll their shards now.
    pub turns: Turns,
    /// What the autoscaler remembers.
    pub memories: Memories,
    /// What pipelines were told of their stores.
    pub told: Told,
    /// Whether all pipelines, and all stores, were listed. Not `Store::wait_until_ready`: of several that
    /// wait it wakes the last.
    pub listed: tokio::sync::watch::Sender<(bool, bool)>,
}

impl Context {
    /// Waits until all pipelines and stores are known: they speak of each other.
    pub async fn known(&self) {
        let _ = self.listed.subscribe().wait_for(|listed| *listed == ALL).await;
    }

    /// Whether they are.
    pub fn is_known(&self) -> bool {
        *self.listed.borrow() == ALL
    }

    /// All pipelines.
    pub fn all_pipelines(&self) -> Vec<Arc<IngestPipeline>> {
        self.pipelines.get().map(Store::state).unwrap_or_default()
    }

    /// The store that a pipeline names.
    pub fn store_of(&self, pipeline: &IngestPipeline) -> Option<Arc<TelemetryStore>> {
        let name = ObjectRef::new(&pipeline.spec.sink.store_ref.name);
        self.stores.get()?.get(&name.within(&pipeline.namespace().unwrap_or_default()))
    }

    /// Whether a pipeline may roll its shards now.
    pub fn may_roll(&self, own: &Name) -> bool {
        self.turns.take(own, &self.all_pipelines(), self.config.pipelines_at_once)
    }

    /// Says the transitions of a condition as Events.
    pub async fn tell<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        before: &[Condition],
        after: &[Condition],
        kind: &str,
    ) {
        let (before, Some(after)) = (conditions::get(before, kind), conditions::get(after, kind)) else {
            return;
        };
        if before.is_some_and(|before| (&before.status, &before.reason) == (&after.status, &after.reason)) {
            return;
        }
        // At its start everything is unsettled: nobody wants to read that.
        if before.is_none() && after.status != "True" {
            return;
        }
        let good = (after.status == "True") == (kind == "Ready" || kind == "SchemaReady");
        self.say(object, good, &after.reason, format!("{kind}: {}", after.message)).await;
    }

    /// An Event.
    pub async fn say<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        good: bool,
        reason: &str,
        note: String,
    ) {
        publish(&self.recorder, object, "Reconcile", good, reason, &note).await;
    }
}

/// Writes an Event. One that is refused is told in the log.
pub async fn publish<K: Resource<DynamicType = ()>>(
    recorder: &Recorder,
    object: &K,
    action: &str,
    good: bool,
    reason: &str,
    note: &str,
) {
    let event = Event {
        type_: if good { EventType::Normal } else { EventType::Warning },
        reason: reason.to_owned(),
        note: Some(note.chars().take(1000).collect()),
        action: action.to_owned(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, &object.object_ref(&())).await {
        tracing::warn!(%error, reason, "an Event could not be written");
    }
}

/// Now, for conditions.
pub fn now() -> Time {
    Time(k8s_openapi::jiff::Timestamp::now())
}

/// Failures one after the other, and the last one's time.
#[derive(Debug, Default)]
pub struct Strikes(Mutex<HashMap<String, (u32, Instant)>>);

impl Strikes {
    /// How long to wait after one more failure: 0.5 s to a minute, doubled each time, and scattered.
    pub fn another(&self, uid: String) -> Duration {
        let mut strikes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = strikes.get(&uid).map_or(1, |(count, _)| (count + 1).min(8));
        // Of objects that are gone.
        if strikes.len() > MOST_TIMES {
            strikes.retain(|_, (_, at)| at.elapsed() < LONG_AGO);
        }
        strikes.insert(uid, (count, Instant::now()));
        let most = Duration::from_millis(250) * 2_u32.pow(count);
        most.min(Duration::from_mins(1)).mul_f64(0.75 + scatter() / 4.0)
    }

    /// It went well.
    pub fn none(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// 0 to 1, from the clock's last digits: enough to keep retries apart.
fn scatter() -> f64 {
    f64::from(k8s_openapi::jiff::Timestamp::now().subsec_nanosecond().rem_euclid(1_000_000)) / 1_000_000.0
}

/// When something was done last, and when that was asked for last.
#[derive(Debug, Default)]
pub struct Times(Mutex<HashMap<String, (Instant, Instant)>>);

impl Times {
    /// Whether it is so long ago, or never was; if so, it is done now.
    pub fn is_due(&self, what: impl Into<String>, pause: Duration) -> bool {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (what, now) = (what.into(), Instant::now());
        if let Some((done, asked)) = times.get_mut(&what) {
            *asked = now;
            if done.elapsed() < pause {
                return false;
            }
        }
        if times.len() > MOST_TIMES {
            times.retain(|_, (_, asked)| asked.elapsed() < LONG_AGO);
        }
        times.insert(what, (now, now));
        true
    }

    /// Whether it is so long ago. What was never done is done now.
    pub fn is_past(&self, what: &str, pause: Duration) -> bool {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (done, asked) = times.entry(what.to_owned()).or_insert((now, now));
        *asked = now;
        done.elapsed() >= pause
    }

    /// It is done now, whenever it was done before.
    pub fn set(&self, what: impl Into<String>) {
        let now = Instant::now();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(what.into(), (now, now));
    }

    /// What begins so is forgotten.
    pub fn forget(&self, start: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|what, _| !what.starts_with(start));
    }
}

/// What was told last, by the UID of what it was told of.
#[derive(Debug, Default)]
pub struct Told(Mutex<HashMap<String, String>>);

impl Told {
    /// Whether this was not told last; if so, it is told now.
    pub fn is_new(&self, of: String, what: String) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(&of) == Some(&what) {
            return false;
        }
        // Of objects that are gone. What is told twice does no harm.
        if told.len() > MOST_TIMES {
            told.clear();
        }
        told.insert(of, what);
        true
    }
}

/// A shared context.
pub type Shared = Arc<Context>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_again_and_again_is_not_forgotten_however_long_ago_it_was_done() {
        let times = Times::default();
        assert!(!times.is_past("retire", LONG_AGO));
        let ago = |time: Duration| Instant::now().checked_sub(time).unwrap();
        for entry in times.0.lock().unwrap().values_mut() {
            *entry = (ago(LONG_AGO * 3), ago(Duration::from_secs(2)));
        }
        for number in 0..=MOST_TIMES {
            times.is_due(number.to_string(), LONG_AGO);
        }
        assert!(times.is_past("retire", LONG_AGO * 2));
        for entry in times.0.lock().unwrap().values_mut() {
            entry.1 = ago(LONG_AGO);
        }
        assert!(times.is_due("new", LONG_AGO));
        assert_eq!(times.0.lock().unwrap().len(), 1, "nobody asks for the others any more");
    }
}
