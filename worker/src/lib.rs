//! The ingest loop: MQTT → batch → TimescaleDB. A message is acknowledged only after the
//! transaction that holds it is committed.

pub mod batch;
pub mod check;
pub mod clock;
pub mod dead_letters;
pub mod decode;
pub mod delivery;
pub mod draft;
pub mod flow;
pub mod formats;
pub mod gap;
pub mod http;
pub mod inbox;
pub mod ingest;
pub mod jobs;
pub mod logging;
pub mod metrics;
pub mod mqtt;
pub mod outage;
pub mod rebirth;
pub mod retire;
mod serve;
pub mod sessions;
pub mod settings;
pub mod shard;
pub mod stopwatch;
pub mod store;
pub mod tenure;
pub mod throughput;
pub mod trace;
