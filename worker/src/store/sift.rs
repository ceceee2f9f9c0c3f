//! Samples that are there already are found first, and only the others are copied: for the batches
//! after one that held repeats. A COPY of the rest costs about half of the INSERT that staging needs. Only
//! those are looked for that may be there by the marks.

use std::collections::HashMap;

use sqlx::{PgConnection, Row};

use super::copy;
use super::marks::Marks;
use super::rows::{RowValue, SampleRow};
use super::sqlstate::AttemptError;
use super::transaction::copy_samples;
use super::writer::{Session, Written};
use crate::batch::{Batch, conflict};
use crate::decode::Micros;

/// A stored value and its quality.
type Stored = (Option<f64>, Option<bool>, Option<String>, i16);

/// Stores the samples that are new. Equal ones that are there count as deduplicated, unequal ones are
/// left out as dead letters. A row that another writer stores meanwhile, or that the marks took for new and
/// is there, is a duplicate error.
pub async fn store(
    session: &mut Session,
    batch: &Batch,
    marks: &mut Marks,
    written: &mut Written,
) -> Result<(), AttemptError> {
    let (suspects, mut new) = marks.divide(&batch.samples);
    let there = find(&mut session.connection, &suspects).await?;
    let mut found = Vec::with_capacity(there.len());
    for (index, row) in suspects.into_iter().enumerate() {
        let Some(stored) = there.get(&(index as i64 + 1)) else {
            new.push(row);
            continue;
        };
        found.push(row);
        if same(&row, stored, &batch.arena) {
            written.outcome.deduplicated += 1;
        } else {
            written.refused.push(conflict(&row));
        }
    }
    marks.found(&found);
    // In the order of all batches: processes that write at the same time cannot deadlock.
    new.sort_unstable_by_key(|row| (row.series_id, row.ts));
    copy::sample_stream(&new, &batch.arena, &mut session.buffer);
    copy_samples(session).await?;
    written.samples_stored = new.len() as u64;
    Ok(())
}

/// What is stored for the rows' series and times, by the row's place, counted from 1.
async fn find(
    connection: &mut PgConnection,
    rows: &[SampleRow],
) -> Result<HashMap<i64, Stored>, sqlx::Error> {
    let times = || rows.iter().map(|row| row.ts);
    let (Some(first), Some(last)) = (times().min(), times().max()) else { return Ok(HashMap::new()) };
    // The bounds spare chunks that hold none of these times; LIMIT keeps the planner to one index probe
    // a row, whatever it thinks of the arrays.
    sqlx::query(
        "SELECT k.row, x.v_num, x.v_bool, x.v_text, x.quality \
         FROM (SELECT series_id, 'epoch'::timestamptz + micros * interval '1 microsecond' ts, row \
               FROM unnest($1::int4[], $2::int8[]) WITH ORDINALITY AS k(series_id, micros, row)) k, \
         LATERAL (SELECT s.v_num, s.v_bool, s.v_text, s.quality FROM penstock.sample s \
           WHERE s.series_id = k.series_id AND s.ts = k.ts \
             AND s.ts >= 'epoch'::timestamptz + $3 * interval '1 microsecond' \
             AND s.ts <= 'epoch'::timestamptz + $4 * interval '1 microsecond' LIMIT 1) x",
    )
    .bind(rows.iter().map(|row| row.series_id).collect::<Vec<i32>>())
    .bind(times().collect::<Vec<Micros>>())
    .bind(first)
    .bind(last)
    .fetch_all(connection)
    .await?
    .iter()
    .map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?))))
    .collect()
}

fn same(row: &SampleRow, (number, truth, text, quality): &Stored, arena: &str) -> bool {
    row.quality == *quality
        && match row.value {
            RowValue::Num(value) => *number == Some(value),
            RowValue::Null => number.is_none() && truth.is_none() && text.is_none(),
            RowValue::Bool(value) => *truth == Some(value),
            RowValue::Text { .. } => text.as_deref() == row.value.text(arena),
        }
}
