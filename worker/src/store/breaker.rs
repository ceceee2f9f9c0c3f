//! A circuit breaker between the writers and the database. While it is open no writer tries; when
//! its pause is over one of them does, and the others follow if that goes well.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::Notify;

use super::sqlstate::Class;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_STOP: Duration = Duration::from_secs(15);

/// Shared by all writers of a worker.
#[derive(Debug)]
pub struct Breaker {
    state: Mutex<State>,
    changed: Notify,
    gauge: IntGauge,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Set while open or half open.
    open_until: Option<Instant>,
    probing: bool,
    last: Option<(Class, String)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Permit {
    Go,
    /// Go, and let the others wait for the answer.
    Probe,
    /// Not before this.
    At(Instant),
    /// When another writer's attempt is answered.
    AfterProbe,
}

impl Breaker {
    /// A closed breaker that shows its state in `gauge`.
    pub fn new(gauge: IntGauge) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), gauge }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until an attempt may be made. Each permit must be answered by [`Breaker::succeeded`]
    /// or [`Breaker::failed`].
    pub async fn permit(&self) {
        loop {
            let changed = self.changed.notified();
            let permit = self.state().ask(Instant::now());
            match permit {
                Permit::Go => return,
                Permit::Probe => return self.gauge.set(1),
                Permit::At(until) => tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => {}
                    () = changed => {}
                },
                Permit::AfterProbe => changed.await,
            }
        }
    }

    /// An attempt was answered: the database works.
    pub fn succeeded(&self) {
        let mut state = self.state();
        if state.open_until.is_some() {
            tracing::info!(failures = state.failures, "the database takes batches again");
        }
        *state = State::default();
        self.gauge.set(0);
        drop(state);
        self.changed.notify_waiters();
    }

    /// An attempt failed for a reason that is not the batch's. Opens the breaker.
    pub fn failed(&self, class: Class, why: String) {
        let mut state = self.state();
        state.fail(class, why, Instant::now());
        self.gauge.set(2);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Ends the pause of an open breaker: what made attempts fail may have changed.
    pub fn hurry(&self) {
        let mut state = self.state();
        state.open_until = state.open_until.map(|_| Instant::now());
        drop(state);
        self.changed.notify_waiters();
    }

    /// Why the breaker is open, if it is: class and message of the last failure.
    pub fn open(&self) -> Option<(Class, String)> {
        self.state().last.clone()
    }
}

impl State {
    fn ask(&mut self, now: Instant) -> Permit {
        match self.open_until {
            None => Permit::Go,
            Some(_) if self.probing => Permit::AfterProbe,
            Some(until) if now < until => Permit::At(until),
            Some(_) => {
                self.probing = true;
                Permit::Probe
            }
        }
    }

    fn fail(&mut self, class: Class, why: String, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let longest = if class == Class::Stop { LONGEST_STOP } else { LONGEST_RETRY };
        let pause = FIRST_PAUSE.saturating_mul(1 << (self.failures - 1).min(16)).min(longest);
        // Half of it fixed, half at random, so that workers do not come back all at once.
        self.open_until = Some(now + pause / 2 + pause.mul_f64(fastrand::f64() / 2.0));
        self.probing = false;
        self.last = Some((class, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_one_writer_tries_again_the_others_wait_for_its_answer() {
        let (mut state, now) = (State::default(), Instant::now());
        assert_eq!(state.ask(now), Permit::Go);
        state.fail(Class::Retry, "away".into(), now);
        assert!(matches!(state.ask(now), Permit::At(_)));
        let later = now + LONGEST_RETRY;
        assert_eq!(state.ask(later), Permit::Probe);
        assert_eq!(state.ask(later), Permit::AfterProbe);
        state.fail(Class::Retry, "still away".into(), later);
        assert!(matches!(state.ask(later), Permit::At(_)));
    }

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let (mut state, now) = (State::default(), Instant::now());
        let mut pause = || {
            state.fail(Class::Retry, "away".into(), now);
            state.open_until.unwrap() - now
        };
        assert!(pause() <= FIRST_PAUSE);
        for _ in 0..40 {
            assert!(pause() <= LONGEST_RETRY);
        }
        assert!(pause() >= LONGEST_RETRY / 2);
    }
}
