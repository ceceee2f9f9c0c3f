//! Candidates on machines whose clocks differ, with requests that are lost, late or done without an
//! answer, and processes that freeze and die: two never lead at a time, and one soon does.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TERMS: Terms = Terms { seconds: 15 };
/// Longest way of a request whose answer is awaited, and how long one is awaited; milliseconds.
const WAY: u64 = 300;
const PATIENCE: u64 = 5_000;
const LONGEST_FREEZE: u64 = 60_000;
/// When faults end.
const PEACE: u64 = 200_000;

/// What becomes of a request.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Answered {
        there: u64,
        back: u64,
    },
    Lost,
    /// Done, and nobody hears of it.
    AnswerLost {
        there: u64,
    },
    /// Done when nobody waits for it any more.
    Late {
        there: u64,
    },
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => (0..WAY, 0..WAY).prop_map(|(there, back)| Fate::Answered { there, back }),
        1 => Just(Fate::Lost),
        1 => (0..WAY).prop_map(|there| Fate::AnswerLost { there }),
        1 => (PATIENCE..40_000).prop_map(|there| Fate::Late { there }),
    ]
}

/// A machine's clocks: how fast it runs, in per mille, and how wrong its time of day is, in seconds.
#[derive(Debug, Clone, Copy)]
struct Clock {
    rate: u64,
    wrong: i64,
}

#[derive(Debug, Clone)]
struct Run {
    clocks: Vec<Clock>,
    fates: Vec<Fate>,
    /// How long a process stands still before it does the next thing.
    freezes: Vec<u64>,
    /// Who dies when, and how long until it is there again.
    deaths: Vec<(usize, u64, u64)>,
}

fn run() -> impl Strategy<Value = Run> {
    let clock = (900..1_100_u64, -86_400..86_400_i64).prop_map(|(rate, wrong)| Clock { rate, wrong });
    let freeze = prop_oneof![12 => Just(0), 1 => 0..3_000_u64, 1 => 5_000..LONGEST_FREEZE];
    (
        prop::collection::vec(clock, 2..5),
        prop::collection::vec(fate(), 40..120),
        prop::collection::vec(freeze, 20..60),
        prop::collection::vec((0..5_usize, 0..PEACE, 0..30_000_u64), 0..6),
    )
        .prop_map(|(clocks, fates, freezes, deaths)| Run { clocks, fates, freezes, deaths })
}

#[derive(Debug, Clone)]
enum Request {
    Look,
    Create(Lease),
    Replace(Lease),
}

#[derive(Debug, Clone)]
enum Answer {
    Saw(Option<Lease>),
    Wrote(Lease),
    Conflict,
    Nothing,
}

#[derive(Debug, Clone)]
enum Event {
    /// A process goes on: with an answer to what it began then, or because it waited long enough.
    Wake {
        who: usize,
        life: u32,
        answer: Option<(Answer, Instant)>,
    },
    /// A request is there.
    Arrive {
        request: Request,
        answer_to: Option<(usize, u32, Instant, u64)>,
    },
    Die {
        who: usize,
        back: u64,
    },
    Start {
        who: usize,
    },
    /// All but the first die for ever; faults end.
    Peace,
}

struct World {
    run: Run,
    start: Instant,
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    count: u64,
    lease: Option<Lease>,
    version: u64,
    candidates: Vec<Option<Candidate>>,
    lives: Vec<u32>,
    requests: usize,
    wakes: usize,
    peace: bool,
    /// From when until when a life led.
    reigns: Vec<(u64, u64, (usize, u32))>,
}

impl World {
    fn new(run: Run) -> Self {
        let count = run.clocks.len();
        let mut world = Self {
            start: Instant::now(),
            now: 0,
            events: BTreeMap::new(),
            count: 0,
            lease: None,
            version: 0,
            candidates: vec![None; count],
            lives: vec![0; count],
            requests: 0,
            wakes: 0,
            peace: false,
            reigns: Vec::new(),
            run,
        };
        for who in 0..count {
            world.at(who as u64 * 700, Event::Start { who });
        }
        for (who, at, back) in world.run.deaths.clone() {
            world.at(at, Event::Die { who: who % count, back });
        }
        world.at(PEACE, Event::Peace);
        world
    }

