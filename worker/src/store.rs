//! The database: one transaction per batch, ids, the schema, and the shard's lease.

pub mod births;
pub mod breaker;
pub mod connection;
pub mod copy;
pub mod dictionary;
pub mod lease;
pub mod lease_rules;
pub mod rows;
pub mod schema;
pub mod sqlstate;
pub mod staging;
pub mod transaction;
pub mod writer;
