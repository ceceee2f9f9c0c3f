//! The choreography where everything goes wrong: two leaders that both write, each with caches that are old
//! and end at any call; workers that crash; reports that are old. What [`crate::pipeline`] writes, in its
//! order and with its preconditions, is modelled call by call.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::super::*;

const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const SHARDS: u32 = 4;

/// What the API server stores, with versions or UIDs.
#[derive(Debug, Clone, Default)]
struct Server {
    count: u64,
    plan: Option<(u64, Plan)>,
    files: BTreeMap<u32, (u64, Files)>,
    deployments: BTreeMap<u32, (u64, bool)>,
    jobs: BTreeMap<u32, (u64, Job)>,
    pods: BTreeSet<u32>,
}

#[derive(Debug, Clone, PartialEq)]
struct Files {
    generation: i64,
    keys: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Job {
    /// Of the plan that it is made by.
    generation: i64,
    done: bool,
    /// It is made anew.
    failed: bool,
}

/// A row of the workers' database.
#[derive(Debug, Clone, Default)]
struct Row {
    generation: i64,
    keys: Vec<String>,
    /// A retire Job ended the shard.
    ended: bool,
}

/// What a worker says of itself.
#[derive(Debug, Clone, Default)]
struct Report {
    generation: i64,
    serves: BTreeSet<String>,
}

/// One call that writes.
#[derive(Debug, Clone)]
enum Write {
    Plan(Option<u64>, Plan),
    Files(u32, Option<u64>, Files),
    Deployment(u32, bool),
    Job(u32, i64),
    DeletePlan(u64),
    DeleteFiles(u32),
    DeleteDeployment(u32, u64),
    DeleteJob(u32, u64),
}

/// A leader: what it believes, and what it is about to write.
#[derive(Debug, Clone, Default)]
struct Leader {
    cache: Server,
    reports: BTreeMap<u32, Report>,
    wish: Option<Wish>,
    writes: VecDeque<Write>,
}

#[derive(Debug, Default)]
struct World {
    server: Server,
    wish: Option<Wish>,
    rows: BTreeMap<u32, Row>,
    /// Subscriptions of each session at the broker.
    sessions: BTreeMap<u32, BTreeSet<String>>,
    leaders: [Leader; 2],
    /// Keys that somebody has subscribed: what is published to them must not be lost any more.
    owed: BTreeSet<String>,
    /// The highest plan that a shard's workers ever followed.
    highest: BTreeMap<u32, i64>,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Wish(u32, bool),
    /// A leader's watch of one kind catches up.
    Watch(usize, u8),
    Reconcile(usize),
    Call(usize),
    LeaderEnds(usize),
    /// Pods start and stop as Deployments say.
    Pods(u32),
    WorkerEnds(u32),
    Work(u32),
    Retire(u32),
    RetireFails(u32),
}

fn event(leaders: usize) -> impl Strategy<Value = Event> {
    let (leader, shard) = (0..leaders, 0..SHARDS);
    prop_oneof![
        1 => (0..=SHARDS, proptest::bool::weighted(0.1)).prop_map(|(replicas, parked)| Event::Wish(replicas, parked)),
        6 => (leader.clone(), 0_u8..6).prop_map(|(leader, part)| Event::Watch(leader, part)),
        3 => leader.clone().prop_map(Event::Reconcile),
        12 => leader.clone().prop_map(Event::Call),
        1 => leader.prop_map(Event::LeaderEnds),
        4 => shard.clone().prop_map(Event::Pods),
        1 => shard.clone().prop_map(Event::WorkerEnds),
        4 => shard.clone().prop_map(Event::Work),
        3 => shard.clone().prop_map(Event::Retire),
        1 => shard.prop_map(Event::RetireFails),
    ]
}

impl Leader {
    fn has_worker(&self, shard: u32) -> bool {
        self.cache.deployments.contains_key(&shard) || self.cache.pods.contains(&shard)
    }

