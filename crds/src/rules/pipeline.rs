//! A pipeline: its shards, batches and traces.

use kube::core::Rule;

use super::{GOOD_PORT, LEVEL, MINUTE, SECOND, SIZE, between, rule};

pub(crate) fn replicas_are_the_autoscalers() -> Rule {
    rule(
        "!has(self.autoscaling) || !has(oldSelf.autoscaling) || self.replicas == oldSelf.replicas",
        "spec.replicas is the autoscaler's while spec.autoscaling is set; remove spec.autoscaling to scale by hand",
    )
    .field_path(".replicas")
}

pub(crate) fn replicas_are_not_zero_where_scaled() -> Rule {
    rule(
        "!has(self.autoscaling) || self.replicas > 0",
        "is 0, and spec.autoscaling counts from 1; leave it out, and write spec.suspend: true to stop all shards",
    )
    .field_path(".replicas")
}

pub(crate) fn sharding_stays() -> Rule {
    rule(
        "self.sharding.by == oldSelf.sharding.by",
        "decides what the broker's sessions hold and cannot change; make a new pipeline",
    )
    .field_path(".sharding.by")
}

pub(crate) fn tenants_are_listed() -> Rule {
    rule(
        "self.sharding.by != 'Tenant' || (has(self.sharding.tenants) && self.sharding.tenants.size() > 0)",
        "is empty; list the tenants to divide",
    )
    .field_path(".sharding.tenants")
}

pub(crate) fn tenants_are_divided() -> Rule {
    rule(
        "self.sharding.by == 'Tenant' || !has(self.sharding.tenants) || self.sharding.tenants.size() == 0",
        "is given, but sharding is not by tenant; remove it, or set spec.sharding.by: Tenant",
    )
    .field_path(".sharding.tenants")
}

pub(crate) fn tenants_are_levels() -> Rule {
    rule(
        format!(
            "!has(self.sharding.tenants) || self.sharding.tenants.all(t, t.matches({LEVEL}) && bytes(t).size() <= 255)"
        ),
        "has a tenant that no topic can name; write 1 to 255 bytes without '/', '+', '#' and control characters",
    )
    .field_path(".sharding.tenants")
}

/// Whether a subscription `s` is one of Sparkplug, as it says itself.
const IS_SPARKPLUG: &str =
    "(s.format == 'SparkplugB' || (s.format == 'Auto' && s.filter.startsWith('spBv1.0/')))";

/// For the first levels of a layout: to compare the parts of a split filter costs more than a rule may. One
/// condition within the other, since of these only the dearest counts.
pub(crate) fn filters_can_be_divided() -> Rule {
    let all = |condition: &str| format!("self.source.mqtt.subscriptions.all(s, {condition})");
    let has_plus = |place: usize| format!("s.filter.matches('^([^/]*/){{{place}}}[+](/|$)')");
    let layout = "self.source.mqtt.layout";
    let elsewhere = format!("{layout}.contains('{{tenant}}') || {}", all(IS_SPARKPLUG));
    let by_layout = (0..8).rev().fold(elsewhere, |otherwise, place| {
        let divided = all(&format!("{IS_SPARKPLUG} || {}", has_plus(place)));
        format!("{layout}.matches('^([^/]*/){{{place}}}[{{]tenant[}}]') ? {divided} : {otherwise}")
    });
    let by_group = all(&format!("!{IS_SPARKPLUG} || {}", has_plus(1)));
    rule(
        format!("self.sharding.by != 'Tenant' || ({by_group} && ({by_layout}))"),
        "a filter has no '+' at the layout's {tenant}, or Sparkplug's has none at the group, so it cannot be divided by tenant; write '+' at that level, or set spec.sharding.by: Topic",
    )
    .field_path(".source.mqtt.subscriptions")
}

