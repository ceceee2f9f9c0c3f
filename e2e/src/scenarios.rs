//! The scenarios, by what they fault.

mod alerts;
mod broker;
mod chart;
mod crash;
pub mod data;
mod database;
mod files;
mod formats;
mod handover;
mod letters;
mod limits;
pub mod load;
mod operator;
mod poison;
mod policies;
mod sessions;
mod sparkplug;
pub mod store;
mod tenants;
mod tls;
mod tracing;

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
        files::all(),
        formats::all(),
        store::all(),
        tls::all(),
        sessions::all(),
        limits::all(),
        letters::all(),
        sparkplug::all(),
        tracing::all(),
        policies::all(),
        tenants::all(),
        chart::all(),
        alerts::all(),
        operator::all(),
    ]
    .concat()
}
