//! Which keys a shard owns, what it subscribes for them, and which changes its worker follows.

use serde::{Deserialize, Serialize};

use crate::pipeline::{Batch, IngestPipelineSpec, ShardBy};
use crate::source::{Mqtt, Source, Subscription};
use crate::store::TelemetryStoreSpec;
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
                        Some(with(layout.filter_of_tenant(subscription, tenant)?, subscription))
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

/// Digest of a worker's manifest and plan files, by their bytes: what it follows, in 16 hex digits.
pub fn files_digest(manifest: &str, plan: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(manifest.as_bytes()).update(plan.as_bytes());
    short(&hasher)
}

/// Digest of what a running worker does not follow: it must be started anew when this changes. All else
/// in a manifest takes effect in the worker that runs.
pub fn restart_digest(pipeline: &IngestPipelineSpec, store: &TelemetryStoreSpec) -> String {
    // Each field is named, so that a new one is on one side or the other.
    let IngestPipelineSpec {
        suspend: _,
        replicas: _,
        source: Source { mqtt },
        sharding: _,
        batch: Batch { max_rows: _, max_bytes: _, linger: _, max_in_hand },
        accept: _,
        sink,
        readiness: _,
        tracing,
        autoscaling: _,
        worker: _,
    } = pipeline;
    let Mqtt {
        url,
        protocol,
        client_id_prefix,
        auth,
        tls,
        subscriptions: _,
        layout,
        receive_maximum,
        keep_alive,
        session_expiry,
        max_packet_size: _,
        sessions,
        sparkplug: _,
    } = mqtt;
    let TelemetryStoreSpec {
        database,
        migration: _,
        retention: _,
        rollups: _,
        columnstore: _,
        tenants: _,
        dead_letters: _,
        maintenance: _,
    } = store;
    let broker = (url, protocol, client_id_prefix, auth, tls);
    let session = (receive_maximum, keep_alive, session_expiry, sessions);
    // Spans are named by the layout.
    let traces = tracing.as_ref().map(|tracing| (tracing, layout));
    let fixed = serde_json::json!([broker, session, max_in_hand, traces, sink, database]);
    let mut hasher = blake3::Hasher::new();
    hasher.update(fixed.to_string().as_bytes());
    short(&hasher)
}

fn short(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Manifest;

    const EXAMPLE: &str = include_str!("../../examples/worker.yaml");

    fn digest_with(edits: &[(&str, &str)]) -> String {
        let text = edits.iter().fold(EXAMPLE.to_owned(), |text, (old, new)| {
            assert!(text.contains(old), "the example has no {old:?}");
            text.replace(old, new)
        });
        let manifest = Manifest::parse(&text).unwrap();
        restart_digest(&manifest.pipeline.spec, &manifest.store.spec)
    }

    #[test]
    fn what_a_worker_follows_leaves_it_running() {
        let whole = digest_with(&[]);
        assert!(whole.len() == 16 && whole.bytes().all(|byte| byte.is_ascii_hexdigit()), "{whole}");
        for (old, new) in [
            ("{filter: \"traksense/+/+/+/ack\"}", "{filter: \"other/+/+/+/ack\", format: V1}"),
            ("traksense/{tenant}/{site}/{device}/{kind}", "traksense/{site}/{tenant}/{device}/{kind}"),
            ("maxPacketSize: 1Mi", "maxPacketSize: 2Mi"),
            ("maxRows: 20000, maxBytes: 8Mi, linger: 5ms", "maxRows: 100, maxBytes: 1Mi, linger: 1ms"),
            ("accept: {maxAge: 30d", "accept: {maxAge: 20d"),
            ("maxQueueFill: 90", "maxQueueFill: 50"),
            ("mode: Auto, maxSeries: 1000000", "mode: Listed, names: [a], maxSeries: 7"),
            ("  retention: 365d", "  retention: 300d"),
            ("key: owner-url", "key: other-url"),
            ("  sink:", "  suspend: true\n  replicas: 3\n  worker: {image: x}\n  sink:"),
            ("  sink:", "  sharding: {by: Tenant, tenants: [a]}\n  sink:"),
        ] {
            assert_eq!(digest_with(&[(old, new)]), whole, "{new}");
        }
    }

    #[test]
    fn what_a_worker_does_not_follow_starts_it_anew() {
        let whole = digest_with(&[]);
        let traced = ("  sink:", "  tracing: {otlpEndpoint: \"http://c:4318\"}\n  sink:");
        let digest = digest_with(&[traced]);
        let layout =
            ("traksense/{tenant}/{site}/{device}/{kind}", "traksense/{site}/{tenant}/{device}/{kind}");
        // Spans are named by the layout.
        assert_ne!(digest_with(&[traced, layout]), digest);
        for (old, new) in [
            traced,
            ("mqtt://127.0.0.1:1883", "mqtt://127.0.0.2:1883"),
            ("protocol: V5", "protocol: V311"),
            ("clientIdPrefix: plant", "clientIdPrefix: other"),
            ("keepAlive: 30s", "keepAlive: 20s"),
            ("receiveMaximum: 1000", "receiveMaximum: 20"),
            ("sessionExpiry: 24h", "sessionExpiry: 24h\n      sessions: 2"),
            ("sessionExpiry: 24h", "sessionExpiry: 12h"),
            ("maxInHand: 64Mi", "maxInHand: 32Mi"),
            ("key: url}", "key: url2}"),
            (
                "protocol: V5",
                "auth: {username: {secretKeyRef: {name: m, key: u}}, password: {secretKeyRef: {name: m, key: p}}}",
            ),
        ] {
            assert_ne!(digest_with(&[(old, new)]), whole, "{new}");
        }
    }

    #[test]
    fn a_shard_subscribes_its_tenants_by_the_layout_and_as_groups_of_sparkplug() {
        let text = EXAMPLE
            .replace("traksense/+/+/+/ack\"", "spBv1.0/+/#\", format: SparkplugB")
            .replace("  sink:", "  sharding: {by: Tenant, tenants: [acme, umbrella]}\n  sink:");
        let spec = Manifest::parse(&text).unwrap().pipeline.spec;
        let plan = ShardPlan { generation: 1, shard: 0, keys: vec!["acme".to_owned(), "gone".to_owned()] };
        let filters = plan.subscriptions(&spec, "group").into_iter().map(|subscription| subscription.filter);
        let mut filters: Vec<_> = filters.collect();
        filters.sort();
        assert_eq!(filters, ["spBv1.0/acme/#", "traksense/acme/+/+/event", "traksense/acme/+/+/telem"]);
    }

    #[test]
    fn a_digest_of_files_is_that_of_their_bytes() {
        let digest = files_digest("a", "b");
        assert_eq!(digest.len(), 16);
        assert_eq!(digest, files_digest("a", "b"));
        assert_ne!(digest, files_digest("a", "c"));
        assert_eq!(digest, &blake3::hash(b"ab").to_hex()[..16]);
    }
}
