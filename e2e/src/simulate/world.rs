//! Shards, a broker and a database, played. What decides is real: the autoscaler, the plan and its assignment
//! of the operator, and the worker's rule for what limits it. What moves messages is arithmetic.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use penstock_crds::operations::Autoscaling;
use penstock_crds::report::WorkerStatus;
use penstock_operator::autoscale::{self, Limited, Load, Memory, Observed};
use penstock_operator::plan::{Plan, Role, Seen, Wish};

use super::shard::{Effort, Shard};

/// Between two steps of what flows, in milliseconds.
const STEP: u64 = 500;
/// Between two looks of the operator, at rest and while something changes.
const REST: u64 = 4_000;
const BUSY: u64 = 2_000;
/// Between a worker's answers that the operator has, at rest.
const POLL: u64 = 4_000;
/// A worker follows its files within this time.
const FOLLOW: u64 = 500;
/// Shards at rest are divided anew no more often.
const LEVEL: u64 = 600_000;

/// What is played.
#[derive(Clone)]
pub struct Setting {
    /// The autoscaler's spec.
    pub spec: Autoscaling,
    /// Shards at the start.
    pub replicas: u32,
    /// Names of keys and their shares of the load; none for a shared subscription.
    pub keys: Vec<f64>,
    /// Messages a second that are published, by the second.
    pub load: fn(f64) -> f64,
    /// How much the load wavers, as a share.
    pub noise: f64,
    /// Seconds until a new pod consumes.
    pub start: f64,
    /// Deliveries that the broker allows unacknowledged.
    pub window: f64,
    /// Round trip to the broker, in seconds.
    pub round_trip: f64,
    /// A commit of an idle database, in seconds.
    pub commit: f64,
    /// Messages a second that the database takes at most.
    pub database: f64,
    /// Messages a second that the broker gives at most.
    pub broker: f64,
    /// Messages a second that one worker's processor does at most.
    pub cpu: f64,
    /// What a person does, by the second.
    pub acts: Vec<(f64, Act)>,
    /// How long it is played, in seconds.
    pub seconds: f64,
}

/// What a person does.
#[derive(Clone)]
pub enum Act {
    /// Writes another spec.
    Spec(Autoscaling),
    /// Suspends, or resumes.
    Suspend(bool),
    /// Mends the database: it takes so many messages a second.
    Mend(f64),
}

/// A moment.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    /// Second.
    pub at: f64,
    /// Messages published in a second.
    pub published: f64,
    /// Messages committed in a second.
    pub committed: f64,
    /// Shards that the autoscaler wants.
    pub wanted: u32,
    /// Shards that consume.
    pub running: u32,
    /// Age of the oldest message that is not committed, in seconds.
    pub lag: f64,
    /// Why there are not more.
    pub limited: Option<Limited>,
    /// Work there is, in shards, as nobody in the world sees it.
    pub work: f64,
}

/// What was played.
#[derive(Debug, Default)]
pub struct Story {
    /// What was seen.
    pub moments: Vec<Moment>,
    /// Each change of the count: when, from, to, and the work there was, in shards.
    pub changes: Vec<(f64, u32, u32, f64)>,
    /// How far the shards' loads are apart at the end, as a share of the largest.
    pub apart: f64,
    /// Keys that moved.
    pub moves: usize,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Flow,
    Poll,
    Reconcile,
    Started(u32),
    Act(usize),
}

struct World {
    setting: Setting,
    now: u64,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    random: fastrand::Rng,
    origin: Instant,
    shards: BTreeMap<u32, Shard>,
    answers: BTreeMap<u32, WorkerStatus>,
    plan: Plan,
    memory: Memory,
    suspended: bool,
    levelled: Option<u64>,
    limited: Option<Limited>,
    story: Story,
}

/// Plays it. The same seed plays the same.
pub fn play(setting: Setting, seed: u64) -> Story {
    let mut world = World {
        now: 0,
        events: BinaryHeap::new(),
        random: fastrand::Rng::with_seed(seed),
        origin: Instant::now(),
        shards: BTreeMap::new(),
        answers: BTreeMap::new(),
        plan: Plan::default(),
        memory: Memory::restored(None, setting.replicas),
        suspended: false,
        levelled: None,
        limited: None,
        story: Story::default(),
        setting,
    };
    world.begin();
    world.run();
    world.story
}

