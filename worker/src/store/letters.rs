//! Dead letters as rows: written in the transaction of their batch, and marked once a replay has
//! stored what they stand for.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::PgConnection;

use super::rows::DeadRow;
use super::writer::Written;
use crate::batch::{Batch, Outcome};
use crate::delivery::Delivery;

/// A digest that tells one row from every other.
pub type Digest = [u8; 32];

/// Writes the batch's dead letters, and marks those that it replays.
pub(super) async fn store(
    connection: &mut PgConnection,
    batch: &Batch,
    pipeline: &str,
    written: &mut Written,
) -> Result<(), sqlx::Error> {
    let rows = batch.dead.iter().chain(&written.refused);
    let mut letters: Vec<(Digest, &DeadRow)> = rows.map(|row| (digest_of(batch, row), row)).collect();
    let attempted = letters.len() as u64;
    // Sorted, so that writers cannot deadlock; each once, because a statement may touch a row once.
    letters.sort_by_key(|(digest, _)| *digest);
    letters.dedup_by_key(|(digest, _)| *digest);
    if !batch.replayed.is_empty() {
        let failed: HashSet<Digest> = letters.iter().map(|(digest, _)| *digest).collect();
        let done = batch.replayed.iter().map(|row| &row.digest).filter(|digest| !failed.contains(*digest));
        mark(connection, done).await?;
    }
    if !letters.is_empty() {
        let new = insert(connection, batch, &letters, pipeline).await?;
        let dead_lettered = new.iter().map(|(_, count)| count).sum();
        written.dead_letters = new;
        written.outcome +=
            Outcome { dead_lettered, deduplicated: attempted - dead_lettered, ..Outcome::default() };
    }
    Ok(())
}

/// Inserts the letters, and each payload once, also where it was there but cut; counts those that are new by reason.
async fn insert(
    connection: &mut PgConnection,
    batch: &Batch,
    letters: &[(Digest, &DeadRow)],
    pipeline: &str,
) -> Result<Vec<(String, u64)>, sqlx::Error> {
    let delivery = |row: &DeadRow| batch.deliveries.get(row.delivery as usize).map(|(delivery, _)| delivery);
    // Of each delivery with dead letters; sorted, so that writers cannot deadlock.
    let mut payloads: BTreeMap<Digest, &[u8]> = BTreeMap::new();
    let mut payload_of: HashMap<u32, Digest> = HashMap::new();
    for (_, row) in letters {
        if let (Entry::Vacant(slot), Some(delivery)) = (payload_of.entry(row.delivery), delivery(row)) {
            let digest = slot.insert(blake3::hash(&delivery.payload).into());
            payloads.insert(*digest, &delivery.payload);
        }
    }
    sqlx::query(
        "INSERT INTO penstock.dead_payload AS p (payload_digest, payload, payload_bytes) \
         SELECT digest, payload, octet_length(payload) FROM unnest($1::bytea[], $2::bytea[]) AS r(digest, payload) \
         ON CONFLICT (payload_digest) DO UPDATE SET payload = excluded.payload, truncated = false, received_at = now() \
           WHERE p.truncated",
    )
    .bind(payloads.keys().map(|digest| &digest[..]).collect::<Vec<_>>())
    .bind(payloads.values().copied().collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    let topic = |row| delivery(row).map_or_else(String::new, |delivery: &Delivery| text_of(&delivery.topic));
    // The time of receipt, so that a replay gives samples without a time the one they got then. A
    // letter that was replayed and comes again is open again, and as old as what came.
    let reasons: Vec<String> = sqlx::query_scalar(
        "INSERT INTO penstock.dead_letter AS l \
           (digest, pipeline, tenant, topic, payload_digest, reason, part, detail, received_at) \
         SELECT digest, $7, tenant, topic, payload_digest, reason, part, detail, \
           'epoch'::timestamptz + received_at * interval '1 microsecond' \
         FROM unnest($1::bytea[], $2::text[], $3::bytea[], $4::text[], $5::int4[], $6::text[], $8::text[], $9::int8[]) \
           AS r(digest, topic, payload_digest, reason, part, detail, tenant, received_at) \
         ON CONFLICT (digest) DO UPDATE SET replayed_at = NULL, received_at = excluded.received_at \
           WHERE l.replayed_at IS NOT NULL RETURNING reason",
    )
    .bind(letters.iter().map(|(digest, _)| &digest[..]).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, row)| topic(row)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, row)| payload_of.get(&row.delivery).map(|d| &d[..])).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, row)| row.reason.as_str()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, row)| row.part.map(|part| part as i32)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, row)| row.detail.as_str()).collect::<Vec<_>>())
    .bind(pipeline)
    .bind(letters.iter().map(|(_, row)| delivery(row).and_then(Delivery::whose)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, row)| delivery(row).map_or(0, |d| d.received_at)).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let mut new: Vec<(String, u64)> = Vec::new();
    for reason in reasons {
        match new.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => new.push((reason, 1)),
        }
    }
    Ok(new)
}

async fn mark(
    connection: &mut PgConnection,
    digests: impl Iterator<Item = &Digest>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE penstock.dead_letter SET replayed_at = now() WHERE digest = ANY ($1) AND replayed_at IS NULL",
    )
    .bind(digests.map(|digest| &digest[..]).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// A topic as text for a person: what is not UTF-8, or NUL, is replaced.
fn text_of(topic: &[u8]) -> String {
    String::from_utf8_lossy(topic).replace('\0', "\u{fffd}")
}

fn digest_of(batch: &Batch, row: &DeadRow) -> Digest {
    match batch.deliveries.get(row.delivery as usize) {
        Some((delivery, _)) => digest(&delivery.topic, &delivery.payload, row.reason.as_str(), row.part),
        None => Digest::default(),
    }
}

/// What makes a dead letter the same when its message comes again.
pub fn digest(topic: &[u8], payload: &[u8], reason: &str, part: Option<u32>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for field in [topic, payload] {
        hasher.update(&(field.len() as u64).to_be_bytes());
        hasher.update(field);
    }
    hasher.update(reason.as_bytes());
    hasher.update(&part.map_or(-1, i64::from).to_be_bytes());
    hasher.finalize().into()
}
