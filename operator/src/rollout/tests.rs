use proptest::prelude::*;

use super::*;

/// A template, by its number; those that the test calls bad never run.
type Template = u32;

/// A shard on a cluster: what its Deployment has, and which template's pod consumes.
#[derive(Debug, Clone, Copy)]
struct Simulated {
    template: Template,
    consuming: Option<Template>,
    /// No new pod gets ready: its node, its registry, its quota.
    failing: bool,
    /// The pod that consumes is not ready.
    sick: bool,
}

#[derive(Debug)]
struct World {
    shards: Vec<Simulated>,
    wanted: Template,
    bad: BTreeSet<Template>,
}

#[derive(Debug, Clone)]
enum Step {
    /// A new pod gets as far as it can.
    Progress(usize),
    /// The pod that consumes is gone.
    Crash(usize),
    Fail(usize),
    Heal(usize),
    Sicken(usize),
    /// The template changes, and is bad or not.
    Change(bool),
    /// Nobody's turn, in this reconcile.
    Wait,
}

impl World {
    fn new(count: usize) -> Self {
        let shard = Simulated { template: 0, consuming: Some(0), failing: false, sick: false };
        Self { shards: vec![shard; count], wanted: 0, bad: BTreeSet::new() }
    }

    fn is_stuck(&self, shard: &Simulated) -> bool {
        shard.failing || self.bad.contains(&shard.template)
    }

    fn seen(&self) -> BTreeMap<u32, Shard> {
        let see = |shard: &Simulated| Shard {
            current: shard.template == self.wanted,
            consumed: shard.consuming.is_some(),
            turning: shard.consuming.is_some_and(|template| template != shard.template),
            finished: shard.consuming == Some(shard.template) && !shard.sick,
            trouble: (shard.consuming != Some(shard.template) && self.is_stuck(shard))
                .then(|| ("stuck".into(), format!("template {}", shard.template))),
        };
        (0..).zip(self.shards.iter().map(see)).collect()
    }

    fn reconcile(&mut self, go: bool) -> Rollout {
        let rollout = decide(&self.seen(), go);
        for number in rollout.outdated.difference(&rollout.held) {
            self.shards[*number as usize].template = self.wanted;
        }
        rollout
    }

    fn take(&mut self, step: &Step) -> bool {
        let count = self.shards.len();
        match step {
            Step::Progress(number) => {
                let shard = self.shards[number % count];
                if !self.is_stuck(&shard) {
                    self.shards[number % count] =
                        Simulated { consuming: Some(shard.template), sick: false, ..shard };
                }
            }
            Step::Crash(number) => self.shards[number % count].consuming = None,
            Step::Fail(number) => self.shards[number % count].failing = true,
            Step::Heal(number) => self.shards[number % count].failing = false,
            Step::Sicken(number) => self.shards[number % count].sick = true,
            Step::Change(bad) => {
                self.wanted += 1;
                if *bad {
                    self.bad.insert(self.wanted);
                }
            }
            Step::Wait => return false,
        }
        true
    }

    fn turning(&self) -> Vec<u32> {
        self.seen().into_iter().filter(|(_, shard)| shard.turning).map(|(number, _)| number).collect()
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..9).prop_map(Step::Progress),
        1 => (0usize..9).prop_map(Step::Crash),
        1 => (0usize..9).prop_map(Step::Fail),
        1 => (0usize..9).prop_map(Step::Heal),
        1 => (0usize..9).prop_map(Step::Sicken),
        2 => any::<bool>().prop_map(Step::Change),
        1 => Just(Step::Wait),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #[test]
    fn one_shard_at_a_time_is_rolled_a_stuck_one_is_named_and_it_ends_when_failures_end(
        count in 1usize..9,
        steps in steps(),
    ) {
        let mut world = World::new(count);
        for step in &steps {
            let go = world.take(step);
            let before = world.turning();
            let rollout = world.reconcile(go);
            let after = world.turning();
            prop_assert!(after.len() <= 1, "{after:?} are rolled at once");
            // A change in the middle is taken up by the shard that is being rolled.
            if let (Some(first), Some(now)) = (before.first(), after.first()) {
                prop_assert_eq!(first, now);
            }
            let looked = decide(&world.seen(), go);
            if let Some(number) = after.first() {
                let shard = &world.shards[*number as usize];
                if world.is_stuck(shard) && shard.template == world.wanted {
                    let (stalled, _) = looked.stalled.unwrap();
                    prop_assert!(stalled == *number || world.seen()[&stalled].trouble.is_some());
                }
                if go {
                    prop_assert_eq!(shard.template, world.wanted, "a correction waits for what it corrects");
                }
            }
            // A shard that nobody consumes is never kept waiting.
            prop_assert!(rollout.held.iter().all(|number| world.shards[*number as usize].consuming.is_some()));
        }
        world.wanted += 1;
        for shard in &mut world.shards {
            shard.failing = false;
        }
        for _ in 0..=count {
            world.reconcile(true);
            for number in 0..count {
                world.take(&Step::Progress(number));
            }
        }
        let rest = world.reconcile(true);
        prop_assert!(world.shards.iter().all(|shard| shard.consuming == Some(world.wanted)), "{world:?}");
        prop_assert_eq!(rest, Rollout::default());
    }
}

#[test]
fn after_a_failure_no_other_shard_is_touched_and_a_correction_goes_to_that_one_first() {
    let mut world = World::new(3);
    world.take(&Step::Change(true));
    assert_eq!(world.reconcile(true).rolling, Some(0));
    let stalled = world.reconcile(true);
    assert_eq!(stalled.stalled, Some((0, ("stuck".into(), "template 1".into()))));
    assert_eq!((stalled.held, stalled.rolling), ([1, 2].into(), Some(0)));
    world.take(&Step::Change(false));
    let corrected = world.reconcile(true);
    assert_eq!((corrected.held, corrected.rolling, corrected.stalled), ([1, 2].into(), Some(0), None));
    world.take(&Step::Progress(0));
    assert_eq!(world.reconcile(true).rolling, Some(1));
}

#[test]
fn shards_that_nobody_consumes_get_the_template_at_once() {
    let mut world = World::new(3);
    (0..3).for_each(|number| _ = world.take(&Step::Crash(number)));
    world.take(&Step::Change(false));
    assert_eq!(world.reconcile(false).held, BTreeSet::new());
}
