//! What one transaction commits: deliveries, and the rows they hold.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::decode::{Micros, Reason};
use crate::delivery::Delivery;
use crate::store::rows::{AckRow, DeadRow, EventRow, MetadataRow, ReplayRow, SampleRow, SparkplugRow};

/// Items of a delivery, by kind; the left side of the second accounting identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Samples decoded.
    pub samples: u32,
    /// Command answers decoded.
    pub acks: u32,
    /// Events decoded.
    pub events: u32,
    /// Metadata decoded.
    pub metadata: u32,
    /// Parts that did not decode.
    pub rejects: u32,
}

impl Tally {
    /// Counts with the names of their kinds.
    pub fn by_kind(self) -> [(&'static str, u64); 5] {
        [
            ("samples", self.samples.into()),
            ("acks", self.acks.into()),
            ("events", self.events.into()),
            ("metadata", self.metadata.into()),
            ("rejects", self.rejects.into()),
        ]
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.samples += other.samples;
        self.acks += other.acks;
        self.events += other.events;
        self.metadata += other.metadata;
        self.rejects += other.rejects;
    }
}

/// What became of items; the right side of the second accounting identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rows written.
    pub stored: u64,
    /// Rows that were there already.
    pub deduplicated: u64,
    /// Command answers older than the one that is there.
    pub outdated: u64,
    /// Dead letters written.
    pub dead_lettered: u64,
}

impl Outcome {
    /// Counts with the names of the outcomes.
    pub fn by_name(self) -> [(&'static str, u64); 4] {
        [
            ("stored", self.stored),
            ("deduplicated", self.deduplicated),
            ("outdated", self.outdated),
            ("dead_lettered", self.dead_lettered),
        ]
    }
}

impl std::ops::AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.stored += other.stored;
        self.deduplicated += other.deduplicated;
        self.outdated += other.outdated;
        self.dead_lettered += other.dead_lettered;
    }
}

/// What one transaction commits.
#[derive(Debug, Default)]
pub struct Batch {
    /// The deliveries, and what each holds.
    pub deliveries: Vec<(Delivery, Tally)>,
    /// Samples.
    pub samples: Vec<SampleRow>,
    /// The text of the samples.
    pub arena: String,
    /// Command answers.
    pub acks: Vec<AckRow>,
    /// Events.
    pub events: Vec<EventRow>,
    /// Metadata.
    pub metadata: Vec<MetadataRow>,
    /// What cannot be stored.
    pub dead: Vec<DeadRow>,
    /// Dead letters whose messages these are, in a replay: those that do not fail again are marked.
    pub replayed: Vec<ReplayRow>,
    /// What is known of Sparkplug's edge nodes from now on; no items.
    pub sparkplug: Vec<SparkplugRow>,
    /// Items that equal another of this batch: the delivery of each.
    duplicates: Vec<u32>,
    /// Command answers older than another of this batch: the delivery of each.
    outdated: Vec<u32>,
    /// Of a batch of one delivery: what became dead letters because the database refused it.
    given_up: Option<Box<Self>>,
}

impl Batch {
    /// Rows to write.
    pub fn rows(&self) -> usize {
        self.samples.len() + self.acks.len() + self.events.len() + self.metadata.len() + self.dead.len()
    }

    /// Whether a delivery may have been stored before.
    pub fn is_redelivered(&self) -> bool {
        self.deliveries.iter().any(|(delivery, _)| delivery.dup)
    }

    /// Items that were settled without the database.
    pub fn folded(&self) -> Outcome {
        Outcome {
            deduplicated: self.duplicates.len() as u64,
            outdated: self.outdated.len() as u64,
            ..Outcome::default()
        }
    }

    /// Sorts the rows by key, so that writers cannot deadlock, and folds rows with the same key:
    /// equal samples become one, of unequal ones the first received stays and the others become
    /// dead letters; of answers to one command the latest executed stays.
    pub fn fold(&mut self) {
        self.fold_samples();
        self.fold_acks();
        self.events.sort_by(|a, b| (a.device_id, &a.event_key).cmp(&(b.device_id, &b.event_key)));
        self.metadata.sort_by_key(|row| (row.device_id, row.ts, row.digest));
    }

    fn fold_samples(&mut self) {
        self.samples.sort_unstable_by_key(|row| (row.series_id, row.ts, row.delivery, row.part));
        let Self { samples, arena, dead, duplicates, .. } = self;
        samples.dedup_by(|row, first| {
            if (row.series_id, row.ts) != (first.series_id, first.ts) {
                return false;
            }
            if row.value.same(first.value, arena) && row.quality == first.quality {
                duplicates.push(row.delivery);
            } else {
                dead.push(conflict(row));
            }
            true
        });
    }

