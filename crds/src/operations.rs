//! How a pipeline's workers run: what only the operator reads.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, rules};

/// Workers as Kubernetes runs them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Worker {
    /// Image of the worker, instead of the operator's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub image: Option<String>,
    /// When the image is pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// Secrets to pull it with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Resources of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// How long a worker that is told to stop goes on consuming until another took over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handover: Option<Duration>,
    /// Labels of nodes that may run the pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub tolerations: Vec<Toleration>,
    /// Where the pods would rather run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Annotations of the pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How the pods are spread, instead of over nodes where that is possible.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Whether a NetworkPolicy closes the pods to all but scrapes of their metrics port.
    pub network_policy: bool,
    /// More environment variables of the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub env: Vec<EnvVar>,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never.
    Never,
}

impl PullPolicy {
    /// As Kubernetes writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// The built-in autoscaler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = rules::fewest_is_at_most_most())]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Autoscaling {
    /// Fewest shards.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 256))]
    pub min_replicas: i32,
    /// Most shards.
    #[schemars(range(min = 1, max = 256))]
    pub max_replicas: i32,
    /// Utilisation of a shard to aim at, in percent.
    #[serde(default = "seventy")]
    #[schemars(range(min = 10, max = 100))]
    pub target_utilization: i32,
    /// How fast to scale, named as in `HorizontalPodAutoscaler` v2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<Behavior>,
}

fn one() -> i32 {
    1
}

fn seventy() -> i32 {
    70
}

/// How fast to scale.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Behavior {
    /// To more shards. If not given: after 5 s, at most 4 times as many or 4 more a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_up: Option<ScalingRules>,
    /// To fewer shards. If not given: after 300 s, at most half of them a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_down: Option<ScalingRules>,
}

/// Scaling in one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ScalingRules {
    /// How long more, or fewer, shards must have been the better count, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_window_seconds: Option<i32>,
    /// Which of the policies counts.
    pub select_policy: SelectPolicy,
    /// How many shards may come or go in a time. The direction's own if not given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub policies: Vec<ScalingPolicy>,
}

/// Which of several policies counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectPolicy {
    /// The one that allows the largest change.
    #[default]
    Max,
    /// The one that allows the smallest.
    Min,
    /// None: the count does not change in this direction.
    Disabled,
}

/// How many shards may come or go in a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScalingPolicy {
    /// What `value` counts.
    #[serde(rename = "type")]
    pub kind: PolicyKind,
    /// So many.
    #[schemars(range(min = 1, max = 10000))]
    pub value: i32,
    /// In so many seconds.
    #[schemars(range(min = 1, max = 1800))]
    pub period_seconds: i32,
}

/// What a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyKind {
    /// Shards: each is one pod.
    Pods,
    /// Percent of the shards there are.
    Percent,
}

/// What the built-in autoscaler remembers: over a suspend, and over a restart of the operator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AutoscalingStatus {
    /// Shards that it has chosen.
    pub replicas: i32,
    /// How many there were before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_replicas: Option<i32>,
    /// When it changed the count last, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale_seconds: Option<i64>,
    /// Messages a second before it last chose more, while it is not known what that brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_before: Option<i64>,
    /// Messages a second when more shards had brought no more: it does not try again before there are more,
    /// or fewer shards would do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_held: Option<i64>,
}
