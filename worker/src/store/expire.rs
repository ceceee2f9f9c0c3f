//! Removes what is older than its retention, in small transactions, so that writers hardly notice.

use sqlx::{PgConnection, Row};

use super::letter_search::{self, Filter};
use crate::decode::Micros;

/// Rows removed in one transaction.
const ROWS: i64 = 10_000;
/// Series or devices whose rows are looked for together.
const IDS: i64 = 1000;
/// Letters removed in one transaction: writers with dead letters wait meanwhile.
const LETTERS: i64 = 1000;
/// Payloads cut in one transaction.
const PAYLOADS: usize = 500;
/// What is kept of a payload that is cut.
const BEGINNING: i32 = 64;

/// A table whose rows have an age.
#[derive(Debug, Clone, Copy)]
pub struct Aging {
    table: &'static str,
    /// The column that its index begins with.
    id: &'static str,
    /// The table whose key that is.
    of: &'static str,
    /// The column that tells the age.
    at: &'static str,
    /// A further condition, and not part of `at`: an index on the column finds the old ones alone.
    and: &'static str,
}

/// Samples in a plain table.
pub const SAMPLES: Aging = Aging { table: "sample", id: "series_id", of: "series", at: "ts", and: "true" };
/// Metadata of messages. What has no time, as JE02's INFO, tells what the device is and stays.
pub const MESSAGES: Aging =
    Aging { table: "message", id: "device_id", of: "device", at: "ts", and: "ts <> 'epoch'" };
/// Events.
pub const EVENTS: Aging = Aging { table: "event", id: "device_id", of: "device", at: "ts", and: "true" };
/// Command answers: a device may not have said when it carried the command out.
pub const COMMAND_ACKS: Aging =
    Aging { table: "command_ack", id: "device_id", of: "device", at: "updated_at", and: "true" };

/// Removes rows from before a time. The index is walked by series or device, because none begins with
/// the time: another index would cost each writer more than this costs once an hour.
pub async fn rows(connection: &mut PgConnection, aging: Aging, before: Micros) -> Result<u64, sqlx::Error> {
    let Aging { table, id, of, at, and } = aging;
    let next = format!("SELECT {id} FROM penstock.{of} WHERE {id} > $1 ORDER BY {id} LIMIT $2");
    let delete = format!(
        "DELETE FROM penstock.{table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM penstock.{table} WHERE {id} = ANY ($1) \
         AND {at} < 'epoch'::timestamptz + $2 * interval '1 microsecond' AND {and} LIMIT $3))"
    );
    let (mut removed, mut last) = (0, i32::MIN);
    loop {
        let ids: Vec<i32> =
            sqlx::query_scalar(&next).bind(last).bind(IDS).fetch_all(&mut *connection).await?;
        let Some(end) = ids.last() else { return Ok(removed) };
        last = *end;
        loop {
            let deleted = sqlx::query(&delete)
                .bind(&ids)
                .bind(before)
                .bind(ROWS)
                .execute(&mut *connection)
                .await?
                .rows_affected();
            removed += deleted;
            if deleted < ROWS as u64 {
                break;
            }
        }
    }
}

/// Drops chunks of samples that end before a time. Returns how many.
pub async fn chunks(connection: &mut PgConnection, before: Micros) -> Result<u64, sqlx::Error> {
    let dropped: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM drop_chunks('penstock.sample', \
         older_than => 'epoch'::timestamptz + $1 * interval '1 microsecond')",
    )
    .bind(before)
    .fetch_one(connection)
    .await?;
    Ok(dropped as u64)
}

/// Removes dead letters from before a time.
pub async fn letters(connection: &mut PgConnection, before: Micros) -> Result<u64, sqlx::Error> {
    let filter = Filter { until: Some(before), ..Filter::default() };
    let mut removed = 0;
    loop {
        let (letters, _) = letter_search::remove(connection, &filter, LETTERS).await?;
        removed += letters;
        if letters < LETTERS as u64 {
            return Ok(removed);
        }
    }
}

/// Cuts payloads of dead letters, the oldest first, until all together have at most so many bytes. Returns
/// how many payloads and how many bytes.
pub async fn cut_payloads(connection: &mut PgConnection, most: u64) -> Result<(u64, u64), sqlx::Error> {
    let victims: Vec<Vec<u8>> = sqlx::query(
        "WITH sized AS (SELECT payload_digest, received_at, octet_length(payload)::int8 AS bytes FROM penstock.dead_payload), \
         excess AS (SELECT sum(bytes) - $1 AS bytes FROM sized), \
         cut AS (SELECT payload_digest, received_at, sum(bytes - $2) OVER (ORDER BY received_at, payload_digest \
           ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM sized WHERE bytes > $2) \
         SELECT cut.payload_digest FROM cut, excess WHERE coalesce(cut.before, 0) < excess.bytes \
         ORDER BY cut.received_at, cut.payload_digest",
    )
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .bind(i64::from(BEGINNING))
    .fetch_all(&mut *connection)
    .await?
    .iter()
    .map(|row| row.try_get(0))
    .collect::<Result<_, _>>()?;
    let (mut payloads, mut bytes) = (0, 0);
    for some in victims.chunks(PAYLOADS) {
        // The length before is lost with the update, so it is taken with it.
        let (cut, freed): (i64, i64) = sqlx::query_as(
            "WITH old AS (SELECT payload_digest, octet_length(payload) AS bytes FROM penstock.dead_payload \
               WHERE payload_digest = ANY ($1) FOR UPDATE), \
             cut AS (UPDATE penstock.dead_payload p SET payload = substr(p.payload, 1, $2), truncated = true FROM old \
               WHERE old.payload_digest = p.payload_digest RETURNING old.bytes) \
             SELECT count(*), coalesce(sum(bytes - $2), 0)::int8 FROM cut",
        )
        .bind(some)
        .bind(BEGINNING)
        .fetch_one(&mut *connection)
        .await?;
        payloads += cut as u64;
        bytes += freed as u64;
    }
    Ok((payloads, bytes))
}
