//! A pipeline and its store from one YAML file, as a worker without a cluster reads them.

use kube::ResourceExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::pipeline::IngestPipeline;
use crate::store::TelemetryStore;
use crate::validate::{self, FieldError};

/// Namespace of a document that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// A pipeline and its store, checked.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The pipeline.
    pub pipeline: IngestPipeline,
    /// The store it names.
    pub store: TelemetryStore,
}

/// Why a manifest file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not YAML.
    #[error("not YAML: {0}")]
    Yaml(String),
    /// A document that is none of ours, or one of ours too many or too few.
    #[error("{0}")]
    Documents(String),
    /// Fields that are wrong.
    #[error("{}", lines(.0))]
    Fields(Vec<FieldError>),
}

fn lines(errors: &[FieldError]) -> String {
    errors.iter().map(FieldError::to_string).collect::<Vec<_>>().join("\n")
}

impl Manifest {
    /// Reads a file that holds one `IngestPipeline` and the `TelemetryStore` it names.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let (pipelines, stores) = documents(text)?;
        let missing = |kind: &str| {
            ManifestError::Documents(format!("the file holds no {kind}; add one as a document of its own"))
        };
        let [pipeline] = <[IngestPipeline; 1]>::try_from(pipelines).map_err(|found| {
            if found.is_empty() {
                missing("IngestPipeline")
            } else {
                ManifestError::Documents("the file holds two IngestPipelines; a worker runs one".to_owned())
            }
        })?;
        let name = &pipeline.spec.sink.store_ref.name;
        if stores.is_empty() {
            return Err(missing("TelemetryStore"));
        }
        let store = stores.into_iter().find(|store| store.name_any() == *name).ok_or_else(|| {
            ManifestError::Fields(vec![FieldError {
                path: "spec.sink.storeRef.name".to_owned(),
                problem: format!("the file holds no TelemetryStore '{name}'"),
                remedy: "name one that is there".to_owned(),
            }])
        })?;
        let errors = [
            validate::pipeline(&pipeline.spec),
            validate::store(&store.spec),
            validate::pair(&pipeline.spec, &store.spec),
        ]
        .concat();
        if errors.is_empty() { Ok(Self { pipeline, store }) } else { Err(ManifestError::Fields(errors)) }
    }

    /// Reads the store alone, for migrations.
    pub fn parse_store(text: &str) -> Result<TelemetryStore, ManifestError> {
        let (_, stores) = documents(text)?;
        let [store] = <[TelemetryStore; 1]>::try_from(stores).map_err(|_| {
            ManifestError::Documents("the file must hold exactly one TelemetryStore".to_owned())
        })?;
        let errors = validate::store(&store.spec);
        if errors.is_empty() { Ok(store) } else { Err(ManifestError::Fields(errors)) }
    }

    /// Namespace and name of the pipeline: `default/plant`.
    pub fn pipeline_name(&self) -> String {
        format!("{}/{}", namespace_of(&self.pipeline), self.pipeline.name_any())
    }

    /// The client id of a shard; `sessions: k` appends more.
    pub fn client_id(&self, shard: u32) -> String {
        format!("{}-{shard}", self.client_id_prefix())
    }

    /// What all client ids of the pipeline begin with; also the group of its shared subscriptions.
    pub fn client_id_prefix(&self) -> String {
        Self::client_id_prefix_of(&self.pipeline)
    }

    /// The same of a pipeline alone.
    pub fn client_id_prefix_of(pipeline: &IngestPipeline) -> String {
        match &pipeline.spec.source.mqtt.client_id_prefix {
            Some(prefix) => prefix.clone(),
            None => format!("penstock-{}-{}", namespace_of(pipeline), pipeline.name_any()),
        }
    }
}

fn namespace_of(pipeline: &IngestPipeline) -> String {
    pipeline.namespace().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
}

fn documents(text: &str) -> Result<(Vec<IngestPipeline>, Vec<TelemetryStore>), ManifestError> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| ManifestError::Yaml(error.to_string()))?;
    let (mut pipelines, mut stores) = (Vec::new(), Vec::new());
    for document in documents.into_iter().filter(|document| !document.is_null()) {
        let text_of =
            |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (text_of("apiVersion"), text_of("kind"));
        if version != "penstock.dev/v1alpha1" {
            return Err(ManifestError::Documents(format!(
                "apiVersion: '{version}' is not known; write penstock.dev/v1alpha1"
            )));
        }
        match kind.as_str() {
            "IngestPipeline" => pipelines.push(typed(document)?),
            "TelemetryStore" => stores.push(typed(document)?),
            _ => {
                return Err(ManifestError::Documents(format!(
                    "kind: '{kind}' is not known; write IngestPipeline or TelemetryStore"
                )));
            }
        }
    }
    Ok((pipelines, stores))
}

