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

use crate::bed::Needs;
use crate::stack::mosquitto::{Release, Setup};
use crate::suite::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    // What a broker's sessions decide is seen with both releases: 2.1 drops what waits for a client that
    // acknowledges a packet id of a session that was lost, 2.0 does not.
    let on_sessions = [crash::all(), broker::all(), handover::all(), sessions::all()].concat();
    [
        with_newest_mosquitto(&on_sessions),
        on_sessions,
        database::all(),
        poison::all(),
        data::all(),
        files::all(),
        formats::all(),
        store::all(),
        tls::all(),
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

fn with_newest_mosquitto(scenarios: &[Scenario]) -> Vec<Scenario> {
    let again = |scenario: &Scenario| Scenario {
        name: format!("{}_with_the_newest_mosquitto", scenario.name),
        needs: Needs { broker: true, ..scenario.needs },
        setup: Setup { release: Release::Newest, ..scenario.setup.clone() },
        run: scenario.run,
    };
    scenarios.iter().map(again).collect()
}
