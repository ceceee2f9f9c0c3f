//! The Penstock operator: runs `IngestPipeline`s and `TelemetryStore`s on Kubernetes. It opens neither
//! MQTT nor SQL, and reads no Secret.
//!
//! A reconcile is a straight line: [`resolve`] (may it be built?), [`plan`] (which shard owns which key),
//! [`children`] (the objects as they should be), [`apply`], [`status`]. All but `apply` are pure. Beside
//! it the [`poller`] asks the workers how they are. Of several replicas one does this, the [`leader`], by
//! the rules of [`election`].

pub mod apply;
pub mod assign;
pub mod autoscale;
pub mod caches;
pub mod children;
pub mod client;
pub mod conditions;
pub mod context;
pub mod election;
pub mod ending;
pub mod error;
pub mod http;
pub mod kinds;
pub mod leader;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod pipeline;
pub mod plan;
pub mod poller;
pub mod preview;
pub mod readable;
pub mod release;
pub mod resolve;
pub mod rollout;
pub mod run;
pub mod scaling;
pub mod status;
pub mod store;
pub mod table;
pub mod turns;
