//! A store's policies: what is wanted against what is there gives actions. Planning is pure;
//! [`apply`] runs the statements.

use penstock_crds::store::TelemetryStoreSpec;
use sqlx::{Connection, PgConnection};

pub mod found;
pub mod plan;
pub mod rollup;
#[cfg(test)]
mod tests;

use super::schema::SchemaError;
use plan::{Plan, Wanted};

/// A statement that waits for a lock in vain is tried again so often.
const TRIES: u32 = 5;
const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// What is to be done for the spec.
pub async fn plan(connection: &mut PgConnection, spec: &TelemetryStoreSpec) -> Result<Plan, SchemaError> {
    Ok(plan::plan(&Wanted::from(spec), &found::find(connection).await?))
}

/// Brings the database's policies to what the spec says. Safe to run again.
pub async fn apply(connection: &mut PgConnection, spec: &TelemetryStoreSpec) -> Result<Plan, SchemaError> {
    let plan = plan(connection, spec).await?;
    for action in &plan.actions {
        run(connection, &action.statements())
            .await
            .map_err(|source| SchemaError::Policy { what: action.to_string(), source })?;
    }
    Ok(plan)
}

/// Runs statements in one transaction; waits for locks patiently, but for a moment at a time, because
/// writers queue behind a waiting lock.
async fn run(connection: &mut PgConnection, statements: &[String]) -> Result<(), sqlx::Error> {
    for tried in 1.. {
        let mut transaction = connection.begin().await?;
        match sqlx::raw_sql(&statements.join(";\n")).execute(&mut *transaction).await {
            Ok(_) => return transaction.commit().await,
            Err(error) if tried < TRIES && is_lock_timeout(&error) => transaction.rollback().await?,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Whether others held what it needed for too long.
pub(super) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("55P03" | "40P01"))
}
