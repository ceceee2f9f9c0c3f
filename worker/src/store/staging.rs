//! Samples through a temporary table: for batches with rows that are there already, or that the
//! database refuses.

use sqlx::{Executor, PgConnection, Row};

use super::copy;
use super::refusal::refused_again;
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

    let (stored, poison) = insert(connection, batch.samples.len() as i32).await?;
    written.samples_stored = stored;
    let refused = poison.len() as u64;
    for (row, detail) in poison {
        written.suspects.push(row);
        if let Some(sample) = batch.samples.get(row as usize) {
            let (delivery, part) = (sample.delivery, Some(sample.part));
            written.refused.push(DeadRow { delivery, part, reason: Reason::Database, detail });
        }
    }
    let folded = batch.samples.len() as u64 - stored - refused;
    if folded > 0 {
        let unequal = unequal(connection, &batch.samples, &written.suspects).await?;
        written.outcome.deduplicated += folded - unequal.len() as u64;
        let samples = unequal.into_iter().filter_map(|row| batch.samples.get(row as usize));
        written.refused.extend(samples.map(conflict));
    }
    Ok(())
}

fn insert_range() -> String {
    format!(
        "INSERT INTO penstock.sample ({0}) SELECT {0} FROM pg_temp.penstock_stage \
         WHERE row >= $1 AND row < $2 ORDER BY series_id, ts ON CONFLICT (series_id, ts) DO NOTHING",
        copy::SAMPLE_COLUMNS
    )
}

/// Inserts what can be inserted: how many rows are new, and which ones the database refuses, and
/// why. A range that holds a refused row is halved until the row stands alone.
async fn insert(connection: &mut PgConnection, rows: i32) -> Result<(u64, Vec<(i32, String)>), AttemptError> {
    let statement = insert_range();
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
                if to - from == rows {
                    // Many rows may be refused, and each is looked for a few times.
                    connection.execute("CREATE INDEX ON pg_temp.penstock_stage (row)").await?;
                }
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
    Ok((stored, poison))
}

/// Tries once more what was refused, each row alone.
pub async fn confirm(connection: &mut PgConnection, suspects: &[i32]) -> Result<(), AttemptError> {
    let statement = insert_range();
    connection.execute("SAVEPOINT refused").await?;
    for row in suspects {
        let inserted = sqlx::query(&statement).bind(row).bind(row + 1).execute(&mut *connection).await;
        refused_again(inserted.map(drop).map_err(Into::into))?;
        connection.execute("ROLLBACK TO SAVEPOINT refused").await?;
    }
    Ok(())
}

/// Rows for whose series and time another value is stored, without those that were refused.
async fn unequal(
    connection: &mut PgConnection,
    samples: &[SampleRow],
    refused: &[i32],
) -> Result<Vec<i32>, sqlx::Error> {
    let times = || samples.iter().map(|row| row.ts);
    // The bounds spare chunks that hold none of these times; LIMIT keeps the planner to one index probe a
    // row, whatever it thinks of the temporary table.
    sqlx::query(
        "SELECT s.row FROM pg_temp.penstock_stage s, LATERAL (\
           SELECT x.v_num, x.v_bool, x.v_text, x.quality FROM penstock.sample x \
           WHERE x.series_id = s.series_id AND x.ts = s.ts \
             AND x.ts >= 'epoch'::timestamptz + $1 * interval '1 microsecond' \
             AND x.ts <= 'epoch'::timestamptz + $2 * interval '1 microsecond' LIMIT 1) x \
         WHERE (x.v_num, x.v_bool, x.v_text, x.quality) IS DISTINCT FROM (s.v_num, s.v_bool, s.v_text, s.quality) \
           AND NOT EXISTS (SELECT FROM unnest($3::int4[]) AS r(row) WHERE r.row = s.row)",
    )
    .bind(times().min())
    .bind(times().max())
    .bind(refused)
    .fetch_all(connection)
    .await?
    .iter()
    .map(|row| row.try_get(0))
    .collect()
}
