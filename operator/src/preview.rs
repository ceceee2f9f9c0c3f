//! What a spec would do to a pipeline's keys and shards, before it does. Pure: the planner itself, with
//! shards that do at once what they are asked to.

use std::collections::BTreeMap;
use std::fmt;

use penstock_crds::{IngestPipeline, validate};
use serde::{Deserialize, Serialize};

use crate::pipeline::wish;
use crate::plan::{Plan, Role, Seen, Wish};
use crate::resolve::Unresolved;
use crate::table::table;

/// More steps than any plan takes: a move in hand, the moves, the retiring, and one to see that it is done.
const MOST_STEPS: usize = 32;

/// What would change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// Keys that would change their shard.
    pub moves: Vec<Move>,
    /// Keys that would stay where they are.
    pub stay: usize,
    /// Shards that would start.
    pub start: Vec<u32>,
    /// Shards that would be drained, and their sessions ended.
    pub end: Vec<u32>,
    /// Keys that each shard would have.
    pub keys: BTreeMap<u32, usize>,
    /// Nothing would run, and so nothing moves.
    pub suspended: bool,
}

/// A key that would change its shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// A filter, or a tenant.
    pub key: String,
    /// The shard that has it; none has a new key.
    pub from: Option<u32>,
    /// The shard that would get it; none does if the spec no longer names it.
    pub to: Option<u32>,
}

impl Preview {
    /// Of a pipeline; with so many shards instead of its own number, as if it were scaled by hand.
    pub fn of(
        mut pipeline: IngestPipeline,
        replicas: Option<i32>,
        stored: &Plan,
    ) -> Result<Self, Unresolved> {
        if let Some(replicas) = replicas {
            pipeline.spec.replicas = replicas;
            pipeline.spec.autoscaling = None;
        }
        let scaled = pipeline.status.as_ref().and_then(|status| status.autoscaling.as_ref());
        let scaled = scaled.filter(|_| pipeline.spec.autoscaling.is_some()).map(|scaled| scaled.replicas);
        let wrong = validate::pipeline(&pipeline.spec);
        if wrong.is_empty() {
            // At rest keys are made level now and then, which no change of the spec brings about.
            let wish = Wish { level: false, ..wish(&pipeline, scaled.unwrap_or(pipeline.spec.replicas)) };
            Ok(Self::new(stored, &wish))
        } else {
            Err(Unresolved::Invalid(wrong))
        }
    }

    /// From the stored plan to what the wish comes to.
    fn new(stored: &Plan, wish: &Wish) -> Self {
        let last = settled(stored, wish);
        let owner = |plan: &Plan, key: &String| plan.keys.get(key).map(|place| place.owner);
        let all = stored.keys.keys().chain(last.keys.keys().filter(|key| !stored.keys.contains_key(*key)));
        let places =
            all.map(|key| Move { key: key.clone(), from: owner(stored, key), to: owner(&last, key) });
        let (mut moves, stay): (Vec<Move>, Vec<Move>) = places.partition(|place| place.from != place.to);
        moves.sort_by(|a, b| a.key.cmp(&b.key));
        Self {
            moves,
            stay: stay.len(),
            start: last.shards.difference(&stored.shards).copied().collect(),
            end: stored.shards.difference(&last.shards).copied().collect(),
            keys: last.shards.iter().map(|shard| (*shard, last.keys_of(*shard).len())).collect(),
            suspended: wish.parked,
        }
    }
}

/// The plan that a wish comes to.
fn settled(stored: &Plan, wish: &Wish) -> Plan {
    let mut plan = stored.clone();
    for _ in 0..MOST_STEPS {
        let next = plan.step(wish, &obedient(&plan, wish));
        if next == plan {
            break;
        }
        plan = next;
    }
    plan
}

