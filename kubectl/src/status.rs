//! A pipeline's status as text. Pure.

use std::fmt::Write as _;

use kube::ResourceExt;
use penstock_crds::IngestPipeline;
use penstock_operator::table::table;

/// Conditions that are False where all is well; the others are True.
const TROUBLES: [&str; 5] = ["Reconciling", "Stalled", "ScalingLimited", "Backpressured", "Suspended"];

/// What is to be known at a glance.
pub fn text(namespace: &str, pipeline: &IngestPipeline) -> String {
    let name = pipeline.name_any();
    let Some(status) = &pipeline.status else {
        return format!("{namespace}/{name}: the operator has not looked at it yet\n");
    };
    let mut text = format!(
        "{namespace}/{name}: {} shards ready, {} messages/s, lag {}, plan {}\n\n",
        status.ready, status.rate, status.lag, status.plan_generation
    );
    let conditions = status.conditions.iter().map(|condition| {
        let well = (condition.status == "True") != TROUBLES.contains(&&*condition.type_);
        let mark = if well { "" } else { "!" };
        let cells = [mark, &condition.type_, &condition.status, &condition.reason, &condition.message];
        cells.map(|cell| cell.replace('\n', " ")).to_vec()
    });
    let _ = writeln!(text, "{}", table(&["", "CONDITION", "STATUS", "REASON", "MESSAGE"], conditions));
    let shards = status.shards.iter().map(|shard| {
        vec![
            shard.shard.to_string(),
            shard.phase.clone(),
            shard.keys.to_string(),
            shard.rate.to_string(),
            shard.lag.clone(),
            format!("{}%", shard.fill),
            shard.limited_by.clone().unwrap_or_default(),
            shard.gap.clone().unwrap_or_default(),
            shard.node.clone().unwrap_or_default(),
            shard.reason.clone().unwrap_or_default(),
        ]
    });
    let head = ["SHARD", "PHASE", "KEYS", "MSG/S", "LAG", "FILL", "LIMIT", "GAP", "NODE", "REASON"];
    text + &table(&head, shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_is_not_as_it_should_be_has_a_mark() {
        let pipeline: IngestPipeline = serde_saphyr::from_str(
            "
            apiVersion: penstock.dev/v1alpha1
            kind: IngestPipeline
            metadata: {name: plant}
            spec: {source: {mqtt: {url: 'mqtt://b:1883', subscriptions: [{filter: a}]}}, sink: {storeRef: {name: main}}}
            status:
              ready: 1/2
              lag: <1s
              shards:
              - {shard: 0, phase: Running, keys: 1, rate: 290}
              - {shard: 1, phase: NotReady, keys: 1, reason: broker_away}
              conditions:
              - {type: Ready, status: 'False', reason: broker_away, message: 'shard 1: away', lastTransitionTime: '2026-11-25T00:00:00Z'}
              - {type: Stalled, status: 'False', reason: progressing, message: fine, lastTransitionTime: '2026-11-25T00:00:00Z'}
            ",
        )
        .unwrap();
        let text = text("works", &pipeline);
        assert!(text.starts_with("works/plant: 1/2 shards ready, 0 messages/s, lag <1s, plan 0\n"), "{text}");
        assert!(text.contains("!  Ready      False   broker_away  shard 1: away\n"), "{text}");
        assert!(text.contains("   Stalled    False   progressing  fine\n"), "{text}");
        assert!(text.contains("\n0      Running   1     290"), "{text}");
        assert!(text.lines().last().is_some_and(|line| line.ends_with("broker_away")), "{text}");
    }
}
