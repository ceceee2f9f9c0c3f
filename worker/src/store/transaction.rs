//! The statements of a batch's transaction. Each effect has a key made from the message alone, so
//! that a message which comes again changes nothing.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use sqlx::{Executor, PgConnection, Row};

use super::rows::{AckRow, DeadRow, EventRow, MetadataRow};
use super::sqlstate::AttemptError;
use super::writer::{Session, Written};
use super::{births, copy, staging};
use crate::batch::{Batch, Outcome};
use crate::decode::Micros;

/// COPY data goes to the server in pieces of this size.
const PIECE: usize = 256 * 1024;

/// Runs the batch's transaction through to its commit.
pub async fn run(
    session: &mut Session,
    batch: &Batch,
    pipeline: &str,
    staging: bool,
) -> Result<Written, AttemptError> {
    session.connection.execute("BEGIN").await?;
    let mut written = Written::default();
    if !batch.samples.is_empty() {
        if staging {
            staging::store(session, batch, &mut written).await?;
        } else {
            copy::sample_stream(&batch.samples, &batch.arena, &mut session.buffer);
            let statement =
                format!("COPY penstock.sample ({}) FROM STDIN (FORMAT binary)", copy::SAMPLE_COLUMNS);
            copy_in(&mut session.connection, &statement, &session.buffer).await?;
            written.samples_stored = batch.samples.len() as u64;
        }
        written.outcome.stored = written.samples_stored;
    }
    let connection = &mut session.connection;
    if !batch.acks.is_empty() {
        written.outcome += upsert_acks(connection, &batch.acks).await?;
    }
    if !batch.events.is_empty() {
        written.outcome += insert_events(connection, &batch.events).await?;
    }
    if !batch.metadata.is_empty() {
        written.outcome += insert_metadata(connection, &batch.metadata).await?;
    }
    if !batch.dead.is_empty() || !written.refused.is_empty() {
        let rows = batch.dead.iter().chain(&written.refused);
        let letters = rows.map(|row| (digest(batch, row), row)).collect();
        let attempted =
            insert_dead_letters(connection, batch, letters, pipeline, &mut written.dead_letters).await?;
        let dead_lettered = written.dead_letters.iter().map(|(_, count)| count).sum();
        written.outcome +=
            Outcome { dead_lettered, deduplicated: attempted - dead_lettered, ..Outcome::default() };
    }
    if !batch.sparkplug.is_empty() {
        births::store(connection, &batch.sparkplug).await?;
    }
    written.at = commit(connection).await?;
    Ok(written)
}

/// Commits, and returns the database's clock right before.
///
/// COMMIT of an aborted transaction rolls back and reports success; no other statement does. So a
/// statement that returns a row comes first, in the same message to save a round trip: after an error
/// the server skips the rest of the message, so there is a commit only of all of it.
pub async fn commit(connection: &mut PgConnection) -> Result<Micros, AttemptError> {
    let rows = connection.fetch_all(CLOCK_AND_COMMIT).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok(row.try_get(0)?)
}

const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8";
const CLOCK_AND_COMMIT: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8; COMMIT";

/// The database's clock.
pub async fn clock<'c>(executor: impl sqlx::PgExecutor<'c>) -> Result<Micros, sqlx::Error> {
    sqlx::query_scalar(CLOCK).fetch_one(executor).await
}

pub(super) async fn copy_in(
    connection: &mut PgConnection,
    statement: &str,
    data: &[u8],
) -> Result<(), sqlx::Error> {
    let mut copy = connection.copy_in_raw(statement).await?;
    for piece in data.chunks(PIECE) {
        copy.send(piece).await?;
    }
    copy.finish().await?;
    Ok(())
}

