//! What shards have to do, counted in shards.

use penstock_crds::report::{Limit, WorkerStatus};

use super::Limited;

/// A shard that is so busy has nothing more to give.
const SATURATED: f64 = 0.95;
/// What is left at the broker is not believed to be more than so many times what is taken.
const MOST: f64 = 4.0;
/// Where it is not known how fast the delay grows, a shard that has nothing more to give is given half.
const UNKNOWN: f64 = 2.0;
/// The delay grows by so many seconds a second: more than noise.
const GROWS: f64 = 0.1;
/// A key that makes so much of its shard's messages is all that the shard has to do.
const HEAVY: f64 = 0.9;

/// What one shard does.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    /// The share of what it could do, 0 to 1.
    pub utilisation: f64,
    /// What limits it.
    pub limit: Limit,
    /// Messages committed a second.
    pub rate: f64,
    /// Seconds by which the delay of its messages grows in a second, if they tell their times.
    pub growth: Option<f64>,
    /// Seconds of a commit.
    pub commit: Option<f64>,
    /// The share of its messages that its heaviest key makes; 1 if it has one key.
    pub heaviest: f64,
}

impl Load {
    /// As a worker tells it, with so many keys.
    pub fn of(status: &WorkerStatus, keys: usize) -> Self {
        let sum: f64 = status.key_rates.values().sum();
        let most = status.key_rates.values().copied().fold(0.0, f64::max);
        Self {
            utilisation: status.utilisation.max(status.queue_fill),
            limit: status.limited_by,
            rate: status.rate,
            growth: status.delay_growth,
            commit: status.commit_seconds,
            heaviest: if keys == 1 { 1.0 } else { most / sum.max(1e-9) },
        }
    }

    fn is_saturated(&self) -> bool {
        self.limit != Limit::Nothing || self.utilisation >= SATURATED
    }

    /// Its work: where it does all that it can, what comes is more by as much as it falls behind.
    fn shards(&self) -> f64 {
        match self.growth {
            _ if !self.is_saturated() => self.utilisation,
            // Of each second that passes it works off all but the growth.
            Some(growth) => (1.0 / (1.0 - growth.min(0.99))).min(MOST),
            None => UNKNOWN,
        }
    }
}

/// What all shards do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work {
    /// How many shards' work there is.
    pub shards: f64,
    /// Messages committed a second.
    pub rate: f64,
    /// Shards that have nothing more to give.
    pub saturated: usize,
    /// More and more is left at the broker.
    pub grows: bool,
    /// All that have nothing more to give have one key to do.
    pub heavy: bool,
    /// How many of those each [`Limit`] holds.
    pub limits: [usize; 4],
    /// Seconds of a commit: the middle one's.
    pub commit: Option<f64>,
}

impl Work {
    /// The sum.
    pub fn of(loads: &[Load]) -> Self {
        let saturated = || loads.iter().filter(|load| load.is_saturated());
        let mut limits = [0; 4];
        saturated().for_each(|load| limits[load.limit as usize] += 1);
        let mut commits: Vec<f64> = loads.iter().filter_map(|load| load.commit).collect();
        commits.sort_by(f64::total_cmp);
        Self {
            shards: loads.iter().map(Load::shards).sum(),
            rate: loads.iter().map(|load| load.rate).sum(),
            saturated: saturated().count(),
            grows: saturated().any(|load| load.growth.is_some_and(|growth| growth > GROWS)),
            heavy: saturated().count() > 0 && saturated().all(|load| load.heaviest >= HEAVY),
            limits,
            commit: commits.get(commits.len() / 2).copied(),
        }
    }

    /// What holds most of those that have nothing more to give.
    pub fn limited_by(&self) -> Limited {
        let of = |limit: Limit| self.limits[limit as usize];
        if of(Limit::Cpu) > of(Limit::BrokerWindow) { Limited::Cpu } else { Limited::BrokerWindow }
    }
}
