//! The operator on a real cluster, installed from its chart: pipelines with real workers, a real broker
//! and a real database.

mod scale;

use crate::suite::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    [scale::all()].concat()
}