    fn fold_acks(&mut self) {
        let mut latest: HashMap<(i32, String), AckRow> = HashMap::with_capacity(self.acks.len());
        for ack in self.acks.drain(..) {
            match latest.entry((ack.device_id, ack.cmd_id.clone())) {
                Entry::Vacant(slot) => {
                    slot.insert(ack);
                }
                Entry::Occupied(mut slot) => {
                    let kept = slot.get().executed_at;
                    match ack.executed_at.cmp(&kept) {
                        Ordering::Greater => {
                            self.outdated.push(slot.get().delivery);
                            slot.insert(ack);
                        }
                        Ordering::Equal => self.duplicates.push(ack.delivery),
                        Ordering::Less => self.outdated.push(ack.delivery),
                    }
                }
            }
        }
        self.acks = latest.into_values().collect();
        self.acks.sort_by(|a, b| (a.device_id, &a.cmd_id).cmp(&(b.device_id, &b.cmd_id)));
    }

    /// Makes dead letters of everything but the samples, which the database was seen to take; where
    /// there is nothing else, of the samples. Births are forgotten: they are asked for again. Returns
    /// whether there was anything.
    pub fn give_up(&mut self, reason: Reason, detail: &str) -> bool {
        let forgotten = !self.sparkplug.is_empty();
        let mut items: Vec<(u32, Option<u32>)> = (self.acks.iter().map(|row| row.delivery))
            .chain(self.events.iter().map(|row| row.delivery))
            .chain(self.metadata.iter().map(|row| row.delivery))
            .map(|delivery| (delivery, None))
            .collect();
        let arena = &self.arena;
        let given_up =
            self.given_up.get_or_insert_with(|| Box::new(Self { arena: arena.clone(), ..Self::default() }));
        given_up.acks.append(&mut self.acks);
        given_up.events.append(&mut self.events);
        given_up.metadata.append(&mut self.metadata);
        given_up.sparkplug.append(&mut self.sparkplug);
        if items.is_empty() && !forgotten {
            items.extend(self.samples.iter().map(|row| (row.delivery, Some(row.part))));
            given_up.samples.append(&mut self.samples);
        }
        let dead = |(delivery, part)| DeadRow { delivery, part, reason, detail: detail.to_owned() };
        let any = !items.is_empty() || forgotten;
        self.dead.extend(items.into_iter().map(dead));
        any
    }

    /// What was given up, if anything was.
    pub fn given_up(&self) -> Option<&Self> {
        self.given_up.as_deref()
    }

    /// What was given up is to be stored after all.
    pub fn take_back(&mut self) {
        let Some(mut given_up) = self.given_up.take() else { return };
        self.dead.truncate(self.dead.len().saturating_sub(given_up.rows()));
        self.samples.append(&mut given_up.samples);
        self.acks.append(&mut given_up.acks);
        self.events.append(&mut given_up.events);
        self.metadata.append(&mut given_up.metadata);
        self.sparkplug.append(&mut given_up.sparkplug);
    }

    /// Splits the deliveries in two halves, each with its rows.
    pub fn split(mut self) -> (Self, Self) {
        let middle = self.deliveries.len() / 2;
        let second = Self {
            deliveries: self.deliveries.split_off(middle),
            samples: split_off(&mut self.samples, middle, |row| &mut row.delivery),
            arena: self.arena.clone(),
            acks: split_off(&mut self.acks, middle, |row| &mut row.delivery),
            events: split_off(&mut self.events, middle, |row| &mut row.delivery),
            metadata: split_off(&mut self.metadata, middle, |row| &mut row.delivery),
            dead: split_off(&mut self.dead, middle, |row| &mut row.delivery),
            replayed: split_off(&mut self.replayed, middle, |row| &mut row.delivery),
            sparkplug: split_off(&mut self.sparkplug, middle, |row| &mut row.delivery),
            duplicates: split_off(&mut self.duplicates, middle, |delivery| delivery),
            outdated: split_off(&mut self.outdated, middle, |delivery| delivery),
            given_up: None,
        };
        (self, second)
    }
}

/// The dead letter of a sample whose series and time hold another value.
pub fn conflict(row: &SampleRow) -> DeadRow {
    DeadRow {
        delivery: row.delivery,
        part: Some(row.part),
        reason: Reason::Conflict,
        detail: format!(
            "another value is stored for this series at {}; the first one stored stays",
            instant(row.ts)
        ),
    }
}

