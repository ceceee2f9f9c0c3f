//! A step of a job that others keep from its locks is done again: writers go first.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

/// A step is tried again for so long.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_secs(1);

/// Does a step, which must be safe to run again, until nothing is in its way. What an ended try did is
/// not counted.
pub async fn patiently<T>(
    connection: &mut PgConnection,
    step: impl AsyncFn(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let started = Instant::now();
    loop {
        match step(connection).await {
            Err(error) if was_in_the_way(&error) && started.elapsed() < PATIENCE => {
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Whether others held what it needed for too long, or changed it meanwhile.
fn was_in_the_way(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    match error.code().as_deref() {
        Some("55P03" | "40P01") => true,
        Some(code) => is_catalog_race(code, error.message()),
        None => false,
    }
}

/// Whether two sessions changed one row of the catalog, as a GRANT on a hypertable and a new chunk of it
/// do: PostgreSQL has no SQLSTATE for that (`simple_heap_update`).
pub fn is_catalog_race(code: &str, message: &str) -> bool {
    code == "XX000" && message.starts_with("tuple concurrently ")
}