async fn upsert_acks(connection: &mut PgConnection, rows: &[AckRow]) -> Result<Outcome, sqlx::Error> {
    let device_ids: Vec<i32> = rows.iter().map(|row| row.device_id).collect();
    let cmd_ids: Vec<&str> = rows.iter().map(|row| row.cmd_id.as_str()).collect();
    let executed_at: Vec<Option<i64>> = rows.iter().map(|row| row.executed_at).collect();
    let stored = sqlx::query(
        "INSERT INTO penstock.command_ack AS a (device_id, cmd_id, ok, executed_at, error, document) \
         SELECT device_id, cmd_id, ok, 'epoch'::timestamptz + executed_at * interval '1 microsecond', error, document::jsonb \
         FROM unnest($1::int4[], $2::text[], $3::bool[], $4::int8[], $5::text[], $6::text[]) \
           AS r(device_id, cmd_id, ok, executed_at, error, document) \
         ON CONFLICT (device_id, cmd_id) DO UPDATE SET ok = excluded.ok, executed_at = excluded.executed_at, \
           error = excluded.error, document = excluded.document, updated_at = now() \
         WHERE excluded.executed_at > a.executed_at OR (a.executed_at IS NULL AND excluded.executed_at IS NOT NULL)",
    )
    .bind(&device_ids)
    .bind(&cmd_ids)
    .bind(rows.iter().map(|row| row.ok).collect::<Vec<_>>())
    .bind(&executed_at)
    .bind(rows.iter().map(|row| row.error.as_deref()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.document.as_str()).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?
    .rows_affected();
    let kept = rows.len() as u64 - stored;
    if kept == 0 {
        return Ok(Outcome { stored, ..Outcome::default() });
    }
    // What is there now with the same time is either stored just now or was there before.
    let current: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM unnest($1::int4[], $2::text[], $3::int8[]) AS r(device_id, cmd_id, executed_at) \
         JOIN penstock.command_ack a USING (device_id, cmd_id) \
         WHERE a.executed_at IS NOT DISTINCT FROM 'epoch'::timestamptz + r.executed_at * interval '1 microsecond'",
    )
    .bind(&device_ids)
    .bind(&cmd_ids)
    .bind(&executed_at)
    .fetch_one(connection)
    .await?;
    let deduplicated = (current as u64).saturating_sub(stored).min(kept);
    Ok(Outcome { stored, deduplicated, outdated: kept - deduplicated, ..Outcome::default() })
}

async fn insert_events(connection: &mut PgConnection, rows: &[EventRow]) -> Result<Outcome, sqlx::Error> {
    let stored = sqlx::query(
        "INSERT INTO penstock.event (device_id, event_key, event_id, event_type, ts, data) \
         SELECT device_id, event_key, event_id, event_type, 'epoch'::timestamptz + ts * interval '1 microsecond', data::jsonb \
         FROM unnest($1::int4[], $2::text[], $3::text[], $4::text[], $5::int8[], $6::text[]) \
           AS r(device_id, event_key, event_id, event_type, ts, data) \
         ON CONFLICT (device_id, event_key) DO NOTHING",
    )
    .bind(rows.iter().map(|row| row.device_id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.event_key.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.event_id.as_deref()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.event_type.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.ts).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.data.as_deref()).collect::<Vec<_>>())
    .execute(connection)
    .await?
    .rows_affected();
    Ok(Outcome { stored, deduplicated: rows.len() as u64 - stored, ..Outcome::default() })
}

async fn insert_metadata(
    connection: &mut PgConnection,
    rows: &[MetadataRow],
) -> Result<Outcome, sqlx::Error> {
    let stored = sqlx::query(
        "INSERT INTO penstock.message (device_id, ts, digest, document) \
         SELECT device_id, 'epoch'::timestamptz + ts * interval '1 microsecond', digest, document::jsonb \
         FROM unnest($1::int4[], $2::int8[], $3::bytea[], $4::text[]) AS r(device_id, ts, digest, document) \
         ON CONFLICT (device_id, ts, digest) DO NOTHING",
    )
    .bind(rows.iter().map(|row| row.device_id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.ts).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| &row.digest[..]).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.document.as_str()).collect::<Vec<_>>())
    .execute(connection)
    .await?
    .rows_affected();
    Ok(Outcome { stored, deduplicated: rows.len() as u64 - stored, ..Outcome::default() })
}