    fn seen(&self, plan: &Plan) -> BTreeMap<u32, Seen> {
        let Server { files, jobs, pods, .. } = &self.cache;
        let shards = files.keys().chain(jobs.keys()).chain(pods).chain(self.cache.deployments.keys());
        let seen = |shard: u32| {
            let report = self.reports.get(&shard).filter(|_| pods.contains(&shard));
            let told = files.get(&shard).map_or(0, |(_, files)| files.generation);
            let follows = report.filter(|report| report.generation >= plan.generation);
            Seen {
                serves: follows.map(|report| report.serves.clone()).unwrap_or_default(),
                generation: report.map_or(0, |report| report.generation).max(told),
                retiring: jobs.contains_key(&shard),
                retired: jobs.get(&shard).is_some_and(|(_, job)| job.done) && !self.has_worker(shard),
            }
        };
        shards.map(|shard| (*shard, seen(*shard))).collect()
    }

    /// A reconcile: what is written by what is believed.
    fn reconcile(&mut self) {
        let Some(wish) = self.wish.clone() else { return };
        let (version, stored) =
            self.cache.plan.clone().map_or((None, Plan::default()), |(v, p)| (Some(v), p));
        let plan = stored.step(&wish, &self.seen(&stored));
        let Server { files, deployments, jobs, .. } = &self.cache;
        let mut writes = VecDeque::new();
        let ended = wish.ending && plan.shards.is_empty();
        if let Some(version) = version.filter(|_| ended) {
            writes.push_back(Write::DeletePlan(version));
        } else if !ended && (version.is_none() || plan != stored) {
            writes.push_back(Write::Plan(version, plan.clone()));
        }
        let (mut kept_files, mut kept_deployments, mut kept_jobs) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for shard in plan.shards.iter().copied() {
            match plan.role(&wish, shard) {
                role @ (Role::Active | Role::Parked) => {
                    kept_files.insert(shard);
                    let next = Files { generation: plan.generation, keys: plan.keys_of(shard) };
                    let has = files.get(&shard);
                    if has.map(|(_, files)| files) != Some(&next) {
                        writes.push_back(Write::Files(shard, has.map(|(version, _)| *version), next));
                    }
                    if !jobs.contains_key(&shard) {
                        kept_deployments.insert(shard);
                        let runs = role == Role::Active;
                        if deployments.get(&shard).map(|(_, runs)| *runs) != Some(runs) {
                            writes.push_back(Write::Deployment(shard, runs));
                        }
                    }
                }
                Role::Leaving => {
                    let gone = !self.has_worker(shard);
                    if gone && jobs.get(&shard).is_none_or(|(_, job)| !job.failed) {
                        kept_jobs.insert(shard);
                    }
                    if gone && !jobs.contains_key(&shard) {
                        writes.push_back(Write::Job(shard, plan.generation));
                    }
                }
            }
        }
        let unwanted = |kept: &BTreeSet<u32>, shard: &u32| !kept.contains(shard);
        writes.extend(
            files
                .iter()
                .filter(|(shard, _)| unwanted(&kept_files, shard))
                .map(|(shard, _)| Write::DeleteFiles(*shard)),
        );
        writes.extend(
            deployments
                .iter()
                .filter(|(shard, _)| unwanted(&kept_deployments, shard))
                .map(|(shard, (uid, _))| Write::DeleteDeployment(*shard, *uid)),
        );
        writes.extend(
            jobs.iter()
                .filter(|(shard, _)| unwanted(&kept_jobs, shard))
                .map(|(shard, (uid, _))| Write::DeleteJob(*shard, *uid)),
        );
        self.writes = writes;
    }
}

impl Server {
    /// A cache keeps what the API server answered.
    fn wrote(&mut self, write: &Write, server: &Self) {
        match write {
            Write::Plan(..) => self.plan.clone_from(&server.plan),
            Write::Files(shard, ..) => _ = self.files.insert(*shard, server.files[shard].clone()),
            Write::Deployment(shard, _) => _ = self.deployments.insert(*shard, server.deployments[shard]),
            Write::Job(shard, _) => _ = self.jobs.insert(*shard, server.jobs[shard].clone()),
            Write::DeletePlan(_)
            | Write::DeleteFiles(_)
            | Write::DeleteDeployment(..)
            | Write::DeleteJob(..) => {}
        }
    }

