//! Which shard should own which key. Pure.

use std::collections::BTreeMap;

/// Divides the keys over the shards: each gets ⌊K/N⌋ or ⌈K/N⌉ of them, by the fewest moves. `owners` holds
/// each key with its present owner; owners that are not among the shards give up all that they have.
pub fn assign(owners: &BTreeMap<String, Option<u32>>, shards: &[u32]) -> BTreeMap<String, u32> {
    if shards.is_empty() {
        return BTreeMap::new();
    }
    let mut kept: BTreeMap<u32, Vec<&String>> = shards.iter().map(|shard| (*shard, Vec::new())).collect();
    let mut homeless = Vec::new();
    for (key, owner) in owners {
        match owner.and_then(|owner| kept.get_mut(&owner)) {
            Some(keys) => keys.push(key),
            None => homeless.push(key),
        }
    }
    // Those that have most keep one more.
    let mut by_size: Vec<(usize, u32)> = kept.iter().map(|(shard, keys)| (keys.len(), *shard)).collect();
    by_size.sort_by_key(|(size, shard)| (std::cmp::Reverse(*size), *shard));
    let (least, larger) = (owners.len() / shards.len(), owners.len() % shards.len());
    let quota = |rank: usize| least + usize::from(rank < larger);
    for (rank, (_, shard)) in by_size.iter().enumerate() {
        if let Some(keys) = kept.get_mut(shard) {
            homeless.extend(keys.drain(quota(rank).min(keys.len())..));
        }
    }
    homeless.sort();
    let mut homeless = homeless.into_iter();
    for (rank, (_, shard)) in by_size.iter().enumerate() {
        if let Some(keys) = kept.get_mut(shard) {
            keys.extend(homeless.by_ref().take(quota(rank).saturating_sub(keys.len())));
        }
    }
    kept.into_iter().flat_map(|(shard, keys)| keys.into_iter().map(move |key| (key.clone(), shard))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes(owners: &BTreeMap<String, u32>, shards: &[u32]) -> Vec<usize> {
        shards.iter().map(|shard| owners.values().filter(|owner| *owner == shard).count()).collect()
    }

    proptest! {
        #[test]
        fn every_key_has_an_owner_all_have_as_many_and_no_more_move_than_must(
            owners in proptest::collection::btree_map("[a-z]{1,4}", proptest::option::of(0_u32..12), 0..60),
            count in 1_u32..10,
        ) {
            let shards: Vec<u32> = (0..count).collect();
            let assigned = assign(&owners, &shards);
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
            let again: BTreeMap<_, _> = assigned.iter().map(|(key, owner)| (key.clone(), Some(*owner))).collect();
            prop_assert_eq!(assign(&again, &shards), assigned);
        }
    }
}
