//! The database.

pub mod breaker;
pub mod connection;
pub mod copy;
pub mod dictionary;
pub mod rows;
pub mod sqlstate;
pub mod transaction;
pub mod writer;
