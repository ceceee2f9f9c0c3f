use proptest::prelude::*;

use super::*;

fn name(device: &str) -> Name {
    Name { group: "plant".into(), node: "line".into(), device: device.into() }
}

/// Metrics that call alias 1 by this name.
fn called(name: &str) -> Metrics {
    Metrics::new(vec![Metric { alias: Some(1), name: name.into(), datatype: 9 }])
}

fn birth(node: &mut Node, device: &str, at: Micros, metrics: &str) -> bool {
    node.birth(&name(device), at, Some(7), called(metrics), &mut Vec::new())
}

fn alias_1(node: &Node, device: &str, at: Micros) -> Option<String> {
    Some(node.names_at(device, Some(at))?.alias(1)?.name.to_string())
}

#[test]
fn data_is_read_by_the_names_of_its_own_time() {
    let mut node = Node::default();
    assert_eq!(alias_1(&node, "", 10), None);
    for (at, metrics) in [(10, "a"), (30, "c"), (20, "b")] {
        birth(&mut node, "", at, metrics);
    }
    for (at, expected) in [(10, "a"), (19, "a"), (20, "b"), (29, "b"), (30, "c"), (99, "c")] {
        assert_eq!(alias_1(&node, "", at).as_deref(), Some(expected), "at {at}");
    }
    // Sent before the first birth that is known: a dead letter that is replayed.
    assert_eq!(alias_1(&node, "", 5).as_deref(), Some("a"));
    assert_eq!(node.names_at("", None).unwrap().alias(1).unwrap().name, "c".into());
}

#[test]
fn a_birth_that_comes_again_or_says_the_same_changes_no_names() {
    let mut node = Node::default();
    let mut changes = Vec::new();
    let mut born = |node: &mut Node, at, metrics| {
        changes.clear();
        let asks = node.birth(&name(""), at, Some(7), called(metrics), &mut changes);
        let names = changes.iter().filter(|change| matches!(change, Change::Names { .. })).count();
        (names, changes.len() - names, asks)
    };
    assert_eq!(born(&mut node, 10, "a"), (1, 1, false));
    assert_eq!(born(&mut node, 10, "a"), (0, 0, false));
    assert_eq!(born(&mut node, 20, "a"), (0, 1, false));
    assert_eq!(born(&mut node, 30, "b"), (1, 1, false));
    // Older, with other names: it comes again, or the clock was set back.
    assert_eq!(born(&mut node, 20, "a"), (0, 0, true));
    assert_eq!(born(&mut node, 30, "b"), (0, 0, false));
    assert_eq!(alias_1(&node, "", 40).as_deref(), Some("b"));
}

#[test]
fn two_births_at_one_time_hold_one_after_the_other() {
    let mut node = Node::default();
    for metrics in ["a", "b", "b", "a"] {
        birth(&mut node, "", 10, metrics);
    }
    assert_eq!(alias_1(&node, "", 10).as_deref(), Some("a"));
    assert_eq!(alias_1(&node, "", 11).as_deref(), Some("b"));
}

#[test]
fn after_a_death_nothing_is_known_until_the_next_birth_which_then_holds_from_the_death_on() {
    let mut node = Node::default();
    birth(&mut node, "", 10, "a");
    birth(&mut node, "pump", 11, "p");
    let mut changes = Vec::new();
    assert_eq!(node.node_death(&name(""), 50, Some(6), &mut changes), None, "of an older connection");
    assert!(changes.is_empty());
    assert_eq!(node.node_death(&name(""), 50, Some(7), &mut changes), Some(Some(10)));
    assert_eq!(changes.len(), 2, "the node and its device: {changes:?}");
    for device in ["", "pump"] {
        assert_eq!(alias_1(&node, device, 60), None);
        assert!(alias_1(&node, device, 49).is_some());
    }
    birth(&mut node, "", 80, "b");
    assert_eq!(alias_1(&node, "", 60).as_deref(), Some("b"));
    assert_eq!(alias_1(&node, "", 49).as_deref(), Some("a"));
    assert_eq!(alias_1(&node, "pump", 90), None);
    birth(&mut node, "pump", 81, "p");
    assert_eq!(alias_1(&node, "pump", 90).as_deref(), Some("p"));
    // The same will again, after the birth of the next connection.
    changes.clear();
    node.birth(&name(""), 100, Some(8), called("b"), &mut changes);
    assert_eq!(node.node_death(&name(""), 101, Some(7), &mut changes), None);
}

#[test]
fn a_birth_of_the_node_ends_those_of_its_devices_before_it() {
    let mut node = Node::default();
    birth(&mut node, "", 10, "a");
    birth(&mut node, "pump", 11, "p");
    birth(&mut node, "fan", 30, "f");
    birth(&mut node, "", 20, "a");
    assert_eq!(alias_1(&node, "pump", 25), None);
    assert_eq!(alias_1(&node, "fan", 31).as_deref(), Some("f"));
    // A device whose birth was made right before the node's.
    birth(&mut node, "pump", 19, "q");
    assert_eq!(alias_1(&node, "pump", 25).as_deref(), Some("q"));
}

