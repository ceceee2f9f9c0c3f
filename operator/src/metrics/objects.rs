//! What pipelines and stores say of themselves, as metrics: read from the caches when somebody asks, so
//! that nothing is left of what is gone. Only the replica that leads has these caches.

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::runtime::reflector::Store;
use penstock_crds::{IngestPipeline, TelemetryStore};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts, Registry};

/// Those of one namespace, or of all.
type Caches = (Store<IngestPipeline>, Store<TelemetryStore>);

/// The caches of all namespaces that are served.
#[derive(Clone, Default)]
pub struct Objects(Arc<Mutex<Vec<Caches>>>);

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Objects")
    }
}

impl Objects {
    /// These are told from now on, too.
    pub fn add(&self, pipelines: Store<IngestPipeline>, stores: Store<TelemetryStore>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((pipelines, stores));
    }

    /// One reading.
    pub fn gather(&self) -> Result<Vec<MetricFamily>, prometheus::Error> {
        let gauges = Gauges::new()?;
        for (pipelines, stores) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            pipelines.state().iter().for_each(|pipeline| gauges.pipeline(pipeline));
            stores.state().iter().for_each(|store| gauges.store(store));
        }
        Ok(gauges.registry.gather())
    }
}

struct Gauges {
    registry: Registry,
    pipelines: IntGaugeVec,
    shards: IntGaugeVec,
    stores: IntGaugeVec,
}

impl Gauges {
    fn new() -> Result<Self, prometheus::Error> {
        let registry = super::registry()?;
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        Ok(Self {
            pipelines: gauge(
                "pipeline_condition",
                "1 if a pipeline's condition is True.",
                &["namespace", "pipeline", "condition", "reason"],
            )?,
            shards: gauge(
                "pipeline_shards",
                "Shards of a pipeline: running, and ready.",
                &["namespace", "pipeline", "state"],
            )?,
            stores: gauge(
                "store_condition",
                "1 if a store's condition is True.",
                &["namespace", "store", "condition", "reason"],
            )?,
            registry,
        })
    }

    fn pipeline(&self, pipeline: &IngestPipeline) {
        let (namespace, name) = (pipeline.namespace().unwrap_or_default(), pipeline.name_any());
        let Some(status) = &pipeline.status else { return };
        set(&self.pipelines, &namespace, &name, &status.conditions);
        for (state, count) in [("running", status.replicas), ("ready", status.ready_replicas)] {
            self.shards.with_label_values(&[&*namespace, &name, state]).set(i64::from(count));
        }
    }

    fn store(&self, store: &TelemetryStore) {
        let Some(status) = &store.status else { return };
        set(&self.stores, &store.namespace().unwrap_or_default(), &store.name_any(), &status.conditions);
    }
}

fn set(gauge: &IntGaugeVec, namespace: &str, name: &str, conditions: &[Condition]) {
    for Condition { type_, reason, status, .. } in conditions {
        gauge.with_label_values(&[namespace, name, type_, reason]).set(i64::from(status == "True"));
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use super::*;

    fn named(name: &str) -> IngestPipeline {
        let text = include_str!("../../../examples/plant.yaml");
        let mut pipeline = penstock_crds::Manifest::parse(text).unwrap().pipeline;
        pipeline.metadata.name = Some(name.to_owned());
        pipeline.metadata.namespace = Some("works".to_owned());
        pipeline.status = Some(
            serde_json::from_value(json!({
                "replicas": 3, "readyReplicas": 2,
                "conditions": [{
                    "type": "Stalled", "status": "True", "reason": "rollout_stalled", "message": "",
                    "lastTransitionTime": "2026-11-25T00:00:00Z",
                }],
            }))
            .unwrap(),
        );
        pipeline
    }

    #[test]
    fn a_pipelines_conditions_and_shards_are_told_until_it_is_gone() {
        let (pipelines, mut writer) = reflector::store();
        let (stores, _) = reflector::store();
        let metrics = crate::metrics::Metrics::new().unwrap();
        metrics.objects.add(pipelines, stores);
        writer.apply_watcher_event(&Event::Apply(named("plant")));
        let text = metrics.render().unwrap();
        for line in [
            r#"penstock_operator_pipeline_condition{condition="Stalled",namespace="works",pipeline="plant",reason="rollout_stalled"} 1"#,
            r#"penstock_operator_pipeline_shards{namespace="works",pipeline="plant",state="ready"} 2"#,
            r#"penstock_operator_pipeline_shards{namespace="works",pipeline="plant",state="running"} 3"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        writer.apply_watcher_event(&Event::Delete(named("plant")));
        assert!(!metrics.render().unwrap().contains("plant"));
    }
}
