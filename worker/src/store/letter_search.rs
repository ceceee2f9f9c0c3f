//! Dead letters found again: by filter, page by page, and with their messages; and removed.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, Executor, PgConnection, Postgres, Row};

use super::letters::Digest;
use crate::decode::Micros;

/// Which letters are meant; all, where a field is not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Namespace and name of the pipeline.
    pub pipeline: Option<String>,
    /// Any of these reasons.
    pub reasons: Option<Vec<String>>,
    /// The tenant.
    pub tenant: Option<String>,
    /// Received then or later.
    pub since: Option<Micros>,
    /// Received before.
    pub until: Option<Micros>,
    /// `true`: not yet replayed. `false`: replayed.
    pub open: Option<bool>,
}

/// A letter, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// What tells it from every other.
    pub digest: Digest,
    /// When its message was first received.
    pub received_at: Micros,
    /// Namespace and name of the pipeline.
    pub pipeline: String,
    /// The tenant, where it can be told.
    pub tenant: Option<String>,
    /// The topic; what is not UTF-8 is replaced.
    pub topic: String,
    /// Why.
    pub reason: String,
    /// Position in the message; `None` for the whole message.
    pub part: Option<u32>,
    /// For a person.
    pub detail: String,
    /// When it was replayed.
    pub replayed_at: Option<Micros>,
    /// Digest of the payload.
    pub payload_digest: Digest,
    /// Bytes of the payload as it was received.
    pub payload_bytes: i32,
    /// Whether only its beginning is left.
    pub truncated: bool,
}

/// Where a page ended: the next one begins behind it.
pub type Place = (Micros, Digest);

impl Letter {
    /// Its place in the order of pages.
    pub fn place(&self) -> Place {
        (self.received_at, self.digest)
    }
}

const COLUMNS: &str = "l.digest, (extract(epoch FROM l.received_at) * 1000000)::int8 AS received_at, l.pipeline, \
    l.tenant, l.topic, l.reason, l.part, l.detail, (extract(epoch FROM l.replayed_at) * 1000000)::int8 AS replayed_at, \
    l.payload_digest, p.payload_bytes, p.truncated";

/// The condition of [`bind`]'s six arguments.
const MATCHES: &str = "($1::text IS NULL OR l.pipeline = $1) AND ($2::text[] IS NULL OR l.reason = ANY ($2)) \
    AND ($3::text IS NULL OR l.tenant = $3) \
    AND ($4::int8 IS NULL OR l.received_at >= 'epoch'::timestamptz + $4 * interval '1 microsecond') \
    AND ($5::int8 IS NULL OR l.received_at < 'epoch'::timestamptz + $5 * interval '1 microsecond') \
    AND ($6::bool IS NULL OR (l.replayed_at IS NULL) = $6)";

type Asked<'q> = Query<'q, Postgres, PgArguments>;

fn bind<'q>(query: &'q str, filter: &'q Filter) -> Asked<'q> {
    sqlx::query(query)
        .bind(&filter.pipeline)
        .bind(&filter.reasons)
        .bind(&filter.tenant)
        .bind(filter.since)
        .bind(filter.until)
        .bind(filter.open)
}

/// How many letters match.
pub async fn count(connection: &mut PgConnection, filter: &Filter) -> Result<i64, sqlx::Error> {
    let query = format!("SELECT count(*) FROM penstock.dead_letter l WHERE {MATCHES}");
    bind(&query, filter).fetch_one(connection).await?.try_get(0)
}

/// The next letters that match, oldest first.
pub async fn page(
    connection: &mut PgConnection,
    filter: &Filter,
    after: Option<Place>,
    limit: i64,
) -> Result<Vec<Letter>, sqlx::Error> {
    let query = format!(
        "SELECT {COLUMNS} FROM penstock.dead_letter l JOIN penstock.dead_payload p USING (payload_digest) \
         WHERE {MATCHES} AND ($7::int8 IS NULL OR \
           (l.received_at, l.digest) > ('epoch'::timestamptz + $7 * interval '1 microsecond', $8::bytea)) \
         ORDER BY l.received_at, l.digest LIMIT $9"
    );
    let (at, digest) = after.unzip();
    let asked = bind(&query, filter).bind(at).bind(digest.as_ref().map(|digest| &digest[..])).bind(limit);
    asked.fetch_all(connection).await?.iter().map(letter).collect()
}

