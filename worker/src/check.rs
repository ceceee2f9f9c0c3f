//! What a manifest asks for, and what broker and database grant.

use penstock_crds::Manifest;
use penstock_crds::store::TelemetryStoreSpec;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::mqtt::connection::{Connection as Broker, Event, Lost};
use crate::mqtt::options::{Options, Protocol};
use crate::mqtt::visit;
use crate::settings::Settings;
use crate::store::policy;
use crate::store::schema::{self, SchemaError};

/// What the manifest asks of parts that this version does not have.
pub fn not_yet(manifest: &Manifest) -> Vec<String> {
    let spec = &manifest.pipeline.spec;
    [
        (spec.suspend, "spec.suspend: only an operator parks a shard; this worker consumes"),
        (spec.autoscaling.is_some(), "spec.autoscaling: nothing scales by itself in this version"),
        (
            spec.source.mqtt.sessions > 1,
            "spec.source.mqtt.sessions: this version opens one session and refuses to run with more; write 1",
        ),
        (spec.tracing.is_some(), "spec.tracing: no traces are sent by this version"),
    ]
    .into_iter()
    .filter(|(asked, _)| *asked)
    .map(|(_, note)| note.to_owned())
    .collect()
}

/// What is allowed, and may not be what is meant.
pub fn hints(manifest: &Manifest) -> Vec<String> {
    let (accept, store) = (&manifest.pipeline.spec.accept, &manifest.store.spec);
    let mut hints = Vec::new();
    if let Some(columnstore) = &store.columnstore
        && columnstore.after.get() < accept.max_age.get()
    {
        hints.push(format!(
            "spec.columnstore.after: samples may come up to spec.accept.maxAge = {} late; those older than {} are \
             stored in compressed chunks, which costs more",
            accept.max_age, columnstore.after
        ));
    }
    let widest = store.rollups.iter().map(penstock_crds::Duration::get).max();
    if let (Some(retention), Some(widest)) = (&store.retention, widest) {
        let followed = policy::plan::follows(widest.as_secs() as i64, retention.get().as_secs() as i64);
        if accept.max_age.get().as_secs() as i64 > followed {
            hints.push(format!(
                "spec.accept.maxAge: a sample older than {} is stored, but not taken into the rollups, because the \
                 samples beside it may be dropped at {retention}",
                policy::rollup::Width(followed)
            ));
        }
    }
    hints
}

/// What the broker grants, for a person and for scripts.
pub async fn broker(settings: &Settings) -> Result<Value, Lost> {
    let options = settings.broker.visit("-check");
    let mut broker = Broker::new(&options);
    let deadline = std::time::Duration::from_secs(10);
    let questions = async {
        let granted = loop {
            if let Event::Connected(granted) = broker.next().await? {
                break granted;
            }
        };
        let filters = plain_filters(settings);
        broker.client().subscribe(&filters);
        let grants = loop {
            if let Event::Subscribed(grants) = broker.next().await? {
                break grants;
            }
        };
        Ok((granted, filters, grants))
    };
    let (granted, filters, grants) =
        tokio::time::timeout(deadline, questions).await.unwrap_or(Err(Lost::Silent(deadline)))?;
    visit::log_out(broker).await;
    let subscriptions: serde_json::Map<String, Value> = filters
        .into_iter()
        .zip(grants)
        .map(|(filter, grant)| {
            (filter, grant.map_or_else(|why| json!({ "refused": why }), |qos| json!({ "qos": qos })))
        })
        .collect();
    Ok(json!({
        "protocol": protocol(&options),
        "window": window(&options),
        "sessionExpiry": match options.protocol {
            Protocol::V5 => json!(granted.session_expiry.unwrap_or(settings.broker.session_expiry).as_secs()),
            Protocol::V311 => json!("as long as the broker likes"),
        },
        "largestPacketFromBroker": options.max_packet,
        "largestPacketToBroker": granted.max_packet,
        "maximumQos": granted.max_qos,
        "subscriptions": subscriptions,
        "note": format!(
            "a message between {} bytes (maxPacketSize) and the largest packet becomes a dead letter; a larger one is discarded by the broker, unseen",
            settings.rules.max_payload
        ),
    }))
}

/// Shared subscriptions are asked for plainly: a member that never acknowledges would take messages.
fn plain_filters(settings: &Settings) -> Vec<String> {
    settings
        .work
        .subscriptions
        .iter()
        .map(|subscription| crate::formats::unshared(&subscription.filter).to_owned())
        .collect()
}

fn protocol(options: &Options) -> &'static str {
    match options.protocol {
        Protocol::V5 => "MQTT 5.0",
        Protocol::V311 => "MQTT 3.1.1",
    }
}

fn window(options: &Options) -> Value {
    match options.protocol {
        Protocol::V5 => {
            json!({ "asked": options.receive_maximum, "note": "EMQX grants at most 32, HiveMQ 50, RabbitMQ 10; see ingest_mqtt_window_observed" })
        }
        Protocol::V311 => {
            json!({ "note": "the broker's own setting; Mosquitto's default is 20; see ingest_mqtt_window_observed" })
        }
    }
}

/// What the database is, as a worker sees it.
pub async fn database(
    settings: &Settings,
    store: &TelemetryStoreSpec,
) -> Result<(schema::Report, Option<SchemaError>), SchemaError> {
    let mut connection = PgConnection::connect_with(&settings.database).await?;
    let mut report = schema::inspect(&mut connection).await?;
    let fault = schema::require(&mut connection).await.err();
    if fault.is_none() {
        report.tell(policy::plan(&mut connection, store).await?);
    }
    connection.close().await.ok();
    Ok((report, fault))
}
