//! The operator on a real cluster, installed from its chart: pipelines with real workers, a real broker
//! and a real database.

mod causes;
mod children;
mod last;
mod life;
mod rollout;
mod scale;
mod sharding;

use crate::suite::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    [scale::all(), life::all(), children::all(), causes::all(), sharding::all(), rollout::all(), last::all()]
        .concat()
}