pub(crate) fn shared_sessions_end_soon() -> Rule {
    let expiry = "self.source.mqtt.sessionExpiry";
    rule(
        format!("self.sharding.by != 'Shared' || {}", between(expiry, 0, 5 * MINUTE)),
        "strands the messages of a lost member of a shared subscription; write 5m or less with spec.sharding.by: Shared",
    )
    .field_path(".source.mqtt.sessionExpiry")
}

pub(crate) fn shared_is_version_5() -> Rule {
    rule(
        "self.sharding.by != 'Shared' || self.source.mqtt.protocol != 'V311'",
        "MQTT 3.1.1 has no session expiry, which a shared subscription needs; write V5 with spec.sharding.by: Shared",
    )
    .field_path(".source.mqtt.protocol")
}

pub(crate) fn births_stay_with_their_data() -> Rule {
    rule(
        format!(
            "self.sharding.by != 'Shared' || (has(self.autoscaling) ? self.autoscaling.maxReplicas : self.replicas) <= 1 || !self.source.mqtt.subscriptions.exists(s, {IS_SPARKPLUG})"
        ),
        "Shared parts the births of Sparkplug's edge nodes from their data; write Topic or Tenant, or let there be one shard: spec.replicas, or autoscaling.maxReplicas",
    )
    .field_path(".sharding.by")
}

pub(crate) fn messages_fit_in_hand() -> Rule {
    let (hand, packet) = ("self.batch.maxInHand", "self.source.mqtt.maxPacketSize");
    rule(
        format!(
            "!{hand}.matches('{SIZE}') || !{packet}.matches('{SIZE}') || (quantity({hand}).isGreaterThan(quantity({packet})) && quantity({hand}).isLessThan(quantity('4Gi')))"
        ),
        "cannot hold a message of spec.source.mqtt.maxPacketSize, or is 4Gi or more; write a size above maxPacketSize, such as 64Mi",
    )
    .field_path(".batch.maxInHand")
}

pub(crate) fn mapped_samples_have_times() -> Rule {
    rule(
        "self.accept.receiveTime == 'Allow' || self.source.mqtt.subscriptions.all(s, !has(s.mapping) || has(s.mapping.time) || (has(s.mapping.each) && has(s.mapping.each.time) && (!has(s.mapping.points) || s.mapping.points.size() == 0)))",
        "mapping.time is missing, and spec.accept.receiveTime is Reject, so nothing could be stored; write where the time is, such as {pointer: /ts, unit: Milliseconds}, or set receiveTime: Allow",
    )
    .field_path(".source.mqtt.subscriptions")
}

pub(crate) fn fewest_is_at_most_most() -> Rule {
    rule(
        "self.minReplicas <= self.maxReplicas",
        "is above maxReplicas; write minReplicas no larger than maxReplicas",
    )
    .field_path(".minReplicas")
}

pub(crate) fn batch_has_bytes() -> Rule {
    rule(
        format!("!self.maxBytes.matches('{SIZE}') || quantity(self.maxBytes).isGreaterThan(quantity('0'))"),
        "is 0; write a size such as 8Mi",
    )
    .field_path(".maxBytes")
}

pub(crate) fn linger() -> Rule {
    rule(between("self.linger", 0, SECOND), "is longer than a second; write 0ms to 1s").field_path(".linger")
}

pub(crate) fn collector_without_login() -> Rule {
    rule(
        "!self.matches('^[^/]*//[^/?#]*@')",
        "holds a user name or password; give the worker the variable OTEL_EXPORTER_OTLP_HEADERS from a Secret instead",
    )
}

pub(crate) fn collector_without_query() -> Rule {
    rule("!self.matches('[?#]')", "holds a '?' or '#'; write scheme, host, port and path only")
}

pub(crate) fn collector() -> Rule {
    rule(
        format!(
            "isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && {GOOD_PORT}"
        ),
        "is not the URL of a collector that takes OTLP over HTTP; write http://host:4318 or https://host:4318",
    )
}
