//! What a manifest asks for, and what broker and database grant.

use std::time::Duration;

use penstock_crds::Manifest;
use penstock_crds::report::StoreReport;
use penstock_crds::store::TelemetryStoreSpec;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::mqtt::connection::{Connection as Broker, Event, Lost};
use crate::mqtt::options::{Options, Protocol};
use crate::mqtt::visit;
use crate::outage;
use crate::settings::Settings;
use crate::store::schema::{self, SchemaError};
use crate::store::{policy, rate};

/// What the manifest asks of parts that this version does not have.
pub fn not_yet(manifest: &Manifest) -> Vec<String> {
    let spec = &manifest.pipeline.spec;
    [
        (spec.suspend, "spec.suspend: only an operator parks a shard; this worker consumes"),
        (spec.autoscaling.is_some(), "spec.autoscaling: only an operator scales; this worker runs one shard"),
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
    let options = settings.access.broker.visit("-check");
    let mut broker = Broker::new(&options);
    let deadline = Duration::from_secs(10);
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
            Protocol::V5 => json!(granted.session_expiry.unwrap_or(settings.access.broker.session_expiry).as_secs()),
            Protocol::V311 => json!("as long as the broker likes"),
        },
        "largestPacketFromBroker": options.max_packet,
        "largestPacketToBroker": granted.max_packet,
        "maximumQos": granted.max_qos,
        "subscriptions": subscriptions,
        "note": format!(
            "a message between {} bytes (maxPacketSize) and the largest packet becomes a dead letter; a larger one is discarded by the broker, unseen",
            settings.terms.decoder.rules().max_payload
        ),
    }))
}

/// What an outage would cost at the broker, at this rate or at that of the last minutes.
pub async fn outage(settings: &Settings, rate: Option<f64>, outage: Duration) -> String {
    let rate = match rate {
        Some(rate) => Some(rate),
        None => rate::recent(&settings.access.database).await,
    };
    let Some(rate) = rate else {
        return "queue: the rate could not be measured; give --rate to see what an outage would cost"
            .to_owned();
    };
    let version = visit::retained(&settings.access.broker.visit("-check"), "$SYS/broker/version").await;
    let queue = outage::queue(version.as_deref());
    match outage::warning(queue, settings.sessions as u64, rate, outage) {
        Some(warning) => format!("warning: {warning}"),
        None => format!("queue: at {rate:.1} messages/s the default of {} lasts {outage:?}", queue.broker),
    }
}

/// Shared subscriptions are asked for plainly: a member that never acknowledges would take messages.
fn plain_filters(settings: &Settings) -> Vec<String> {
    settings
        .terms
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
) -> Result<(StoreReport, Option<SchemaError>), SchemaError> {
    let mut connection = PgConnection::connect_with(&settings.access.database).await?;
    let mut report = schema::inspect(&mut connection).await?;
    let fault = schema::require(&mut connection).await.err();
    if fault.is_none() {
        schema::tell(&mut report, policy::plan(&mut connection, store).await?);
    }
    connection.close().await.ok();
    Ok((report, fault))
}
