//! Which samples may be stored already, while repeats come. Most devices tell new samples in the order of
//! time: what is later than all that is known of its series is taken for new, and is not looked for.
//!
//! That may be wrong, where others store the same or where the newest of a series was never seen here. The
//! table's key refuses such a row, and then all are looked for, until nothing is found that would have been
//! taken for new.

use std::collections::HashMap;

use super::rows::SampleRow;
use crate::decode::Micros;

/// The latest time of each series among what was stored or found lately.
#[derive(Debug, Default)]
pub struct Marks {
    latest: HashMap<i32, Micros>,
    are_in_doubt: bool,
}

impl Marks {
    /// Rows that may be there already, and those that are taken for new.
    pub fn divide(&self, rows: &[SampleRow]) -> (Vec<SampleRow>, Vec<SampleRow>) {
        rows.iter().partition(|row| self.are_in_doubt || !self.is_later(row))
    }

    /// Of those that may be there these were. The doubt is over if none of them is later than its mark.
    pub fn found(&mut self, rows: &[SampleRow]) {
        self.are_in_doubt = rows.iter().any(|row| self.is_later(row));
    }

    /// These rows are stored, or were there.
    pub fn raise(&mut self, rows: &[SampleRow]) {
        for row in rows {
            let mark = self.latest.entry(row.series_id).or_insert(row.ts);
            *mark = row.ts.max(*mark);
        }
    }

    /// Something went wrong: all rows are looked for next.
    pub fn doubt(&mut self) {
        self.are_in_doubt = true;
    }

    /// What is stored from now on is not told here.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Nothing is known of a series that has no mark.
    fn is_later(&self, row: &SampleRow) -> bool {
        self.latest.get(&row.series_id).is_some_and(|mark| row.ts > *mark)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::rows::RowValue;
    use super::*;

    fn row((series_id, ts): (i32, Micros)) -> SampleRow {
        SampleRow { series_id, ts, value: RowValue::Null, quality: 0, delivery: 0, part: 0 }
    }

    fn key(row: &SampleRow) -> (i32, Micros) {
        (row.series_id, row.ts)
    }

    /// Which of four rows are looked for, by place.
    fn suspects(marks: &Marks, keys: &[(i32, Micros); 4]) -> Vec<usize> {
        let (suspects, new) = marks.divide(&keys.map(row));
        let place = |row: &SampleRow| keys.iter().position(|other| *other == key(row)).unwrap();
        assert_eq!(suspects.len() + new.len(), keys.len());
        suspects.iter().map(place).collect()
    }

    #[test]
    fn only_what_is_not_later_than_its_mark_is_looked_for() {
        let mut marks = Marks::default();
        let rows = [(1, 10), (1, 20), (1, 21), (2, 5)];
        assert_eq!(suspects(&marks, &rows), [0, 1, 2, 3], "nothing is known");
        marks.raise(&[row((1, 20)), row((1, 7))]);
        assert_eq!(suspects(&marks, &rows), [0, 1, 3]);
        marks.doubt();
        assert_eq!(suspects(&marks, &rows), [0, 1, 2, 3]);
        marks.found(&[row((1, 21))]);
        assert_eq!(suspects(&marks, &rows), [0, 1, 2, 3], "another would have been taken for new");
        marks.found(&[row((1, 20)), row((2, 5))]);
        assert_eq!(suspects(&marks, &rows), [0, 1, 3]);
        marks.forget();
        assert_eq!(suspects(&marks, &rows), [0, 1, 2, 3]);
    }

    /// Stores rows as a writer does, in a table with a key; how often it tried.
    fn store(marks: &mut Marks, table: &mut BTreeSet<(i32, Micros)>, rows: &[(i32, Micros)]) -> u32 {
        let samples: Vec<SampleRow> = rows.iter().copied().map(row).collect();
        for attempt in 1..=9 {
            if attempt > 1 {
                // Another writer's batch was as expected meanwhile.
                marks.found(&[]);
                marks.doubt();
            }
            let (suspects, mut new) = marks.divide(&samples);
            let (found, not_found): (Vec<_>, Vec<_>) =
                suspects.into_iter().partition(|row| table.contains(&key(row)));
            marks.found(&found);
            new.extend(not_found);
            if new.iter().any(|row| table.contains(&key(row))) {
                continue;
            }
            table.extend(new.iter().map(key));
            marks.raise(&samples);
            return attempt;
        }
        panic!("it never ends")
    }

    proptest! {
        #[test]
        fn a_second_look_finds_whatever_others_stored(
            batches in prop::collection::vec((prop::collection::btree_set((0..3, 0..20i64), 1..8), any::<bool>()), 1..30),
        ) {
            let (mut marks, mut table) = (Marks::default(), BTreeSet::new());
            for (rows, by_others) in batches {
                if by_others {
                    table.extend(rows);
                } else {
                    let rows: Vec<(i32, Micros)> = rows.into_iter().collect();
                    prop_assert!(store(&mut marks, &mut table, &rows) <= 2);
                    prop_assert!(rows.iter().all(|key| table.contains(key)));
                }
            }
        }

        #[test]
        fn repeats_of_what_was_stored_here_never_need_a_second_look(
            batches in prop::collection::vec(prop::collection::btree_set((0..3, 0..20i64), 1..8), 1..30),
        ) {
            let (mut marks, mut table) = (Marks::default(), BTreeSet::new());
            for rows in batches {
                let rows: Vec<(i32, Micros)> = rows.into_iter().collect();
                prop_assert_eq!(store(&mut marks, &mut table, &rows), 1);
            }
        }
    }
}