    /// Does what is asked, unless a precondition fails.
    fn write(&mut self, write: Write) -> bool {
        self.count += 1;
        let count = self.count;
        match write {
            Write::Plan(version, plan) => {
                let done = self.plan.as_ref().map(|(version, _)| *version) == version;
                if done {
                    self.plan = Some((count, plan));
                }
                done
            }
            Write::Files(shard, version, files) => {
                let done = self.files.get(&shard).map(|(version, _)| *version) == version;
                if done {
                    self.files.insert(shard, (count, files));
                }
                done
            }
            // Applied: nothing but its own UID matters.
            Write::Deployment(shard, runs) => {
                let uid = self.deployments.get(&shard).map_or(count, |(uid, _)| *uid);
                self.deployments.insert(shard, (uid, runs));
                true
            }
            Write::Job(shard, generation) => {
                let done = !self.jobs.contains_key(&shard);
                if done {
                    self.jobs.insert(shard, (count, Job { generation, done: false, failed: false }));
                }
                done
            }
            Write::DeletePlan(version) => {
                self.plan.take_if(|(has, _)| *has == version);
                true
            }
            Write::DeleteFiles(shard) => {
                self.files.remove(&shard);
                true
            }
            Write::DeleteDeployment(shard, uid) => {
                if self.deployments.get(&shard).is_some_and(|(has, _)| *has == uid) {
                    self.deployments.remove(&shard);
                }
                true
            }
            Write::DeleteJob(shard, uid) => {
                if self.jobs.get(&shard).is_some_and(|(has, _)| *has == uid) {
                    self.jobs.remove(&shard);
                }
                true
            }
        }
    }
}

impl World {
    fn happen(&mut self, event: Event) {
        match event {
            Event::Wish(replicas, parked) => {
                self.wish = Some(Wish::new(KEYS.map(str::to_owned).into(), false, replicas, parked));
            }
            Event::Watch(leader, part) => self.watch(leader, part),
            Event::Reconcile(leader) => {
                if self.leaders[leader].writes.is_empty() {
                    self.leaders[leader].reconcile();
                }
            }
            Event::Call(leader) => {
                let Some(write) = self.leaders[leader].writes.pop_front() else { return };
                if self.server.write(write.clone()) {
                    self.leaders[leader].cache.wrote(&write, &self.server);
                } else {
                    self.leaders[leader].writes.clear();
                }
            }
            Event::LeaderEnds(leader) => {
                // The next one lists all before it does anything.
                self.leaders[leader] = Leader::default();
                (0..5).for_each(|part| self.watch(leader, part));
            }
            Event::Pods(shard) => {
                let runs = self.server.deployments.get(&shard).is_some_and(|(_, runs)| *runs);
                // A pod does not start without its files.
                if runs && self.server.files.contains_key(&shard) {
                    self.server.pods.insert(shard);
                } else if !runs {
                    self.server.pods.remove(&shard);
                }
            }
            Event::WorkerEnds(shard) => _ = self.server.pods.remove(&shard),
            Event::Work(shard) => self.work(shard),
            Event::Retire(shard) => self.retire(shard),
            Event::RetireFails(shard) => {
                if let Some((_, job)) = self.server.jobs.get_mut(&shard) {
                    job.failed = !job.done;
                }
            }
        }
    }

    fn watch(&mut self, leader: usize, part: u8) {
        let (server, leader) = (&self.server, &mut self.leaders[leader]);
        match part {
            // One watch for all ConfigMaps.
            0 => {
                leader.cache.plan.clone_from(&server.plan);
                leader.cache.files.clone_from(&server.files);
            }
            1 => leader.cache.deployments.clone_from(&server.deployments),
            2 => leader.cache.jobs.clone_from(&server.jobs),
            3 => leader.cache.pods.clone_from(&server.pods),
            4 => leader.wish.clone_from(&self.wish),
            _ => {
                let report = |shard: &u32| {
                    let row = self.rows.get(shard).cloned().unwrap_or_default();
                    let session = self.sessions.get(shard).cloned().unwrap_or_default();
                    (*shard, Report { generation: row.generation, serves: session })
                };
                leader.reports = server.pods.iter().map(report).collect();
            }
        }
    }