/// What is seen of shards that do at once what they are asked to.
fn obedient(plan: &Plan, wish: &Wish) -> BTreeMap<u32, Seen> {
    let seen = |shard: &u32| {
        let leaves = plan.role(wish, *shard) == Role::Leaving;
        let serves = plan.keys_of(*shard).into_iter().collect();
        (*shard, Seen { serves, generation: plan.generation, retiring: leaves, retired: leaves })
    };
    plan.shards.iter().map(seen).collect()
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.suspended {
            return f.write_str("Nothing moves while the pipeline is suspended, or has 0 replicas.");
        }
        if !self.moves.is_empty() {
            let shard = |shard: Option<u32>| shard.map_or_else(|| "-".to_owned(), |shard| shard.to_string());
            let rows = self.moves.iter().map(|one| vec![one.key.clone(), shard(one.from), shard(one.to)]);
            writeln!(f, "{}", table(&["KEY", "FROM", "TO"], rows))?;
        }
        writeln!(f, "{} of {} keys move.", self.moves.len(), self.moves.len() + self.stay)?;
        for (shards, what) in [(&self.start, "start"), (&self.end, "are drained and end their sessions")] {
            if !shards.is_empty() {
                let numbers: Vec<String> = shards.iter().map(u32::to_string).collect();
                writeln!(f, "Shards that {what}: {}.", numbers.join(", "))?;
            }
        }
        let counts = self.keys.iter().map(|(shard, keys)| format!("{shard}: {keys}"));
        write!(f, "Keys of each shard then: {}.", counts.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn keys(count: usize) -> BTreeSet<String> {
        (0..count).map(|key| format!("k{key}")).collect()
    }

    fn asked(keys: BTreeSet<String>, replicas: u32) -> Wish {
        Wish::new(keys, false, replicas, false)
    }

    /// A plan at rest.
    fn at_rest(count: usize, replicas: u32) -> Plan {
        settled(&Plan::default(), &asked(keys(count), replicas))
    }

    #[test]
    fn a_preview_tells_what_moves_what_starts_and_what_ends() {
        let stored = at_rest(6, 2);
        let more = Preview::new(&stored, &asked(keys(6), 3));
        assert_eq!((more.moves.len(), more.stay), (2, 4));
        assert!(more.moves.iter().all(|one| one.from.is_some() && one.to == Some(2)));
        assert_eq!((more.start, more.end), (vec![2], vec![]));
        let fewer = Preview::new(&stored, &asked(keys(6), 1));
        assert_eq!((fewer.moves.len(), &*fewer.start, &*fewer.end), (3, &[][..], &[1][..]));
        assert_eq!(fewer.keys, BTreeMap::from([(0, 6)]));
        let same = Preview::new(&stored, &asked(keys(6), 2));
        assert_eq!((same.moves.len(), same.stay), (0, 6));
    }

    #[test]
    fn a_key_that_comes_or_goes_has_no_shard_before_or_after() {
        let other = ["k0", "k1", "new"].map(str::to_owned).into();
        let preview = Preview::new(&at_rest(3, 1), &asked(other, 1));
        let expected = [("k2", Some(0), None), ("new", None, Some(0))].map(|(key, from, to)| Move {
            key: key.to_owned(),
            from,
            to,
        });
        assert_eq!(preview.moves, expected);
    }

    #[test]
    fn a_suspended_pipeline_moves_nothing_and_says_so() {
        let preview = Preview::new(&at_rest(6, 2), &Wish::new(keys(6), false, 4, true));
        assert!(preview.moves.is_empty() && preview.start.is_empty() && preview.end.is_empty());
        assert!(preview.to_string().contains("suspended"));
    }

    #[test]
    fn a_person_reads_a_table_and_what_becomes_of_shards() {
        let preview = Preview::new(&at_rest(2, 1), &asked(keys(2), 2));
        let expected = "KEY  FROM  TO\nk1   0     1\n\n1 of 2 keys move.\nShards that start: 1.\nKeys of each shard then: 0: 1, 1: 1.";
        assert_eq!(preview.to_string(), expected);
    }

    proptest! {
        #[test]
        fn a_preview_comes_to_rest_also_from_the_middle_of_a_move(
            count in 0_usize..30, first in 0_u32..9, second in 0_u32..9, then in 0_u32..9,
        ) {
            // One step on the way from the first to the second.
            let stored = at_rest(count, first);
            let middle = stored.step(&asked(keys(count), second), &obedient(&stored, &asked(keys(count), first)));
            let last_wish = asked(keys(count), then);
            let last = settled(&middle, &last_wish);
            prop_assert_eq!(last.step(&last_wish, &obedient(&last, &last_wish)), last.clone());
            let preview = Preview::new(&middle, &last_wish);
            prop_assert!(preview.suspended || !last.is_moving());
            prop_assert!(preview.suspended || last.shards.len() == count.min(then as usize));
        }
    }
}
