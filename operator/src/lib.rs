//! The Penstock operator: runs `IngestPipeline`s and `TelemetryStore`s on Kubernetes. It opens neither
//! MQTT nor SQL, and reads no Secret.

pub mod assign;
pub mod children;
pub mod kinds;
pub mod names;
pub mod plan;
pub mod resolve;