    fn at(&mut self, when: u64, event: Event) {
        self.count += 1;
        self.events.insert((when.max(self.now), self.count), event);
    }

    /// A machine's own time.
    fn local(&self, who: usize, real: u64) -> Instant {
        self.start + Duration::from_millis(1_000_000 * who as u64 + real * self.run.clocks[who].rate / 1000)
    }

    /// The other way round.
    fn real(&self, who: usize, local: Instant) -> u64 {
        let passed = (local - self.start).as_millis() as u64 - 1_000_000 * who as u64;
        passed * 1000 / self.run.clocks[who].rate
    }

    fn day(&self, who: usize) -> Timestamp {
        Timestamp::from_millisecond(1_764_000_000_000 + self.now as i64 + self.run.clocks[who].wrong * 1000)
            .unwrap()
    }

    fn wake(&mut self, who: usize, at: u64, answer: Option<(Answer, Instant)>) {
        self.wakes += 1;
        let freeze = if self.peace { 0 } else { self.run.freezes[self.wakes % self.run.freezes.len()] };
        self.at(at + freeze, Event::Wake { who, life: self.lives[who], answer });
    }

    fn play(&mut self, until: u64) {
        while let Some(((at, number), event)) = self.events.pop_first() {
            if at > until {
                self.events.insert((at, number), event);
                break;
            }
            self.now = at;
            self.happen(event);
        }
        self.now = until;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start { who } => {
                if self.candidates[who].is_none() && (!self.peace || who == 0) {
                    self.lives[who] += 1;
                    let me = format!("{who}-{}", self.lives[who]);
                    self.candidates[who] = Some(Candidate::new(me, TERMS, self.local(who, self.now)));
                    self.wake(who, self.now, None);
                }
            }
            Event::Die { who, back } => self.die(who, Some(back)),
            Event::Peace => {
                self.peace = true;
                for who in 1..self.candidates.len() {
                    self.die(who, None);
                }
                self.at(self.now, Event::Start { who: 0 });
            }
            Event::Arrive { request, answer_to } => {
                let answer = self.serve(request);
                if let Some((who, life, begun, back)) = answer_to
                    && life == self.lives[who]
                {
                    self.wake(who, self.now + back, Some((answer, begun)));
                }
            }
            Event::Wake { who, life, answer } => {
                if life == self.lives[who] && self.candidates[who].is_some() {
                    self.act(who, answer);
                }
            }
        }
    }

    /// It writes nothing any more.
    fn die(&mut self, who: usize, back: Option<u64>) {
        if self.candidates[who].take().is_none() {
            return;
        }
        let (now, life) = (self.now, (who, self.lives[who]));
        for (_, until, of) in &mut self.reigns {
            if *of == life {
                *until = now.min(*until);
            }
        }
        if let Some(back) = back {
            self.at(self.now + back, Event::Start { who });
        }
    }

    fn serve(&mut self, request: Request) -> Answer {
        let mut lease = match (request, &self.lease) {
            (Request::Look, lease) => return Answer::Saw(lease.clone()),
            (Request::Create(lease), None) => lease,
            (Request::Replace(lease), Some(is))
                if is.metadata.resource_version == lease.metadata.resource_version =>
            {
                lease
            }
            _ => return Answer::Conflict,
        };
        self.version += 1;
        lease.metadata.resource_version = Some(self.version.to_string());
        self.lease = Some(lease.clone());
        Answer::Wrote(lease)
    }

    fn act(&mut self, who: usize, answer: Option<(Answer, Instant)>) {
        let (now, day) = (self.local(who, self.now), self.day(who));
        let Some(candidate) = &mut self.candidates[who] else { return };
        match answer {
            Some((Answer::Saw(lease), _)) => candidate.saw(lease, now),
            Some((Answer::Wrote(lease), begun)) => candidate.wrote(lease, begun),
            Some((Answer::Conflict, _)) => candidate.conflicted(now),
            Some((Answer::Nothing, begun)) => candidate.failed(begun),
            None => {}
        }
        let (step, until) = (candidate.decide(now, day), candidate.leads_until());
        if let Some(until) = until {
            let until = self.real(who, until);
            if self.now < until {
                self.reigns.push((self.now, until, (who, self.lives[who])));
            }
        }
        let request = match step {
            Step::Wait(pause) => {
                let then = self.real(who, now + pause) + 1;
                return self.wake(who, then, None);
            }
            Step::Lost(_) => return self.die(who, Some(500)),
            Step::Look => Request::Look,
            Step::Create(lease) => Request::Create(lease),
            Step::Acquire(lease) | Step::Renew(lease) => Request::Replace(lease),
        };
        self.requests += 1;
        let fate = match self.run.fates[self.requests % self.run.fates.len()] {
            _ if self.peace => Fate::Answered { there: 20, back: 20 },
            fate => fate,
        };
        let to = (who, self.lives[who], now);
        let given_up = self.now + PATIENCE;
        match fate {
            Fate::Answered { there, back } => {
                let answer_to = Some((to.0, to.1, to.2, back));
                self.at(self.now + there, Event::Arrive { request, answer_to });
            }
            Fate::Lost => self.wake(who, given_up, Some((Answer::Nothing, now))),
            Fate::AnswerLost { there } | Fate::Late { there } => {
                self.at(self.now + there, Event::Arrive { request, answer_to: None });
                self.wake(who, given_up, Some((Answer::Nothing, now)));
            }
        }
    }

    /// Two reigns of different lives that overlap.
    fn two_leaders(&self) -> Option<String> {
        let mut reigns = self.reigns.clone();
        reigns.sort_unstable();
        let mut longest: Option<(u64, u64, (usize, u32))> = None;
        for reign in reigns {
            if let Some(before) = longest
                && reign.0 < before.1
                && reign.2 != before.2
            {
                return Some(format!("{before:?} and {reign:?}"));
            }
            if longest.is_none_or(|before| before.1 < reign.1) {
                longest = Some(reign);
            }
        }
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn two_never_lead_at_a_time_and_the_last_one_alive_leads_soon(run in run()) {
        let mut world = World::new(run);
        world.play(PEACE);
        // Until the survivor stands still no longer, and nothing of the dead is on its way.
        world.play(PEACE + LONGEST_FREEZE + PATIENCE);
        let rate = world.run.clocks[0].rate;
        let patience = (TERMS.lease() + TERMS.retry()).as_millis() as u64 * 1000 / rate + 2_000;
        world.play(world.now + patience);
        prop_assert_eq!(world.two_leaders(), None);
        let last = world.reigns.iter().filter(|reign| reign.2.0 == 0).map(|reign| reign.1).max();
        prop_assert!(last > Some(world.now), "nobody leads at {}: {:?}", world.now, last);
    }

    #[test]
    fn one_that_is_left_leads_within_the_lease_and_a_retry(
        rate in 900..1_100_u64, died in 5_000..60_000_u64, wrong in -86_400..86_400_i64,
    ) {
        let calm = Run {
            clocks: vec![Clock { rate, wrong: 0 }, Clock { rate: 1000, wrong }],
            fates: vec![Fate::Answered { there: 20, back: 20 }],
            freezes: vec![0],
            deaths: vec![],
        };
        let mut world = World::new(calm);
        // The other one is first.
        world.events.clear();
        world.at(0, Event::Start { who: 1 });
        world.at(1000, Event::Start { who: 0 });
        world.at(died, Event::Die { who: 1, back: PEACE });
        world.play(died + 60_000);
        prop_assert_eq!(world.two_leaders(), None);
        let first = world.reigns.iter().filter(|reign| reign.2.0 == 0).map(|reign| reign.0).min();
        let most = (TERMS.lease() + TERMS.retry()).as_millis() as u64 * 1000 / rate + 200;
        prop_assert!(first.is_some_and(|first| first <= died + most), "died {}, then {:?}", died, first);
    }
}

