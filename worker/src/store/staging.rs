//! Samples through a temporary table: for batches with rows that are there already, or that the
//! database refuses.

use sqlx::{Executor, PgConnection, Row};

use super::copy;
use super::rows::{DeadRow, SampleRow};
use super::sqlstate::{AttemptError, Class};
use super::transaction::copy_in;
use super::writer::{Session, Written};
use crate::batch::{Batch, conflict};
use crate::decode::Reason;

/// Stores the batch's samples. Equal ones that are there count as deduplicated; unequal ones and
/// those that the database refuses are left out as dead letters.
pub async fn store(session: &mut Session, batch: &Batch, written: &mut Written) -> Result<(), AttemptError> {
    let connection = &mut session.connection;
    // Not for the session's life: no vacuum reaches another session's table, and one that stays keeps the
    // whole database from forgetting old transactions.
    connection
        .execute(
            "CREATE TEMPORARY TABLE penstock_stage (ts timestamptz, series_id int4, \
             quality int2, v_num float8, v_bool bool, v_text text, row int4) ON COMMIT DROP",
        )
        .await?;
    copy::staged_stream(&batch.samples, &batch.arena, &mut session.buffer);
    let statement =
        format!("COPY pg_temp.penstock_stage ({}) FROM STDIN (FORMAT binary)", copy::STAGED_COLUMNS);
    copy_in(connection, &statement, &session.buffer).await?;

    let rows = batch.samples.len() as i32;
    let (stored, poison) = insert(connection, rows).await?;
    written.samples_stored = stored;
    let refused = poison.len() as u64;
    for (row, detail) in poison {
        if let Some(sample) = batch.samples.get(row as usize) {
            let (delivery, part) = (sample.delivery, Some(sample.part));
            written.refused.push(DeadRow { delivery, part, reason: Reason::Database, detail });
        }
    }
    let folded = batch.samples.len() as u64 - stored - refused;
    if folded > 0 {
        let unequal = unequal(connection, &batch.samples).await?;
        written.outcome.deduplicated += folded - unequal.len() as u64;
        let samples = unequal.into_iter().filter_map(|row| batch.samples.get(row as usize));
        written.refused.extend(samples.map(conflict));
    }
    Ok(())
}

/// Inserts what can be inserted: how many rows are new, and which ones the database refuses, and
/// why. A range that holds a refused row is halved until the row stands alone.
async fn insert(connection: &mut PgConnection, rows: i32) -> Result<(u64, Vec<(i32, String)>), AttemptError> {
    let statement = format!(
        "INSERT INTO penstock.sample ({0}) SELECT {0} FROM pg_temp.penstock_stage \
         WHERE row >= $1 AND row < $2 ORDER BY series_id, ts ON CONFLICT (series_id, ts) DO NOTHING",
        copy::SAMPLE_COLUMNS
    );
    let (mut stored, mut poison) = (0, Vec::new());
    let mut ranges = vec![(0, rows)];
    while let Some((from, to)) = ranges.pop() {
        connection.execute("SAVEPOINT part").await?;
        let inserted = sqlx::query(&statement).bind(from).bind(to).execute(&mut *connection).await;
        match inserted.map_err(AttemptError::from) {
            Ok(inserted) => {
                stored += inserted.rows_affected();
                connection.execute("RELEASE SAVEPOINT part").await?;
            }
            Err(error) if error.class() == Class::Poison => {
                connection.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part").await?;
                let middle = from + (to - from) / 2;
                if middle > from {
                    ranges.extend([(middle, to), (from, middle)]);
                } else {
                    poison.push((from, error.to_string()));
                }
            }
            Err(error) => return Err(error),
        }
    }
    if !poison.is_empty() {
        let refused: Vec<i32> = poison.iter().map(|(row, _)| *row).collect();
        sqlx::query("DELETE FROM pg_temp.penstock_stage WHERE row = ANY ($1)")
            .bind(refused)
            .execute(connection)
            .await?;
    }
    Ok((stored, poison))
}

/// Rows for whose series and time another value is stored.
async fn unequal(connection: &mut PgConnection, samples: &[SampleRow]) -> Result<Vec<i32>, sqlx::Error> {
    let times = || samples.iter().map(|row| row.ts);
    // The bounds spare chunks that hold none of these times; LIMIT keeps the planner to one index probe a
    // row, whatever it thinks of the temporary table.
    sqlx::query(
        "SELECT s.row FROM pg_temp.penstock_stage s, LATERAL (\
           SELECT x.v_num, x.v_bool, x.v_text, x.quality FROM penstock.sample x \
           WHERE x.series_id = s.series_id AND x.ts = s.ts \
             AND x.ts >= 'epoch'::timestamptz + $1 * interval '1 microsecond' \
             AND x.ts <= 'epoch'::timestamptz + $2 * interval '1 microsecond' LIMIT 1) x \
         WHERE (x.v_num, x.v_bool, x.v_text, x.quality) IS DISTINCT FROM (s.v_num, s.v_bool, s.v_text, s.quality)",
    )
    .bind(times().min())
    .bind(times().max())
    .fetch_all(connection)
    .await?
    .iter()
    .map(|row| row.try_get(0))
    .collect()
}
