//! How many shards there should be. Pure: the spec, what is remembered, what is seen of the shards and the
//! time in; the count, what to remember, and what keeps it from being higher out.
//!
//! The work is counted in shards: a worker that has nothing more to give does one shard's work, and what it
//! leaves at the broker counts as well, told by how fast the delay of its messages grows. The count follows
//! the work, never the messages: few slow messages are little work, and no messages are none. It does not
//! rise where more shards would bring no more, and says why. The bounds come last, always.

use penstock_crds::operations::{Autoscaling, AutoscalingStatus};
use penstock_crds::report::Limit;

use self::policy::{Direction, Rules};
pub use self::work::{Load, Work};

mod policy;
mod work;

/// How far the work may be from the target before anything is done about it, as a share.
const TOLERANCE: f64 = 0.1;
/// What has queued is to be worked off, too: where it grows, shards are sized for this share of the target.
const CATCH_UP: f64 = 2.0 / 3.0;
/// After a change, shares of the recent time speak of the time before for so long.
const SETTLE: i64 = 20;
/// Shards that have not begun after so long are not waited for any longer.
const START: i64 = 180;
/// What more shards must bring at least, as a share of what they should.
const GAIN: f64 = 0.3;
/// So much more throughput than before shows that a bottleneck is gone.
const RELIEF: f64 = 1.25;
/// The database is slow where a commit takes so many times what it takes at rest, and so many seconds.
const SLOWER: f64 = 1.6;
const SLOW: f64 = 0.008;
/// What was a limit may be one again for so long: it is told as long, and the database is given as long.
const WARY: i64 = 60;

/// What is seen of a pipeline.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The load of each shard that runs and tells it.
    pub loads: Vec<Load>,
    /// Keys that can be divided; none where the subscription is shared.
    pub keys: Option<u32>,
    /// All shards are ready, follow their plan, and no key is on its way.
    pub in_effect: bool,
    /// Nothing is to be consumed.
    pub suspended: bool,
}

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// What survives a restart.
    pub kept: AutoscalingStatus,
    /// Counts that were the better ones, and when, in seconds; no older than the longest window needs.
    recommended: Vec<(i64, u32)>,
    /// Seconds of a commit while nothing limits the shards.
    commit_at_rest: Option<f64>,
    /// When it was first looked at.
    began: Option<i64>,
    /// All shards are to be seen at work once: after a suspend, and after a restart.
    waits: bool,
    /// Since when all shards consume what they are to.
    effective_since: Option<i64>,
    /// When the database was seen to be the limit.
    database_seen: Option<i64>,
    /// What kept the count from being higher, and when.
    limited: Option<(i64, Limited)>,
}

impl Memory {
    /// What is left of it after a restart; at first, the shards that there are.
    pub fn restored(kept: Option<AutoscalingStatus>, replicas: u32) -> Self {
        let first = AutoscalingStatus { replicas: replicas as i32, ..AutoscalingStatus::default() };
        Self { kept: kept.unwrap_or(first), waits: true, ..Self::default() }
    }

    /// Shards that were chosen.
    pub fn replicas(&self) -> u32 {
        u32::try_from(self.kept.replicas).unwrap_or_default()
    }

    fn since_change(&self, now: i64) -> Option<i64> {
        self.kept.last_scale_seconds.map(|at| now - at)
    }
}

/// Why there are not more shards although there is work for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// `maxReplicas`.
    MaxReplicas,
    /// There is no key for another shard.
    NotEnoughKeys,
    /// One key alone is more than a shard can do.
    HeavyKey,
    /// The database takes no more.
    Database,
    /// More windows brought no more: the broker gives no more.
    BrokerWindow,
    /// More processes brought no more: the nodes' processors are busy.
    Cpu,
    /// `scaleUp.selectPolicy: Disabled`.
    Disabled,
}

