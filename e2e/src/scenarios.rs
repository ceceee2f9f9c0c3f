//! The scenarios, by what they fault.

mod broker;
mod crash;
pub mod data;
mod database;
mod handover;
pub mod load;
mod poison;
pub mod store;

use crate::suite::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    [crash::all(), broker::all(), database::all(), poison::all(), handover::all(), data::all(), store::all()]
        .concat()
}
