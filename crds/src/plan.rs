//! Which keys a shard owns, and what it subscribes for them.

use serde::{Deserialize, Serialize};

use crate::pipeline::{IngestPipelineSpec, ShardBy, Subscription};
use crate::topic::Layout;

/// What one shard owns: the plan file of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShardPlan {
    /// Rises with each change; a worker follows no lower one than it has seen.
    pub generation: i64,
    /// The shard's number.
    pub shard: u32,
    /// Filters where sharding is by topic, tenants where it is by tenant, nothing where it is shared.
    pub keys: Vec<String>,
}

impl ShardPlan {
    /// Reads a plan file. The error says where it is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    /// The plan of a pipeline that is not divided: this shard owns all keys.
    pub fn whole(spec: &IngestPipelineSpec, shard: u32) -> Self {
        Self { generation: 0, shard, keys: keys(spec) }
    }

    /// What the shard subscribes, with the filters as they go to the broker. A key that the spec no longer
    /// has is left out.
    pub fn subscriptions(&self, spec: &IngestPipelineSpec, group: &str) -> Vec<Subscription> {
        let all = &spec.source.mqtt.subscriptions;
        let with =
            |filter: String, subscription: &Subscription| Subscription { filter, ..subscription.clone() };
        match spec.sharding.by {
            ShardBy::Topic => {
                all.iter().filter(|subscription| self.keys.contains(&subscription.filter)).cloned().collect()
            }
            ShardBy::Tenant => {
                let Ok(layout) = Layout::parse(&spec.source.mqtt.layout) else { return Vec::new() };
                let tenants = self.keys.iter().filter(|tenant| spec.sharding.tenants.contains(tenant));
                tenants
                    .flat_map(|tenant| all.iter().map(move |subscription| (tenant, subscription)))
                    .filter_map(|(tenant, subscription)| {
                        Some(with(layout.filter_of_tenant(&subscription.filter, tenant)?, subscription))
                    })
                    .collect()
            }
            ShardBy::Shared => all
                .iter()
                .map(|subscription| with(format!("$share/{group}/{}", subscription.filter), subscription))
                .collect(),
        }
    }
}

/// What sharding distributes.
pub fn keys(spec: &IngestPipelineSpec) -> Vec<String> {
    match spec.sharding.by {
        ShardBy::Topic => spec.source.mqtt.subscriptions.iter().map(|s| s.filter.clone()).collect(),
        ShardBy::Tenant => spec.sharding.tenants.clone(),
        ShardBy::Shared => Vec::new(),
    }
}
