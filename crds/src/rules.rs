//! What the API server refuses at once: rules in CEL, the same as in [`crate::validate`] as far as CEL can say
//! them. Each message says what would be right. Every list and string they read has a bound, or the API server
//! finds them too expensive and refuses the whole definition.
//!
//! `tests/refusals.yaml` has a good and a bad manifest for each.

use kube::core::Rule;

/// Text of a duration.
const DURATION: &str = "^[0-9]{1,9}(ms|s|m|h|d)$";
/// Text of a size.
const SIZE: &str = "^[0-9]{1,15}(k|M|G|T|Ki|Mi|Gi|Ti)?$";

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

fn rule(rule: impl Into<String>, message: &str) -> Rule {
    Rule::new(rule).message(message)
}

/// Milliseconds of a duration. CEL's own `duration()` does not know days.
fn millis(field: &str) -> String {
    format!(
        "({field}.endsWith('ms') ? int({field}.substring(0, {field}.size() - 2)) : int({field}.substring(0, {field}.size() - 1)) * {{'s': {SECOND}, 'm': {MINUTE}, 'h': {HOUR}, 'd': {DAY}}}[{field}.substring({field}.size() - 1)])"
    )
}

/// Whether a duration lies between two. One that is none is refused by its own rule already.
fn between(field: &str, least: u64, most: u64) -> String {
    let millis = millis(field);
    format!("!{field}.matches('{DURATION}') || ({millis} >= {least} && {millis} <= {most})")
}

/// Whether one duration is shorter than another.
fn shorter(a: &str, b: &str) -> String {
    format!("!{a}.matches('{DURATION}') || !{b}.matches('{DURATION}') || {} < {}", millis(a), millis(b))
}

pub(crate) fn duration() -> Rule {
    rule(
        format!("self.matches('{DURATION}')"),
        "is not a duration; write a whole number and a unit, such as 5ms, 30s, 10m, 24h or 365d",
    )
}

pub(crate) fn size() -> Rule {
    rule(
        format!("self.matches('{SIZE}')"),
        "is not a size; write a whole number of bytes, or one with a unit such as 500k, 1Mi or 10Gi",
    )
}

/// Names of objects, labels and client ids are made from it.
pub(crate) fn short_name() -> Rule {
    rule(
        "self.metadata.name.size() <= 40",
        "metadata.name is too long: names of other objects are made from it; write at most 40 characters",
    )
}

// The pipeline as a whole.

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

