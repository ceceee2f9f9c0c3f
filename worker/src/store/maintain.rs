//! The work that a store needs on a schedule: its policies applied again, and what is older than its
//! retention removed, as far as the database does not do that by itself.

use penstock_crds::report::{Removed, StoreReport};
use penstock_crds::store::TelemetryStoreSpec;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use super::edition::Edition;
use super::expire::{self, Aging};
use super::patience::patiently;
use super::policy::found;
use super::schema::{self, SchemaError};
use super::transaction;
use crate::decode::Micros;

/// One maintenance runs at a time in a database.
const LOCK: i64 = 0x7065_6e73_746d_6e74;

/// Applies the policies and removes what is too old. Safe to run again, and by two at once.
pub async fn maintain(
    owner: &PgConnectOptions,
    spec: &TelemetryStoreSpec,
) -> Result<StoreReport, SchemaError> {
    // Connections of their own, closed afterwards, with their locks.
    let mut connection = PgConnection::connect_with(owner).await?;
    let mut report = schema::apply_policies(&mut connection, spec).await?;
    let mine: bool =
        sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LOCK).fetch_one(&mut connection).await?;
    if mine {
        report.removed = Some(remove(&mut connection, spec).await?);
    } else {
        report.warnings.push("another maintenance is running: this one removed nothing".to_owned());
    }
    report.size_bytes = schema::size(&mut connection).await;
    connection.close().await.ok();
    Ok(report)
}

async fn remove(connection: &mut PgConnection, spec: &TelemetryStoreSpec) -> Result<Removed, SchemaError> {
    let mut removed = Removed::default();
    let now = transaction::clock(&mut *connection).await?;
    let before = |age: &penstock_crds::Duration| now - age.get().as_micros() as Micros;
    if let Some(before) = spec.retention.as_ref().map(before) {
        let found = found::find(connection).await?;
        match found.edition {
            // Its own policy does it.
            Edition::Community(_) if found.hypertable => {}
            _ if found.hypertable => {
                removed.chunks = patiently(connection, async |c| expire::chunks(c, before).await).await?;
            }
            _ => removed.samples = rows(connection, expire::SAMPLES, before).await?,
        }
        removed.messages = rows(connection, expire::MESSAGES, before).await?;
        removed.events = rows(connection, expire::EVENTS, before).await?;
        removed.command_acks = rows(connection, expire::COMMAND_ACKS, before).await?;
    }
    if let Some(before) = spec.dead_letters.retention.as_ref().map(before) {
        removed.dead_letters = patiently(connection, async |c| expire::letters(c, before).await).await?;
    }
    if let Some(most) = &spec.dead_letters.max_size {
        let most = most.bytes();
        (removed.payloads_cut, removed.bytes_cut) =
            patiently(connection, async |c| expire::cut_payloads(c, most).await).await?;
    }
    Ok(removed)
}

async fn rows(connection: &mut PgConnection, aging: Aging, before: Micros) -> Result<u64, sqlx::Error> {
    patiently(connection, async |c| expire::rows(c, aging, before).await).await
}