/// Inserts the dead letters, and each payload once; counts those that are new by reason. Returns how
/// many were tried.
async fn insert_dead_letters(
    connection: &mut PgConnection,
    batch: &Batch,
    mut letters: Vec<([u8; 32], &DeadRow)>,
    pipeline: &str,
    new: &mut Vec<(String, u64)>,
) -> Result<u64, sqlx::Error> {
    letters.sort_by_key(|(digest, _)| *digest);
    let delivery = |row: &DeadRow| batch.deliveries.get(row.delivery as usize).map(|(delivery, _)| delivery);
    // Of each delivery with dead letters; sorted, so that writers cannot deadlock.
    let mut payloads: BTreeMap<[u8; 32], &[u8]> = BTreeMap::new();
    let mut payload_of: HashMap<u32, [u8; 32]> = HashMap::new();
    for (_, row) in &letters {
        if let (Entry::Vacant(slot), Some(delivery)) = (payload_of.entry(row.delivery), delivery(row)) {
            let digest = slot.insert(blake3::hash(&delivery.payload).into());
            payloads.insert(*digest, &delivery.payload);
        }
    }
    sqlx::query(
        "INSERT INTO penstock.dead_payload (payload_digest, payload, payload_bytes) \
         SELECT digest, payload, octet_length(payload) FROM unnest($1::bytea[], $2::bytea[]) AS r(digest, payload) \
         ON CONFLICT DO NOTHING",
    )
    .bind(payloads.keys().map(|digest| &digest[..]).collect::<Vec<_>>())
    .bind(payloads.values().copied().collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    let topics: Vec<String> = letters
        .iter()
        .map(|(_, row)| delivery(row).map_or_else(String::new, |d| text_of(&d.topic)))
        .collect();
    let reasons: Vec<String> = sqlx::query_scalar(
        "INSERT INTO penstock.dead_letter (digest, pipeline, tenant, topic, payload_digest, reason, part, detail) \
         SELECT digest, $7, tenant, topic, payload_digest, reason, part, detail \
         FROM unnest($1::bytea[], $2::text[], $3::bytea[], $4::text[], $5::int4[], $6::text[], $8::text[]) \
           AS r(digest, topic, payload_digest, reason, part, detail, tenant) \
         ON CONFLICT (digest) DO NOTHING RETURNING reason",
    )
    .bind(letters.iter().map(|(digest, _)| &digest[..]).collect::<Vec<_>>())
    .bind(&topics)
    .bind(letters.iter().map(|(_, row)| payload_of.get(&row.delivery).map(|d| &d[..])).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, row)| row.reason.as_str()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, row)| row.part.map(|part| part as i32)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, row)| row.detail.as_str()).collect::<Vec<_>>())
    .bind(pipeline)
    .bind(letters.iter().map(|(_, row)| delivery(row).and_then(|d| d.tenant.as_deref())).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    for reason in reasons {
        match new.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => new.push((reason, 1)),
        }
    }
    Ok(letters.len() as u64)
}

/// A topic as text for a person: what is not UTF-8, or NUL, is replaced.
fn text_of(topic: &[u8]) -> String {
    String::from_utf8_lossy(topic).replace('\0', "\u{fffd}")
}

/// What makes a dead letter the same when its message comes again.
fn digest(batch: &Batch, row: &DeadRow) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    if let Some((delivery, _)) = batch.deliveries.get(row.delivery as usize) {
        for field in [&delivery.topic, &delivery.payload] {
            hasher.update(&(field.len() as u64).to_be_bytes());
            hasher.update(field);
        }
    }
    hasher.update(row.reason.as_str().as_bytes());
    hasher.update(&row.part.map_or(-1, i64::from).to_be_bytes());
    hasher.finalize().into()
}
