//! What the operator counts. Labels are bounded: kinds, outcomes and reasons. Names only of pipelines and
//! stores that are there, in [`objects`].

use std::time::Instant;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use self::objects::Objects;
use crate::error::Error;

pub mod objects;

/// All names begin so.
fn registry() -> Result<Registry, prometheus::Error> {
    Registry::new_custom(Some("penstock_operator".to_owned()), None)
}

/// The counters.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Pipelines and stores.
    pub objects: Objects,
    durations: HistogramVec,
    errors: IntCounterVec,
    writes: IntCounterVec,
    polls: IntCounterVec,
    /// 1 while this replica leads.
    pub leader: IntGauge,
    /// How often the lease went from one holder to another.
    pub transitions: IntGauge,
    /// Reconciles that run now.
    pub running: IntGauge,
    /// Triggers that wait for the controllers.
    pub waiting: IntGauge,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = registry()?;
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
        let durations = HistogramVec::new(
            HistogramOpts::new("reconcile_duration_seconds", "Time of reconciles.").buckets(buckets),
            &["kind"],
        )?;
        registry.register(Box::new(durations.clone()))?;
        let errors = counter("reconcile_errors_total", "Failed reconciles.", &["kind", "reason"])?;
        // What rises from nothing is no increase to Prometheus.
        for kind in ["IngestPipeline", "TelemetryStore"] {
            for reason in Error::REASONS {
                errors.with_label_values(&[kind, reason]);
            }
        }
        Ok(Self {
            errors,
            writes: counter("writes_total", "Objects written to the API server.", &["kind", "verb"])?,
            polls: counter("polls_total", "Questions to workers for their status.", &["outcome"])?,
            leader: gauge("leader", "1 if this replica leads.")?,
            transitions: gauge("lease_transitions", "Changes of the lease's holder, of all replicas.")?,
            running: gauge("reconciles_running", "Reconciles that run now.")?,
            waiting: gauge("triggers_waiting", "Triggers that wait for the controllers.")?,
            durations,
            objects: Objects::default(),
            registry,
        })
    }

    /// A reconcile ended.
    pub fn reconciled(&self, kind: &str, since: Instant, error: Option<&str>) {
        self.durations.with_label_values(&[kind]).observe(since.elapsed().as_secs_f64());
        if let Some(reason) = error {
            self.errors.with_label_values(&[kind, reason]).inc();
        }
    }

    /// An object was written.
    pub fn wrote(&self, kind: &str, verb: &str) {
        self.writes.with_label_values(&[kind, verb]).inc();
    }

    /// A worker was asked.
    pub fn polled(&self, answered: bool) {
        self.polls.with_label_values(&[if answered { "answered" } else { "silent" }]).inc();
    }

    /// As Prometheus reads it.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut families = self.registry.gather();
        families.extend(self.objects.gather()?);
        TextEncoder::new().encode_to_string(&families)
    }
}
