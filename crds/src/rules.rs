//! What the API server refuses at once: rules in CEL, the same as in [`crate::validate`] as far as CEL can say
//! them. Each message says what would be right. Every list and string they read has a bound, or the API server
//! finds them too expensive and refuses the whole definition.
//!
//! `tests/refusals.yaml` has a good and a bad manifest for each.

use kube::core::Rule;

mod broker;
mod pipeline;
mod store;
mod subscription;

pub(crate) use broker::*;
pub(crate) use pipeline::*;
pub(crate) use store::*;
pub(crate) use subscription::*;

/// Text of a duration.
const DURATION: &str = "^[0-9]{1,9}(ms|s|m|h|d)$";
/// Text of a size.
const SIZE: &str = "^[0-9]{1,15}(k|M|G|T|Ki|Mi|Gi|Ti)?$";

/// What may be a level of a topic.
const LEVEL: &str = r"r'^[^+#/\p{Cc}]+$'";

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

/// A URL's port, if it names one.
const GOOD_PORT: &str =
    "(url(self).getPort() == '' || (url(self).getPort().size() <= 5 && int(url(self).getPort()) <= 65535))";

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

pub(crate) fn one_source() -> Rule {
    rule(
        "has(self.configMapKeyRef) != has(self.secretKeyRef)",
        "names no source, or two; give either configMapKeyRef or secretKeyRef",
    )
}
