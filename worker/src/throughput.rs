//! What limits the throughput now. The rule is pure; the counters are looked at twice a second.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use penstock_crds::report::Limit;

/// Over how long a share is taken.
const SPAN: Duration = Duration::from_secs(10);
/// Fewest values that tell how they grow.
const FEWEST: usize = 5;
/// Most looks within it.
const LOOKS: usize = 32;

/// A thread that is busy for this share of the time has no more to give.
const BUSY: f64 = 0.9;
/// A window that is full for this share of the time keeps messages waiting at the broker.
const FULL: f64 = 0.5;
/// Writers that always have a commit under way.
const COMMITTING: f64 = 0.9;
/// Windows that brokers bound by themselves: they make batches so small that a commit's own time counts,
/// not that of its rows.
const SMALL_WINDOW: usize = 64;
/// A commit of such a batch takes longer only where the database is slow.
const SLOW_COMMIT: Duration = Duration::from_millis(100);

/// Counters at one moment; all but `window` and `fill` only rise.
#[derive(Debug, Clone)]
pub struct Look {
    /// When.
    pub at: Instant,
    /// For how long each session's window has been full.
    pub full: Vec<Duration>,
    /// The share of each session's window in use, added up over the seconds.
    pub used: Vec<f64>,
    /// For how long at least one batch has been on its way into the database.
    pub committing: Duration,
    /// For how long the session's thread, and a writer's on average, have been busy.
    pub busy: [Duration; 2],
    /// Deliveries committed.
    pub committed: u64,
    /// Batches committed.
    pub commits: u64,
    /// What they took together.
    pub commit_seconds: f64,
    /// The largest window observed of a session.
    pub window: usize,
    /// Share of the byte budget in use.
    pub fill: f64,
    /// How old the messages of the newest batch since the look before were, in seconds.
    pub delay: Option<f64>,
}

/// Shares of the recent time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Recent {
    /// A session's window was full.
    pub full: f64,
    /// Of a session's window in use, on average.
    pub used: f64,
    /// A batch was on its way.
    pub committing: f64,
    /// The busiest thread was busy.
    pub busy: f64,
    /// Deliveries committed in a second.
    pub rate: f64,
    /// What a commit took on average; none without one.
    pub commit: Option<Duration>,
    /// The largest window observed of a session.
    pub window: usize,
    /// Share of the byte budget in use.
    pub fill: f64,
    /// How old messages are when they are committed, in seconds, and by how much that grows in a second.
    pub delay: Option<(f64, Option<f64>)>,
}

impl Recent {
    fn between(earlier: &Look, later: &Look) -> Self {
        let span = later.at.saturating_duration_since(earlier.at).as_secs_f64().max(1e-3);
        let share = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() / span;
        let before = earlier.full.iter().copied().chain(std::iter::repeat(Duration::ZERO));
        let full = later.full.iter().zip(before).map(|(after, before)| share(before, *after));
        let before = earlier.used.iter().copied().chain(std::iter::repeat(0.0));
        let used = later.used.iter().zip(before).map(|(after, before)| (after - before) / span);
        let busy = earlier.busy.iter().zip(&later.busy).map(|(before, after)| share(*before, *after));
        let commits = later.commits.saturating_sub(earlier.commits);
        let seconds = (later.commit_seconds - earlier.commit_seconds).max(0.0);
        Self {
            full: full.fold(0.0, f64::max),
            used: used.fold(0.0, f64::max).clamp(0.0, 1.0),
            committing: share(earlier.committing, later.committing),
            busy: busy.fold(0.0, f64::max),
            rate: later.committed.saturating_sub(earlier.committed) as f64 / span,
            commit: (commits > 0).then(|| Duration::from_secs_f64(seconds / commits as f64)),
            window: later.window,
            fill: later.fill,
            delay: None,
        }
    }

    /// The share of what it could do that the worker does.
    pub fn utilisation(&self) -> f64 {
        self.used.max(self.busy).min(1.0)
    }

    /// What limits the throughput.
    pub fn limit(&self) -> Limit {
        let slow = self.commit.is_none_or(|commit| commit >= SLOW_COMMIT);
        if self.busy >= BUSY {
            Limit::Cpu
        } else if self.fill >= BUSY {
            Limit::Database
        } else if self.full < FULL {
            Limit::Nothing
        } else if self.committing >= COMMITTING && (slow || self.window > SMALL_WINDOW) {
            Limit::Database
        } else {
            Limit::BrokerWindow
        }
    }
}

/// By how much a value grows in a second: the line that fits best. Too few values in too short a time tell
/// nothing.
fn slope(values: &[(f64, f64)]) -> Option<f64> {
    let count = values.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| values.iter().map(of).sum::<f64>() / count;
    let (at, value) = (mean(|(at, _)| *at), mean(|(_, value)| *value));
    let spread: f64 = values.iter().map(|(time, _)| (time - at).powi(2)).sum();
    let product: f64 = values.iter().map(|(time, other)| (time - at) * (other - value)).sum();
    let length = values.last()?.0 - values.first()?.0;
    (values.len() >= FEWEST && length >= SPAN.as_secs_f64() / 3.0).then(|| product / spread)
}

