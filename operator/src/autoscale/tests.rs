use penstock_crds::operations::{Behavior, PolicyKind, ScalingPolicy, ScalingRules, SelectPolicy};
use proptest::prelude::*;

use super::*;

/// Between two looks.
const LOOK: i64 = 5;

fn spec(min: i32, max: i32) -> Autoscaling {
    Autoscaling { min_replicas: min, max_replicas: max, target_utilization: 70, behavior: None }
}

/// So much work, in shards, divided evenly over the shards there are. What is more than they can do is left
/// at the broker.
fn loads(work: f64, shards: u32) -> Vec<Load> {
    let each = work / f64::from(shards);
    let load = Load {
        utilisation: each.min(1.0),
        limit: if each > 0.9 { Limit::BrokerWindow } else { Limit::Nothing },
        rate: each.min(1.0) * 1000.0,
        growth: Some(1.0 - 1.0 / each.max(1.0)),
        delay: Some(0.1),
        commit: Some(0.005),
        heaviest: 0.1,
    };
    vec![load; shards as usize]
}

fn seen(work: f64, shards: u32) -> Observed {
    Observed { loads: loads(work, shards), keys: None, in_effect: true, suspended: false }
}

/// Looks for a while; what is seen follows the count at once. All counts, and the last decision.
fn run(
    spec: &Autoscaling,
    memory: &mut Memory,
    (from, until): (i64, i64),
    mut see: impl FnMut(i64, u32) -> Observed,
) -> (Vec<u32>, Option<Limited>) {
    let (mut counts, mut limited) = (vec![memory.replicas()], None);
    for now in (from..until).step_by(LOOK as usize) {
        let decision = decide(spec, memory, &see(now, memory.replicas()), now);
        (*memory, limited) = (decision.memory, decision.limited);
        if counts.last() != Some(&memory.replicas()) {
            counts.push(memory.replicas());
        }
    }
    (counts, limited)
}

fn at(replicas: u32) -> Memory {
    Memory::restored(None, replicas)
}

fn load() -> impl Strategy<Value = Load> {
    let limit = proptest::sample::select(Limit::ALL.to_vec());
    let growth = proptest::option::of(-5.0..1.0);
    (0.0..1.0, limit, 0.0..1e5, growth, proptest::option::of(0.0..1.0), 0.0..1.0).prop_map(
        |(utilisation, limit, rate, growth, commit, heaviest)| Load {
            utilisation,
            limit,
            rate,
            growth,
            delay: growth.map(|growth| growth * 100.0),
            commit,
            heaviest,
        },
    )
}

fn observed() -> impl Strategy<Value = Observed> {
    let loads = proptest::collection::vec(load(), 0..6);
    (loads, proptest::option::of(0_u32..20), proptest::bool::weighted(0.8), proptest::bool::weighted(0.1))
        .prop_map(|(loads, keys, in_effect, suspended)| Observed { loads, keys, in_effect, suspended })
}

