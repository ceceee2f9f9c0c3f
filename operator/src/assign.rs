//! Which shard should own which key. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A message a minute weighs so much. Weights are whole numbers: sums of fractions depend on their order, and
/// shards of the same load would not be the same the next time.
const MESSAGE: u64 = 100;
/// Keys without messages count as this share of the mean, in messages of a hundred: they are spread too, for
/// the day they have some.
const QUIET: u64 = 5;

/// What each key counts: its messages a minute. Of a key whose rate is not known, as much as the mean of the
/// others; all the same if none is known.
pub fn weights<'a>(
    keys: impl Iterator<Item = &'a String>,
    rates: &BTreeMap<String, u32>,
) -> BTreeMap<String, u64> {
    let keys: Vec<&String> = keys.collect();
    let rate = |key: &String| rates.get(key).map(|rate| MESSAGE * u64::from(*rate));
    let known: Vec<u64> = keys.iter().filter_map(|key| rate(key)).collect();
    let mean = known.iter().sum::<u64>() / known.len().max(1) as u64;
    let mean = if mean > 0 { mean } else { MESSAGE };
    let weight = |key: &String| rate(key).unwrap_or(mean) + (mean * QUIET).div_ceil(100);
    keys.into_iter().map(|key| (key.clone(), weight(key))).collect()
}

/// Divides the keys over the shards such that the shards' weights are as equal as the keys allow, by few
/// moves: with equal weights each shard gets ⌊K/N⌋ or ⌈K/N⌉ keys, by the fewest. `owners` holds each key with
/// its present owner; owners that are not among the shards give up all that they have.
pub fn assign(
    owners: &BTreeMap<String, Option<u32>>,
    weights: &BTreeMap<String, u64>,
    shards: &[u32],
) -> BTreeMap<String, u32> {
    if shards.is_empty() {
        return BTreeMap::new();
    }
    let weight = |key: &String| weights.get(key).copied().unwrap_or(MESSAGE);
    let mut division = Division { shards: shards.iter().map(|shard| (*shard, Vec::new())).collect() };
    let mut homeless = Vec::new();
    for (key, owner) in owners {
        let has = owner.and_then(|owner| division.shards.iter().position(|(shard, _)| *shard == owner));
        match has {
            Some(place) => division.shards[place].1.push((weight(key), key)),
            None => homeless.push((weight(key), key)),
        }
    }
    // The heaviest first: the light ones fill what is left.
    homeless.sort_by_key(|(weight, key)| (Reverse(*weight), *key));
    for key in homeless {
        let lightest = division.by_load().first().map_or(0, |(_, place)| *place);
        division.shards[lightest].1.push(key);
    }
    // Each change makes the heavier of two shards lighter, so there is an end.
    while division.improve() {}
    let Division { shards } = division;
    let owned =
        shards.into_iter().flat_map(|(shard, keys)| keys.into_iter().map(move |(_, key)| (key, shard)));
    owned.map(|(key, shard)| (key.clone(), shard)).collect()
}

/// How far the shards' weights are apart, as a share of the heaviest.
pub fn apart(owners: &BTreeMap<String, u32>, weights: &BTreeMap<String, u64>, shards: &[u32]) -> f64 {
    let load = |shard: &u32| {
        let own = owners.iter().filter(|(_, owner)| *owner == shard);
        own.map(|(key, _)| weights.get(key).copied().unwrap_or(MESSAGE)).sum::<u64>()
    };
    let loads: Vec<u64> = shards.iter().map(load).collect();
    let most = loads.iter().copied().max().unwrap_or_default();
    (most - loads.iter().copied().min().unwrap_or_default()) as f64 / most.max(1) as f64
}

/// Shards with their keys and what these weigh.
struct Division<'a> {
    shards: Vec<(u32, Vec<(u64, &'a String)>)>,
}

impl Division<'_> {
    /// Loads and places of the shards, the lightest first.
    fn by_load(&self) -> Vec<(u64, usize)> {
        let load = |keys: &[(u64, &String)]| keys.iter().map(|(weight, _)| weight).sum();
        let mut all: Vec<(u64, usize)> =
            self.shards.iter().enumerate().map(|(place, (_, keys))| (load(keys), place)).collect();
        all.sort_unstable();
        all
    }

    /// Moves a key from a heavy shard to the lightest one, or exchanges two, so that the heavier of them gets
    /// lighter by as much as one move can do.
    fn improve(&mut self) -> bool {
        let loads = self.by_load();
        let Some(&(least, light)) = loads.first() else { return false };
        for &(most, heavy) in loads.iter().skip(1).rev() {
            let gap = most - least;
            if let Some(index) = self.best_move(heavy, gap) {
                let key = self.shards[heavy].1.remove(index);
                self.shards[light].1.push(key);
                return true;
            }
            if let Some((index, other)) = self.best_exchange(heavy, light, gap) {
                let (key, back) = (self.shards[heavy].1[index], self.shards[light].1[other]);
                self.shards[heavy].1[index] = back;
                self.shards[light].1[other] = key;
                return true;
            }
        }
        false
    }

    /// The key whose move leaves the two as equal as can be: the last of several.
    fn best_move(&self, heavy: usize, gap: u64) -> Option<usize> {
        let left = |weight: u64| gap.abs_diff(2 * weight);
        let keys = self.shards[heavy].1.iter().enumerate().filter(|(_, (weight, _))| left(*weight) < gap);
        keys.min_by_key(|(_, (weight, key))| (left(*weight), Reverse(*key))).map(|(index, _)| index)
    }

    /// Two keys whose exchange does. Only where it is worth two moves.
    fn best_exchange(&self, heavy: usize, light: usize, gap: u64) -> Option<(usize, usize)> {
        let (ours, theirs) = (&self.shards[heavy].1, &self.shards[light].1);
        let pairs = ours.iter().enumerate().flat_map(|(index, (weight, _))| {
            let lighter = theirs.iter().enumerate().filter(move |(_, (back, _))| back < weight);
            lighter.map(move |(other, (back, _))| ((index, other), gap.abs_diff(2 * (weight - back))))
        });
        let helps = pairs.filter(|(_, left)| left * WORTH < gap);
        helps.min_by_key(|(_, left)| *left).map(|(places, _)| places)
    }
}

