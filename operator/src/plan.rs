//! Which shard owns each key, and how keys and shards come and go. Pure: stored plan, wish and what is
//! seen of the shards in; the next plan out. No step is taken because time has passed.
//!
//! The plan is state: what a shard holds cannot be derived from the spec. A key moves by make before
//! break: it gets a successor, which subscribes, is seen subscribed, and owns it from then on; the owner
//! before then unsubscribes. A shard without keys is retired, which ends its session at the broker.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::assign::{apart, assign, weights};

/// At rest keys move only where the shards are farther apart than this share of the heaviest, and come nearer to
/// each other by at least so much.
const UNEVEN: f64 = 0.15;
const GAIN: f64 = 0.1;
/// A key's share of the messages has changed when it did by more than this part of the mean share, and by more
/// than so many times what chance does to the messages of a minute.
const CHANGED: f64 = 0.1;
const CHANCE: f64 = 4.0;

/// Which shard owns each key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// Rises with each change that a worker is to follow.
    pub generation: i64,
    /// Shards that may have a session at the broker.
    pub shards: BTreeSet<u32>,
    /// Who has which key.
    pub keys: BTreeMap<String, Place>,
    /// Messages a minute of each key, by which keys are divided: as they were when their shares changed last.
    /// Kept, so that what will move can be told before it does.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rates: BTreeMap<String, u32>,
}

/// Who has a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The shard that consumes it.
    pub owner: u32,
    /// The shard that is to own it, and subscribes it meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<u32>,
}

/// What the spec asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// What is divided; empty where the subscription is shared.
    pub keys: BTreeSet<String>,
    /// Shards that are to run: those with lower numbers.
    pub shards: u32,
    /// Nothing runs and nothing moves; sessions stay.
    pub parked: bool,
    /// All sessions end.
    pub ending: bool,
    /// Messages a second of the keys, as far as they are known.
    pub rates: BTreeMap<String, f64>,
    /// Keys may move although every shard has some.
    pub level: bool,
}

impl Wish {
    /// Of so many replicas, as many as have keys.
    pub fn new(keys: BTreeSet<String>, shared: bool, replicas: u32, suspended: bool) -> Self {
        let shards = if shared { replicas } else { replicas.min(keys.len() as u32) };
        let parked = suspended || replicas == 0;
        Self { keys, shards, parked, ending: false, rates: BTreeMap::new(), level: true }
    }
}

/// What is seen of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Keys that it consumes: all their filters are granted, on a connection that is open.
    pub serves: BTreeSet<String>,
    /// Highest generation that it has followed.
    pub generation: i64,
    /// Its retire Job exists.
    pub retiring: bool,
    /// Its retire Job did its work.
    pub retired: bool,
}

/// What a shard is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It consumes.
    Active,
    /// Its session waits.
    Parked,
    /// It has no keys any more: its Deployment goes, then its session.
    Leaving,
}

impl Plan {
    /// The next plan; the same, if there is nothing to do, or something must be seen first.
    #[must_use]
    pub fn step(&self, wish: &Wish, seen: &BTreeMap<u32, Seen>) -> Self {
        let mut next = self.clone();
        let of = |shard: &u32| seen.get(shard).cloned().unwrap_or_default();
        next.shards.retain(|shard| !(of(shard).retired && self.keys_of(*shard).is_empty()));
        if wish.ending {
            next.keys.clear();
        } else if !wish.parked {
            next.shards.extend((0..wish.shards).filter(|shard| !of(shard).retiring));
            next.divide(wish, &of);
        }
        let followed = seen.values().map(|seen| seen.generation).max().unwrap_or_default();
        // Without keys the shards are all that a plan tells; one that comes again does so by a newer plan than
        // the one that ended it.
        let told_anew = next.keys != self.keys || (next.keys.is_empty() && next.shards != self.shards);
        if told_anew || followed > self.generation {
            next.generation = self.generation.max(followed) + 1;
        }
        next
    }