proptest! {
    #[test]
    fn the_count_is_within_its_bounds_whatever_is_seen_and_the_same_is_decided_of_the_same(
        all in proptest::collection::vec(observed(), 1..60),
        (min, more) in (1..5_i32, 0..8_i32), start in 0_u32..20, zero in any::<bool>(),
    ) {
        let (spec, mut memory, mut now) = (spec(min, min + more), at(start), 1_000);
        for mut seen in all {
            now += 7;
            if zero {
                seen.loads.iter_mut().for_each(|load| (load.utilisation, load.rate, load.limit) = (0.0, 0.0, Limit::Nothing));
            }
            let decision = decide(&spec, &memory, &seen, now);
            prop_assert_eq!(&decide(&spec, &memory, &seen, now), &decision);
            let count = decision.memory.replicas() as i32;
            prop_assert!((min..=min + more).contains(&count), "{count}");
            memory = decision.memory;
        }
    }

    #[test]
    fn at_constant_load_it_settles_and_stays(work in 0.0..20.0_f64, start in 1_u32..30) {
        let (spec, mut memory) = (spec(1, 30), at(start));
        let (counts, _) = run(&spec, &mut memory, (0, 3600), |_, count| seen(work, count));
        // Up in a step or two, then down once for what was added to work off a queue; or down by halves.
        prop_assert!(counts.len() <= 6, "{counts:?}");
        let (later, _) = run(&spec, &mut memory, (3600, 7200), |_, count| seen(work, count));
        prop_assert_eq!(later.len(), 1, "{:?} after {:?}", later, counts);
        prop_assert!(work <= f64::from(later[0]) * 0.78, "{work} is too much for {later:?}");
        prop_assert!(later[0] == 1 || work > f64::from(later[0] - 1) * 0.62, "{work} is too little for {later:?}");
    }

    #[test]
    fn a_load_that_wavers_a_little_changes_nothing(work in 0.3..15.0_f64, seed in any::<u64>()) {
        let (spec, mut memory) = (spec(1, 30), at((work / 0.66).ceil() as u32));
        let mut noise = seed | 1;
        let mut see = |_, count| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            let share = (noise % 1000) as f64 / 1000.0 - 0.5;
            seen(work * (1.0 + share * 0.1), count)
        };
        let (counts, _) = run(&spec, &mut memory, (0, 1200), &mut see);
        prop_assert!(counts.len() <= 2, "{counts:?}");
        let (later, _) = run(&spec, &mut memory, (1200, 4800), see);
        prop_assert_eq!(later.len(), 1);
    }

    #[test]
    fn nothing_is_added_while_the_database_is_the_limit(
        work in 1.0..9.0_f64, start in 1_u32..6, utilisation in 0.0..1.0_f64,
    ) {
        let (spec, mut memory) = (spec(1, 30), at(start));
        let (counts, limited) = run(&spec, &mut memory, (0, 3600), |_, count| {
            let mut seen = seen(work, count);
            for load in &mut seen.loads {
                (load.limit, load.utilisation) = (Limit::Database, utilisation);
            }
            seen
        });
        prop_assert!(counts.len() == 1, "{counts:?}");
        prop_assert!(limited.is_none_or(|limited| limited == Limited::Database));
    }

    #[test]
    fn at_rest_more_work_never_means_fewer_shards(
        utilisations in proptest::collection::vec((0.0..0.9_f64, 0.0..0.5_f64), 1..8), count in 1_u32..8,
    ) {
        let of = |more: bool| {
            let load = |&(least, plus): &(f64, f64)| Load {
                utilisation: if more { (least + plus).min(0.9) } else { least },
                ..Load::default()
            };
            Work::of(&utilisations.iter().map(load).collect::<Vec<_>>(), None)
        };
        let seen = Observed { loads: vec![Load::default(); utilisations.len()], ..Observed::default() };
        let spec = spec(1, 30);
        prop_assert!(wanted(&spec, count, &seen, &of(false)) <= wanted(&spec, count, &seen, &of(true)));
    }

    #[test]
    fn a_step_of_load_costs_at_most_one_step_more_than_it_needs(
        before in 0.4..4.0_f64, factor in 1.0..6.0_f64, start_time in 0_i64..120, tells in any::<bool>(),
    ) {
        let (spec, mut memory) = (spec(1, 100), at((before / 0.66).ceil() as u32));
        run(&spec, &mut memory, (0, 900), |_, count| seen(before, count));
        let needs = before * factor / 0.77;
        let (mut running, mut since) = (memory.replicas(), 0);
        let (counts, _) = run(&spec, &mut memory, (900, 1800), |now, count| {
            if count != running && now - since > start_time {
                running = count;
            } else if count == running {
                since = now;
            }
            let mut seen = Observed { in_effect: running == count, ..seen(before * factor, running) };
            if !tells {
                seen.loads.iter_mut().for_each(|load| load.growth = None);
            }
            seen
        });
        let ups = counts.windows(2).filter(|pair| pair[1] > pair[0]);
        let over = ups.filter(|pair| f64::from(pair[0]) >= needs).count();
        prop_assert!(over <= 1, "{counts:?} for {needs}");
        prop_assert!(f64::from(memory.replicas()) >= (before * factor / 0.78).floor(), "{counts:?} for {needs}");
    }
}

#[test]
fn a_step_is_answered_whole_and_then_worked_off() {
    let (spec, mut memory) = (spec(1, 30), at(2));
    let (counts, _) = run(&spec, &mut memory, (0, 60), |_, count| seen(4.0, count));
    assert_eq!(counts, [2, 8], "4 times as many is the most at once");
    let (later, _) = run(&spec, &mut memory, (60, 3600), |_, count| seen(4.0, count));
    assert_eq!(later, [8, 7], "fewer after five minutes");
}