#[test]
fn a_devices_death_is_its_own() {
    let mut node = Node::default();
    birth(&mut node, "", 10, "a");
    birth(&mut node, "pump", 11, "p");
    let mut changes = Vec::new();
    assert!(!node.device_death(&name("pump"), 9, &mut changes), "from before its birth");
    assert!(node.device_death(&name("pump"), 40, &mut changes));
    assert!(node.device_death(&name("pump"), 40, &mut changes));
    assert!(node.device_death(&name("unknown"), 40, &mut changes));
    assert_eq!(changes.len(), 1);
    assert_eq!(alias_1(&node, "pump", 40), None);
    assert!(alias_1(&node, "", 40).is_some());
}

#[test]
fn missing_sequence_numbers_are_gaps_and_redeliveries_are_not() {
    let mut node = Node::default();
    use Sequence::{First, Gap, Unbroken};
    for (seq, at, birth, expected) in [
        (3, 90, false, First),
        (4, 91, false, Unbroken),
        (0, 100, true, Unbroken),
        (1, 101, false, Unbroken),
        (2, 101, false, Unbroken),
        (3, 103, false, Unbroken),
        // From here on again, after a reconnect.
        (1, 101, false, Unbroken),
        (2, 101, false, Unbroken),
        (3, 103, false, Unbroken),
        (4, 104, false, Unbroken),
        (6, 106, false, Gap),
        (7, 107, false, Unbroken),
        // Many are missing: the number is lower.
        (5, 400, false, Gap),
        (6, 401, false, Unbroken),
        // Born again, and once more an old one.
        (0, 500, true, Unbroken),
        (0, 100, true, Unbroken),
        (1, 501, false, Unbroken),
    ] {
        assert_eq!(node.follow(Some(seq), Some(at), birth), expected, "seq {seq} at {at}");
    }
    for seq in 2..600 {
        assert_eq!(node.follow(Some(seq % 256), Some(500 + seq as i64), false), Unbroken, "seq {seq}");
    }
    assert_eq!(node.follow(None, Some(2000), false), Unbroken);
}

#[test]
fn a_node_is_asked_at_most_once_a_minute() {
    let mut node = Node::default();
    let asked: Vec<bool> = [0, 1, 59_999_999, 60_000_000, 60_000_001, -5].map(|now| node.ask(now)).to_vec();
    assert_eq!(asked, [true, false, false, true, false, true]);
}

#[test]
fn an_older_birth_that_comes_late_does_not_outlast_the_last_one() {
    let mut node = Node::default();
    for (at, metrics) in [(10, "a"), (30, "a"), (20, "b")] {
        birth(&mut node, "", at, metrics);
    }
    for (at, expected) in [(10, "a"), (20, "b"), (29, "b"), (30, "a"), (99, "a")] {
        assert_eq!(alias_1(&node, "", at).as_deref(), Some(expected), "at {at}");
    }
}

proptest! {
    #[test]
    fn the_last_births_names_hold_in_whatever_order_births_come(
        births in prop::collection::btree_map(0i64..1000, "[a-c]", 1..12).prop_flat_map(|births| {
            Just(births.into_iter().collect::<Vec<_>>()).prop_shuffle()
        }),
    ) {
        let mut node = Node::default();
        for (at, metrics) in &births {
            birth(&mut node, "", *at, metrics);
        }
        let (at, metrics) = births.iter().max().unwrap();
        prop_assert_eq!(alias_1(&node, "", *at), Some(metrics.clone()));
        prop_assert_eq!(alias_1(&node, "", 5000), Some(metrics.clone()));
    }

    /// What the database gives is in the order of time; some of it may be known already.
    #[test]
    fn what_is_stored_means_the_same_as_what_was_received(
        births in prop::collection::vec((0i64..20, "[a-c]"), 1..12),
        known in any::<prop::sample::Index>(),
    ) {
        let mut live = Births::default();
        let mut changes = Vec::new();
        for (at, metrics) in &births {
            live.node("plant", "line").birth(&name(""), *at * 10, None, called(metrics), &mut changes);
        }
        let mut loaded = Births::default();
        for change in &changes[..known.index(changes.len())] {
            loaded.learn(change.clone());
        }
        changes.sort_by_key(|change| match change {
            Change::Names { since, .. } => *since,
            Change::State { state, .. } => 1000 - state.born_at,
        });
        for change in changes {
            loaded.learn(change);
        }
        for at in 0..220 {
            let [live, loaded] = [&mut live, &mut loaded].map(|births| alias_1(births.node("plant", "line"), "", at));
            prop_assert_eq!(live, loaded, "at {}", at);
        }
        prop_assert!(live.node("plant", "line").of("").state == loaded.node("plant", "line").of("").state);
    }
}
