//! The ingest loop: MQTT → batch → TimescaleDB. A message is acknowledged only after the
//! transaction that holds it is committed.

pub mod decode;