impl World {
    fn begin(&mut self) {
        // It has been running for long.
        let wish = self.wish();
        self.plan = Plan::default().step(&wish, &BTreeMap::new());
        for number in self.plan.shards.clone() {
            let keys = self.plan.keys_of(number).into_iter().collect();
            self.shards.insert(number, Shard::running(keys));
        }
        for event in [Event::Flow, Event::Poll, Event::Reconcile] {
            self.after(0, event);
        }
        for (index, (at, _)) in self.setting.acts.clone().iter().enumerate() {
            self.after((at * 1000.0) as u64, Event::Act(index));
        }
    }

    fn after(&mut self, millis: u64, event: Event) {
        self.events.push(Reverse((self.now + millis, event)));
    }

    fn seconds(&self) -> f64 {
        self.now as f64 / 1000.0
    }

    fn run(&mut self) {
        while let Some(Reverse((at, event))) = self.events.pop() {
            self.now = at;
            if self.seconds() > self.setting.seconds {
                break;
            }
            match event {
                Event::Flow => self.flow(),
                Event::Poll => {
                    self.ask();
                    self.after(POLL, Event::Poll);
                }
                Event::Reconcile => {
                    let busy = self.reconcile();
                    if busy {
                        self.ask();
                    }
                    self.after(if busy { BUSY } else { REST }, Event::Reconcile);
                }
                Event::Started(number) => {
                    if let Some(shard) = self.shards.get_mut(&number) {
                        shard.running = true;
                    }
                }
                Event::Act(index) => match self.setting.acts[index].1.clone() {
                    Act::Spec(spec) => self.setting.spec = spec,
                    Act::Suspend(suspended) => self.suspended = suspended,
                    Act::Mend(rate) => self.setting.database = rate,
                },
            }
        }
        let loads: Vec<f64> = self.plan.shards.iter().map(|shard| self.share(*shard)).collect();
        let most = loads.iter().copied().fold(0.0, f64::max);
        self.story.apart = 1.0 - loads.iter().copied().fold(most, f64::min) / most.max(1e-9);
    }

    fn key(index: usize) -> String {
        format!("key{index:03}")
    }

    fn keys(&self) -> impl Iterator<Item = (String, f64)> {
        let sum: f64 = self.setting.keys.iter().sum();
        self.setting.keys.iter().enumerate().map(move |(index, weight)| (Self::key(index), weight / sum))
    }

    /// The share of the load that a shard's session gets.
    fn share(&self, shard: u32) -> f64 {
        let Some(shard) = self.shards.get(&shard) else { return 0.0 };
        if self.setting.keys.is_empty() {
            let members = self.shards.values().filter(|shard| shard.running && !shard.leaves).count();
            return if shard.running && !shard.leaves { 1.0 / members.max(1) as f64 } else { 0.0 };
        }
        self.keys().filter(|(key, _)| shard.serves.contains(key)).map(|(_, share)| share).sum()
    }

    /// Messages a second that one shard does with such commits.
    fn capacity(&self, commit: f64) -> f64 {
        (self.setting.window / (self.setting.round_trip + commit)).min(self.setting.cpu)
    }

    /// What is published arrives, and is committed as far as broker, workers and database can.
    fn flow(&mut self) {
        let step = STEP as f64 / 1000.0;
        let noise = 1.0 + self.setting.noise * (self.random.f64() * 2.0 - 1.0);
        let published = (self.setting.load)(self.seconds()) * noise;
        let now = self.seconds();
        let shares: Vec<(u32, f64)> = self.shards.keys().map(|shard| (*shard, self.share(*shard))).collect();
        for (number, share) in shares {
            if let Some(shard) = self.shards.get_mut(&number) {
                shard.queue.push(now, published * share * step);
            }
        }
        // The database takes so much, or commits take longer until less comes.
        let offered: Vec<f64> =
            self.shards.values().filter(|s| s.running).map(|s| s.queue.len() / step).collect();
        let taken = |commit: f64| offered.iter().map(|rate| rate.min(self.capacity(commit))).sum::<f64>();
        let (mut low, mut high) = (self.setting.commit, 60.0_f64.max(self.setting.commit));
        if taken(low) > self.setting.database {
            for _ in 0..40 {
                let middle = f64::midpoint(low, high);
                if taken(middle) > self.setting.database { low = middle } else { high = middle }
            }
        }
        let most = taken(low);
        let given = (self.setting.broker / most.max(1e-9)).min(1.0);
        let (capacity, commit) = (self.capacity(low) * given, low);
        let mut committed = 0.0;
        for shard in self.shards.values_mut().filter(|shard| shard.running) {
            let effort = Effort {
                capacity,
                commit,
                window: self.setting.window,
                round_trip: self.setting.round_trip,
                cpu: self.setting.cpu,
            };
            committed += shard.work(now, step, &effort, self.origin + Duration::from_millis(self.now));
        }
        self.note(published, noise, committed / step);
        self.after(STEP, Event::Flow);
    }

