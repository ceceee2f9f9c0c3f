//! A store: its tenants, ages and rollups.

use kube::core::Rule;

use super::{DAY, DURATION, HOUR, MINUTE, SECOND, between, millis, rule, shorter};

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
