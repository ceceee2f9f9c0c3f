//! What a schema cannot say. Pure: the worker, the operator and `check` all ask here.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use url::Url;

use crate::mapping;
use crate::pipeline::{IngestPipelineSpec, ReceiveTime, ShardBy, Tracing};
use crate::source::{Mqtt, Protocol, Subscription, Tls};
use crate::store::{TelemetryStoreSpec, TenantMode};
use crate::topic::{Layout, check_filter};

/// A shared subscription's session must not outlive its pod by long: what it holds is stranded.
const SHARED_EXPIRY: Duration = Duration::from_mins(5);
/// The shortest keep-alive that the MQTT library takes.
const SHORTEST_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Ages at which something may be removed or compressed.
const SHORTEST_AGE: Duration = Duration::from_hours(1);
const LONGEST_AGE: Duration = Duration::from_hours(24 * 36_500);
const NARROWEST_ROLLUP: Duration = Duration::from_mins(1);
const WIDEST_ROLLUP: Duration = Duration::from_hours(24 * 7);

/// A field that is wrong: where, what, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, such as `spec.source.mqtt.url`.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub remedy: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path, self.problem, self.remedy)
    }
}

#[derive(Default)]
pub(crate) struct Errors(Vec<FieldError>);

impl Errors {
    pub(crate) fn add(
        &mut self,
        path: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.0.push(FieldError { path: path.into(), problem: problem.into(), remedy: remedy.into() });
    }

    fn in_range<T: PartialOrd + fmt::Display>(&mut self, path: &str, value: &T, least: &T, most: &T) {
        if value < least || value > most {
            self.add(path, format!("{value} is out of range"), format!("write {least} to {most}"));
        }
    }
}

/// All that is wrong with a pipeline.
pub fn pipeline(spec: &IngestPipelineSpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.in_range("spec.replicas", &spec.replicas, &0, &256);
    mqtt(&spec.source.mqtt, &mut errors);
    let receive_time = spec.accept.receive_time == ReceiveTime::Allow;
    for (index, subscription) in spec.source.mqtt.subscriptions.iter().enumerate() {
        let path = format!("spec.source.mqtt.subscriptions[{index}]");
        mapping::check_subscription(subscription, receive_time, &path, &mut errors);
    }
    sharding(spec, &mut errors);
    let batch = &spec.batch;
    errors.in_range("spec.batch.maxRows", &batch.max_rows, &1, &1_000_000);
    if batch.max_bytes.bytes() == 0 {
        errors.add("spec.batch.maxBytes", "is 0", "write a size such as 8Mi");
    }
    if batch.linger.get() > Duration::from_secs(1) {
        errors.add(
            "spec.batch.linger",
            format!("{} is longer than a second", batch.linger),
            "write 0ms to 1s",
        );
    }
    let (least, most) = (spec.source.mqtt.max_packet_size.bytes(), u64::from(u32::MAX));
    if batch.max_in_hand.bytes() <= least || batch.max_in_hand.bytes() > most {
        errors.add(
            "spec.batch.maxInHand",
            format!(
                "{} cannot hold a message of spec.source.mqtt.maxPacketSize, or is 4Gi or more",
                batch.max_in_hand
            ),
            "write a size above maxPacketSize, such as 64Mi",
        );
    }
    errors.in_range("spec.readiness.maxQueueFill", &spec.readiness.max_queue_fill, &1, &100);
    if let Some(spec) = &spec.tracing {
        tracing(spec, &mut errors);
    }
    if let Some(scaling) = &spec.autoscaling {
        if spec.replicas == 0 {
            errors.add(
                "spec.replicas",
                "is 0, and spec.autoscaling counts from 1",
                "leave it out, and write spec.suspend: true to stop all shards",
            );
        }
        errors.in_range("spec.autoscaling.minReplicas", &scaling.min_replicas, &1, &256);
        errors.in_range("spec.autoscaling.maxReplicas", &scaling.max_replicas, &scaling.min_replicas, &256);
        errors.in_range("spec.autoscaling.targetUtilization", &scaling.target_utilization, &10, &100);
    }
    errors.0
}

fn tracing(tracing: &Tracing, errors: &mut Errors) {
    errors.in_range("spec.tracing.ratio", &tracing.ratio, &0.0, &1.0);
    let path = "spec.tracing.otlpEndpoint";
    match Url::parse(&tracing.otlp_endpoint) {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => errors.add(
            path,
            "holds a user name or password",
            "give the worker the variable OTEL_EXPORTER_OTLP_HEADERS from a Secret instead",
        ),
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            errors.add(path, "holds a '?' or '#'", "write scheme, host, port and path only");
        }
        Ok(url) if matches!(url.scheme(), "http" | "https") => {}
        _ => errors.add(
            path,
            "is not the URL of a collector that takes OTLP over HTTP",
            "write http://host:4318 or https://host:4318",
        ),
    }
}

