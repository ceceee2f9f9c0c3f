//! A broker, and the layout of its topics.

use kube::core::Rule;

use super::{GOOD_PORT, LEVEL, MINUTE, SECOND, SIZE, between, rule};

pub(crate) fn broker_without_login() -> Rule {
    rule(
        "!self.matches('^[^/]*//[^/?#]*@')",
        "holds a user name or password; name Secrets in spec.source.mqtt.auth instead",
    )
}

pub(crate) fn broker() -> Rule {
    rule(
        format!(
            "isURL(self) && url(self).getScheme() in ['mqtt', 'mqtts'] && url(self).getHostname() != '' && {GOOD_PORT}"
        ),
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
        format!("self.matches({LEVEL}) && bytes(self).size() <= 200"),
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