#[test]
fn a_queue_of_before_shards_were_added_is_no_reason_for_more() {
    let (spec, mut memory) = (spec(1, 30), at(2));
    run(&spec, &mut memory, (0, 60), |_, count| seen(4.0, count));
    assert_eq!(memory.replicas(), 8);
    // The first two work off what came to them; the delay of that still grows.
    let (counts, _) = run(&spec, &mut memory, (60, 150), |now, count| {
        let mut seen = seen(4.0, count);
        for load in seen.loads.iter_mut().take(2) {
            let old = loads(4.0, 2)[0].clone();
            *load = Load { delay: Some(f64::from(now as i32)), ..old };
        }
        seen
    });
    assert_eq!(counts, [8]);
}

#[test]
fn more_shards_that_bring_no_more_are_not_followed_by_more() {
    let (spec, mut memory) = (spec(1, 30), at(2));
    // The broker gives 2,000 a second, however many ask.
    let see = |_: i64, count: u32| {
        let mut seen = seen(10.0, 2);
        seen.loads.resize(count as usize, seen.loads[0].clone());
        for load in &mut seen.loads {
            load.rate = 2000.0 / f64::from(count);
        }
        seen
    };
    let (counts, limited) = run(&spec, &mut memory, (0, 3600), see);
    assert_eq!((counts.len(), limited), (2, Some(Limited::BrokerWindow)), "{counts:?}");
    // What held it is remembered over a restart.
    let mut memory = Memory::restored(Some(memory.kept), 0);
    let (counts, limited) = run(&spec, &mut memory, (3600, 7200), see);
    assert_eq!((counts.len(), limited), (1, Some(Limited::BrokerWindow)));
    // The bottleneck is gone.
    let (counts, limited) = run(&spec, &mut memory, (7200, 7260), |_, count| seen(20.0, count));
    assert!(counts.len() > 1 && limited.is_none(), "{counts:?} {limited:?}");
}

#[test]
fn a_database_that_gets_slow_is_the_limit_although_a_window_is_full_first() {
    let (spec, mut memory) = (spec(1, 30), at(2));
    run(&spec, &mut memory, (0, 600), |_, count| seen(1.0, count));
    let slow = |commit: f64| {
        move |_: i64, count: u32| {
            let mut seen = seen(6.0, count);
            seen.loads.iter_mut().for_each(|load| load.commit = Some(commit));
            seen
        }
    };
    let (counts, limited) = run(&spec, &mut memory, (600, 1200), slow(0.05));
    assert_eq!((counts, limited), (vec![2], Some(Limited::Database)));
    let (counts, _) = run(&spec, &mut memory, (1200, 1300), slow(0.006));
    assert!(counts.len() > 1, "it is as fast as ever again");
}

#[test]
fn what_keeps_the_count_low_has_a_word() {
    let limited = |spec: &Autoscaling, change: &dyn Fn(&mut Observed)| {
        let mut memory = at(2);
        run(spec, &mut memory, (0, 600), |_, count| {
            let mut seen = seen(6.0, count);
            change(&mut seen);
            seen
        })
    };
    let (counts, why) = limited(&spec(1, 4), &|_| {});
    assert_eq!((counts, why), (vec![2, 4], Some(Limited::MaxReplicas)));
    let (counts, why) = limited(&spec(1, 9), &|seen| seen.keys = Some(3));
    assert_eq!((counts, why), (vec![2, 3], Some(Limited::NotEnoughKeys)));
    let heavy = |seen: &mut Observed| seen.loads.iter_mut().for_each(|load| load.heaviest = 0.95);
    assert_eq!(limited(&spec(1, 9), &heavy), (vec![2], Some(Limited::HeavyKey)));
    let off = ScalingRules { select_policy: SelectPolicy::Disabled, ..ScalingRules::default() };
    let behavior = Some(Behavior { scale_up: Some(off), scale_down: None });
    let disabled = Autoscaling { behavior, ..spec(1, 9) };
    assert_eq!(limited(&disabled, &|_| {}), (vec![2], Some(Limited::Disabled)));
}

