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
/// After so many seconds what is committed counts as new: clocks of devices may be wrong.
const OUTDATED: i64 = 300;
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
    /// How old messages are when they are committed, in seconds.
    pub delay: Option<f64>,
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
            delay: status.delay_seconds,
            commit: status.commit_seconds,
            heaviest: if keys == 1 { 1.0 } else { most / sum.max(1e-9) },
        }
    }

    fn is_saturated(&self) -> bool {
        self.limit != Limit::Nothing || self.utilisation >= SATURATED
    }

    /// How fast it falls behind. What it commits now may have come before shards were added, who took keys from
    /// it: that tells nothing of what comes.
    fn growth(&self, effective: Option<i64>) -> Option<f64> {
        let before = |delay| effective.is_some_and(|since| since < OUTDATED && delay > since as f64);
        let outdated = self.delay.is_some_and(before);
        self.growth.map(|growth| if outdated { growth.min(0.0) } else { growth })
    }

    /// Its work: where it does all that it can, what comes is more by as much as it falls behind.
    fn shards(&self, effective: Option<i64>) -> f64 {
        match self.growth(effective) {
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
    /// Of every shard that has nothing more to give it is known how much it leaves at the broker.
    pub known: bool,
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
    /// The sum, where all shards consume what they are to for so many seconds; none, where some do not
    /// yet.
    pub fn of(loads: &[Load], effective: Option<i64>) -> Self {
        let saturated = || loads.iter().filter(|load| load.is_saturated());
        let mut limits = [0; 4];
        saturated().for_each(|load| limits[load.limit as usize] += 1);
        let mut commits: Vec<f64> = loads.iter().filter_map(|load| load.commit).collect();
        commits.sort_by(f64::total_cmp);
        Self {
            shards: loads.iter().map(|load| load.shards(effective)).sum(),
            rate: loads.iter().map(|load| load.rate).sum(),
            saturated: saturated().count(),
            known: saturated().all(|load| load.growth.is_some()),
            grows: saturated().any(|load| load.growth(effective).is_some_and(|growth| growth > GROWS)),
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