    /// A worker takes the lease, unless its plan is not newer than the one that ended the shard; and follows its
    /// files, unless they are older than what the shard has followed.
    fn work(&mut self, shard: u32) {
        let Some((_, files)) = self.server.files.get(&shard).filter(|_| self.server.pods.contains(&shard))
        else {
            return;
        };
        let row = self.rows.entry(shard).or_default();
        if row.ended && files.generation <= row.generation {
            return;
        }
        if files.generation >= row.generation {
            *row = Row { generation: files.generation, keys: files.keys.clone(), ended: false };
        }
        let session = self.sessions.entry(shard).or_default();
        let next: BTreeSet<String> = row.keys.iter().cloned().collect();
        let highest = self.highest.entry(shard).or_default();
        let gained = next.difference(session).next();
        assert!(
            gained.is_none() || row.generation >= *highest,
            "shard {shard} subscribes {gained:?} by plan {}, and had followed {highest}",
            row.generation
        );
        *highest = row.generation.max(*highest);
        self.owed.extend(next.iter().cloned());
        *session = next;
    }

    /// A retire Job ends the session, and takes the lease from whoever has it; unless a newer plan than its own
    /// is followed.
    fn retire(&mut self, shard: u32) {
        let Some((_, job)) = self.server.jobs.get_mut(&shard).filter(|(_, job)| !job.done && !job.failed)
        else {
            return;
        };
        let followed = self.rows.get(&shard).map_or(0, |row| row.generation);
        if job.generation < followed {
            job.failed = true;
            return;
        }
        job.done = true;
        let ended_by = job.generation;
        // A worker that is started by an older plan is not to subscribe again.
        self.rows.insert(shard, Row { generation: ended_by, keys: Vec::new(), ended: true });
        self.sessions.remove(&shard);
    }

    /// Nothing that was subscribed is without a subscription.
    fn require_no_loss(&self, event: &Event) {
        for key in &self.owed {
            let has = self.sessions.values().any(|keys| keys.contains(key));
            assert!(has, "nobody has {key} subscribed after {event:?}: {self:#?}");
        }
    }

    /// One leader, and nothing fails any more.
    fn settle(&mut self) {
        self.leaders[1] = Leader::default();
        for _ in 0..80 {
            (0..6).for_each(|part| self.watch(0, part));
            self.leaders[0].reconcile();
            while !self.leaders[0].writes.is_empty() {
                self.happen(Event::Call(0));
            }
            for shard in 0..SHARDS {
                self.happen(Event::Pods(shard));
                self.work(shard);
                self.retire(shard);
            }
        }
    }
}

/// Plays all of it, then lets it settle, and ends it.
fn play(events: Vec<Event>) {
    let mut world = World::default();
    for event in events {
        world.happen(event);
        world.require_no_loss(&event);
    }
    let replicas = 3;
    world.happen(Event::Wish(replicas, false));
    world.settle();
    let (_, plan) = world.server.plan.clone().unwrap();
    assert!(!plan.is_moving(), "{plan:?}");
    assert_eq!(plan.shards, (0..replicas).collect());
    let served: BTreeMap<u32, BTreeSet<String>> =
        plan.shards.iter().map(|shard| (*shard, plan.keys_of(*shard).into_iter().collect())).collect();
    assert_eq!(world.sessions, served, "each session has its keys, and no other is left");
    assert!(served.values().all(|keys| (1..=2).contains(&keys.len())), "{served:?}");
    assert!(world.server.jobs.is_empty());
    let before = world.server.count;
    world.settle();
    assert_eq!(world.server.count, before, "at the fixed point nothing is written");
    world.owed.clear();
    world.wish = world.wish.map(|wish| Wish { ending: true, ..wish });
    world.settle();
    assert!(world.sessions.is_empty() && world.server.plan.is_none(), "{world:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_leader_with_old_caches_that_ends_anywhere_loses_no_key_leaves_no_session_and_comes_to_an_end(
        events in proptest::collection::vec(event(1), 1..400),
    ) {
        play(events);
    }

    #[test]
    fn two_leaders_with_old_caches_that_both_write_lose_no_key_and_leave_no_subscription(
        events in proptest::collection::vec(event(2), 1..400),
    ) {
        play(events);
    }
}
