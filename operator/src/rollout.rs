//! Which shards get a changed pod template now: one at a time, and no other after a failure. Pure: what is
//! seen of the shards in; what keeps its template, and why nothing goes on, out.
//!
//! A shard that nobody consumes loses nothing by a new template and gets it at once. Of the others the next
//! one waits until the one before is rolled out, its old pod gone and its worker ready. A second change in
//! the middle goes to the shard that is being rolled first: that corrects a bad one.

use std::collections::{BTreeMap, BTreeSet};

use penstock_crds::report::Reason;

/// What is seen of a shard that is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shard {
    /// Its Deployment has the wanted template.
    pub current: bool,
    /// A worker consumes.
    pub consumed: bool,
    /// A pod of another template, or the one that takes over from it, is there too.
    pub turning: bool,
    /// It is rolled out, its old pod is gone, and its worker holds the lease and is ready.
    pub finished: bool,
    /// Why it does not become so.
    pub trouble: Option<Reason>,
}

/// How far a changed template may go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Shards whose Deployment has another template than is wanted.
    pub outdated: BTreeSet<u32>,
    /// Those of them that keep it for now.
    pub held: BTreeSet<u32>,
    /// The shard that is rolled now, as far as is known.
    pub rolling: Option<u32>,
    /// The shard that keeps the others waiting, and why it does not come to an end.
    pub stalled: Option<(u32, Reason)>,
}

/// What a rollout is for one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Part {
    /// Nothing.
    #[default]
    None,
    /// Its turn comes after others'.
    Held,
    /// It is rolled now.
    Rolling,
    /// It does not come to an end, for this reason.
    Stalled(Reason),
}

impl Rollout {
    /// Whether a shard that is consumed has yet to get the template: others wait for their turn meanwhile. A
    /// pod that is replaced for another reason makes nobody wait.
    pub fn needs_turn(&self) -> bool {
        !self.held.is_empty() || self.rolling.is_some_and(|rolling| self.outdated.contains(&rolling))
    }

    /// Whether all that are to be rolled wait, for other pipelines.
    pub fn waits(&self) -> bool {
        !self.held.is_empty() && self.rolling.is_none()
    }

    /// What it is for one shard.
    pub fn part(&self, shard: u32) -> Part {
        match &self.stalled {
            Some((stalled, why)) if *stalled == shard => Part::Stalled(why.clone()),
            _ if self.rolling == Some(shard) => Part::Rolling,
            _ if self.held.contains(&shard) => Part::Held,
            _ => Part::None,
        }
    }
}

/// Which shards keep the template that they have. `go`: a shard may be rolled at all.
pub fn decide(shards: &BTreeMap<u32, Shard>, go: bool) -> Rollout {
    let those = |holds: &dyn Fn(&Shard) -> bool| {
        shards.iter().filter(|(_, shard)| holds(shard)).map(|(number, _)| *number).collect::<BTreeSet<_>>()
    };
    let outdated = those(&|shard| !shard.current);
    let mut held = those(&|shard| !shard.current && shard.consumed);
    let waited_for = those(&|shard| shard.current && !shard.finished && (shard.turning || !held.is_empty()));
    // A roll that has begun goes on, with what is wanted now; else one that is not well as it is.
    let urgency = |number: &&u32| shards.get(number).map(|shard| (!shard.turning, shard.finished));
    let next = held.iter().min_by_key(urgency).copied().filter(|_| go);
    let has_begun = next.and_then(|number| shards.get(&number)).is_some_and(|shard| shard.turning);
    let rolling = if has_begun { next } else { waited_for.first().copied().or(next) };
    held.retain(|number| Some(*number) != rolling);
    let stalled = waited_for.iter().find_map(|number| Some((*number, shards.get(number)?.trouble.clone()?)));
    Rollout { outdated, held, rolling, stalled }
}

#[cfg(test)]
mod tests;