/// The letters whose digest begins with these hexadecimal digits, at most two.
pub async fn of_prefix(connection: &mut PgConnection, digits: &str) -> Result<Vec<Letter>, sqlx::Error> {
    let query = format!(
        "SELECT {COLUMNS} FROM penstock.dead_letter l JOIN penstock.dead_payload p USING (payload_digest) \
         WHERE l.digest BETWEEN decode(rpad($1, 64, '0'), 'hex') AND decode(rpad($1, 64, 'f'), 'hex') LIMIT 2"
    );
    sqlx::query(&query).bind(digits).fetch_all(connection).await?.iter().map(letter).collect()
}

/// All letters of the messages with these topics and payloads, replayed ones too.
pub async fn of_messages(
    connection: &mut PgConnection,
    messages: &[(String, Digest)],
) -> Result<Vec<Letter>, sqlx::Error> {
    let query = format!(
        "SELECT {COLUMNS} FROM unnest($1::text[], $2::bytea[]) AS m(topic, payload_digest) \
         JOIN penstock.dead_letter l USING (payload_digest, topic) \
         JOIN penstock.dead_payload p USING (payload_digest) ORDER BY l.received_at, l.digest"
    );
    let asked = sqlx::query(&query)
        .bind(messages.iter().map(|(topic, _)| topic.as_str()).collect::<Vec<_>>())
        .bind(messages.iter().map(|(_, digest)| &digest[..]).collect::<Vec<_>>());
    asked.fetch_all(connection).await?.iter().map(letter).collect()
}

/// What is left of the payloads, by digest.
pub async fn payloads(
    connection: &mut PgConnection,
    digests: &[Digest],
) -> Result<Vec<(Digest, Vec<u8>)>, sqlx::Error> {
    sqlx::query("SELECT payload_digest, payload FROM penstock.dead_payload WHERE payload_digest = ANY ($1)")
        .bind(digests.iter().map(|digest| &digest[..]).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?
        .iter()
        .map(|row| Ok((digest(row, "payload_digest")?, row.try_get("payload")?)))
        .collect()
}

/// Removes the oldest letters that match, at most `limit`, and payloads that no letter needs any more.
/// Returns how many letters and payloads.
pub async fn remove(
    connection: &mut PgConnection,
    filter: &Filter,
    limit: i64,
) -> Result<(u64, u64), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    // A writer that finds the payload there does not store it, so it must not go before the writer's
    // letter is seen. Its INSERT holds a lock on the table until its commit; this one waits for it.
    transaction.execute("LOCK TABLE penstock.dead_payload IN SHARE ROW EXCLUSIVE MODE").await?;
    let query = format!(
        "DELETE FROM penstock.dead_letter WHERE digest IN (SELECT l.digest FROM penstock.dead_letter l \
         WHERE {MATCHES} ORDER BY l.received_at LIMIT $7) RETURNING payload_digest"
    );
    let removed: Vec<Vec<u8>> = bind(&query, filter)
        .bind(limit)
        .fetch_all(&mut *transaction)
        .await?
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()?;
    let payloads = sqlx::query(
        "DELETE FROM penstock.dead_payload p WHERE p.payload_digest = ANY ($1) \
         AND NOT EXISTS (SELECT FROM penstock.dead_letter l WHERE l.payload_digest = p.payload_digest)",
    )
    .bind(&removed)
    .execute(&mut *transaction)
    .await?
    .rows_affected();
    transaction.commit().await?;
    Ok((removed.len() as u64, payloads))
}

fn letter(row: &PgRow) -> Result<Letter, sqlx::Error> {
    Ok(Letter {
        digest: digest(row, "digest")?,
        received_at: row.try_get("received_at")?,
        pipeline: row.try_get("pipeline")?,
        tenant: row.try_get("tenant")?,
        topic: row.try_get("topic")?,
        reason: row.try_get("reason")?,
        part: row.try_get::<Option<i32>, _>("part")?.map(|part| part as u32),
        detail: row.try_get("detail")?,
        replayed_at: row.try_get("replayed_at")?,
        payload_digest: digest(row, "payload_digest")?,
        payload_bytes: row.try_get("payload_bytes")?,
        truncated: row.try_get("truncated")?,
    })
}

fn digest(row: &PgRow, column: &str) -> Result<Digest, sqlx::Error> {
    Digest::try_from(row.try_get::<&[u8], _>(column)?)
        .map_err(|error| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) })
}
