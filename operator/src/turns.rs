//! Which pipelines roll their shards now: so many at a time, those that began first.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use kube::ResourceExt;
use penstock_crds::IngestPipeline;

use crate::conditions;

/// A pipeline, as namespace and name.
pub type Name = (String, String);

/// Pipelines that were given a turn by this process.
#[derive(Debug, Default)]
pub struct Turns(Mutex<BTreeSet<Name>>);

impl Turns {
    /// Whether a pipeline may roll. It keeps its turn until it gives it back. `told`: pipelines that roll
    /// by their status, which tells what an operator before this one began.
    pub fn take(&self, own: &Name, told: &BTreeSet<Name>, at_once: usize) -> bool {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let may = may_roll(own, told, &given, at_once);
        if may {
            given.insert(own.clone());
        }
        may
    }

    /// Pipelines that are gone have none.
    pub fn keep_only(&self, there: &BTreeSet<Name>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|name| there.contains(name));
    }

    /// It has nothing to roll any more, and what it rolled has taken over.
    pub fn give_back(&self, own: &Name) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(own);
    }
}

fn may_roll(own: &Name, told: &BTreeSet<Name>, given: &BTreeSet<Name>, at_once: usize) -> bool {
    told.contains(own) || given.contains(own) || told.union(given).count() < at_once
}

/// A pipeline's name.
pub fn name(pipeline: &IngestPipeline) -> Name {
    (pipeline.namespace().unwrap_or_default(), pipeline.name_any())
}

/// Pipelines that roll by their status, or are stuck in the middle.
pub fn told<'a>(pipelines: impl Iterator<Item = &'a IngestPipeline>) -> BTreeSet<Name> {
    let rolls = |pipeline: &&IngestPipeline| {
        let conditions = pipeline.status.as_ref().map(|status| status.conditions.as_slice());
        let reconciling = conditions.and_then(|conditions| conditions::get(conditions, "Reconciling"));
        reconciling.is_some_and(|reconciling| ["rolling", "rollout_stalled"].contains(&&*reconciling.reason))
    };
    pipelines.filter(rolls).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(number: u32) -> Name {
        ("plant".to_owned(), format!("p{number}"))
    }

    #[test]
    fn so_many_pipelines_roll_at_a_time_and_those_that_began_go_on_until_they_end() {
        let (turns, told) = (Turns::default(), BTreeSet::from([named(7)]));
        assert!(turns.take(&named(1), &told, 2), "one that began before this process, and this one");
        assert!(!turns.take(&named(2), &told, 2));
        assert!(turns.take(&named(1), &told, 2), "it keeps its turn");
        assert!(turns.take(&named(7), &told, 2), "a new operator lets it go on");
        turns.give_back(&named(1));
        assert!(turns.take(&named(2), &told, 2));
        assert!(!turns.take(&named(1), &told, 2));
    }

    #[test]
    fn a_pipeline_that_is_gone_keeps_no_turn() {
        let turns = Turns::default();
        assert!(turns.take(&named(1), &BTreeSet::new(), 1));
        turns.keep_only(&BTreeSet::from([named(2)]));
        assert!(turns.take(&named(2), &BTreeSet::new(), 1));
    }
}