fn typed<T: DeserializeOwned>(document: Value) -> Result<T, ManifestError> {
    serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        let (problem, remedy) = explain(&error.into_inner().to_string());
        ManifestError::Fields(vec![FieldError { path, problem, remedy }])
    })
}

/// Turns serde's words into what is wrong and what would be right.
fn explain(message: &str) -> (String, String) {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if let (true, [unknown, known @ ..]) = (message.starts_with("unknown "), quoted.as_slice()) {
        let nearest = known.iter().min_by_key(|name| distance(unknown, name));
        let remedy = match nearest {
            Some(name) if distance(unknown, name) <= 3 => format!("did you mean '{name}'?"),
            _ if known.is_empty() => "remove it".to_owned(),
            _ => format!("use one of {}", known.join(", ")),
        };
        let what = if message.starts_with("unknown field") { "field" } else { "value" };
        return (format!("'{unknown}' is no {what} that is known here"), remedy);
    }
    match message.split_once("; ") {
        Some((problem, remedy)) => (problem.to_owned(), remedy.to_owned()),
        None => (message.to_owned(), "see the field's documentation in crds/yaml".to_owned()),
    }
}

/// Levenshtein's distance of two names.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let best = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLANT: &str = include_str!("../../examples/worker.yaml");

    fn refused(wrong: &str, right: &str) -> String {
        assert!(PLANT.contains(right), "the example holds '{right}'");
        Manifest::parse(&PLANT.replacen(right, wrong, 1)).unwrap_err().to_string()
    }

    #[test]
    fn the_example_is_a_good_manifest() {
        let manifest = Manifest::parse(PLANT).unwrap();
        assert_eq!(manifest.pipeline_name(), "default/plant");
        assert_eq!(manifest.client_id(3), "plant-3");
    }

    #[test]
    fn a_login_in_a_brokers_url_is_refused_and_nothing_of_it_is_shown() {
        for url in
            ["mqtt://me-user:pass-secret@127.0.0.1:1883", "mqtt://me-user@[::1", "mqtts://:pass-secret@x"]
        {
            let refusal = refused(url, "mqtt://127.0.0.1:1883");
            assert!(refusal.contains("spec.source.mqtt.url"), "{refusal}");
            assert!(!refusal.contains("me-user") && !refusal.contains("-secret"), "{refusal}");
        }
    }

    #[test]
    fn each_mistake_is_named_with_its_path_and_what_would_be_right() {
        for (wrong, right, message) in [
            (
                "keepAliv: 30s",
                "keepAlive: 30s",
                "spec.source.mqtt.keepAliv: 'keepAliv' is no field that is known here; did you mean 'keepAlive'?",
            ),
            (
                "keepAlive: 30",
                "keepAlive: 30s",
                "spec.source.mqtt.keepAlive: '30' has no unit; write 30s for seconds",
            ),
            (
                "traksense/#/telem",
                "traksense/+/+/+/telem",
                "spec.source.mqtt.subscriptions[0].filter: '#' stands in the middle; write '#' as the last level only, or '+' for one level",
            ),
            (
                "{site}/{kind}",
                "{site}/{device}/{kind}",
                "spec.source.mqtt.layout: has no {device}; name the level that tells the device, as in traksense/{tenant}/{site}/{device}/{kind}",
            ),
            (
                "maxAge: 365d",
                "maxAge: 30d",
                "spec.accept.maxAge: 365d is not shorter than the store's retention of 365d; write less than the retention, or what is accepted may be deleted at once",
            ),
            (
                "rollups: [10s, 1m]",
                "rollups: [1m, 5m, 1h]",
                "spec.rollups[0]: 10s is out of range; write 1m to 7d, in whole seconds",
            ),
            (
                "columnstore: {after: 366d}",
                "columnstore: {after: 7d}",
                "spec.columnstore.after: 366d is not shorter than the retention of 365d; write less, or leave columnstore out",
            ),
            (
                "deadLetters: {retention: 30m, maxSize: 10Gi}",
                "deadLetters: {retention: 30d, maxSize: 10Gi}",
                "spec.deadLetters.retention: 30m is out of range; write 1h to 36500d",
            ),
            (
                "protocol: V4",
                "protocol: V5",
                "spec.source.mqtt.protocol: 'V4' is no value that is known here; did you mean 'V5'?",
            ),
            (
                "mqtt://me:secret@127.0.0.1:1883",
                "mqtt://127.0.0.1:1883",
                "spec.source.mqtt.url: holds a user name or password; name Secrets in spec.source.mqtt.auth instead",
            ),
            (
                "database:  {url: {secretKeyRef: {name: timescale, key: url}}, tls: {ca: {}}}",
                "database:  {url: {secretKeyRef: {name: timescale, key: url}}}",
                "spec.database.tls.ca: names no source, or two; give either configMapKeyRef or secretKeyRef",
            ),
            (
                "storeRef: {name: other}",
                "storeRef: {name: main}",
                "spec.sink.storeRef.name: the file holds no TelemetryStore 'other'; name one that is there",
            ),
            (
                "tracing: {otlpEndpoint: collector:4318}\n  sink: {",
                "sink: {",
                "spec.tracing.otlpEndpoint: is not the URL of a collector that takes OTLP over HTTP; write http://host:4318 or https://host:4318",
            ),
            (
                "tracing: {otlpEndpoint: 'http://me:secret@collector:4318'}\n  sink: {",
                "sink: {",
                "spec.tracing.otlpEndpoint: holds a user name or password; give the worker the variable OTEL_EXPORTER_OTLP_HEADERS from a Secret instead",
            ),
            (
                "tracing: {otlpEndpoint: 'http://collector:4318', ratio: 1.5}\n  sink: {",
                "sink: {",
                "spec.tracing.ratio: 1.5 is out of range; write 0 to 1",
            ),
            (
                "\"traksense/+/+/+/telem\", format: Mapped, mapping: {time: {pointer: ts}}",
                "\"traksense/+/+/+/telem\"",
                "spec.source.mqtt.subscriptions[0].mapping.time.pointer: 'ts' is not a JSON pointer; write /ts, or nothing for the whole message",
            ),
            (
                "\"traksense/+/+/+/telem\", format: Mapped, mapping: {points: [{name: a, pointer: /a, type: Text, scale: 2}]}",
                "\"traksense/+/+/+/telem\"",
                "spec.source.mqtt.subscriptions[0].mapping.time: is missing, and spec.accept.receiveTime is Reject, so nothing could be stored; write where the time is, such as {pointer: /ts, unit: Milliseconds}, or set receiveTime: Allow\nspec.source.mqtt.subscriptions[0].mapping.points[0].scale: is given for what is no number; remove it, or set type: Number",
            ),
            (
                "\"traksense/+/+/+/telem\", format: Mapped",
                "\"traksense/+/+/+/telem\"",
                "spec.source.mqtt.subscriptions[0].mapping: is missing; write one, or choose another format",
            ),
            (
                "\"traksense/+/+/+/telem\", format: InfluxLine, timeUnit: Rfc3339",
                "\"traksense/+/+/+/telem\"",
                "spec.source.mqtt.subscriptions[0].timeUnit: is Rfc3339, which line protocol does not have; write Nanoseconds, Microseconds, Milliseconds or Seconds",
            ),
            (
                "\"traksense/+/+/+/telem\", timeField: at",
                "\"traksense/+/+/+/telem\"",
                "spec.source.mqtt.subscriptions[0].timeField: is given, but the format is not Fields; remove it",
            ),
            (
                "kind: Pipeline",
                "kind: IngestPipeline",
                "kind: 'Pipeline' is not known; write IngestPipeline or TelemetryStore",
            ),
        ] {
            assert_eq!(refused(wrong, right), message);
        }
    }

    #[test]
    fn shards_do_not_share_the_births_and_data_of_sparkplugs_edge_nodes() {
        let shared = PLANT
            .replace("sessionExpiry: 24h", "sessionExpiry: 5m")
            .replace("  sink:", "  replicas: 2\n  sharding: {by: Shared}\n  sink:");
        assert!(Manifest::parse(&shared).is_ok());
        let sparkplug = shared.replace("traksense/+/+/+/ack\"", "spBv1.0/#\", format: SparkplugB");
        assert!(Manifest::parse(&sparkplug).unwrap_err().to_string().starts_with("spec.sharding.by: Shared"));
        assert!(Manifest::parse(&sparkplug.replace("replicas: 2", "replicas: 1")).is_ok());
    }
}
