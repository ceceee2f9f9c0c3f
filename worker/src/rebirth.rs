//! Asks Sparkplug's edge nodes for their births.

use crate::decode::Micros;
use crate::decode::sparkplug::proto;
use crate::metrics::Metrics;
use crate::mqtt::client::Client;

/// Asks each node, given by group and name, over the session's connection. At QoS 0: an answer is a
/// birth or nothing, and a node that does not answer is asked again when it sends more.
pub fn ask(nodes: &[(Box<str>, Box<str>)], client: Option<&Client>, now: Micros, metrics: &Metrics) {
    if nodes.is_empty() {
        return;
    }
    let command = proto::rebirth(now.unsigned_abs() / 1000);
    for (group, node) in nodes {
        let topic = format!("spBv1.0/{group}/NCMD/{node}");
        let sent = client.is_some_and(|client| client.tell(&topic, &command));
        let outcome = if sent { "sent" } else { "failed" };
        metrics.rebirth_requests.with_label_values(&[outcome]).inc();
        tracing::info!(group, node, sent, "asking an edge node for its births");
    }
}
