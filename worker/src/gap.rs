//! How long nobody consumed a shard when it was taken over last.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Begins with the last sign of the consumer before, which may have been another process, and ends when
/// all filters are granted.
#[derive(Debug, Default)]
pub struct Gap(Mutex<State>);

#[derive(Debug, Default, Clone, Copy)]
enum State {
    /// Nobody consumed before, or this worker has not begun.
    #[default]
    Unknown,
    Open {
        /// When the lease was taken.
        taken: Instant,
        /// How long before that somebody consumed last.
        before: Duration,
    },
    Closed(Duration),
}

impl Gap {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease was taken just now; the shard was consumed until so long ago.
    pub fn begin(&self, before: Option<Duration>) {
        *self.state() = before.map_or(State::Unknown, |before| State::Open { taken: Instant::now(), before });
    }

    /// All filters are granted; only the first time counts.
    pub fn end(&self) {
        let mut state = self.state();
        if let State::Open { taken, before } = *state {
            *state = State::Closed(before + taken.elapsed());
        }
    }

    /// What it was.
    pub fn last(&self) -> Option<Duration> {
        match *self.state() {
            State::Closed(gap) => Some(gap),
            State::Unknown | State::Open { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_counted_from_the_last_consumer_to_the_first_time_that_all_is_granted() {
        let gap = Gap::default();
        gap.end();
        assert_eq!(gap.last(), None, "nobody took anything over");
        gap.begin(Some(Duration::from_secs(3)));
        assert_eq!(gap.last(), None, "it does not consume yet");
        gap.end();
        let first = gap.last().unwrap();
        assert!(first >= Duration::from_secs(3));
        gap.end();
        assert_eq!(gap.last(), Some(first), "a later reconnect is no takeover");
        gap.begin(None);
        assert_eq!(gap.last(), None);
    }
}