fn mqtt(mqtt: &Mqtt, errors: &mut Errors) {
    let path = |field: &str| format!("spec.source.mqtt.{field}");
    match Url::parse(&mqtt.url) {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            errors.add(
                path("url"),
                "holds a user name or password",
                "name Secrets in spec.source.mqtt.auth instead",
            );
        }
        Ok(url)
            if matches!(url.scheme(), "mqtt" | "mqtts")
                && url.host_str().is_some_and(|host| !host.is_empty()) => {}
        _ => errors.add(
            path("url"),
            "is not the URL of an MQTT broker",
            "write mqtt://host:1883 or mqtts://host:8883",
        ),
    }
    let mut seen = BTreeSet::new();
    for (index, subscription) in mqtt.subscriptions.iter().enumerate() {
        let path = path(&format!("subscriptions[{index}].filter"));
        if let Err((problem, remedy)) = check_filter(&subscription.filter) {
            errors.add(path, problem, remedy);
        } else if !seen.insert(&subscription.filter) {
            errors.add(
                path,
                format!("'{}' is there twice", subscription.filter),
                "subscribe each filter once",
            );
        }
    }
    if mqtt.subscriptions.is_empty() {
        errors.add(path("subscriptions"), "is empty", "subscribe at least one filter");
    }
    if let Err((problem, remedy)) = Layout::parse(&mqtt.layout) {
        errors.add(path("layout"), problem, remedy);
    }
    if let Some(prefix) = &mqtt.client_id_prefix
        && (!is_level(prefix) || prefix.len() > 200)
    {
        errors.add(
            path("clientIdPrefix"),
            "is no client id",
            "write 1 to 200 letters, digits, '-', '_' or '.'",
        );
    }
    if mqtt.receive_maximum == 0 {
        errors.add(path("receiveMaximum"), "0 is out of range", "write 1 to 65535");
    }
    errors.in_range(&path("sessions"), &mqtt.sessions, &1, &64);
    if mqtt.keep_alive.get() < SHORTEST_KEEP_ALIVE || mqtt.keep_alive.get() > Duration::from_secs(65_535) {
        errors.add(path("keepAlive"), format!("{} is out of range", mqtt.keep_alive), "write 5s to 18h");
    }
    if mqtt.session_expiry.get() < Duration::from_secs(60) {
        errors.add(
            path("sessionExpiry"),
            format!("{} is too short to outlive a restart", mqtt.session_expiry),
            "write 1m or more",
        );
    }
    if mqtt.max_packet_size.bytes() == 0 || mqtt.max_packet_size.bytes() > 268_435_455 {
        errors.add(
            path("maxPacketSize"),
            format!("{} is out of range", mqtt.max_packet_size),
            "write 1 to 268435455 bytes",
        );
    }
    if mqtt.tls.is_some() && mqtt.url.starts_with("mqtt:") {
        errors.add(
            path("tls"),
            "is given, but the URL is mqtt://",
            "write mqtts:// to use TLS, or leave tls out",
        );
    }
    authorities(&path("tls"), mqtt.tls.as_ref(), errors);
}

fn authorities(path: &str, tls: Option<&Tls>, errors: &mut Errors) {
    if let Some(ca) = tls.and_then(|tls| tls.ca.as_ref())
        && ca.config_map_key_ref.is_some() == ca.secret_key_ref.is_some()
    {
        errors.add(
            format!("{path}.ca"),
            "names no source, or two",
            "give either configMapKeyRef or secretKeyRef",
        );
    }
}

/// Whether it can be a level of a topic, and is no longer than what a message may name.
fn is_level(name: &str) -> bool {
    (1..=255).contains(&name.len()) && !name.chars().any(|c| c.is_control() || "+#/".contains(c))
}

