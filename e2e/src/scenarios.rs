//! The scenarios, by what they fault.

mod broker;
mod crash;
mod data;
mod database;
mod formats;
mod handover;
mod load;
mod poison;
mod store;

use crate::suite::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    [
        crash::all(),
        broker::all(),
        database::all(),
        poison::all(),
        handover::all(),
        data::all(),
        formats::all(),
        store::all(),
    ]
    .concat()
}
