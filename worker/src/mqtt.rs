//! The contract with the broker.

pub mod acks;
pub(crate) mod client;
pub mod connection;
pub mod options;
pub mod session;
pub mod visit;
mod wire;
