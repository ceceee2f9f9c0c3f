//! The contract with the broker.

pub mod acks;
pub(crate) mod client;
pub mod connection;
pub mod lanes;
pub mod nap;
pub mod options;
mod serving;
pub mod session;
pub mod split;
mod tls;
pub mod visit;
mod wire;