    fn note(&mut self, published: f64, noise: f64, committed: f64) {
        let now = self.seconds();
        let oldest = self.shards.values().filter_map(|shard| shard.queue.oldest()).fold(now, f64::min);
        self.story.moments.push(Moment {
            at: now,
            published,
            committed,
            wanted: self.memory.replicas(),
            running: self.shards.values().filter(|shard| shard.running && !shard.leaves).count() as u32,
            lag: now - oldest,
            limited: self.limited,
            work: published / noise / self.capacity(self.setting.commit),
        });
    }

    fn ask(&mut self) {
        let keys: BTreeMap<String, f64> = self.keys().collect();
        self.answers = (self.shards.iter())
            .filter(|(_, shard)| shard.running && !shard.leaves)
            .map(|(number, shard)| (*number, shard.status(&keys)))
            .collect();
    }

    fn wish(&self) -> Wish {
        let keys: BTreeSet<String> = self.keys().map(|(key, _)| key).collect();
        let shared = keys.is_empty();
        let mut wish = Wish::new(keys, shared, self.memory.replicas(), self.suspended);
        for (key, place) in &self.plan.keys {
            let rates = self.answers.get(&place.owner).map(|status| &status.key_rates);
            if let Some(rate) = rates.and_then(|rates| rates.get(key)) {
                wish.rates.insert(key.clone(), *rate);
            }
        }
        wish
    }

    /// One step, as the operator takes it. Whether there is more to do.
    fn reconcile(&mut self) -> bool {
        let seen: BTreeMap<u32, Seen> =
            self.shards.iter().map(|(number, shard)| (*number, shard.seen())).collect();
        let wish = self.wish();
        let in_effect = self.plan.shards.len() == wish.shards as usize
            && !self.plan.is_moving()
            && self.shards.values().all(|shard| shard.running && !shard.leaves);
        let loads = (self.answers.iter())
            .filter(|(shard, _)| **shard < wish.shards)
            .map(|(shard, status)| Load::of(status, self.plan.keys_of(*shard).len()));
        let observed = Observed {
            loads: loads.collect(),
            keys: (!wish.keys.is_empty()).then_some(wish.keys.len() as u32),
            in_effect,
            suspended: self.suspended,
        };
        let before = self.memory.replicas();
        let decision = autoscale::decide(&self.setting.spec, &self.memory, &observed, self.now as i64 / 1000);
        (self.memory, self.limited) = (decision.memory, decision.limited);
        let after = self.memory.replicas();
        if before != after {
            let work = self.story.moments.last().map_or(0.0, |moment| moment.work);
            self.story.changes.push((self.seconds(), before, after, work));
        }
        let mut wish = self.wish();
        wish.level =
            wish.rates.len() == wish.keys.len() && self.levelled.is_none_or(|at| self.now - at >= LEVEL);
        let next = self.plan.step(&wish, &seen);
        if wish.level || self.plan.is_moving() {
            self.levelled = Some(self.now);
        }
        let moving = |plan: &Plan| plan.keys.values().filter(|place| place.successor.is_some()).count();
        self.story.moves += moving(&next).saturating_sub(moving(&self.plan));
        let changed = next != self.plan;
        self.plan = next;
        self.apply(&wish);
        changed || !in_effect || decision.watch
    }

    /// Pods come and go, and follow their plan.
    fn apply(&mut self, wish: &Wish) {
        for number in self.plan.shards.clone() {
            let keys: BTreeSet<String> = self.plan.keys_of(number).into_iter().collect();
            let role = self.plan.role(wish, number);
            if !self.shards.contains_key(&number) {
                let wait = self.setting.start * (0.9 + 0.2 * self.random.f64());
                self.shards.insert(number, Shard::default());
                self.after((wait * 1000.0) as u64 + FOLLOW, Event::Started(number));
            }
            let wait = self.setting.start;
            let Some(shard) = self.shards.get_mut(&number) else { continue };
            match role {
                Role::Active if shard.parked => {
                    shard.parked = false;
                    self.after((wait * 1000.0) as u64, Event::Started(number));
                }
                Role::Active => {
                    shard.leaves = false;
                    if shard.running {
                        shard.serves = keys;
                    }
                }
                Role::Parked => (shard.running, shard.parked) = (false, true),
                Role::Leaving => shard.leave(),
            }
        }
        let plan = &self.plan;
        self.shards.retain(|number, _| plan.shards.contains(number));
    }
}