fn clock() -> Timestamp {
    Timestamp::from_second(1_764_000_000).unwrap()
}

/// A lease as the API server gives it.
fn served(version: u32, holder: &str, transitions: i32) -> Lease {
    Lease {
        metadata: ObjectMeta { resource_version: Some(version.to_string()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }),
    }
}

#[test]
fn the_constants_are_those_of_client_go() {
    assert_eq!(TERMS.lease(), Duration::from_secs(15));
    assert_eq!(TERMS.deadline(), Duration::from_secs(10));
    assert_eq!(TERMS.retry(), Duration::from_secs(2));
    assert!(TERMS.deadline() + TERMS.delivery() < TERMS.lease());
}

#[test]
fn a_released_lease_is_taken_at_once_and_the_change_of_holder_is_counted() {
    let start = Instant::now();
    let mut candidate = Candidate::new("b".to_owned(), TERMS, start);
    assert_eq!(candidate.decide(start, clock()), Step::Look);
    candidate.saw(Some(served(7, "a", 3)), start);
    assert_eq!(candidate.decide(start, clock()), Step::Wait(TERMS.retry()));
    candidate.saw(Some(served(8, "", 3)), start + TERMS.retry());
    let Step::Acquire(lease) = candidate.decide(start + TERMS.retry(), clock()) else { panic!("not taken") };
    let spec = lease.spec.clone().unwrap();
    assert_eq!(lease.metadata.resource_version.as_deref(), Some("8"), "only what was seen is replaced");
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("b"), Some(4)));
    candidate.wrote(lease, start + TERMS.retry());
    let released = candidate.released(clock()).unwrap().spec.unwrap();
    assert_eq!((released.holder_identity.as_deref(), released.lease_duration_seconds), (Some(""), Some(1)));
    assert_eq!(released.lease_transitions, Some(4));
}

