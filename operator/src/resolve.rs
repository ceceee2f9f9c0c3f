//! From the objects that a user wrote to what can be built, or the one reason why not. Pure.

use std::collections::BTreeSet;

use kube::ResourceExt;
use penstock_crds::plan::restart_digest;
use penstock_crds::reference::KeyRef;
use penstock_crds::source::Tls;
use penstock_crds::store::Database;
use penstock_crds::{FieldError, IngestPipeline, Manifest, TelemetryStore, validate};
use serde_json::{Value, json};

/// What the operator is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The workers' image, where a pipeline names none.
    pub worker_image: String,
    /// When it is pulled.
    pub pull_policy: String,
    /// Seconds for which a deletion is tried before sessions are left behind.
    pub retire_deadline: u64,
    /// Pipelines whose shards are rolled at the same time.
    pub pipelines_at_once: usize,
}

/// Why the objects cannot be acted on. What runs already is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// Fields that are wrong.
    #[error("{}", lines(.0))]
    Invalid(Vec<FieldError>),
    /// There is no such store.
    #[error(
        "spec.sink.storeRef.name: there is no TelemetryStore '{0}' in this namespace; apply it, or name one that is there"
    )]
    NoStore(String),
    /// Another pipeline has the same client ids.
    #[error(
        "{other} has the client ids {prefix}-… at {url} already, and a broker gives an id to one connection at a time; set another spec.source.mqtt.clientIdPrefix"
    )]
    ClientIds {
        /// The other, as namespace/name.
        other: String,
        /// What the ids begin with.
        prefix: String,
        /// The broker.
        url: String,
    },
}

fn lines(errors: &[FieldError]) -> String {
    errors.iter().map(FieldError::to_string).collect::<Vec<_>>().join("\n")
}

impl Unresolved {
    /// One bounded word.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "manifest_wrong",
            Self::NoStore(_) => "store_missing",
            Self::ClientIds { .. } => "client_ids_claimed",
        }
    }
}

/// A file that a pod reads: one key of a Secret or ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Credential {
    /// `secret` or `configMap`.
    pub source: &'static str,
    /// Name of the object.
    pub name: String,
    /// Key within it.
    pub key: String,
}

/// A pipeline that can be built.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Pipeline and store, checked.
    pub manifest: Manifest,
    /// The file that workers read.
    pub file: String,
    /// Digest of what only a new start of the worker takes over.
    pub restart: String,
    /// What the workers read of Secrets and ConfigMaps.
    pub credentials: BTreeSet<Credential>,
}

/// Checks a pipeline against its store and the other pipelines.
pub fn pipeline(
    pipeline: &IngestPipeline,
    store: Option<&TelemetryStore>,
    others: &[impl AsRef<IngestPipeline>],
) -> Result<Resolved, Unresolved> {
    let wrong = validate::pipeline(&pipeline.spec);
    if !wrong.is_empty() {
        return Err(Unresolved::Invalid(wrong));
    }
    let store = store.ok_or_else(|| Unresolved::NoStore(pipeline.spec.sink.store_ref.name.clone()))?;
    let wrong = [validate::store(&store.spec), validate::pair(&pipeline.spec, &store.spec)].concat();
    if !wrong.is_empty() {
        return Err(Unresolved::Invalid(wrong));
    }
    let manifest = Manifest { pipeline: pipeline.clone(), store: store.clone() };
    let prefix = manifest.client_id_prefix();
    if let Some(other) = others.iter().find(|other| claims_before(other.as_ref(), pipeline, &prefix)) {
        return Err(Unresolved::ClientIds {
            other: format!(
                "{}/{}",
                other.as_ref().namespace().unwrap_or_default(),
                other.as_ref().name_any()
            ),
            prefix,
            url: pipeline.spec.source.mqtt.url.clone(),
        });
    }
    let mqtt = &pipeline.spec.source.mqtt;
    let mut credentials = of_database(&store.spec.database);
    for reference in mqtt.auth.iter().flat_map(|auth| [&auth.username, &auth.password]) {
        credentials.insert(secret(&reference.secret_key_ref));
    }
    credentials.extend(of_tls(mqtt.tls.as_ref()));
    Ok(Resolved {
        file: documents(&[pipeline_document(pipeline), store_document(store)]),
        restart: restart_digest(&pipeline.spec, &store.spec),
        credentials,
        manifest,
    })
}

/// Whether the other has the same client ids at the same broker, and had them first.
fn claims_before(other: &IngestPipeline, pipeline: &IngestPipeline, prefix: &str) -> bool {
    let age = |pipeline: &IngestPipeline| {
        (pipeline.creation_timestamp(), pipeline.namespace(), pipeline.name_any())
    };
    other.spec.source.mqtt.url == pipeline.spec.source.mqtt.url
        && other.metadata.uid != pipeline.metadata.uid
        && Manifest::client_id_prefix_of(other) == prefix
        && age(other) < age(pipeline)
}

/// What a store's jobs read, and the file that they are given.
pub fn store(store: &TelemetryStore) -> Result<(String, BTreeSet<Credential>), Unresolved> {
    let wrong = validate::store(&store.spec);
    if !wrong.is_empty() {
        return Err(Unresolved::Invalid(wrong));
    }
    let mut credentials = of_database(&store.spec.database);
    credentials.extend(of_database(&store.spec.migration));
    Ok((documents(&[store_document(store)]), credentials))
}

fn secret(reference: &KeyRef) -> Credential {
    Credential { source: "secret", name: reference.name.clone(), key: reference.key.clone() }
}

fn of_database(database: &Database) -> BTreeSet<Credential> {
    let mut credentials = of_tls(database.tls.as_ref());
    credentials.insert(secret(&database.url.secret_key_ref));
    credentials
}

fn of_tls(tls: Option<&Tls>) -> BTreeSet<Credential> {
    let mut credentials = BTreeSet::new();
    let Some(tls) = tls else { return credentials };
    if let Some(ca) = &tls.ca {
        credentials.extend(ca.secret_key_ref.as_ref().map(secret));
        credentials.extend(
            ca.config_map_key_ref.as_ref().map(|bundle| Credential { source: "configMap", ..secret(bundle) }),
        );
    }
    if let Some(own) = &tls.client_certificate {
        let file =
            |key: &str| Credential { source: "secret", name: own.secret_name.clone(), key: key.to_owned() };
        credentials.extend([file("tls.crt"), file("tls.key")]);
    }
    credentials
}

/// Without what does not concern a worker, so that scaling changes no worker's file.
fn pipeline_document(pipeline: &IngestPipeline) -> Value {
    let mut spec = json!(pipeline.spec);
    if let Some(spec) = spec.as_object_mut() {
        for operators in ["suspend", "replicas", "autoscaling", "worker"] {
            spec.remove(operators);
        }
    }
    document("IngestPipeline", &pipeline.name_any(), pipeline.metadata.namespace.as_deref(), &spec)
}

fn store_document(store: &TelemetryStore) -> Value {
    let mut spec = json!(store.spec);
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("maintenance");
    }
    document("TelemetryStore", &store.name_any(), store.metadata.namespace.as_deref(), &spec)
}

fn document(kind: &str, name: &str, namespace: Option<&str>, spec: &Value) -> Value {
    json!({
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

/// YAML documents; JSON is YAML too.
fn documents(documents: &[Value]) -> String {
    documents.iter().map(|document| format!("{document:#}\n")).collect::<Vec<_>>().join("---\n")
}
