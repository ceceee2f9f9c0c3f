//! `TelemetryStore`: a database, and what is kept there for how long.

use k8s_openapi::api::core::v1::LocalObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::reference::SecretValue;
use crate::source::Tls;
use crate::{Duration, Size, rules};

/// A database, its schema and its policies. One per database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "TelemetryStore",
    namespaced,
    status = "TelemetryStoreStatus",
    shortname = "tstore",
    category = "penstock",
    annotation("helm.sh/resource-policy", "keep"),
    validation = rules::short_name(),
    doc = "A database, its schema and its policies.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='SchemaReady')].status"
    ),
    printcolumn(name = "Edition", type_ = "string", json_path = ".status.edition"),
    printcolumn(name = "Schema", type_ = "integer", json_path = ".status.schemaVersion"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size"),
    printcolumn(name = "Retention", type_ = "string", json_path = ".spec.retention"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='SchemaReady')].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = rules::compressed_before_removed())]
#[x_kube(validation = rules::widths_fit_the_retention())]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TelemetryStoreSpec {
    /// How workers reach the database.
    pub database: Database,
    /// How migrations reach the database: as the owner of the schema.
    pub migration: Database,
    /// How long samples, events, metadata and command answers are kept: at least 1h. For ever, if not
    /// given. Except for samples on TimescaleDB Community, `maintain` must run for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::age())]
    pub retention: Option<Duration>,
    /// Widths of the rollups to keep, each a multiple of the one before: 1m to 7d, and at most a quarter of
    /// the retention. Each has a view `readings_<width>`. Needs TimescaleDB Community; elsewhere it is
    /// reported as unsupported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(validation = rules::width())]
    #[x_kube(validation = rules::widths_contain_one_another())]
    pub rollups: Vec<Duration>,
    /// Compression of old samples. Needs TimescaleDB Community 2.18.1 or newer; elsewhere it is reported as
    /// unsupported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columnstore: Option<Columnstore>,
    /// Who may store.
    #[serde(default)]
    #[x_kube(validation = rules::tenants_are_named())]
    #[x_kube(validation = rules::tenants_are_not_named())]
    pub tenants: Tenants,
    /// What is kept of messages that cannot be stored.
    #[serde(default)]
    #[x_kube(validation = rules::age_of_letters())]
    pub dead_letters: DeadLetters,
    /// When `maintain` runs, and how.
    #[serde(default)]
    pub maintenance: Maintenance,
}

/// When `maintain` runs, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Maintenance {
    /// A cron schedule, in the cluster's time zone.
    #[schemars(length(min = 1, max = 100))]
    pub schedule: String,
    /// Image of the Jobs, instead of the operator's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub image: Option<String>,
    /// Secrets to pull it with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

impl Default for Maintenance {
    fn default() -> Self {
        Self { schedule: "23 * * * *".to_owned(), image: None, image_pull_secrets: Vec::new() }
    }
}

/// How to reach a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Database {
    /// A URL: `postgres://user:password@host:5432/database`.
    pub url: SecretValue,
    /// TLS with full verification: authorities to trust beside the system's, and a certificate of its own.
    /// Without it the URL's `sslmode` decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// Compression of old samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Columnstore {
    /// Age at which samples are compressed: at least 1h, less than the retention, and better more than
    /// samples are late.
    #[x_kube(validation = rules::age())]
    pub after: Duration,
}

/// Who may store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Tenants {
    /// `Auto`: a tenant begins with its first message. `Listed`: only the named ones.
    pub mode: TenantMode,
    /// The tenants, where they are listed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 255)))]
    pub names: Vec<String>,
    /// Most series a tenant may have; what would be more is a dead letter `cardinality`.
    #[schemars(range(min = 1, max = 2_000_000_000))]
    pub max_series: i32,
    /// Most series that a tenant may begin in a minute, by each worker; one minute's worth at once. What
    /// would be more waits, and is never rejected. No limit, if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub new_series_per_minute: Option<u32>,
}

impl Default for Tenants {
    fn default() -> Self {
        Self { mode: TenantMode::Auto, names: Vec::new(), max_series: 1_000_000, new_series_per_minute: None }
    }
}

/// How tenants begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TenantMode {
    /// With their first message.
    Auto,
    /// By being listed.
    Listed,
}

/// What is kept of messages that cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DeadLetters {
    /// How long: at least 1h. For ever, if null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Duration>,
    /// How many bytes of payloads in all. Beyond it the oldest are cut to their first 64 bytes, which
    /// cannot be replayed. No limit, if null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<Size>,
}

impl Default for DeadLetters {
    fn default() -> Self {
        Self {
            retention: Some(Duration::of_millis(30 * 86_400_000)),
            max_size: Some(Size::of_bytes(10 << 30)),
        }
    }
}

/// What is known of a store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TelemetryStoreStatus {
    /// The generation that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `TimescaleDB Community`, `TimescaleDB Apache` or `PostgreSQL`, with versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edition: Option<String>,
    /// Version of the schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<i64>,
    /// What the edition cannot do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsupported: Vec<String>,
    /// Settings of the server that let a commit be lost, and what else a user should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Size of the schema's tables, when they were last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Digest of the spec and image that the schema was last brought up to date by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrated: Option<String>,
    /// When `maintain` last ended well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintained: Option<String>,
    /// Conditions: `SchemaReady`.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}
