//! `IngestPipeline`: from MQTT to a store.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::operations::{Autoscaling, Worker};
use crate::source::Source;
use crate::status::IngestPipelineStatus;
use crate::{Duration, Size, rules};

/// From MQTT to a store, by sharded workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "IngestPipeline",
    namespaced,
    status = "IngestPipelineStatus",
    shortname = "ipl",
    category = "penstock",
    annotation("helm.sh/resource-policy", "keep"),
    validation = rules::short_name(),
    doc = "Moves device telemetry from MQTT into a TelemetryStore, without losing or doubling a row.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    selectable = ".spec.sink.storeRef.name",
    selectable = ".spec.source.mqtt.url",
    printcolumn(name = "Shards", type_ = "string", json_path = ".status.ready"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Msg/s", type_ = "integer", json_path = ".status.rate"),
    printcolumn(name = "Lag", type_ = "string", json_path = ".status.lag"),
    printcolumn(name = "Fill%", type_ = "integer", json_path = ".status.fill"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = rules::replicas_are_the_autoscalers())]
#[x_kube(validation = rules::replicas_are_not_zero_where_scaled())]
#[x_kube(validation = rules::sharding_stays())]
#[x_kube(validation = rules::tenants_are_listed())]
#[x_kube(validation = rules::tenants_are_divided())]
#[x_kube(validation = rules::tenants_are_levels())]
#[x_kube(validation = rules::filters_can_be_divided())]
#[x_kube(validation = rules::shared_sessions_end_soon())]
#[x_kube(validation = rules::shared_is_version_5())]
#[x_kube(validation = rules::births_stay_with_their_data())]
#[x_kube(validation = rules::messages_fit_in_hand())]
#[x_kube(validation = rules::mapped_samples_have_times())]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngestPipelineSpec {
    /// Stops consuming and keeps the broker's sessions.
    #[serde(default)]
    pub suspend: bool,
    /// Number of shards; each is one pod. Leave it out of what is applied again and again if something
    /// else scales it.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 256))]
    pub replicas: i32,
    /// Where messages come from.
    pub source: Source,
    /// How the work is divided among shards.
    #[serde(default)]
    pub sharding: Sharding,
    /// How much one transaction holds, and how much a worker has in hand.
    #[serde(default)]
    #[x_kube(validation = rules::batch_has_bytes())]
    #[x_kube(validation = rules::linger())]
    pub batch: Batch,
    /// Which times are accepted.
    #[serde(default)]
    pub accept: Accept,
    /// Where rows go.
    pub sink: Sink,
    /// When a worker is ready.
    #[serde(default)]
    pub readiness: Readiness,
    /// Traces of messages, for a collector; none if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
    /// The built-in autoscaler; off if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// The workers' pods.
    #[serde(default)]
    pub worker: Worker,
}

fn one() -> i32 {
    1
}

/// How the work is divided among shards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Sharding {
    /// What a shard owns: filters (`Topic`), tenants (`Tenant`), or nothing, and the broker divides
    /// (`Shared`). It cannot change.
    pub by: ShardBy,
    /// The tenants to divide, with `by: Tenant`. The filters then have a '+' at the layout's `{tenant}`,
    /// and those of Sparkplug at the group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 255)))]
    pub tenants: Vec<String>,
}

/// What a shard owns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ShardBy {
    /// Filters.
    #[default]
    Topic,
    /// Tenants.
    Tenant,
    /// Nothing: every shard takes what the broker gives it of a shared subscription.
    Shared,
}

/// How much one transaction holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Batch {
    /// Rows of a transaction at most.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_rows: u32,
    /// Payload bytes of a transaction at most.
    pub max_bytes: Size,
    /// Longest wait for more, while the broker's window is not full; at most 1s.
    pub linger: Duration,
    /// Bytes of all deliveries in hand: the one bound on memory. More than `maxPacketSize`, less than 4Gi.
    pub max_in_hand: Size,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_rows: 20_000,
            max_bytes: Size::of_bytes(8 << 20),
            linger: Duration::of_millis(5),
            max_in_hand: Size::of_bytes(64 << 20),
        }
    }
}

/// Which times are accepted, by the database's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Accept {
    /// Oldest age that is stored; shorter than the store's retention.
    pub max_age: Duration,
    /// Farthest time in the future that is stored.
    pub max_ahead: Duration,
    /// Whether a sample without a time gets the time of its receipt. It is then stored at least once.
    pub receive_time: ReceiveTime,
}

impl Default for Accept {
    fn default() -> Self {
        Self {
            max_age: Duration::of_seconds(30 * 86400),
            max_ahead: Duration::of_seconds(600),
            receive_time: ReceiveTime::Reject,
        }
    }
}

/// What becomes of a sample without a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReceiveTime {
    /// A dead letter.
    Reject,
    /// Stored with the time of its receipt; a redelivery is stored again.
    Allow,
}

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sink {
    /// A `TelemetryStore` in the same namespace.
    pub store_ref: StoreRef,
}

/// A `TelemetryStore` by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// When a worker is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Readiness {
    /// Fill of the queue in percent, beyond which the oldest delivery's age counts.
    #[schemars(range(min = 1, max = 100))]
    pub max_queue_fill: u8,
    /// Age of the oldest unacknowledged delivery, where the queue is full.
    pub max_unacked_age: Duration,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { max_queue_fill: 90, max_unacked_age: Duration::of_seconds(30) }
    }
}

/// Traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tracing {
    /// The collector: OTLP over HTTP, such as `http://collector:4318`. `/v1/traces` is added.
    #[schemars(length(min = 1, max = 500))]
    #[x_kube(validation = rules::collector_without_login())]
    #[x_kube(validation = rules::collector_without_query())]
    #[x_kube(validation = rules::collector())]
    pub otlp_endpoint: String,
    /// Share of the messages without a trace context to trace, 0 to 1. Those with one follow its sender's decision.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub ratio: f64,
}
