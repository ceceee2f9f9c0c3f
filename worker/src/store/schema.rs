//! The schema: made and brought up to date by its owner, only looked at by workers.

use std::time::{Duration, Instant};

use penstock_crds::report::StoreReport;
use penstock_crds::store::TelemetryStoreSpec;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection};

use super::patience::patiently;
use super::policy::{self, found};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");
const ROLES: &str = include_str!("../../../migrations/roles.sql");

/// One migration runs at a time in a database.
const LOCK: i64 = 0x7065_6e73_746f_636b;
const LOCK_DEADLINE: Duration = Duration::from_mins(2);
const LOCK_POLL: Duration = Duration::from_millis(200);

/// Why the schema cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The database failed or refused.
    #[error("{0}")]
    Database(#[from] sqlx::Error),
    /// A migration failed.
    #[error("{0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A policy of the store cannot be set up.
    #[error("{what}: {source}")]
    Policy {
        /// What was to be done.
        what: String,
        /// Why not.
        source: sqlx::Error,
    },
    /// Another migration holds the lock.
    #[error("another migration has been running for {0:?}; try again when it is done")]
    Busy(Duration),
    /// No answer in time.
    #[error("the database has not answered within {0:?}")]
    Silent(Duration),
    /// There is no schema.
    #[error("the database has no schema 'penstock'; run penstock-worker migrate")]
    Missing,
    /// The schema is older than the worker.
    #[error("the schema is at version {found}, this worker needs {needed}; run penstock-worker migrate")]
    TooOld {
        /// Version in the database.
        found: i64,
        /// Version that the worker was built with.
        needed: i64,
    },
}

impl SchemaError {
    /// A bounded word for why.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Database(_) | Self::Silent(_) => "database_away",
            Self::Migration(_) => "migration_failed",
            Self::Policy { .. } => "policy_failed",
            Self::Busy(_) => "migration_busy",
            Self::Missing => "schema_missing",
            Self::TooOld { .. } => "schema_too_old",
        }
    }
}

/// Takes in what became, or is to become, of the policies.
pub fn tell(report: &mut StoreReport, plan: policy::plan::Plan) {
    report.unsupported.extend(plan.unsupported);
    report.policies.extend(plan.actions.iter().map(ToString::to_string));
    report.warnings.extend(plan.warnings);
}

/// The version that this build makes and needs.
pub fn needed_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Makes the schema, or brings it up to date, and applies the store's policies. Safe to run again, and
/// by two at once. `worker` is the login of the workers, which is granted what they need.
pub async fn migrate(
    owner: &PgConnectOptions,
    worker: Option<&str>,
    spec: &TelemetryStoreSpec,
) -> Result<StoreReport, SchemaError> {
    // A connection of its own, closed afterwards: what a failed migration leaves on it goes with it.
    let mut connection = PgConnection::connect_with(owner).await?;
    let result = migrate_on(&mut connection, worker, spec).await;
    connection.close().await.ok();
    result
}

/// Applies the store's policies to a schema that is up to date.
pub(super) async fn apply_policies(
    connection: &mut PgConnection,
    spec: &TelemetryStoreSpec,
) -> Result<StoreReport, SchemaError> {
    require(connection).await?;
    lock(connection).await?;
    connection.execute("SET lock_timeout = '3s'").await?;
    let plan = policy::apply(connection, spec).await?;
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(LOCK).execute(&mut *connection).await?;
    let mut report = inspect(connection).await?;
    tell(&mut report, plan);
    Ok(report)
}

async fn lock(connection: &mut PgConnection) -> Result<(), SchemaError> {
    // sqlx's own lock waits inside a statement, which deadlocks with migrations that wait for old
    // snapshots, and its search path would put the bookkeeping into a schema of the user's.
    let started = Instant::now();
    while !sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
        .bind(LOCK)
        .fetch_one(&mut *connection)
        .await?
    {
        if started.elapsed() > LOCK_DEADLINE {
            return Err(SchemaError::Busy(LOCK_DEADLINE));
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
    Ok(())
}

async fn migrate_on(
    connection: &mut PgConnection,
    worker: Option<&str>,
    spec: &TelemetryStoreSpec,
) -> Result<StoreReport, SchemaError> {
    lock(connection).await?;
    let mut notes = extension(connection).await?;
    connection.execute("CREATE SCHEMA IF NOT EXISTS penstock; SET search_path = penstock, public; SET lock_timeout = '3s'").await?;
    let migrator = Migrator {
        migrations: MIGRATIONS.migrations.clone(),
        ignore_missing: true,
        locking: false,
        no_tx: false,
    };
    migrator.run_direct(&mut *connection).await?;
    patiently(connection, async |c| sqlx::raw_sql(ROLES).execute(c).await).await?;
    notes.extend(missing_roles(connection).await?);
    if let Some(worker) = worker {
        notes.extend(grant(connection, worker).await?);
    }
    let plan = policy::apply(connection, spec).await?;
    let mut report = inspect(connection).await?;
    report.warnings.extend(notes);
    report.size_bytes = size(connection).await;
    tell(&mut report, plan);
    Ok(report)
}

/// Creates the extension where the server has it. Without it samples are one plain table.
async fn extension(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    // Creating it where its library is not loaded ends the connection; the library has settings.
    let (available, loaded): (bool, bool) = sqlx::query_as(
        "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb'), \
                EXISTS (SELECT FROM pg_settings WHERE name LIKE 'timescaledb.%')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !available {
        return Ok(Vec::new());
    }
    if !loaded {
        let note =
            "TimescaleDB is installed but not in shared_preload_libraries: samples are one plain table";
        return Ok(vec![note.to_owned()]);
    }
    match connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb").await {
        Ok(_) => Ok(Vec::new()),
        Err(error @ sqlx::Error::Database(_)) => {
            Ok(vec![format!("TimescaleDB is available but could not be created: {error}")])
        }
        Err(error) => Err(error),
    }
}

/// Group roles that this user may not create.
async fn missing_roles(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let missing: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM unnest('{penstock_worker, penstock_reader}'::text[]) name \
         WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)",
    )
    .fetch_all(connection)
    .await?;
    let note = |role| {
        format!("the role {role} is missing; have an administrator CREATE ROLE {role}, and migrate again")
    };
    Ok(missing.into_iter().map(note).collect())
}