fn instant(ts: Micros) -> String {
    jiff::Timestamp::from_microsecond(ts).map_or_else(|_| format!("{ts} µs"), |ts| ts.to_string())
}

/// Takes out the rows of the deliveries from `middle` on, numbered from 0 again.
fn split_off<T>(rows: &mut Vec<T>, middle: usize, delivery: impl Fn(&mut T) -> &mut u32) -> Vec<T> {
    let mut second = Vec::new();
    for mut row in std::mem::take(rows) {
        let index = delivery(&mut row);
        if let Some(moved) = index.checked_sub(middle as u32) {
            *index = moved;
            second.push(row);
        } else {
            rows.push(row);
        }
    }
    second
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::rows::RowValue;

    fn sample(series_id: i32, ts: Micros, value: f64, delivery: u32) -> SampleRow {
        SampleRow { series_id, ts, value: RowValue::Num(value), quality: 0, delivery, part: 0 }
    }

    fn ack(cmd_id: &str, executed_at: Option<Micros>, delivery: u32) -> AckRow {
        AckRow {
            device_id: 1,
            cmd_id: cmd_id.into(),
            ok: true,
            executed_at,
            error: None,
            document: "{}".into(),
            delivery,
        }
    }

    #[test]
    fn equal_samples_fold_and_of_unequal_ones_the_first_received_stays() {
        let mut batch = Batch {
            samples: vec![
                sample(2, 5, 1.0, 0),
                sample(1, 5, 7.0, 1),
                sample(2, 5, 1.0, 2),
                sample(2, 5, 3.0, 3),
            ],
            ..Batch::default()
        };
        batch.fold();
        assert_eq!(batch.samples, [sample(1, 5, 7.0, 1), sample(2, 5, 1.0, 0)]);
        assert_eq!(batch.folded().deduplicated, 1);
        assert_eq!(batch.dead.len(), 1);
        assert_eq!((batch.dead[0].delivery, batch.dead[0].reason), (3, Reason::Conflict));
    }

    #[test]
    fn the_latest_executed_answer_to_a_command_stays() {
        let mut batch = Batch {
            acks: vec![ack("a", Some(2), 0), ack("a", None, 1), ack("a", Some(3), 2), ack("a", Some(3), 3)],
            ..Batch::default()
        };
        batch.fold();
        assert_eq!(batch.acks, [ack("a", Some(3), 2)]);
        assert_eq!(batch.folded(), Outcome { deduplicated: 1, outdated: 2, ..Outcome::default() });
    }

    #[test]
    fn each_row_follows_its_delivery_into_its_half() {
        let mut rows: Vec<u32> = vec![3, 0, 2, 1, 3];
        assert_eq!(split_off(&mut rows, 2, |row| row), [1, 0, 1]);
        assert_eq!(rows, [0, 1]);
    }

    #[test]
    fn giving_up_spares_the_samples_as_long_as_there_is_something_else() {
        let mut batch = Batch {
            samples: vec![sample(1, 1, 1.0, 0), sample(1, 2, 1.0, 0)],
            acks: vec![ack("a", None, 0)],
            ..Batch::default()
        };
        for (samples, dead) in [(2, 1), (0, 3)] {
            assert!(batch.give_up(Reason::Database, "22003"));
            assert_eq!((batch.samples.len(), batch.dead.len()), (samples, dead));
        }
        assert!(!batch.give_up(Reason::Database, "22003"));
    }

    #[test]
    fn what_was_given_up_and_taken_back_is_as_it_was() {
        let (samples, acks) = ([sample(1, 1, 1.0, 0), sample(1, 2, 1.0, 0)], [ack("a", None, 0)]);
        let own = conflict(&samples[0]);
        let mut batch = Batch {
            samples: samples.to_vec(),
            acks: acks.to_vec(),
            dead: vec![own.clone()],
            ..Batch::default()
        };
        for _ in 0..2 {
            while batch.give_up(Reason::Database, "54000") {}
            assert_eq!((batch.samples.len(), batch.acks.len(), batch.dead.len()), (0, 0, 4));
            assert_eq!(batch.given_up().map(Batch::rows), Some(3));
            batch.take_back();
            assert!(batch.given_up().is_none());
            assert_eq!(
                (&batch.samples[..], &batch.acks[..], &batch.dead[..]),
                (&samples[..], &acks[..], &[own.clone()][..])
            );
        }
    }
}
