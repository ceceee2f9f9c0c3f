//! `IngestPipeline`: from MQTT to a store.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mapping::{Mapping, TimeUnit};
use crate::operations::{Autoscaling, AutoscalingStatus, Worker};
use crate::reference::{BundleSource, SecretValue};
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

/// Where messages come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// An MQTT broker.
    pub mqtt: Mqtt,
}

/// An MQTT broker, and what is wanted of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = rules::client_id_prefix_stays())]
#[x_kube(validation = rules::tls_needs_mqtts())]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mqtt {
    /// `mqtt://host:1883`, or `mqtts://host:8883` for TLS.
    #[schemars(length(min = 8, max = 500))]
    #[x_kube(validation = rules::broker_without_login())]
    #[x_kube(validation = rules::broker())]
    pub url: String,
    /// MQTT 5.0 or 3.1.1. There is no fallback from one to the other.
    #[serde(default)]
    pub protocol: Protocol,
    /// First part of the client ids; the shard's number is appended. `penstock-<namespace>-<name>` if
    /// not given. It names the broker's sessions and cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    #[x_kube(validation = rules::client_id_prefix())]
    pub client_id_prefix: Option<String>,
    /// User name and password; none if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Authorities to trust and a certificate of the worker's own, where the URL is `mqtts://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// What to subscribe, at QoS 1.
    #[schemars(length(min = 1, max = 500))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["filter".into()]))]
    pub subscriptions: Vec<Subscription>,
    /// What a topic's levels mean: `{tenant}`, `{site}`, `{device}`, `{kind}`, or literal text.
    #[serde(default = "default_layout")]
    #[schemars(length(min = 1, max = 500))]
    #[x_kube(validation = rules::layout_names_the_device())]
    #[x_kube(validation = rules::layout_levels())]
    #[x_kube(validation = rules::layout_names_once())]
    pub layout: String,
    /// Deliveries that the broker may leave unacknowledged (MQTT 5).
    #[serde(default = "default_receive_maximum")]
    #[schemars(range(min = 1, max = 65535))]
    pub receive_maximum: u16,
    /// Keep-alive interval, 5s to 18h.
    #[serde(default = "default_keep_alive")]
    #[x_kube(validation = rules::keep_alive())]
    pub keep_alive: Duration,
    /// How long the broker keeps a session, and what it queues, while nobody is connected (MQTT 5). At least
    /// 1m; at most 5m with `sharding.by: Shared`.
    #[serde(default = "default_session_expiry")]
    #[x_kube(validation = rules::session_expiry())]
    pub session_expiry: Duration,
    /// Largest payload to decode; a larger one is a dead letter `too_large`.
    #[serde(default = "default_max_packet_size")]
    #[x_kube(validation = rules::packet_size())]
    pub max_packet_size: Size,
    /// Parallel sessions of one shard, for brokers with a small window.
    #[serde(default = "default_sessions")]
    #[schemars(range(min = 1, max = 64))]
    pub sessions: u8,
    /// How Sparkplug B is read.
    #[serde(default)]
    pub sparkplug: Sparkplug,
}

/// The layout of the original service's topics.
pub fn default_layout() -> String {
    "traksense/{tenant}/{site}/{device}/{kind}".to_owned()
}

fn default_receive_maximum() -> u16 {
    1000
}

fn default_sessions() -> u8 {
    1
}

const fn seconds(n: u64) -> u64 {
    n * 1000
}

fn default_keep_alive() -> Duration {
    Duration::of_millis(seconds(30))
}

fn default_session_expiry() -> Duration {
    Duration::of_millis(seconds(24 * 3600))
}

fn default_max_packet_size() -> Size {
    Size::of_bytes(1 << 20)
}

/// Protocol version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// MQTT 5.0.
    #[default]
    V5,
    /// MQTT 3.1.1.
    V311,
}

/// User name and password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Auth {
    /// User name.
    pub username: SecretValue,
    /// Password.
    pub password: SecretValue,
}

/// TLS beyond the system's certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Tls {
    /// Certificates of the authorities to trust, instead of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<BundleSource>,
    /// The worker's own certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<ClientCertificate>,
}

/// The worker's own certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCertificate {
    /// A Secret of type `kubernetes.io/tls`.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// A filter, and how to read what it brings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = rules::mapped_has_a_mapping())]