impl Limited {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MaxReplicas => "max_replicas",
            Self::NotEnoughKeys => "not_enough_keys",
            Self::HeavyKey => "heavy_key",
            Self::Database => "database",
            Self::BrokerWindow => "broker_window",
            Self::Cpu => "cpu",
            Self::Disabled => "scale_up_disabled",
        }
    }

    /// The same for a person.
    pub const fn explain(self) -> &'static str {
        match self {
            Self::MaxReplicas => "there is work for more shards than spec.autoscaling.maxReplicas",
            Self::NotEnoughKeys => {
                "there is work for more shards than there are keys; divide what is subscribed into more filters or tenants"
            }
            Self::HeavyKey => {
                "one key alone is more than a shard can do; divide it into more filters, or raise spec.source.mqtt.sessions"
            }
            Self::Database => {
                "the database takes no more; more shards would only share what it takes: see docs/autoscaling.md"
            }
            Self::BrokerWindow => "more shards brought no more messages: the broker gives no more",
            Self::Cpu => "more shards brought no more messages: the nodes' processors are busy",
            Self::Disabled => "there is work for more shards, and scaleUp.selectPolicy is Disabled",
        }
    }
}

/// What is decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What to remember. It holds the count.
    pub memory: Memory,
    /// Why the count is not higher.
    pub limited: Option<Limited>,
    /// A change is near: look more often.
    pub watch: bool,
}

/// How many shards there should be.
#[must_use]
pub fn decide(spec: &Autoscaling, before: &Memory, seen: &Observed, now: i64) -> Decision {
    let rules = |direction| Rules::new(spec.behavior.as_ref(), direction);
    let (up, down) = (rules(Direction::Up), rules(Direction::Down));
    let mut memory = before.clone();
    let count = clamp(spec, memory.replicas());
    if count != memory.replicas() {
        memory.change(count, None, now);
    }
    memory.effective_since = seen.in_effect.then(|| before.effective_since.unwrap_or(now));
    let effective = memory.effective_since.map(|since| now - since);
    let work = Work::of(&seen.loads, effective);
    // Shards that start change nothing of how much work there is, where that is known.
    let began = *memory.began.get_or_insert(now);
    let starts = !seen.in_effect && memory.since_change(now).unwrap_or(i64::MAX).min(now - began) < START;
    memory.waits = seen.suspended || (memory.waits && !seen.in_effect);
    let settles = memory.since_change(now).is_some_and(|since| since < SETTLE);
    if seen.suspended || seen.loads.is_empty() || settles || (starts && (memory.waits || !work.known)) {
        // What it was before says nothing of what comes.
        memory.recommended.clear();
        return Decision { memory, limited: None, watch: starts || settles };
    }

    let wanted = wanted(spec, count, seen, &work);
    memory.learn(&work, now);
    let heavy = work.heavy && seen.keys.is_none_or(|keys| count < keys);
    let held = memory.hold(count, wanted, !starts, &work, now).or(heavy.then_some(Limited::HeavyKey));
    if wanted > count {
        memory.limited = held.or_else(|| bound(spec, wanted, seen, &up)).map(|limited| (now, limited));
    }
    memory.recommended.push((now, wanted));
    let oldest = now - up.window.max(down.window);
    let covers = memory.recommended.iter().rposition(|(at, _)| *at <= oldest).unwrap_or_default();
    memory.recommended.drain(..covers);

    let next = match wanted.cmp(&count) {
        std::cmp::Ordering::Greater if held.is_some() => count,
        // All of the window asked for more; how many more, the newest knows best.
        std::cmp::Ordering::Greater if memory.stood(up.window, now, |wanted| wanted > count) => {
            let most = seen.keys.unwrap_or(u32::MAX).max(count);
            wanted.min(up.most(count, &memory, now)).min(most)
        }
        std::cmp::Ordering::Less if !starts && memory.stood(down.window, now, |wanted| wanted < count) => {
            let highest = memory.recommended.iter().map(|(_, wanted)| *wanted).max().unwrap_or(count);
            highest.max(down.least(count, &memory, now))
        }
        _ => count,
    };
    let next = clamp(spec, next);
    if next != count {
        memory.change(next, (next > count).then_some(work.rate), now);
    }
    let limited = memory.limited.filter(|(at, _)| now - at < WARY).map(|(_, limited)| limited);
    Decision { memory, limited, watch: wanted > count && limited.is_none() }
}

fn clamp(spec: &Autoscaling, count: u32) -> u32 {
    let bound = |bound: i32| u32::try_from(bound).unwrap_or_default();
    count.min(bound(spec.max_replicas)).max(bound(spec.min_replicas)).max(1)
}

