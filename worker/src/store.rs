//! The database: one transaction per batch, ids, the schema, and the shard's lease.

pub mod births;
pub mod breaker;
pub mod connection;
pub mod copy;
pub mod dictionary;
pub mod edition;
pub mod expire;
pub mod holding;
pub mod lease;
pub mod lease_rules;
pub mod letter_search;
pub mod letters;
pub mod maintain;
pub mod marks;
mod patience;
pub mod policy;
pub mod rate;
mod refusal;
pub mod rows;
pub mod schema;
pub mod series_rate;
mod sift;
pub mod sqlstate;
pub mod staging;
pub mod transaction;
pub mod writer;