/// Makes the workers' login a member of their group.
async fn grant(connection: &mut PgConnection, login: &str) -> Result<Option<String>, sqlx::Error> {
    let member: Option<bool> = sqlx::query_scalar(
        "SELECT pg_has_role(l.oid, g.oid, 'USAGE') FROM pg_roles l, pg_roles g WHERE l.rolname = $1 AND g.rolname = 'penstock_worker'",
    )
    .bind(login)
    .fetch_optional(&mut *connection)
    .await?;
    if member == Some(true) {
        return Ok(None);
    }
    let quoted = format!("\"{}\"", login.replace('"', "\"\""));
    let statement = format!("GRANT penstock_worker TO {quoted}");
    match connection.execute(statement.as_str()).await {
        Ok(_) => Ok(None),
        Err(error @ sqlx::Error::Database(_)) => {
            Ok(Some(format!("the workers' login needs '{statement}', which this user may not do: {error}")))
        }
        Err(error) => Err(error),
    }
}

/// What the database is.
pub async fn inspect(connection: &mut PgConnection) -> Result<StoreReport, SchemaError> {
    let (server, timescaledb): (String, Option<String>) = sqlx::query_as(
        "SELECT current_setting('server_version'), \
                (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb')",
    )
    .fetch_one(&mut *connection)
    .await?;
    let edition = found::edition(connection).await?;
    let mut warnings = Vec::new();
    for (setting, risk) in [
        ("fsync", "a crash of the server loses or corrupts committed rows"),
        ("full_page_writes", "a crash of the machine corrupts tables"),
    ] {
        let value: String = sqlx::query_scalar("SELECT current_setting($1)")
            .bind(setting)
            .fetch_one(&mut *connection)
            .await?;
        if value == "off" {
            warnings.push(format!("{setting}=off: {risk}"));
        }
    }
    let found = found_version(connection).await?;
    let edition = edition.as_str().to_owned();
    Ok(StoreReport {
        server,
        edition,
        timescaledb,
        schema_version: found,
        warnings,
        ..StoreReport::default()
    })
}

/// Bytes of all tables and indexes of the schema, with their chunks and rollups; `None` where the database
/// does not tell, which is no reason to fail.
pub async fn size(connection: &mut PgConnection) -> Option<u64> {
    let found = inspect_size(connection).await;
    found.inspect_err(|error| tracing::warn!(%error, "the size of the schema is not known")).ok()
}

async fn inspect_size(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let timescaledb: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')")
            .fetch_one(&mut *connection)
            .await?;
    let hypertables = "hypertables(name) AS ( \
           SELECT format('%I.%I', hypertable_schema, hypertable_name)::regclass \
           FROM timescaledb_information.hypertables WHERE hypertable_schema = 'penstock' \
           UNION SELECT format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name)::regclass \
           FROM timescaledb_information.continuous_aggregates WHERE view_schema = 'penstock')";
    let query = if timescaledb {
        format!(
            "WITH {hypertables} SELECT \
               (SELECT coalesce(sum(hypertable_size(name)), 0) FROM hypertables) + \
               (SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class \
                WHERE relnamespace = 'penstock'::regnamespace AND relkind = 'r' AND oid NOT IN (SELECT name FROM hypertables))"
        )
    } else {
        "SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class \
         WHERE relnamespace = 'penstock'::regnamespace AND relkind = 'r'"
            .to_owned()
    };
    let bytes: i64 = sqlx::query_scalar(&format!("SELECT ({query})::int8")).fetch_one(connection).await?;
    Ok(bytes.unsigned_abs())
}

async fn found_version(connection: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    let present: bool = sqlx::query_scalar("SELECT to_regclass('penstock._sqlx_migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !present {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT max(version) FROM penstock._sqlx_migrations WHERE success")
        .fetch_one(connection)
        .await
}

/// Refuses a database whose schema is missing or older than this build. A newer one is accepted:
/// migrations expand before they contract.
pub async fn require(connection: &mut PgConnection) -> Result<(), SchemaError> {
    match found_version(connection).await? {
        None => Err(SchemaError::Missing),
        Some(found) if found < needed_version() => {
            Err(SchemaError::TooOld { found, needed: needed_version() })
        }
        Some(_) => Ok(()),
    }
}
