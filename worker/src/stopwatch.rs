//! How long something has held in all, and how much of it there was.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Adds up the time for which something holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stopwatch {
    since: Option<Instant>,
    total: Duration,
}

impl Stopwatch {
    /// From now on it holds, or does not.
    pub fn set(&mut self, holds: bool, now: Instant) {
        match (self.since, holds) {
            (None, true) => self.since = Some(now),
            (Some(since), false) => {
                self.total += now.saturating_duration_since(since);
                self.since = None;
            }
            _ => {}
        }
    }

    /// How long it held until now.
    pub fn total(&self, now: Instant) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// Adds up a value over time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Level {
    value: f64,
    since: Option<Instant>,
    total: f64,
}

impl Level {
    /// From now on it is so much.
    pub fn set(&mut self, value: f64, now: Instant) {
        (self.total, self.since, self.value) = (self.total(now), Some(now), value);
    }

    /// Its sum until now: 1 for each second in which it was 1.
    pub fn total(&self, now: Instant) -> f64 {
        let elapsed = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.total + self.value * elapsed.as_secs_f64()
    }
}

/// Adds up the time for which at least one of several is inside.
#[derive(Debug, Default)]
pub struct Occupied {
    state: Mutex<(usize, Stopwatch)>,
}

impl Occupied {
    fn state(&self) -> MutexGuard<'_, (usize, Stopwatch)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more is inside.
    pub fn enter(&self, now: Instant) {
        let mut state = self.state();
        state.0 += 1;
        state.1.set(true, now);
    }

    /// One has left.
    pub fn leave(&self, now: Instant) {
        let mut state = self.state();
        state.0 = state.0.saturating_sub(1);
        let occupied = state.0 > 0;
        state.1.set(occupied, now);
    }

    /// How long somebody was inside until now.
    pub fn total(&self, now: Instant) -> Duration {
        self.state().1.total(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_for_which_it_holds_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Stopwatch::default();
        watch.set(true, at(1));
        watch.set(true, at(2));
        assert_eq!(watch.total(at(3)), Duration::from_secs(2));
        watch.set(false, at(4));
        watch.set(false, at(5));
        assert_eq!(watch.total(at(9)), Duration::from_secs(3));
        watch.set(true, at(10));
        assert_eq!(watch.total(at(11)), Duration::from_secs(4));
    }

    #[test]
    fn a_value_counts_for_as_long_as_it_is_so() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut level = Level::default();
        level.set(0.5, at(1));
        level.set(2.0, at(3));
        level.set(0.0, at(4));
        assert!((level.total(at(9)) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn it_is_occupied_until_the_last_has_left() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let occupied = Occupied::default();
        occupied.enter(at(1));
        occupied.enter(at(2));
        occupied.leave(at(3));
        assert_eq!(occupied.total(at(4)), Duration::from_secs(3));
        occupied.leave(at(5));
        assert_eq!(occupied.total(at(9)), Duration::from_secs(4));
    }
}
