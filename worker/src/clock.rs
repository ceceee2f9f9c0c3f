//! The database's clock, as far as this process knows it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::decode::Micros;

/// The database's clock, kept as its distance from this machine's. All verdicts about time follow
/// it, so that they do not depend on where a worker runs.
#[derive(Debug, Default)]
pub struct DatabaseClock {
    ahead: AtomicI64,
}

impl DatabaseClock {
    /// Takes in the database's clock as read just now.
    pub fn observe(&self, now: Micros) {
        self.ahead.store(now - local(), Ordering::Relaxed);
    }

    /// The time by the database's clock.
    pub fn now(&self) -> Micros {
        local() + self.ahead.load(Ordering::Relaxed)
    }
}

fn local() -> Micros {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(elapsed.as_micros()).unwrap_or(Micros::MAX)
}
