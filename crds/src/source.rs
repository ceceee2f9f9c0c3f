//! Where messages come from: a broker, and the filters that are subscribed there.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mapping::{Mapping, TimeUnit};
use crate::reference::{BundleSource, SecretValue};
use crate::{Duration, Size, rules};

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

fn default_keep_alive() -> Duration {
    Duration::of_seconds(30)
}

fn default_session_expiry() -> Duration {
    Duration::of_seconds(24 * 3600)
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

impl Subscription {
    /// Whether it brings Sparkplug B, as far as it says so. Where the format is `Auto`, a wider filter may
    /// bring it too.
    pub fn is_sparkplug(&self) -> bool {
        match self.format {
            Format::Auto => self.filter.starts_with("spBv1.0/"),
            format => format == Format::SparkplugB,
        }
    }
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
