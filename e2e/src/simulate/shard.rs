//! One shard: the broker's queue of its session, and a worker that tells what a real one would.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use penstock_crds::report::WorkerStatus;
use penstock_operator::plan::Seen;
use penstock_worker::throughput::{Look, Throughput};

/// Messages in the order in which they came: when, and how many.
#[derive(Debug, Default)]
pub struct Queue {
    parts: VecDeque<(f64, f64)>,
    len: f64,
}

impl Queue {
    /// So many more.
    pub fn push(&mut self, at: f64, count: f64) {
        if count > 0.0 {
            self.parts.push_back((at, count));
            self.len += count;
        }
    }

    /// Takes so many; returns how many there were, and when the last of them came.
    fn take(&mut self, most: f64) -> (f64, Option<f64>) {
        let (mut left, mut last) = (most, None);
        while let Some((at, count)) = self.parts.front_mut()
            && left > 0.0
        {
            let taken = count.min(left);
            (left, *count, last) = (left - taken, *count - taken, Some(*at));
            if *count <= 1e-9 {
                self.parts.pop_front();
            }
        }
        self.len = self.parts.iter().map(|(_, count)| count).sum();
        (most - left, last)
    }

    /// How many.
    pub fn len(&self) -> f64 {
        self.len
    }

    /// When the oldest came.
    pub fn oldest(&self) -> Option<f64> {
        self.parts.front().map(|(at, _)| *at)
    }
}

/// What a worker could do.
pub struct Effort {
    /// Messages a second.
    pub capacity: f64,
    /// Seconds of a commit.
    pub commit: f64,
    /// Deliveries allowed unacknowledged.
    pub window: f64,
    /// Seconds to the broker and back.
    pub round_trip: f64,
    /// Messages a second that the processor does.
    pub cpu: f64,
}

/// What a worker has counted.
#[derive(Debug, Default)]
struct Counters {
    full: f64,
    used: f64,
    committing: f64,
    busy: f64,
    committed: f64,
    commits: f64,
    commit_seconds: f64,
}

/// One shard.
#[derive(Default)]
pub struct Shard {
    /// Its pod consumes.
    pub running: bool,
    /// Its pod is gone and its session stays.
    pub parked: bool,
    /// It is to end; what is queued is drained.
    pub leaves: bool,
    /// Keys that its session has subscribed.
    pub serves: BTreeSet<String>,
    /// What the broker queues for it.
    pub queue: Queue,
    counters: Counters,
    throughput: Throughput,
    rate: f64,
}

impl Shard {
    /// One that has been running for long.
    pub fn running(serves: BTreeSet<String>) -> Self {
        Self { running: true, serves, ..Self::default() }
    }

    /// Commits what it can of its queue; returns how many messages that were.
    pub fn work(&mut self, now: f64, step: f64, effort: &Effort, at: Instant) -> f64 {
        let (taken, last) = self.queue.take(effort.capacity * step);
        let rate = taken / step;
        let saturated = self.queue.len() > 0.0;
        let window_bound = effort.window / (effort.round_trip + effort.commit);
        let used = if saturated { 1.0 } else { (rate / window_bound).min(1.0) };
        let batch = (effort.window / 2.0).max(1.0);
        let commits = (taken / batch).max(step.min(taken));
        let counters = &mut self.counters;
        counters.used += used * step;
        counters.full += if saturated { step } else { used.powi(8) * step };
        counters.committing += if saturated { step } else { step * (1.0 - (-rate * effort.commit).exp()) };
        counters.busy += step * rate / effort.cpu;
        counters.committed += taken;
        counters.commits += commits;
        counters.commit_seconds += commits * effort.commit;
        self.rate += (rate - self.rate) * (step / 30.0);
        self.throughput.observe(Look {
            at,
            full: vec![Duration::from_secs_f64(counters.full)],
            used: vec![counters.used],
            committing: Duration::from_secs_f64(counters.committing),
            busy: [Duration::from_secs_f64(counters.busy), Duration::ZERO],
            committed: counters.committed as u64,
            commits: counters.commits.ceil() as u64,
            commit_seconds: counters.commit_seconds,
            window: effort.window as usize,
            fill: 0.0,
            delay: last.map(|last| now - last + effort.commit),
        });
        taken
    }

    /// What it answers. It takes its keys' messages as they come, so each has its share of its rate.
    pub fn status(&self, shares: &BTreeMap<String, f64>) -> WorkerStatus {
        let recent = self.throughput.recent();
        let served: f64 = self.serves.iter().filter_map(|key| shares.get(key)).sum();
        let rate = |key: &String| Some((key.clone(), self.rate * shares.get(key)? / served.max(1e-9)));
        WorkerStatus {
            ready: true,
            utilisation: recent.utilisation(),
            limited_by: recent.limit(),
            rate: recent.rate,
            commit_seconds: recent.commit.map(|commit| commit.as_secs_f64()),
            delay_seconds: recent.delay.map(|(delay, _)| delay),
            delay_growth: recent.delay.and_then(|(_, growth)| growth),
            key_rates: self.serves.iter().filter_map(rate).collect(),
            ..WorkerStatus::default()
        }
    }

    /// It unsubscribes; a retire Job drains its session.
    pub fn leave(&mut self) {
        self.leaves = true;
        self.serves.clear();
    }

    /// What the choreography sees.
    pub fn seen(&self) -> Seen {
        let serves = if self.running { self.serves.clone() } else { BTreeSet::new() };
        Seen {
            serves,
            retiring: self.leaves,
            retired: self.leaves && self.queue.len() <= 0.0,
            ..Seen::default()
        }
    }
}
