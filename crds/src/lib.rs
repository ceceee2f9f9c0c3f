//! The Penstock manifests: what a user writes, checked before anything acts on it.
//!
//! - [`pipeline`]: `IngestPipeline`, from MQTT to a store.
//! - [`source`], [`status`]: its largest parts.
//! - [`store`]: `TelemetryStore`, a database and its policies.
//! - [`manifest`]: both from one YAML file, for use without a cluster.
//! - [`mapping`]: how foreign JSON becomes samples.
//! - [`plan`]: which keys a shard owns, and which changes a running worker follows.
//! - [`report`]: what workers and their jobs say of themselves.
//! - [`validate`]: what a schema cannot say; the rules of `rules.rs` are the part of it that CEL can.

// kube's derive takes one attribute for each printer column.
#![allow(clippy::duplicated_attributes)]

pub mod duration;
pub mod manifest;
pub mod mapping;
pub mod operations;
pub mod pipeline;
pub mod plan;
pub mod reference;
pub mod report;
mod rules;
pub mod size;
pub mod source;
pub mod status;
pub mod store;
pub mod topic;
pub mod validate;

pub use duration::Duration;
pub use manifest::Manifest;
pub use pipeline::{IngestPipeline, IngestPipelineSpec};
pub use size::Size;
pub use source::Format;
pub use store::{TelemetryStore, TelemetryStoreSpec};
pub use validate::FieldError;
