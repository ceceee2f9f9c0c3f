//! The statements of a batch's transaction. Each effect has a key made from the message alone, so
//! that a message which comes again changes nothing.

use sqlx::{Executor, PgConnection, Row};

use super::marks::Marks;
use super::rows::{AckRow, EventRow, MetadataRow};
use super::sqlstate::AttemptError;
use super::writer::{Session, Written};
use super::{births, copy, letters, refusal, sift, staging};
use crate::batch::{Batch, Outcome};
use crate::decode::Micros;

/// COPY data goes to the server in pieces of this size.
const PIECE: usize = 256 * 1024;

/// How samples are stored: each way costs more than the one before, and takes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// By COPY: none may be there already.
    Direct,
    /// By COPY without those that are there already, by any but a writer at work now.
    Sifted,
    /// Through a temporary table: whatever is there, and whatever the database refuses.
    Staged,
}

/// Runs the batch's transaction through to its commit.
pub async fn run(
    session: &mut Session,
    batch: &Batch,
    pipeline: &str,
    path: Path,
    marks: &mut Marks,
) -> Result<Written, AttemptError> {
    session.connection.execute("BEGIN").await?;
    let mut written = items(session, batch, path, marks).await?;
    letters::store(&mut session.connection, batch, pipeline, &mut written).await?;
    refusal::confirm(session, batch, path, &written).await?;
    written.at = commit(&mut session.connection).await?;
    Ok(written)
}

/// Writes all of the batch but its dead letters.
pub(super) async fn items(
    session: &mut Session,
    batch: &Batch,
    path: Path,
    marks: &mut Marks,
) -> Result<Written, AttemptError> {
    let mut written = Written::default();
    if !batch.samples.is_empty() {
        match path {
            Path::Direct => {
                copy::sample_stream(&batch.samples, &batch.arena, &mut session.buffer);
                copy_samples(session).await?;
                written.samples_stored = batch.samples.len() as u64;
            }
            Path::Sifted => sift::store(session, batch, marks, &mut written).await?,
            Path::Staged => staging::store(session, batch, &mut written).await?,
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
    if !batch.sparkplug.is_empty() {
        births::store(connection, &batch.sparkplug).await?;
    }
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

/// COPY of the samples in the session's buffer.
pub(super) async fn copy_samples(session: &mut Session) -> Result<(), sqlx::Error> {
    let statement = format!("COPY penstock.sample ({}) FROM STDIN (FORMAT binary)", copy::SAMPLE_COLUMNS);
    copy_in(&mut session.connection, &statement, &session.buffer).await
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
