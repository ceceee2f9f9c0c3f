//! What has been committed lately by key, and how old it was: for the operator, which moves keys by their
//! rates and scales by how fast the delay grows.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::decode::Micros;
use crate::settings::Terms;

/// Rates are of about so long.
const SPAN: Duration = Duration::from_secs(30);
/// Of a batch so many deliveries, and rows, are looked at: a filter is found by trying one after the other.
const SAMPLE: usize = 32;
/// A key without messages is forgotten when its rate is lower.
const NOTHING: f64 = 1e-3;

/// What has been committed lately.
#[derive(Debug, Default)]
pub struct Flow {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Since the last beat.
    counts: HashMap<String, f64>,
    delay: Option<f64>,
    rates: BTreeMap<String, f64>,
    began: Option<Instant>,
    beaten: Option<Instant>,
}

impl Flow {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch was committed, at a time by the database's clock.
    pub fn committed(&self, batch: &Batch, at: Micros, terms: &Terms) {
        let count = batch.deliveries.len();
        let step = count.div_ceil(SAMPLE).max(1);
        let sampled = count.div_ceil(step).max(1) as f64;
        let keys = batch.deliveries.iter().step_by(step).filter_map(|(delivery, _)| terms.key_of(delivery));
        let rows = batch.samples.iter().step_by(batch.samples.len().div_ceil(SAMPLE).max(1));
        self.add(keys, count as f64 / sampled, rows.map(|row| at - row.ts).collect());
    }

    fn add<'a>(&self, keys: impl Iterator<Item = &'a str>, each: f64, mut delays: Vec<Micros>) {
        let mut state = self.state();
        for key in keys {
            if let Some(count) = state.counts.get_mut(key) {
                *count += each;
            } else {
                state.counts.insert(key.to_owned(), each);
            }
        }
        delays.sort_unstable();
        if let Some(middle) = delays.get(delays.len() / 2) {
            state.delay = Some(*middle as f64 / 1e6);
        }
    }

    /// Takes what was counted into the rates. Returns the delay of the newest batch since the last time.
    pub fn beat(&self, now: Instant) -> Option<f64> {
        let mut state = self.state();
        let State { counts, delay, rates, began, beaten } = &mut *state;
        began.get_or_insert(now);
        if let Some(before) = beaten.replace(now) {
            let seconds = now.saturating_duration_since(before).as_secs_f64().max(1e-3);
            let weight = 1.0 - (-seconds / SPAN.as_secs_f64()).exp();
            for key in counts.keys() {
                if !rates.contains_key(key) {
                    rates.insert(key.clone(), 0.0);
                }
            }
            for (key, rate) in rates.iter_mut() {
                let count = counts.get_mut(key).map(std::mem::take).unwrap_or_default();
                *rate += (count / seconds - *rate) * weight;
            }
            rates.retain(|_, rate| *rate > NOTHING);
            counts.retain(|key, _| rates.contains_key(key));
        }
        delay.take()
    }

    /// Messages a second of each key that had any.
    pub fn rates(&self) -> BTreeMap<String, f64> {
        let state = self.state();
        let (Some(began), Some(beaten)) = (state.began, state.beaten) else { return BTreeMap::new() };
        // Rates rise from 0: of a short time they are too low.
        let age = beaten.saturating_duration_since(began).as_secs_f64();
        let known = (1.0 - (-age / SPAN.as_secs_f64()).exp()).max(1e-3);
        state.rates.iter().map(|(key, rate)| (key.clone(), (rate / known * 10.0).round() / 10.0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_right_from_the_start_and_follow_what_changes() {
        let (flow, start) = (Flow::default(), Instant::now());
        let beat = |beat: u32| flow.beat(start + Duration::from_millis(500) * beat);
        beat(0);
        for number in 1..=10 {
            flow.add(["a", "a", "b"].into_iter(), 10.0, vec![3_000_000, 1_000_000, 2_000_000]);
            assert_eq!(beat(number), Some(2.0), "the middle one's delay");
        }
        assert_eq!(beat(10), None, "no batch since");
        let rates = flow.rates();
        assert!((rates["a"] - 40.0).abs() < 1.0 && (rates["b"] - 20.0).abs() < 1.0, "{rates:?}");
        for number in 11..1200 {
            flow.add(["b"].into_iter(), 10.0, Vec::new());
            beat(number);
        }
        assert_eq!(flow.rates().len(), 1, "a key without messages is forgotten");
        assert!((flow.rates()["b"] - 20.0).abs() < 1.0);
    }
}
