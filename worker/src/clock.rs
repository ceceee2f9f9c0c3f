//! The database's clock, as far as this process knows it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::decode::Micros;

/// What was observed counts for one to two of them; the clocks may drift apart, or be set.
const WINDOW: Duration = Duration::from_mins(1);

/// The database's clock, kept as its distance from this process's, which is never set. All verdicts about
/// time follow it, so that they do not depend on where a worker runs.
#[derive(Debug)]
pub struct DatabaseClock {
    start: Instant,
    ahead: AtomicI64,
    recent: Mutex<Recent>,
}

/// How far the database's clock was ahead, by windows of time.
#[derive(Debug, Default)]
struct Recent {
    window: u64,
    most: Option<Micros>,
    /// In the window before.
    most_before: Option<Micros>,
}

impl Default for DatabaseClock {
    /// This machine's, until the database's was observed.
    fn default() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), ahead: AtomicI64::new(micros(since_epoch)), recent: Mutex::default() }
    }
}

impl DatabaseClock {
    /// Takes in the database's clock, as read some time ago: before the commit that an answer waited for.
    pub fn observe(&self, then: Micros) {
        let elapsed = self.start.elapsed();
        let ahead = then.saturating_sub(micros(elapsed));
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        self.ahead.store(recent.observe(ahead, elapsed), Ordering::Relaxed);
    }

    /// The time by the database's clock.
    pub fn now(&self) -> Micros {
        micros(self.start.elapsed()).saturating_add(self.ahead.load(Ordering::Relaxed))
    }
}

impl Recent {
    /// Takes in how far ahead it was at least: the answer took its time. The most of late is nearest.
    fn observe(&mut self, ahead: Micros, elapsed: Duration) -> Micros {
        let window = elapsed.as_secs() / WINDOW.as_secs();
        if window > self.window {
            self.most_before = self.most.filter(|_| window == self.window + 1);
            (self.window, self.most) = (window, None);
        }
        self.most = self.most.max(Some(ahead));
        self.most.max(self.most_before).unwrap_or(ahead)
    }
}

fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slow_commit_does_not_set_the_clock_back() {
        let clock = DatabaseClock::default();
        let now = micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
        clock.observe(now + 3_600_000_000);
        clock.observe(now + 3_600_000_000 - 5_000_000);
        let ahead = clock.now() - now;
        assert!((3_600_000_000..3_605_000_000).contains(&ahead), "{ahead}");
    }

    proptest! {
        /// Each pause in milliseconds, and how long the answer after it took.
        #[test]
        fn the_clock_is_wrong_by_the_fastest_answer_of_the_last_minute_at_most_and_never_fast(
            answers in vec((0..50_000u64, 0..20_000i64), 1..200), ahead in -1_000_000i64..1_000_000,
        ) {
            let (mut recent, mut at) = (Recent::default(), Duration::ZERO);
            let mut all = Vec::new();
            for (pause, took) in answers {
                at += Duration::from_millis(pause);
                all.push((at, took));
                let wrong = ahead - recent.observe(ahead - took, at);
                let of_late = all.iter().filter(|(then, _)| at < *then + WINDOW).map(|(_, took)| *took);
                prop_assert!((0..=of_late.min().unwrap()).contains(&wrong), "{}", wrong);
            }
        }

        #[test]
        fn a_clock_that_was_set_is_followed_within_two_windows(
            before in vec(0..60_000u64, 0..50), set in -9_000_000i64..9_000_000, took in 0..20_000i64,
        ) {
            let (mut recent, mut at) = (Recent::default(), Duration::ZERO);
            for pause in before {
                at += Duration::from_millis(pause);
                recent.observe(0, at);
            }
            recent.observe(set - took, at + WINDOW);
            prop_assert_eq!(recent.observe(set - took, at + WINDOW * 2), set - took);
        }
    }
}