/// The better count, whatever keeps it from being reached.
fn wanted(spec: &Autoscaling, count: u32, seen: &Observed, work: &Work) -> u32 {
    let target = f64::from(spec.target_utilization) / 100.0;
    // Of shards that do not tell it is assumed what changes least. Those without a key are not there at all.
    let there = seen.keys.map_or(count, |keys| keys.min(count));
    let silent = f64::from(there.saturating_sub(seen.loads.len() as u32));
    let so_many = |work: f64, target: f64| ((work / target).ceil() as u32).max(1);
    let (least, most) = (work.shards, work.shards + silent);
    if least > f64::from(count) * target * (1.0 + TOLERANCE) {
        let target = if work.grows { target * CATCH_UP } else { target };
        return so_many(least, target).max(count);
    }
    // Fewer must do with room to spare, or the next breath of wind brings them back.
    let fewer = so_many(most, target * (1.0 - TOLERANCE));
    if work.saturated == 0 { fewer.min(count) } else { count }
}

/// The bound that keeps the count from being as high as it should be.
fn bound(spec: &Autoscaling, wanted: u32, seen: &Observed, up: &Rules) -> Option<Limited> {
    let most = u32::try_from(spec.max_replicas).unwrap_or_default();
    let keys = seen.keys.unwrap_or(u32::MAX);
    if up.disabled {
        Some(Limited::Disabled)
    } else if wanted > keys && keys <= most {
        Some(Limited::NotEnoughKeys)
    } else {
        (wanted > most).then_some(Limited::MaxReplicas)
    }
}

impl Memory {
    fn change(&mut self, count: u32, rate: Option<f64>, now: i64) {
        self.kept = AutoscalingStatus {
            replicas: count as i32,
            previous_replicas: Some(self.kept.replicas),
            last_scale_seconds: Some(now),
            rate_before: rate.map(|rate| rate.round() as i64),
            rate_held: None,
        };
        self.recommended.clear();
        (self.effective_since, self.limited) = (None, None);
    }

    /// Whether all that was recommended in a window is so, and something was when it began.
    fn stood(&self, window: i64, now: i64, is: impl Fn(u32) -> bool) -> bool {
        let covered = self.recommended.first().is_some_and(|(at, _)| *at <= now - window);
        let within = self.recommended.iter().filter(|(at, _)| *at >= now - window);
        covered && within.map(|(_, wanted)| *wanted).all(is)
    }

    fn learn(&mut self, work: &Work, now: i64) {
        let slow = |commit: f64| {
            commit >= SLOW && self.commit_at_rest.is_some_and(|at_rest| commit >= SLOWER * at_rest)
        };
        if work.limits[Limit::Database as usize] > 0 || work.commit.is_some_and(slow) {
            self.database_seen = Some(now);
        } else if work.saturated == 0
            && let Some(commit) = work.commit
        {
            let before = self.commit_at_rest.unwrap_or(commit);
            self.commit_at_rest = Some(before + (commit - before) * 0.1);
        }
    }

    /// Why it is not tried with more shards: the database is the limit, or more have brought no more.
    fn hold(&mut self, count: u32, wanted: u32, in_effect: bool, work: &Work, now: i64) -> Option<Limited> {
        let rate = work.rate;
        if work.saturated == 0 || self.kept.rate_held.is_some_and(|held| rate > held as f64 * RELIEF) {
            (self.kept.rate_before, self.kept.rate_held) = (None, None);
        }
        if let (Some(before), Some(previous)) = (self.kept.rate_before, self.kept.previous_replicas)
            && wanted > count
            && in_effect
        {
            let more = f64::from(count) / f64::from(previous.max(1)) - 1.0;
            let gained = rate >= before as f64 * (1.0 + GAIN * more);
            self.kept.rate_held = (!gained).then_some(rate.round() as i64);
            self.kept.rate_before = None;
        }
        if self.database_seen.is_some_and(|at| now - at < WARY) {
            return Some(Limited::Database);
        }
        self.kept.rate_held.map(|_| work.limited_by())
    }
}

#[cfg(test)]
mod tests;
