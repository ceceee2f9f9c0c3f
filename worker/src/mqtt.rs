//! The contract with the broker.

pub mod acks;
mod client;
pub mod connection;
pub mod options;
pub mod session;
mod tls;
pub mod visit;
mod wire;