#[x_kube(validation = rules::time_field_is_of_fields())]
#[x_kube(validation = rules::time_unit_is_of_its_formats())]
#[x_kube(validation = rules::line_protocol_has_numbers())]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subscription {
    /// A topic filter, such as `plant/+/telem` or `plant/#`. Each stands once.
    #[schemars(length(min = 1, max = 1000))]
    #[x_kube(validation = rules::filter_is_not_shared())]
    #[x_kube(validation = rules::filter_ends_with_hash())]
    #[x_kube(validation = rules::filter_has_whole_plus())]
    pub filter: String,
    /// Format of the payloads. `Auto` tells the normalized JSON, `Je02`, `Parsec`, `Sensors` and `SenML` by
    /// the topic and the payload's own marks.
    #[serde(default)]
    pub format: Format,
    /// `Fields`: the field that holds the time; `ts` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub time_field: Option<String>,
    /// `Fields` and `InfluxLine`: what times are written in; `Rfc3339` and `Nanoseconds` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_unit: Option<TimeUnit>,
    /// `Mapped`: where things are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<Mapping>,
}

/// Format of payloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Format {
    /// By the topic's `{kind}` and the payload's own marks: `V1`, `Je02`, `Parsec`, `Sensors` or `SenML`.
    #[default]
    Auto,
    /// Penstock's normalized JSON, `"schema": "v1"`.
    V1,
    /// Sparkplug B, by its own topics; `layout` does not count.
    SparkplugB,
    /// `parsec_v1`: digital and analog inputs.
    Parsec,
    /// JE02: `DATA` and `INFO`.
    Je02,
    /// JSON with an array `sensors`.
    Sensors,
    /// RFC 8428, JSON or CBOR.
    #[serde(rename = "SenML")]
    SenMl,
    /// InfluxDB line protocol.
    InfluxLine,
    /// A JSON object whose fields are points, and one the time.
    Fields,
    /// Any JSON, by `mapping`.
    Mapped,
}

/// Sparkplug B.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Sparkplug {
    /// Whether to ask edge nodes for their births where one is missing.
    pub rebirth: Rebirth,
}

/// Whether to ask edge nodes for their births.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Rebirth {
    /// By `Node Control/Rebirth`, at most once a minute each. The login must be allowed to publish to `spBv1.0/+/NCMD/+`.
    #[default]
    Ask,
    /// Never: they must be born again by themselves.
    Never,
}

/// How the work is divided among shards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Sharding {
    /// What a shard owns: filters (`Topic`), tenants (`Tenant`), or nothing, and the broker divides
    /// (`Shared`). It cannot change.
    pub by: ShardBy,
    /// The tenants to divide, with `by: Tenant`. The filters then have a '+' at the layout's `{tenant}`.
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
            max_age: Duration::of_millis(seconds(30 * 86400)),
            max_ahead: Duration::of_millis(seconds(600)),
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
        Self { max_queue_fill: 90, max_unacked_age: Duration::of_millis(seconds(30)) }
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

/// What is known of a pipeline.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngestPipelineStatus {
    /// The generation that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Shards that run.
    #[serde(default)]
    pub replicas: i32,
    /// Shards that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Ready and wanted shards, as `3/4`.
    #[serde(default)]
    pub ready: String,
    /// Label selector of the workers' pods.
    #[serde(default)]
    pub selector: String,
    /// Generation of the plan, which tells the shards their keys.
    #[serde(default)]
    pub plan_generation: i64,
    /// Messages committed a second, by all shards. Numbers are written at most once a minute.
    #[serde(default)]
    pub rate: i64,
    /// Age of the oldest unacknowledged message of all shards.
    #[serde(default)]
    pub lag: String,
    /// Fill of the fullest queue, in percent.
    #[serde(default)]
    pub fill: i32,
    /// What the built-in autoscaler remembers, while `spec.autoscaling` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingStatus>,
    /// Every shard that is not retired.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["shard".into()]))]
    #[serde(default)]
    pub shards: Vec<ShardStatus>,
    /// Conditions: `Ready`, `Reconciling`, `Stalled`, `SchemaReady`, `PlanApplied`, `ScalingLimited`,
    /// `Backpressured`, `Suspended`.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// What is known of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardStatus {
    /// Its number.
    pub shard: i32,
    /// `Starting`, `Running`, `NotReady`, `Parked`, `Leaving` or `Retiring`.
    pub phase: String,
    /// Keys that it owns or is to own.
    #[serde(default)]
    pub keys: i32,
    /// Its client id at the broker.
    #[serde(default)]
    pub client_id: String,
    /// Its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node that runs the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Messages committed a second.
    #[serde(default)]
    pub rate: i64,
    /// Fill of its queue, in percent.
    #[serde(default)]
    pub fill: i32,
    /// Age of its oldest unacknowledged message.
    #[serde(default)]
    pub lag: String,
    /// What limits its rate now: the broker's window, the database, the CPU, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<String>,
    /// How long nobody consumed it when its worker took it over: `0.4s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<String>,
}