fn sharding(spec: &IngestPipelineSpec, errors: &mut Errors) {
    let (mqtt, sharding) = (&spec.source.mqtt, &spec.sharding);
    let sparkplug = mqtt.subscriptions.iter().any(Subscription::is_sparkplug);
    let most = spec.autoscaling.as_ref().map_or(spec.replicas, |scaling| scaling.max_replicas);
    if sparkplug && sharding.by == ShardBy::Shared && most > 1 {
        errors.add(
            "spec.sharding.by",
            "Shared parts the births of Sparkplug's edge nodes from their data",
            "write Topic or Tenant, or let there be one shard: spec.replicas, or autoscaling.maxReplicas",
        );
    }
    match sharding.by {
        ShardBy::Tenant => {
            if sharding.tenants.is_empty() {
                errors.add("spec.sharding.tenants", "is empty", "list the tenants to divide");
            }
            // They become levels of filters.
            for (index, _) in sharding.tenants.iter().enumerate().filter(|(_, tenant)| !is_level(tenant)) {
                errors.add(
                    format!("spec.sharding.tenants[{index}]"),
                    "is a tenant that no topic can name",
                    "write 1 to 255 bytes without '/', '+', '#' and control characters",
                );
            }
            let Ok(layout) = Layout::parse(&mqtt.layout) else { return };
            for (index, subscription) in mqtt.subscriptions.iter().enumerate() {
                if layout.filter_of_tenant(subscription, "+").is_none() {
                    let place = if subscription.is_sparkplug() {
                        "the group, which is Sparkplug's tenant"
                    } else {
                        "the layout's {tenant}"
                    };
                    errors.add(
                        format!("spec.source.mqtt.subscriptions[{index}].filter"),
                        format!("has no '+' at {place}, so it cannot be divided by tenant"),
                        "write '+' at that level, or set spec.sharding.by: Topic",
                    );
                }
            }
        }
        _ if !sharding.tenants.is_empty() => {
            errors.add(
                "spec.sharding.tenants",
                "is given, but sharding is not by tenant",
                "remove it, or set spec.sharding.by: Tenant",
            );
        }
        ShardBy::Shared if mqtt.session_expiry.get() > SHARED_EXPIRY => errors.add(
            "spec.source.mqtt.sessionExpiry",
            format!("{} strands the messages of a lost member of a shared subscription", mqtt.session_expiry),
            "write 5m or less with spec.sharding.by: Shared",
        ),
        ShardBy::Shared if mqtt.protocol == Protocol::V311 => errors.add(
            "spec.source.mqtt.protocol",
            "MQTT 3.1.1 has no session expiry, which a shared subscription needs",
            "write V5 with spec.sharding.by: Shared",
        ),
        ShardBy::Topic | ShardBy::Shared => {}
    }
}

/// All that is wrong with a store.
pub fn store(spec: &TelemetryStoreSpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    match spec.tenants.mode {
        TenantMode::Listed if spec.tenants.names.is_empty() => {
            errors.add(
                "spec.tenants.names",
                "is empty",
                "list the tenants that may store, or set mode: Auto",
            );
        }
        TenantMode::Auto if !spec.tenants.names.is_empty() => {
            errors.add("spec.tenants.names", "is given, but mode is Auto", "set mode: Listed, or remove it");
        }
        _ => {}
    }
    errors.in_range("spec.tenants.maxSeries", &spec.tenants.max_series, &1, &2_000_000_000);
    authorities("spec.database.tls", spec.database.tls.as_ref(), &mut errors);
    authorities("spec.migration.tls", spec.migration.tls.as_ref(), &mut errors);
    if let Some(rate) = &spec.tenants.new_series_per_minute {
        errors.in_range("spec.tenants.newSeriesPerMinute", rate, &1, &1_000_000);
    }
    let mut last = Duration::ZERO;
    for (index, width) in spec.rollups.iter().enumerate() {
        let nested = last.is_zero() || width.get().as_millis().is_multiple_of(last.as_millis());
        if width.get() <= last || !nested {
            errors.add(
                format!("spec.rollups[{index}]"),
                format!("{width} is no multiple of the one before"),
                "write widths that contain one another, such as [1m, 5m, 1h]",
            );
        }
        last = width.get();
        rollup(index, width, spec, &mut errors);
    }
    if let (Some(columnstore), Some(retention)) = (&spec.columnstore, &spec.retention)
        && columnstore.after.get() >= retention.get()
    {
        errors.add(
            "spec.columnstore.after",
            format!("{} is not shorter than the retention of {retention}", columnstore.after),
            "write less, or leave columnstore out",
        );
    }
    for (path, age) in [
        ("spec.retention", spec.retention.as_ref()),
        ("spec.deadLetters.retention", spec.dead_letters.retention.as_ref()),
        ("spec.columnstore.after", spec.columnstore.as_ref().map(|columnstore| &columnstore.after)),
    ] {
        if let Some(age) = age.filter(|age| age.get() < SHORTEST_AGE || age.get() > LONGEST_AGE) {
            errors.add(path, format!("{age} is out of range"), "write 1h to 36500d");
        }
    }
    errors.0
}

fn rollup(index: usize, width: &crate::Duration, spec: &TelemetryStoreSpec, errors: &mut Errors) {
    let path = format!("spec.rollups[{index}]");
    if width.get() < NARROWEST_ROLLUP || width.get() > WIDEST_ROLLUP || width.get().subsec_millis() > 0 {
        errors.add(path, format!("{width} is out of range"), "write 1m to 7d, in whole seconds");
    } else if let Some(retention) = &spec.retention
        && retention.get() < 4 * width.get().max(SHORTEST_AGE)
    {
        errors.add(
            path,
            format!("{width} is too wide for a retention of {retention}: its samples would be gone before it is made"),
            "keep samples for at least 4 times the width, and 4h",
        );
    }
}

/// What is wrong between a pipeline and its store.
pub fn pair(pipeline: &IngestPipelineSpec, store: &TelemetryStoreSpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if let Some(retention) = &store.retention
        && pipeline.accept.max_age.get() >= retention.get()
    {
        errors.add(
            "spec.accept.maxAge",
            format!("{} is not shorter than the store's retention of {retention}", pipeline.accept.max_age),
            "write less than the retention, or what is accepted may be deleted at once",
        );
    }
    errors.0
}