/// An exchange leaves less than one part of so many of a difference.
const WORTH: u64 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loads(owners: &BTreeMap<String, u32>, weights: &BTreeMap<String, u64>, shards: &[u32]) -> Vec<u64> {
        let of = |shard: &u32| {
            owners.iter().filter(|(_, owner)| *owner == shard).map(|(key, _)| weights[key]).sum()
        };
        shards.iter().map(of).collect()
    }

    fn sizes(owners: &BTreeMap<String, u32>, shards: &[u32]) -> Vec<usize> {
        shards.iter().map(|shard| owners.values().filter(|owner| *owner == shard).count()).collect()
    }

    fn owned(assigned: &BTreeMap<String, u32>) -> BTreeMap<String, Option<u32>> {
        assigned.iter().map(|(key, owner)| (key.clone(), Some(*owner))).collect()
    }

    proptest! {
        #[test]
        fn every_key_has_an_owner_all_have_as_many_and_no_more_move_than_must(
            owners in proptest::collection::btree_map("[a-z]{1,4}", proptest::option::of(0_u32..12), 0..60),
            count in 1_u32..10,
        ) {
            let shards: Vec<u32> = (0..count).collect();
            let assigned = assign(&owners, &BTreeMap::new(), &shards);
            prop_assert!(assigned.keys().eq(owners.keys()));
            let sizes = sizes(&assigned, &shards);
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{sizes:?}");
            // What must move: all of owners that are gone, and of each other what is above its quota. The
            // quotas of the largest are one higher.
            let mut before: Vec<usize> = shards.iter().map(|s| owners.values().filter(|o| **o == Some(*s)).count()).collect();
            before.sort_unstable_by(|a, b| b.cmp(a));
            let (floor, larger) = (owners.len() / shards.len(), owners.len() % shards.len());
            let stay: usize = before.iter().enumerate().map(|(rank, had)| (*had).min(floor + usize::from(rank < larger))).sum();
            let moved = assigned.iter().filter(|(key, owner)| owners[*key] != Some(**owner)).count();
            prop_assert_eq!(moved, owners.len() - stay);
            prop_assert_eq!(assign(&owned(&assigned), &BTreeMap::new(), &shards), assigned);
        }

        #[test]
        fn shards_end_within_a_fifth_of_each_other_or_no_key_could_make_them_so(
            keys in proptest::collection::btree_map("[a-z]{1,4}", (0_u32..100, proptest::option::of(0_u32..9)), 1..60),
            count in 1_u32..8,
        ) {
            let shards: Vec<u32> = (0..count).collect();
            let owners: BTreeMap<_, _> = keys.iter().map(|(key, (_, owner))| (key.clone(), *owner)).collect();
            let rates = keys.iter().map(|(key, (rate, _))| (key.clone(), *rate)).collect();
            let weights = weights(keys.keys(), &rates);
            let assigned = assign(&owners, &weights, &shards);
            prop_assert!(assigned.keys().eq(owners.keys()));
            prop_assert!(keys.len() < shards.len() || sizes(&assigned, &shards).iter().all(|size| *size > 0));
            let loads = loads(&assigned, &weights, &shards);
            let (least, most) = (loads.iter().copied().min().unwrap(), loads.iter().copied().max().unwrap());
            // The heaviest shard has one key, or all of its keys weigh more than is between the two.
            let heaviest = loads.iter().position(|load| *load >= most).unwrap() as u32;
            let lightest = assigned.iter().filter(|(_, owner)| **owner == heaviest).map(|(key, _)| weights[key]).min().unwrap();
            prop_assert!(least * 5 >= most * 4 || lightest >= most - least, "{loads:?}");
            prop_assert_eq!(assign(&owned(&assigned), &weights, &shards), assigned, "it is final");
        }
    }

    #[test]
    fn a_key_that_is_heavy_is_alone_and_quiet_keys_are_spread() {
        let keys: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        let rates = [("a", 90), ("b", 10), ("c", 10), ("d", 0), ("e", 0)];
        let weights = weights(keys.iter(), &rates.map(|(key, rate)| (key.to_owned(), rate)).into());
        let owners = keys.iter().map(|key| (key.clone(), Some(0))).collect();
        let assigned = assign(&owners, &weights, &[0, 1, 2]);
        assert_eq!(sizes(&assigned, &[assigned["a"]]), [1], "{assigned:?}");
        assert_ne!(assigned["d"], assigned["e"], "{assigned:?}");
        assert!(apart(&assigned, &weights, &[0, 1, 2]) > 0.8, "one key cannot be divided");
    }
}
