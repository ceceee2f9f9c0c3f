//! What is known of a pipeline and its shards.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::operations::AutoscalingStatus;

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
