//! Which pipelines roll their shards now: so many at a time, those that began first.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use kube::ResourceExt;
use penstock_crds::IngestPipeline;

use crate::conditions;

/// A pipeline, as namespace and name.
pub type Name = (String, String);

/// Pipelines that were given a turn by this process.
#[derive(Debug, Default)]
pub struct Turns(Mutex<BTreeSet<Name>>);

impl Turns {
    /// Whether a pipeline may roll. It keeps its turn until it gives it back, or is deleted. What an operator
    /// before this one began the pipelines' statuses tell.
    pub fn take(&self, own: &Name, all: &[Arc<IngestPipeline>], at_once: usize) -> bool {
        // One that is deleted rolls nothing, however long its end takes.
        let stays = |pipeline: &&IngestPipeline| pipeline.metadata.deletion_timestamp.is_none();
        let pipelines = || all.iter().map(|pipeline| &**pipeline).filter(stays);
        let there: BTreeSet<Name> = pipelines().map(name).collect();
        let told: BTreeSet<Name> = pipelines().filter(|pipeline| rolls(pipeline)).map(name).collect();
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|name| there.contains(name));
        let may = told.contains(own) || given.contains(own) || told.union(&given).count() < at_once;
        if may {
            given.insert(own.clone());
        }
        may
    }

    /// It has nothing to roll any more, and what it rolled has taken over.
    pub fn give_back(&self, own: &Name) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(own);
    }
}

/// A pipeline's name.
pub fn name(pipeline: &IngestPipeline) -> Name {
    (pipeline.namespace().unwrap_or_default(), pipeline.name_any())
}

/// Whether it rolls by its status, or is stuck in the middle.
fn rolls(pipeline: &IngestPipeline) -> bool {
    let conditions = pipeline.status.as_ref().map(|status| status.conditions.as_slice());
    let reconciling = conditions.and_then(|conditions| conditions::get(conditions, "Reconciling"));
    reconciling.is_some_and(|reconciling| ["rolling", "rollout_stalled"].contains(&&*reconciling.reason))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn named(number: u32) -> Name {
        ("plant".to_owned(), format!("p{number}"))
    }

    /// Pipelines with what their condition `Reconciling` says.
    fn pipelines(said: &[(u32, &str)]) -> Vec<Arc<IngestPipeline>> {
        let example = include_str!("../../examples/plant.yaml");
        let example = penstock_crds::Manifest::parse(example).unwrap().pipeline;
        let pipeline = |(number, reason): &(u32, &str)| {
            let mut pipeline = json!(example);
            pipeline["metadata"] = json!({"namespace": "plant", "name": named(*number).1});
            let condition = json!({
                "type": "Reconciling", "status": "True", "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            });
            pipeline["status"] = json!({"conditions": [condition]});
            Arc::new(serde_json::from_value(pipeline).unwrap())
        };
        said.iter().map(pipeline).collect()
    }

    #[test]
    fn so_many_pipelines_roll_at_a_time_and_those_that_began_go_on_until_they_end() {
        let (turns, all) = (Turns::default(), pipelines(&[(1, "done"), (2, "done"), (7, "rolling")]));
        assert!(turns.take(&named(1), &all, 2), "one that began before this process, and this one");
        assert!(!turns.take(&named(2), &all, 2));
        assert!(turns.take(&named(1), &all, 2), "it keeps its turn");
        assert!(turns.take(&named(7), &all, 2), "a new operator lets it go on");
        turns.give_back(&named(1));
        assert!(turns.take(&named(2), &all, 2));
        assert!(!turns.take(&named(1), &all, 2));
    }

    #[test]
    fn a_pipeline_that_is_gone_or_deleted_keeps_no_turn() {
        let (turns, mut all) =
            (Turns::default(), pipelines(&[(1, "done"), (2, "done"), (3, "rollout_stalled")]));
        assert!(!turns.take(&named(1), &all, 1));
        let deleted =
            json!({"namespace": "plant", "name": "p3", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        Arc::make_mut(&mut all[2]).metadata = serde_json::from_value(deleted).unwrap();
        assert!(turns.take(&named(1), &all, 1), "the end of another may take long");
        assert!(!turns.take(&named(2), &all, 1));
        assert!(turns.take(&named(2), &all[1..], 1));
    }
}
