//! A subscription and its mapping.

use kube::core::Rule;

use super::rule;

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
