//! The scenarios, by what they fault.

mod broker;
mod crash;
mod data;
mod database;
mod handover;
mod letters;
mod load;
mod poison;
mod policies;
mod store;
mod tenants;

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
        store::all(),
        letters::all(),
        policies::all(),
        tenants::all(),
    ]
    .concat()
}