#[test]
fn shards_for_which_there_is_no_key_are_no_reason_to_keep_the_count() {
    let mut memory = at(6);
    let few = |_: i64, count: u32| Observed { keys: Some(2), ..seen(0.1, count.min(2)) };
    let (counts, limited) = run(&spec(1, 9), &mut memory, (0, 3600), few);
    assert_eq!((counts.last(), limited), (Some(&1), None), "{counts:?}");
}

#[test]
fn a_limit_is_told_until_it_has_been_none_for_a_while() {
    let (spec, mut memory) = (spec(1, 2), at(2));
    let waver = |now: i64, count: u32| seen(if now % 2 == 0 { 1.7 } else { 1.4 }, count);
    let mut told = Vec::new();
    for now in (0..300).step_by(5) {
        let decision = decide(&spec, &memory, &waver(now, 2), now);
        memory = decision.memory;
        told.push(decision.limited);
    }
    assert_eq!(
        told[2..],
        vec![Some(Limited::MaxReplicas); told.len() - 2],
        "a load that wavers does not flap"
    );
    let (_, limited) = run(&spec, &mut memory, (300, 370), |_, count| seen(1.4, count));
    assert_eq!(limited, None);
}

#[test]
fn few_slow_messages_and_none_are_no_reason_for_more() {
    let (spec, mut memory) = (spec(1, 80), at(1));
    let (counts, _) = run(&spec, &mut memory, (0, 3600), |_, _| Observed {
        loads: vec![Load {
            utilisation: 0.2,
            rate: 0.3,
            commit: Some(3.0),
            heaviest: 1.0,
            ..Load::default()
        }],
        in_effect: true,
        ..Observed::default()
    });
    assert_eq!(counts, [1]);
}

#[test]
fn the_count_outlasts_a_suspend_and_shards_that_start_are_waited_for() {
    let (spec, mut memory) = (spec(1, 30), at(6));
    let (counts, _) =
        run(&spec, &mut memory, (0, 3600), |_, _| Observed { suspended: true, ..Observed::default() });
    assert_eq!(counts, [6]);
    let mut memory = Memory::restored(Some(memory.kept), 1);
    // They come up with what has queued meanwhile: a load that says nothing of what comes.
    let (counts, _) = run(&spec, &mut memory, (3600, 3700), |now, count| {
        let in_effect = now > 3660;
        Observed { in_effect, ..seen(if in_effect { 3.9 } else { 9.0 }, count) }
    });
    assert_eq!(counts, [6]);
}

#[test]
fn policies_bound_a_change_as_those_of_an_hpa() {
    let rules = |select, policies: &[(PolicyKind, i32, i32)]| {
        let policy = |&(kind, value, period_seconds): &(PolicyKind, i32, i32)| ScalingPolicy {
            kind,
            value,
            period_seconds,
        };
        let rules = ScalingRules {
            stabilization_window_seconds: Some(0),
            select_policy: select,
            policies: policies.iter().map(policy).collect(),
        };
        let behavior = Behavior { scale_up: Some(rules.clone()), scale_down: Some(rules) };
        (Rules::new(Some(&behavior), Direction::Up), Rules::new(Some(&behavior), Direction::Down))
    };
    let both = [(PolicyKind::Pods, 2, 60), (PolicyKind::Percent, 100, 600)];
    let (up, down) = rules(SelectPolicy::Max, &both);
    assert_eq!((up.most(5, &at(5), 0), down.least(5, &at(5), 0)), (10, 0));
    let (up, down) = rules(SelectPolicy::Min, &both);
    assert_eq!((up.most(5, &at(5), 0), down.least(5, &at(5), 0)), (7, 3));
    let mut grown = at(3);
    grown.change(5, None, 1000);
    assert_eq!(up.most(5, &grown, 1030), 5, "two came half a minute ago");
    assert_eq!(up.most(5, &grown, 1061), 6, "three may double in ten minutes");
    assert_eq!(down.least(5, &grown, 1030), 3, "it was the other direction");
    assert_eq!(Rules::new(None, Direction::Up).most(1, &at(1), 0), 5);
    assert_eq!(Rules::new(None, Direction::Down).least(5, &at(5), 0), 2);
}
