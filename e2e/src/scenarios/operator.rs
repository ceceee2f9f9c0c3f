//! The operator on a real cluster, installed from its chart: pipelines with real workers, a real broker
//! and a real database. `faults`, `stop` and `unreadable` run it without nodes; `faults` plays the workers.

mod autoscale;
mod away;
mod causes;
mod children;
mod faults;
mod hpa;
mod last;
mod leader;
mod life;
mod moves;
mod plugin;
mod rollout;
mod run;
mod scale;
mod sharding;
mod stop;
mod unreadable;

use crate::suite::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    [
        scale::all(),
        autoscale::all(),
        life::all(),
        children::all(),
        causes::all(),
        sharding::all(),
        moves::all(),
        away::all(),
        leader::all(),
        rollout::all(),
        plugin::all(),
        hpa::all(),
        last::all(),
        faults::all(),
        stop::all(),
        unreadable::all(),
    ]
    .concat()
}