/// Messages a second that a window allows (Little's law): none more than it fit into a round trip and a commit.
pub fn bound(window: usize, round_trip: Duration, commit: Duration) -> f64 {
    window as f64 / (round_trip + commit).as_secs_f64().max(1e-6)
}

/// The looks of the recent time.
#[derive(Debug, Default)]
pub struct Throughput {
    looks: Mutex<VecDeque<Look>>,
}

impl Throughput {
    fn looks(&self) -> MutexGuard<'_, VecDeque<Look>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in one look.
    pub fn observe(&self, look: Look) {
        let mut looks = self.looks();
        while looks.len() >= LOOKS
            || looks.front().is_some_and(|first| look.at.saturating_duration_since(first.at) > SPAN)
        {
            looks.pop_front();
        }
        looks.push_back(look);
    }

    /// The recent time.
    pub fn recent(&self) -> Recent {
        let looks = self.looks();
        match (looks.front(), looks.back()) {
            (Some(first), Some(last)) if first.at < last.at => {
                let delays: Vec<(f64, f64)> = (looks.iter())
                    .filter_map(|look| Some(((look.at - first.at).as_secs_f64(), look.delay?)))
                    .collect();
                let delay = delays.last().map(|(_, delay)| (*delay, slope(&delays)));
                Recent { delay, ..Recent::between(first, last) }
            }
            _ => Recent::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_limit_is_told_from_what_is_always_busy() {
        let full =
            Recent { full: 0.95, committing: 0.97, commit: Some(5 * MS), window: 20, ..Recent::default() };
        for (recent, limit) in [
            (Recent::default(), Limit::Nothing),
            (Recent { full: 0.4, committing: 1.0, commit: Some(5 * MS), window: 20, ..full }, Limit::Nothing),
            (full, Limit::BrokerWindow),
            (Recent { commit: Some(300 * MS), ..full }, Limit::Database),
            (Recent { commit: None, ..full }, Limit::Database),
            (Recent { window: 1000, ..full }, Limit::Database),
            // Far away from the broker: commits wait for what comes.
            (Recent { window: 1000, committing: 0.3, ..full }, Limit::BrokerWindow),
            (Recent { fill: 0.95, full: 0.0, ..full }, Limit::Database),
            (Recent { busy: 0.95, ..full }, Limit::Cpu),
        ] {
            assert_eq!(recent.limit(), limit, "{recent:?}");
        }
    }

    #[test]
    fn shares_are_of_the_time_between_two_looks_and_the_fullest_session_counts() {
        let start = Instant::now();
        let first = Look {
            at: start,
            full: vec![100 * MS],
            used: vec![0.3],
            committing: 50 * MS,
            busy: [Duration::ZERO, 500 * MS],
            committed: 1000,
            commits: 10,
            commit_seconds: 1.0,
            window: 0,
            fill: 0.0,
            delay: None,
        };
        let last = Look {
            at: start + 1000 * MS,
            full: vec![200 * MS, 600 * MS],
            used: vec![0.5, 0.7],
            committing: 950 * MS,
            busy: [250 * MS, 600 * MS],
            committed: 3000,
            commits: 110,
            commit_seconds: 1.5,
            window: 20,
            fill: 0.1,
            delay: Some(4.0),
        };
        let throughput = Throughput::default();
        throughput.observe(first);
        assert_eq!(throughput.recent(), Recent::default());
        throughput.observe(last);
        let expected = Recent {
            full: 0.6,
            used: 0.7,
            committing: 0.9,
            busy: 0.25,
            rate: 2000.0,
            commit: Some(5 * MS),
            window: 20,
            fill: 0.1,
            delay: Some((4.0, None)),
        };
        assert_eq!(throughput.recent(), expected);
    }

    #[test]
    fn only_the_recent_time_counts() {
        let start = Instant::now();
        let throughput = Throughput::default();
        for second in 0..60u32 {
            throughput.observe(Look {
                at: start + second * 1000 * MS,
                full: vec![second.min(30) * 1000 * MS],
                used: Vec::new(),
                committing: Duration::ZERO,
                busy: [Duration::ZERO; 2],
                committed: 0,
                commits: 0,
                commit_seconds: 0.0,
                window: 0,
                fill: 0.0,
                delay: (second >= 55).then(|| f64::from(second) * 0.5),
            });
        }
        let recent = throughput.recent();
        assert!(recent.full < 0.01, "the window was full long ago");
        let (delay, growth) = recent.delay.unwrap();
        assert!((delay - 29.5).abs() + (growth.unwrap() - 0.5).abs() < 1e-9, "{growth:?}");
    }

    #[test]
    fn the_bound_is_the_window_for_each_round_trip_and_commit() {
        assert!((bound(20, MS, 19 * MS) - 1000.0).abs() < 1e-6);
    }
}
