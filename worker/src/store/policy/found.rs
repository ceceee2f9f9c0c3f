//! What policies the database has.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row};

use super::plan::{Found, Refresh, Seconds};
use super::rollup::Width;
use crate::store::edition::Edition;

/// What the database has.
pub async fn find(connection: &mut PgConnection) -> Result<Found, sqlx::Error> {
    let mut found = Found {
        edition: edition(connection).await?,
        hypertable: false,
        compressed: false,
        columnstore: false,
        retention: None,
        horizon: None,
        compress_after: None,
        rollups: BTreeMap::new(),
    };
    if found.edition == Edition::Plain {
        return Ok(found);
    }
    let row = sqlx::query(
        "SELECT h.compression_enabled, EXISTS (SELECT FROM timescaledb_information.chunks c \
           WHERE c.hypertable_schema = 'penstock' AND c.hypertable_name = 'sample' AND c.is_compressed) AS compressed \
         FROM timescaledb_information.hypertables h \
         WHERE h.hypertable_schema = 'penstock' AND h.hypertable_name = 'sample'",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(found) };
    found.hypertable = true;
    found.columnstore = row.try_get("compression_enabled")?;
    found.compressed = row.try_get("compressed")?;
    if let Edition::Community(_) = found.edition {
        found.retention = job(connection, "policy_retention", "drop_after").await?;
        found.horizon =
            sqlx::query_scalar("SELECT extract(epoch FROM now() - at)::int8 FROM penstock.horizon")
                .fetch_optional(&mut *connection)
                .await?;
        found.compress_after = job(connection, "policy_compression", "compress_after").await?;
        found.rollups = rollups(connection).await?;
    }
    Ok(found)
}

/// Which database it is.
pub async fn edition(connection: &mut PgConnection) -> Result<Edition, sqlx::Error> {
    let (version, licence): (Option<String>, Option<String>) = sqlx::query_as(
        "SELECT (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'), \
                current_setting('timescaledb.license', true)",
    )
    .fetch_one(connection)
    .await?;
    Ok(Edition::of(version.as_deref(), licence.as_deref()))
}

/// An age in the configuration of a policy on samples.
async fn job(
    connection: &mut PgConnection,
    procedure: &str,
    age: &str,
) -> Result<Option<Seconds>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT extract(epoch FROM (config->>$2)::interval)::int8 FROM timescaledb_information.jobs \
         WHERE proc_name = $1 AND hypertable_schema = 'penstock' AND hypertable_name = 'sample'",
    )
    .bind(procedure)
    .bind(age)
    .fetch_optional(connection)
    .await
    .map(Option::flatten)
}

/// The rollups by width, each with its refresh.
async fn rollups(connection: &mut PgConnection) -> Result<BTreeMap<Width, Option<Refresh>>, sqlx::Error> {
    // Versions differ in whether a job names the rollup or the table behind it.
    let rows = sqlx::query(
        "SELECT a.view_name::text AS name, j.job_id IS NOT NULL AS refreshed, \
           extract(epoch FROM (j.config->>'start_offset')::interval)::int8 AS start, \
           extract(epoch FROM (j.config->>'end_offset')::interval)::int8 AS end \
         FROM timescaledb_information.continuous_aggregates a LEFT JOIN timescaledb_information.jobs j \
           ON j.proc_name = 'policy_refresh_continuous_aggregate' AND \
             ((j.hypertable_schema, j.hypertable_name) IN ((a.view_schema, a.view_name), \
               (a.materialization_hypertable_schema, a.materialization_hypertable_name))) \
         WHERE a.view_schema = 'penstock' AND a.view_name LIKE 'rollup\\_%'",
    )
    .fetch_all(connection)
    .await?;
    let mut found = BTreeMap::new();
    for row in rows {
        let name: String = row.try_get("name")?;
        let width =
            name.strip_prefix("rollup_").and_then(|width| width.parse::<penstock_crds::Duration>().ok());
        let Some(width) = width else { continue };
        let refresh = if row.try_get("refreshed")? {
            Some(Refresh {
                start: row.try_get("start")?,
                end: row.try_get::<Option<i64>, _>("end")?.unwrap_or(0),
            })
        } else {
            None
        };
        found.insert(Width(width.get().as_secs() as Seconds), refresh);
    }
    Ok(found)
}
