//! PostgreSQL's binary COPY format for samples:
//! <https://www.postgresql.org/docs/17/sql-copy.html#id-1.9.3.55.9.4>.

use super::rows::{RowValue, SampleRow};
use crate::decode::Micros;

/// 2000-01-01T00:00:00Z, where PostgreSQL's timestamps begin.
const POSTGRES_EPOCH: Micros = 946_684_800_000_000;

/// Signature, flags and extension length.
const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: i16 = -1;
const NULL: i32 = -1;

/// Columns in the order of [`sample_stream`].
pub const SAMPLE_COLUMNS: &str = "ts, series_id, quality, v_num, v_bool, v_text";

/// Columns in the order of [`staged_stream`].
pub const STAGED_COLUMNS: &str = "ts, series_id, quality, v_num, v_bool, v_text, row";

/// The rows as a COPY stream with [`SAMPLE_COLUMNS`]. Row n is the stream's line n + 1.
pub fn sample_stream(rows: &[SampleRow], arena: &str, out: &mut Vec<u8>) {
    stream(rows, arena, false, out);
}

/// The rows as a COPY stream with [`STAGED_COLUMNS`]; the last column is the row's index.
pub fn staged_stream(rows: &[SampleRow], arena: &str, out: &mut Vec<u8>) {
    stream(rows, arena, true, out);
}

fn stream(rows: &[SampleRow], arena: &str, numbered: bool, out: &mut Vec<u8>) {
    out.clear();
    out.reserve(HEADER.len() + rows.len() * 64);
    out.extend_from_slice(HEADER);
    for (index, row) in rows.iter().enumerate() {
        out.extend_from_slice(&if numbered { 7i16 } else { 6i16 }.to_be_bytes());
        field(out, &(row.ts - POSTGRES_EPOCH).to_be_bytes());
        field(out, &row.series_id.to_be_bytes());
        field(out, &row.quality.to_be_bytes());
        match row.value {
            RowValue::Num(number) => {
                field(out, &number.to_be_bytes());
                null(out);
                null(out);
            }
            RowValue::Bool(truth) => {
                null(out);
                field(out, &[u8::from(truth)]);
                null(out);
            }
            RowValue::Text { .. } => {
                null(out);
                null(out);
                field(out, row.value.text(arena).unwrap_or_default().as_bytes());
            }
            RowValue::Null => (0..3).for_each(|_| null(out)),
        }
        if numbered {
            field(out, &(index as i32).to_be_bytes());
        }
    }
    out.extend_from_slice(&TRAILER.to_be_bytes());
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn null(out: &mut Vec<u8>) {
    out.extend_from_slice(&NULL.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_encoded_as_postgresql_documents_it() {
        let row = SampleRow {
            series_id: 7,
            ts: POSTGRES_EPOCH + 1,
            value: RowValue::Text { start: 1, len: 2 },
            quality: 0,
            delivery: 0,
            part: 0,
        };
        let mut out = Vec::new();
        staged_stream(&[row], "xhiy", &mut out);
        let mut expected = HEADER.to_vec();
        expected.extend(7i16.to_be_bytes());
        expected.extend(8i32.to_be_bytes());
        expected.extend(1i64.to_be_bytes());
        expected.extend(4i32.to_be_bytes());
        expected.extend(7i32.to_be_bytes());
        expected.extend(2i32.to_be_bytes());
        expected.extend(0i16.to_be_bytes());
        expected.extend((-1i32).to_be_bytes());
        expected.extend((-1i32).to_be_bytes());
        expected.extend(2i32.to_be_bytes());
        expected.extend(b"hi");
        expected.extend(4i32.to_be_bytes());
        expected.extend(0i32.to_be_bytes());
        expected.extend((-1i16).to_be_bytes());
        assert_eq!(out, expected);
    }
}