/// For the first levels of a layout: to compare the parts of a split filter costs more than a rule may.
pub(crate) fn filters_can_be_divided() -> Rule {
    let places = (0..8).map(|place| {
        format!(
            "(!self.source.mqtt.layout.matches('^([^/]*/){{{place}}}[{{]tenant[}}]') || self.source.mqtt.subscriptions.all(s, s.filter.matches('^([^/]*/){{{place}}}[+](/|$)')))"
        )
    });
    let divided = places.collect::<Vec<_>>().join(" && ");
    rule(
        format!("self.sharding.by != 'Tenant' || (self.source.mqtt.layout.contains('{{tenant}}') && {divided})"),
        "a filter has no '+' at the layout's {tenant}, so it cannot be divided by tenant; write '+' at that level, or set spec.sharding.by: Topic",
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
        "self.sharding.by != 'Shared' || (has(self.autoscaling) ? self.autoscaling.maxReplicas : self.replicas) <= 1 || !self.source.mqtt.subscriptions.exists(s, s.format == 'SparkplugB' || (s.format == 'Auto' && s.filter.startsWith('spBv1.0/')))",
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

// The broker.

pub(crate) fn broker_without_login() -> Rule {
    rule(
        "!self.matches('^[^/]*//[^/?#]*@')",
        "holds a user name or password; name Secrets in spec.source.mqtt.auth instead",
    )
}

pub(crate) fn broker() -> Rule {
    rule(
        "isURL(self) && url(self).getScheme() in ['mqtt', 'mqtts'] && url(self).getHostname() != ''",
        "is not the URL of an MQTT broker; write mqtt://host:1883 or mqtts://host:8883",
    )
}

pub(crate) fn tls_needs_mqtts() -> Rule {
    rule(
        "!has(self.tls) || !self.url.startsWith('mqtt:')",
        "is given, but the URL is mqtt://; write mqtts:// to use TLS, or leave tls out",
    )
    .field_path(".tls")
}

pub(crate) fn client_id_prefix_stays() -> Rule {
    rule(
        "has(self.clientIdPrefix) == has(oldSelf.clientIdPrefix) && (!has(self.clientIdPrefix) || self.clientIdPrefix == oldSelf.clientIdPrefix)",
        "clientIdPrefix names the broker's sessions and cannot change; make a new pipeline",
    )
}

pub(crate) fn client_id_prefix() -> Rule {
    rule(
        "self.matches('^[^+#/[:cntrl:]]+$')",
        "is no client id; write 1 to 200 letters, digits, '-', '_' or '.'",
    )
}

pub(crate) fn keep_alive() -> Rule {
    rule(between("self", 5 * SECOND, 65_535 * SECOND), "is out of range; write 5s to 18h")
}

pub(crate) fn session_expiry() -> Rule {
    rule(between("self", MINUTE, u64::MAX / 2), "is too short to outlive a restart; write 1m or more")
}

pub(crate) fn packet_size() -> Rule {
    rule(
        format!(
            "!self.matches('{SIZE}') || (quantity(self).isGreaterThan(quantity('0')) && quantity(self).isLessThan(quantity('256Mi')))"
        ),
        "is out of range; write 1 to 268435455 bytes",
    )
}

pub(crate) fn layout_names_the_device() -> Rule {
    rule(
        "'{device}' in self.split('/')",
        "has no {device}; name the level that tells the device, as in traksense/{tenant}/{site}/{device}/{kind}",
    )
}

pub(crate) fn layout_levels() -> Rule {
    rule(
        "self.matches('^([^{}+#/]*|[{](tenant|site|device|kind)[}])(/([^{}+#/]*|[{](tenant|site|device|kind)[}]))*$')",
        "has a level that is neither text nor a placeholder; use {tenant}, {site}, {device} or {kind} as a whole level, and no wildcards",
    )
}

pub(crate) fn layout_names_once() -> Rule {
    rule(
        "['{tenant}', '{site}', '{device}', '{kind}'].all(name, self.split(name).size() <= 2)",
        "has a placeholder twice; name each once",
    )
}

// A subscription.

pub(crate) fn filter_is_not_shared() -> Rule {
    rule(
        "!self.startsWith('$share/')",
        "is a shared subscription; write the filter alone and set spec.sharding.by: Shared",
    )
}

pub(crate) fn filter_ends_with_hash() -> Rule {
    rule(
        "self.matches('^([^#]*|#|[^#]*/#)$')",
        "has a '#' that is not the whole last level; write '#' as the last level only, or '+' for one level",
    )
}

pub(crate) fn filter_has_whole_plus() -> Rule {
    rule(
        "self.matches('^([^+/]*|[+])(/([^+/]*|[+]))*$')",
        "has a '+' that shares its level with other characters; make '+' the whole level",
    )
}

pub(crate) fn mapped_has_a_mapping() -> Rule {
    rule(
        "(self.format == 'Mapped') == has(self.mapping)",
        "is missing with format Mapped, or given with another; write format: Mapped and a mapping, or neither",
    )
    .field_path(".mapping")
}

pub(crate) fn time_field_is_of_fields() -> Rule {
    rule(
        "!has(self.timeField) || self.format == 'Fields'",
        "is given, but the format is not Fields; remove it",
    )
    .field_path(".timeField")
}

pub(crate) fn time_unit_is_of_its_formats() -> Rule {
    rule(
        "!has(self.timeUnit) || self.format in ['Fields', 'InfluxLine']",
        "is given, but the format is neither Fields nor InfluxLine; remove it",
    )
    .field_path(".timeUnit")
}

pub(crate) fn line_protocol_has_numbers() -> Rule {
    rule(
        "!has(self.timeUnit) || self.timeUnit != 'Rfc3339' || self.format != 'InfluxLine'",
        "is Rfc3339, which line protocol does not have; write Nanoseconds, Microseconds, Milliseconds or Seconds",
    )
    .field_path(".timeUnit")
}

pub(crate) fn mapping_names_values() -> Rule {
    rule(
        "has(self.each) || (has(self.points) && self.points.size() > 0)",
        "names no values; write 'each' for an array or object, or 'points' for fixed places",
    )
}

pub(crate) fn only_numbers_are_scaled() -> Rule {
    rule(
        "!has(self.type) || self.type == 'Number' || !(has(self.scale) || has(self.offset))",
        "has a scale or offset for what is no number; remove it, or set type: Number",
    )
}

pub(crate) fn scale_is_not_zero() -> Rule {
    rule("!has(self.scale) || self.scale != 0.0", "is 0; write another scale, or leave it out")
        .field_path(".scale")
}

// What pipelines and stores share.

pub(crate) fn one_source() -> Rule {
    rule(
        "has(self.configMapKeyRef) != has(self.secretKeyRef)",
        "names no source, or two; give either configMapKeyRef or secretKeyRef",
    )
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
        "isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != ''",
        "is not the URL of a collector that takes OTLP over HTTP; write http://host:4318 or https://host:4318",
    )
}

// The store.

pub(crate) fn tenants_are_named() -> Rule {
    rule(
        "self.mode != 'Listed' || (has(self.names) && self.names.size() > 0)",
        "is empty; list the tenants that may store, or set mode: Auto",
    )
    .field_path(".names")
}

pub(crate) fn tenants_are_not_named() -> Rule {
    rule(
        "self.mode == 'Listed' || !has(self.names) || self.names.size() == 0",
        "is given, but mode is Auto; set mode: Listed, or remove it",
    )
    .field_path(".names")
}

/// An age at which something may be removed or compressed.
pub(crate) fn age() -> Rule {
    rule(between("self", HOUR, 36_500 * DAY), "is out of range; write 1h to 36500d")
}

/// Of the whole, because null is a value here; `has` does not count it.
pub(crate) fn age_of_letters() -> Rule {
    let age = between("self.retention", HOUR, 36_500 * DAY);
    rule(format!("!has(self.retention) || {age}"), "is out of range; write 1h to 36500d, or null for ever")
        .field_path(".retention")
}

pub(crate) fn compressed_before_removed() -> Rule {
    let shorter = shorter("self.columnstore.after", "self.retention");
    rule(
        format!("!has(self.columnstore) || !has(self.retention) || {shorter}"),
        "is not shorter than the retention; write less, or leave columnstore out",
    )
    .field_path(".columnstore.after")
}

/// Every width, where all are durations.
fn widths(widths: &str, condition: &str) -> String {
    format!("!{widths}.all(width, width.matches('{DURATION}')) || {condition}")
}

pub(crate) fn width() -> Rule {
    let millis = millis("width");
    let narrow = format!("{millis} >= {MINUTE} && {millis} <= {} && {millis} % {SECOND} == 0", 7 * DAY);
    rule(
        widths("self", &format!("self.all(width, {narrow})")),
        "has a width that is out of range; write 1m to 7d, in whole seconds",
    )
}

pub(crate) fn widths_contain_one_another() -> Rule {
    let (this, last) = (millis("self[i]"), millis("self[i - 1]"));
    let nested = format!(
        "[1, 2, 3, 4, 5, 6, 7].all(i, i >= self.size() || ({this} > {last} && {this} % {last} == 0))"
    );
    rule(
        widths("self", &nested),
        "has a width that is no multiple of the one before; write widths that contain one another, such as [1m, 5m, 1h]",
    )
}

pub(crate) fn widths_fit_the_retention() -> Rule {
    let (width, retention) = (millis("width"), millis("self.retention"));
    let fits = format!("self.rollups.all(width, {retention} >= 4 * {width} && {retention} >= {})", 4 * HOUR);
    rule(
        format!(
            "!has(self.rollups) || !has(self.retention) || !self.retention.matches('{DURATION}') || self.rollups.size() == 0 || {}",
            widths("self.rollups", &fits)
        ),
        "has a width that is too wide for the retention: its samples would be gone before it is made; keep samples for at least 4 times the width, and 4h",
    )
    .field_path(".rollups")
}