#[test]
fn a_leader_that_finds_another_name_or_renews_too_late_has_lost() {
    let start = Instant::now();
    let mut leader = Candidate::new("a".to_owned(), TERMS, start);
    leader.wrote(served(1, "a", 0), start);
    assert_eq!(leader.decide(start + TERMS.deadline(), clock()), Step::Lost(Loss::NotRenewed));
    leader.conflicted(start + TERMS.retry());
    assert_eq!(leader.decide(start + TERMS.retry(), clock()), Step::Look);
    leader.saw(Some(served(2, "b", 1)), start + TERMS.retry());
    assert_eq!(leader.decide(start + TERMS.retry(), clock()), Step::Lost(Loss::Taken));
}

#[test]
fn a_lease_that_is_deleted_is_left_to_its_leader_for_as_long_as_it_lasted() {
    let start = Instant::now();
    let mut standby = Candidate::new("b".to_owned(), TERMS, start);
    standby.saw(Some(served(1, "a", 0)), start);
    let deleted = start + TERMS.retry();
    standby.saw(None, deleted);
    assert_eq!(standby.decide(deleted, clock()), Step::Wait(TERMS.retry()));
    standby.saw(None, deleted + TERMS.lease());
    assert!(matches!(standby.decide(deleted + TERMS.lease(), clock()), Step::Create(_)));
    let mut leader = Candidate::new("a".to_owned(), TERMS, start);
    leader.wrote(served(1, "a", 0), start);
    leader.saw(None, deleted);
    assert!(matches!(leader.decide(deleted, clock()), Step::Create(_)), "it makes it again");
}
