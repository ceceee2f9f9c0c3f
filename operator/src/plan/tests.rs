mod hostile;

use proptest::prelude::*;

use super::*;

fn keys(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn wish(names: &[&str], replicas: u32) -> Wish {
    Wish::new(keys(names), false, replicas, false)
}

/// Workers that follow what they are told, each when it is asked to.
#[derive(Debug, Clone, Default)]
struct World {
    plan: Plan,
    seen: BTreeMap<u32, Seen>,
    wish: Option<Wish>,
}

impl World {
    fn reconcile(&mut self) {
        let Some(wish) = &self.wish else { return };
        let next = self.plan.step(wish, &self.seen);
        assert!(next.generation >= self.plan.generation);
        assert!(next.keys == self.plan.keys || next.generation > self.plan.generation);
        self.plan = next;
        // As apply does: the Job of a shard that is not in the plan goes.
        let shards = &self.plan.shards;
        for (shard, seen) in &mut self.seen {
            if !shards.contains(shard) {
                *seen = Seen { generation: seen.generation, ..Seen::default() };
            }
        }
    }

    /// One shard does what its objects tell it.
    fn act(&mut self, shard: u32) {
        let Some(wish) = self.wish.clone() else { return };
        if !self.plan.shards.contains(&shard) {
            return;
        }
        let (role, keys) = (self.plan.role(&wish, shard), self.plan.keys_of(shard));
        let seen = self.seen.entry(shard).or_default();
        match role {
            Role::Active if seen.retiring => seen.retired = true,
            Role::Active => {
                seen.serves = keys.into_iter().collect();
                seen.generation = self.plan.generation;
            }
            Role::Parked => seen.serves.clear(),
            Role::Leaving => {
                seen.serves.clear();
                seen.retired = seen.retiring;
                seen.retiring = true;
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..40 {
            self.reconcile();
            (0..8).for_each(|shard| self.act(shard));
        }
    }

    /// Every key that was consumed is consumed still, by a shard that is not about to stop.
    fn served(&self) -> BTreeSet<String> {
        let serves = |key: &String, place: &Place| {
            let has = |shard: u32| self.seen.get(&shard).is_some_and(|seen| seen.serves.contains(key));
            has(place.owner) || place.successor.is_some_and(has)
        };
        self.plan.keys.iter().filter(|(key, place)| serves(key, place)).map(|(key, _)| key.clone()).collect()
    }
}

#[derive(Debug, Clone)]
enum Event {
    Wish(Vec<u8>, u32, bool),
    Act(u32),
    Crash(u32),
    Reconcile,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (proptest::collection::vec(0_u8..8, 1..8), 1_u32..8, proptest::bool::weighted(0.1))
            .prop_map(|(keys, replicas, parked)| Event::Wish(keys, replicas, parked)),
        4 => (0_u32..8).prop_map(Event::Act),
        1 => (0_u32..8).prop_map(Event::Crash),
        4 => Just(Event::Reconcile),
    ]
}

proptest! {
    #[test]
    fn no_key_that_is_wanted_loses_its_owner_before_its_successor_serves_it_and_all_moves_end(
        events in proptest::collection::vec(event(), 1..120),
    ) {
        let mut world = World::default();
        for event in events {
            match event {
                Event::Wish(keys, replicas, parked) => {
                    let keys = keys.iter().map(|key| format!("k{key}")).collect();
                    world.wish = Some(Wish::new(keys, false, replicas, parked));
                }
                Event::Act(shard) => world.act(shard),
                Event::Crash(shard) => {
                    if let Some(seen) = world.seen.get_mut(&shard) {
                        seen.serves.clear();
                    }
                }
                Event::Reconcile => {
                    let (before, owners) = (world.served(), world.plan.keys.clone());
                    world.reconcile();
                    // What a reconcile wrote makes no worker drop a key that only it consumes.
                    for key in before.iter().filter(|key| world.plan.keys.contains_key(*key)) {
                        prop_assert!(world.served().contains(key), "{key} of {owners:?} is dropped by {:?}", world.plan);
                    }
                    for place in world.plan.keys.values() {
                        prop_assert!(world.plan.shards.contains(&place.owner));
                    }
                }
            }
        }
        if let Some(wish) = &mut world.wish {
            wish.parked = false;
        }
        world.settle();
        if let Some(wish) = world.wish.clone() {
            prop_assert!(!world.plan.is_moving());
            prop_assert_eq!(&world.plan.shards, &(0..wish.shards).collect::<BTreeSet<_>>());
            prop_assert_eq!(world.served(), wish.keys.clone());
            let sizes: Vec<usize> = (0..wish.shards).map(|shard| world.plan.keys_of(shard).len()).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
            let fixed = world.plan.clone();
            world.settle();
            prop_assert_eq!(&world.plan, &fixed, "at the fixed point nothing changes");
            world.wish = Some(Wish { ending: true, ..wish });
            world.settle();
            prop_assert!(world.plan.shards.is_empty() && world.plan.keys.is_empty());
        }
    }

    #[test]
    fn a_plan_that_was_lost_is_rebuilt_with_every_owner(
        names in proptest::collection::btree_set("[a-d]{1,2}", 1..10), from in 1_u32..6, to in 1_u32..6,
    ) {
        let mut world = World { wish: Some(Wish::new(names.clone(), false, from, false)), ..World::default() };
        world.settle();
        world.wish = Some(Wish::new(names, false, to, false));
        world.reconcile();
        let told = world.plan.shards.iter().map(|shard| (*shard, (world.plan.generation, world.plan.keys_of(*shard))));
        let rebuilt = Plan::rebuilt(&told.collect());
        prop_assert_eq!(&rebuilt.shards, &world.plan.shards);
        for shard in &rebuilt.shards {
            prop_assert_eq!(rebuilt.keys_of(*shard), world.plan.keys_of(*shard));
        }
    }
}

#[test]
fn a_shard_without_keys_that_comes_again_has_a_newer_plan_than_the_one_that_ended_it() {
    let shared = |replicas| Wish::new(BTreeSet::new(), true, replicas, false);
    let two = Plan::default().step(&shared(2), &BTreeMap::new());
    assert_eq!((two.generation, &two.shards), (1, &[0, 1].into()));
    let leaving = two.step(&shared(1), &BTreeMap::new());
    assert_eq!((&leaving, leaving.role(&shared(1), 1)), (&two, Role::Leaving));
    let ended = [(1, Seen { retiring: true, retired: true, ..Seen::default() })].into();
    let one = leaving.step(&shared(1), &ended);
    assert_eq!(one.shards, [0].into());
    let again = one.step(&shared(2), &BTreeMap::new());
    assert!(again.shards.contains(&1) && again.generation > leaving.generation, "{again:?}");
    assert_eq!(again.step(&shared(2), &BTreeMap::new()), again, "at the fixed point nothing changes");
}

#[test]
fn a_key_moves_by_make_before_break() {
    let mut seen = BTreeMap::new();
    let first = Plan::default().step(&wish(&["a", "b"], 1), &seen);
    assert_eq!((first.generation, first.keys_of(0)), (1, vec!["a".to_owned(), "b".to_owned()]));
    let moving = first.step(&wish(&["a", "b"], 2), &seen);
    assert_eq!((moving.keys_of(0).len(), moving.keys_of(1).len()), (2, 1));
    assert_eq!(moving.step(&wish(&["a", "b"], 2), &seen), moving, "it waits for the successor");
    seen.insert(1, Seen { serves: keys(&["b"]), generation: 2, ..Seen::default() });
    let moved = moving.step(&wish(&["a", "b"], 2), &seen);
    assert_eq!(
        (moved.generation, moved.keys_of(0), moved.keys_of(1)),
        (3, vec!["a".into()], vec!["b".into()])
    );
}

#[test]
fn at_rest_keys_move_only_where_that_is_worth_it_and_only_when_they_may() {
    let served = |plan: &Plan| -> BTreeMap<u32, Seen> {
        let seen = |shard: u32| Seen { serves: plan.keys_of(shard).into_iter().collect(), ..Seen::default() };
        (0..2).map(|shard| (shard, seen(shard))).collect()
    };
    let rates = |rates: [f64; 4]| ["a", "b", "c", "d"].map(str::to_owned).into_iter().zip(rates).collect();
    let mut wish = wish(&["a", "b", "c", "d"], 2);
    let plan = Plan::default().step(&wish, &BTreeMap::new());
    let first = plan.keys_of(0);
    assert_eq!(first.len(), 2);
    // The first shard has the heavy ones.
    let heavy = |key: &str, most: f64| if first.contains(&key.to_owned()) { most } else { 10.0 };
    wish.rates = rates(["a", "b", "c", "d"].map(|key| heavy(key, 11.0)));
    assert_eq!(plan.step(&wish, &served(&plan)), plan, "a little is not worth a move");
    wish.rates = rates(["a", "b", "c", "d"].map(|key| heavy(key, 40.0)));
    wish.level = false;
    let noted = plan.step(&wish, &served(&plan));
    assert_eq!(noted.keys, plan.keys, "it moved not long ago");
    assert_eq!(noted.rates[&first[0]], 2400);
    wish.level = true;
    let moving = plan.step(&wish, &served(&plan));
    assert_eq!(moving.keys.values().filter(|place| place.successor.is_some()).count(), 2, "{moving:?}");
    wish.level = false;
    let served_by_both = [0, 1].map(|shard| (shard, moving.keys_of(shard)));
    let seen = served_by_both
        .map(|(shard, keys)| (shard, Seen { serves: keys.into_iter().collect(), ..Seen::default() }));
    let moved = moving.step(&wish, &seen.into());
    assert!(!moved.is_moving() && moved.keys_of(0).len() == 2, "what was begun ends: {moved:?}");
    wish.level = true;
    assert_eq!(moved.step(&wish, &served(&moved)), moved, "it is final");
}

#[test]
fn a_move_to_a_shard_that_is_no_longer_wanted_is_taken_back() {
    let seen = BTreeMap::new();
    let moving = Plan::default().step(&wish(&["a", "b"], 1), &seen).step(&wish(&["a", "b"], 2), &seen);
    assert_eq!(moving.step(&wish(&["a", "b"], 1), &seen), moving, "nobody is seen to have the key");
    let seen = [(0, Seen { serves: keys(&["a", "b"]), ..Seen::default() })].into();
    let back = moving.step(&wish(&["a", "b"], 1), &seen);
    assert_eq!((back.keys_of(0).len(), back.keys_of(1).len(), back.is_moving()), (2, 0, false));
    assert_eq!(back.role(&wish(&["a", "b"], 1), 1), Role::Leaving);
}

#[test]
fn a_shard_that_is_wanted_again_while_it_is_retired_starts_after_that() {
    let plan =
        Plan { shards: [0, 1].into(), ..Plan::default().step(&wish(&["a", "b"], 1), &BTreeMap::new()) };
    let retiring = [(1, Seen { retiring: true, ..Seen::default() })].into();
    let waits = plan.step(&wish(&["a", "b"], 2), &retiring);
    assert_eq!(waits.keys_of(1), Vec::<String>::new());
    let retired = [(1, Seen { retiring: true, retired: true, ..Seen::default() })].into();
    let gone = waits.step(&wish(&["a", "b"], 2), &retired);
    assert_eq!(gone.shards, [0].into());
    assert!(gone.step(&wish(&["a", "b"], 2), &BTreeMap::new()).shards.contains(&1));
}

#[test]
fn a_parked_pipeline_keeps_its_plan_and_a_generation_exceeds_all_that_were_followed() {
    let plan = Plan::default().step(&wish(&["a", "b"], 2), &BTreeMap::new());
    let parked = Wish::new(keys(&["a", "c"]), false, 0, false);
    assert_eq!(plan.step(&parked, &BTreeMap::new()), plan);
    assert_eq!(plan.role(&parked, 1), Role::Parked);
    let ahead = [(0, Seen { generation: 41, ..Seen::default() })].into();
    assert_eq!(plan.step(&wish(&["a", "b"], 2), &ahead).generation, 42);
}

#[test]
fn no_more_shards_run_than_there_are_keys_but_for_shared_subscriptions() {
    assert_eq!(wish(&["a", "b"], 5).shards, 2);
    assert_eq!(Wish::new(BTreeSet::new(), true, 5, false).shards, 5);
}
