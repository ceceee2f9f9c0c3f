//! What a worker and its publishers count, over time and across restarts of the worker.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::publisher::Progress;
use crate::worker::{Metrics, Pages};

const PERIOD: Duration = Duration::from_millis(250);

/// What was counted at a time.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Seconds since sampling began.
    pub at: f64,
    /// Messages sent by publishers.
    pub sent: u64,
    /// Messages that the broker acknowledged to them.
    pub acknowledged: u64,
    /// Which process of the worker.
    incarnation: u32,
    /// What the worker says; `None` while it does not.
    pub metrics: Option<Arc<Metrics>>,
}

/// All samples, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Timeline(pub Vec<Sample>);

/// Takes samples in the background until it is dropped.
#[derive(Debug)]
pub struct Sampler {
    began: Instant,
    state: Arc<Mutex<State>>,
    progress: Arc<Progress>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    incarnation: u32,
    pages: Option<Pages>,
    samples: Vec<Sample>,
}

impl Sampler {
    /// Begins.
    pub fn start(progress: Arc<Progress>) -> Self {
        let began = Instant::now();
        let state = Arc::new(Mutex::new(State::default()));
        let task = tokio::spawn({
            let (state, progress) = (Arc::clone(&state), Arc::clone(&progress));
            async move {
                let mut ticks = tokio::time::interval(PERIOD);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    sample(&state, began, &progress).await;
                }
            }
        });
        Self { began, state, progress, task }
    }

    /// From now on a new process of the worker is asked.
    pub fn follow(&self, pages: Pages) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.incarnation += 1;
        state.pages = Some(pages);
    }

    /// Takes a sample now, such as the last one of a process.
    pub async fn take(&self) {
        sample(&self.state, self.began, &self.progress).await;
    }

    /// Seconds since it began.
    pub fn elapsed(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// What was sampled so far.
    pub fn timeline(&self) -> Timeline {
        Timeline(self.state.lock().unwrap_or_else(PoisonError::into_inner).samples.clone())
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn sample(state: &Mutex<State>, began: Instant, progress: &Progress) {
    let (incarnation, pages) = {
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.incarnation, state.pages)
    };
    let metrics = match pages {
        Some(pages) => pages.metrics().await.ok().map(Arc::new),
        None => None,
    };
    let sample = Sample {
        at: began.elapsed().as_secs_f64(),
        sent: progress.sent.load(Ordering::Relaxed),
        acknowledged: progress.acknowledged.load(Ordering::Relaxed),
        incarnation,
        metrics,
    };
    let samples = &mut state.lock().unwrap_or_else(PoisonError::into_inner).samples;
    // Two may be taken at once.
    if samples.last().is_none_or(|last| last.at < sample.at && last.incarnation <= incarnation) {
        samples.push(sample);
    }
}

/// Values at times, for a plot.
pub type Points = Vec<(f64, Option<f64>)>;

impl Timeline {
    /// A counter over all processes of the worker, at each sample. What a killed process counted
    /// after its last sample is not in it.
    pub fn total(&self, counter: impl Fn(&Metrics) -> f64) -> Vec<f64> {
        let (mut ended, mut current, mut incarnation) = (0.0, 0.0, 0);
        let mut totals = Vec::with_capacity(self.0.len());
        for sample in &self.0 {
            if sample.incarnation != incarnation {
                ended += current;
                (current, incarnation) = (0.0, sample.incarnation);
            }
            if let Some(metrics) = &sample.metrics {
                current = counter(metrics);
            }
            totals.push(ended + current);
        }
        totals
    }

    /// How fast values at the samples grew, a second, in windows of so many seconds.
    pub fn rate(&self, values: &[f64], window: f64) -> Points {
        rate(&self.times(), values, window)
    }

    /// What the worker said of each moment; nothing while it said nothing.
    pub fn gauge(&self, value: impl Fn(&Metrics) -> f64) -> Points {
        self.0.iter().map(|sample| (sample.at, sample.metrics.as_deref().map(&value))).collect()
    }

    /// What changed in windows of so many seconds, put through `value`; nothing where nothing was observed.
    pub fn changes(&self, window: f64, value: impl Fn(&Metrics) -> Option<f64>) -> Points {
        let change = |(from, to): (usize, usize)| {
            Some((self.0.get(to)?.at, self.change(from, to).and_then(|change| value(&change))))
        };
        windows(&self.times(), window).into_iter().filter_map(change).collect()
    }

    /// The window of the last so many seconds: its samples' numbers.
    pub fn recent(&self, seconds: f64) -> Option<(usize, usize)> {
        let to = self.0.len().checked_sub(1)?;
        Some((self.0.iter().rposition(|sample| sample.at <= self.0[to].at - seconds).unwrap_or(0), to))
    }

    /// What the worker counted between two samples; nothing if it said nothing at the second.
    pub fn change(&self, from: usize, to: usize) -> Option<Metrics> {
        let last = self.0.get(to)?;
        // A new process began at 0.
        let mut earlier = self.0.get(..=from)?.iter().rev().take_while(|s| s.incarnation == last.incarnation);
        let before = earlier.find_map(|sample| sample.metrics.as_deref());
        let metrics = last.metrics.as_deref()?;
        Some(before.map_or_else(|| metrics.clone(), |before| metrics.since(before)))
    }

    fn times(&self) -> Vec<f64> {
        self.0.iter().map(|sample| sample.at).collect()
    }
}

/// How fast values at these times grew, a second, in windows of so many seconds.
pub fn rate(times: &[f64], values: &[f64], window: f64) -> Points {
    let rate = |(from, to): (usize, usize)| {
        let (a, b) = (times.get(from)?, times.get(to)?);
        Some((*b, Some((values.get(to)? - values.get(from)?) / (b - a))))
    };
    windows(times, window).into_iter().filter_map(rate).collect()
}

fn windows(times: &[f64], seconds: f64) -> Vec<(usize, usize)> {
    let mut windows = Vec::new();
    let mut from = 0;
    for to in 1..times.len() {
        // Sampling is not exact to the millisecond.
        if times[to] - times[from] >= seconds - PERIOD.as_secs_f64() / 4.0 {
            windows.push((from, to));
            from = to;
        }
    }
    windows
}

/// A quantile of what a histogram observed; nothing if it observed nothing.
pub fn quantile(change: &Metrics, histogram: &str, q: f64) -> Option<f64> {
    (change.get(&format!("{histogram}_count")) > 0.0).then(|| change.quantile(histogram, q))
}

/// The mean of what a histogram observed; nothing if it observed nothing.
pub fn mean(change: &Metrics, histogram: &str) -> Option<f64> {
    let count = change.get(&format!("{histogram}_count"));
    (count > 0.0).then(|| change.get(&format!("{histogram}_sum")) / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: f64, incarnation: u32, value: Option<f64>) -> Sample {
        let metrics = value.map(|value| Arc::new(Metrics([("n".to_owned(), value)].into())));
        Sample { at, sent: 0, acknowledged: 0, incarnation, metrics }
    }

    #[test]
    fn totals_go_on_across_a_restart_and_hold_while_nothing_is_said() {
        let line = Timeline(vec![
            sample(0.0, 1, Some(5.0)),
            sample(1.0, 1, Some(10.0)),
            sample(2.0, 1, None),
            sample(3.0, 2, None),
            sample(4.0, 2, Some(3.0)),
        ]);
        let totals = line.total(|metrics| metrics.get("n"));
        assert_eq!(totals, [5.0, 10.0, 10.0, 10.0, 13.0]);
        assert_eq!(line.rate(&totals, 1.0).last(), Some(&(4.0, Some(3.0))));
        let changes = line.changes(1.0, |change| Some(change.get("n")));
        assert_eq!(changes, [(1.0, Some(5.0)), (2.0, None), (3.0, None), (4.0, Some(3.0))]);
    }
}