    fn divide(&mut self, wish: &Wish, of: &impl Fn(&u32) -> Seen) {
        let shards = self.shards.iter().copied();
        let usable: Vec<u32> = shards.filter(|shard| *shard < wish.shards && !of(shard).retiring).collect();
        if usable.is_empty() {
            return;
        }
        self.keys.retain(|key, _| wish.keys.contains(key));
        self.note_rates(wish);
        for (key, place) in &mut self.keys {
            match place.successor {
                Some(successor) if of(&successor).serves.contains(key) => {
                    *place = Place { owner: successor, successor: None };
                }
                // It is not wanted any more. It goes when the owner is seen to have the key: one that has
                // not begun yet never had it.
                Some(successor)
                    if !usable.contains(&successor)
                        && (of(&place.owner).serves.contains(key) || of(&successor).retiring) =>
                {
                    place.successor = None;
                }
                _ => {}
            }
        }
        let moving = self.is_moving();
        let owners = wish.keys.iter().map(|key| (key.clone(), self.keys.get(key).map(|place| place.owner)));
        let owners: BTreeMap<String, Option<u32>> = owners.collect();
        for (key, shard) in self.target(wish, &owners, &usable) {
            match self.keys.get_mut(&key) {
                None => _ = self.keys.insert(key, Place { owner: shard, successor: None }),
                Some(place) if !moving && place.owner != shard => place.successor = Some(shard),
                Some(_) => {}
            }
        }
    }

    /// Whether a key is on its way.
    pub fn is_moving(&self) -> bool {
        self.keys.values().any(|place| place.successor.is_some())
    }

    /// Keys that a shard is to subscribe.
    pub fn keys_of(&self, shard: u32) -> Vec<String> {
        let has = |place: &Place| place.owner == shard || place.successor == Some(shard);
        self.keys.iter().filter(|(_, place)| has(place)).map(|(key, _)| key.clone()).collect()
    }

    /// What a shard is to be.
    pub fn role(&self, wish: &Wish, shard: u32) -> Role {
        if wish.ending {
            return Role::Leaving;
        }
        if wish.parked {
            return Role::Parked;
        }
        if shard < wish.shards || !self.keys_of(shard).is_empty() { Role::Active } else { Role::Leaving }
    }

    /// A plan that was lost, from what its shards were told or report: generation and keys of each.
    pub fn rebuilt(told: &BTreeMap<u32, (i64, Vec<String>)>) -> Self {
        let mut plan = Self { shards: told.keys().copied().collect(), ..Self::default() };
        for (shard, (generation, keys)) in told {
            plan.generation = plan.generation.max(*generation);
            for key in keys {
                let first = Place { owner: *shard, successor: None };
                let place = plan.keys.entry(key.clone()).or_insert(first);
                if place.owner != *shard {
                    place.successor = Some(*shard);
                }
            }
        }
        plan
    }

    /// Who should own each key. At rest that is who does, unless it is worth the moves.
    fn target(
        &self,
        wish: &Wish,
        owners: &BTreeMap<String, Option<u32>>,
        usable: &[u32],
    ) -> BTreeMap<String, u32> {
        let present: BTreeMap<String, u32> =
            owners.iter().filter_map(|(key, owner)| Some((key.clone(), (*owner)?))).collect();
        let all_have = usable.iter().all(|shard| present.values().any(|owner| owner == shard));
        let rests = present.len() == owners.len()
            && present.values().all(|owner| usable.contains(owner))
            && (all_have || present.len() < usable.len());
        if rests && !wish.level {
            return present;
        }
        let weights = weights(wish.keys.iter(), &self.rates);
        let next = assign(owners, &weights, usable);
        let worth = || {
            let before = apart(&present, &weights, usable);
            before > UNEVEN && before - apart(&next, &weights, usable) >= GAIN
        };
        if !rests || self.rates.is_empty() || worth() { next } else { present }
    }

    /// Notes how many messages the keys have, where all are known and a share has changed.
    fn note_rates(&mut self, wish: &Wish) {
        if wish.rates.len() < wish.keys.len() {
            return;
        }
        let minute = |rate: &f64| (rate * 60.0).round() as u32;
        let now: BTreeMap<String, u32> =
            wish.rates.iter().map(|(key, rate)| (key.clone(), minute(rate))).collect();
        let mean = |rates: &BTreeMap<String, u32>| {
            rates.values().map(|rate| f64::from(*rate)).sum::<f64>() / rates.len().max(1) as f64
        };
        let (mean_before, mean_now) = (mean(&self.rates), mean(&now));
        let has_changed = |(key, rate): (&String, &u32)| {
            let before = self.rates.get(key).map_or(1.0, |before| f64::from(*before) / mean_before);
            let change = f64::from(*rate) / mean_now - before;
            change.abs() > CHANGED + CHANCE * f64::from(*rate).sqrt().max(1.0) / mean_now
        };
        if mean_now > 0.0 && now.iter().any(has_changed) {
            self.rates = now;
        }
    }
}

#[cfg(test)]
mod tests;
