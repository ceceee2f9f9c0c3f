//! A store's policies: what is wanted against what is there gives actions. Planning is pure;
//! [`apply`] runs the statements.

use penstock_crds::store::TelemetryStoreSpec;
use sqlx::{Connection, PgConnection};

pub mod found;
pub mod plan;
pub mod rollup;
#[cfg(test)]
mod tests;

use super::patience::patiently;
use super::schema::SchemaError;
use plan::{Plan, Wanted};

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
    let statements = statements.join(";\n");
    patiently(connection, async |connection| {
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(&statements).execute(&mut *transaction).await?;
        transaction.commit().await
    })
    .await
}
