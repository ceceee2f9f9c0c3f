//! A batch in the making: decoded deliveries whose series and devices may not be known yet.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::batch::{Batch, Tally};
use crate::decode::sparkplug::Effects;
use crate::decode::{Claims, Content, Event, Input, Micros, Reason, Source, Value};
use crate::delivery::Delivery;
use crate::store::dictionary::{Dictionary, Key, Verdict};
use crate::store::rows::{AckRow, DeadRow, EventRow, MetadataRow, RowValue, SampleRow, SparkplugRow};

/// A batch in the making.
#[derive(Debug, Default)]
pub struct Draft {
    batch: Batch,
    payload_bytes: usize,
    unknown: Vec<(Key, Pending)>,
    /// Sparkplug's edge nodes to ask for their births.
    asks: Vec<(Box<str>, Box<str>)>,
    gaps: u64,
    /// Deliveries whose tenant begins series too fast, and how long they wait.
    late: BTreeMap<u32, Duration>,
}

/// A row that waits for its series or device.
#[derive(Debug)]
enum Pending {
    Sample(SampleRow),
    Ack(AckRow),
    Event(EventRow),
    Metadata(MetadataRow),
}

impl Pending {
    fn place(&self) -> (u32, Option<u32>) {
        match self {
            Self::Sample(row) => (row.delivery, Some(row.part)),
            Self::Ack(row) => (row.delivery, None),
            Self::Event(row) => (row.delivery, None),
            Self::Metadata(row) => (row.delivery, None),
        }
    }
}

impl Draft {
    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.batch.rows() + self.unknown.len()
    }

    /// Payload bytes so far.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Messages so far.
    pub fn messages(&self) -> usize {
        self.batch.deliveries.len()
    }

    /// The delivery taken in last.
    pub fn last(&mut self) -> Option<&mut Delivery> {
        self.batch.deliveries.last_mut().map(|(delivery, _)| delivery)
    }

    /// Takes a delivery in, decoded by `decode`.
    pub fn add(
        &mut self,
        mut delivery: Delivery,
        now: Micros,
        dictionary: &Dictionary,
        decode: impl for<'a> FnOnce(&Input<'a>) -> (Option<Source<'a>>, Content<'a>),
    ) {
        let input = Input {
            topic: &delivery.topic,
            payload: &delivery.payload,
            compression: delivery.compression,
            received_at: delivery.received_at,
            now,
        };
        let (source, mut content) = decode(&input);
        let expanded = content.expanded;
        let index = self.batch.deliveries.len() as u32;
        let told = std::mem::take(&mut delivery.told).into_iter();
        self.batch.sparkplug.extend(told.map(|change| SparkplugRow { change, delivery: index }));
        if let Some(effects) = content.sparkplug.take() {
            self.add_effects(index, *effects);
        }
        let tally = Tally {
            samples: content.samples.len() as u32,
            acks: content.acks.len() as u32,
            events: content.events.len() as u32,
            metadata: u32::from(content.metadata.is_some()),
            rejects: content.rejects.len() as u32,
        };
        self.batch.dead.extend(content.rejects.into_iter().map(|reject| DeadRow {
            delivery: index,
            part: reject.part,
            reason: reject.reason,
            detail: reject.detail,
        }));
        if let Some(source) = source {
            let claims = content.claims;
            delivery.claimed = claims.tenant.as_deref().map(Into::into);
            let content = Content { rejects: Vec::new(), claims: Claims::default(), ..content };
            self.add_items(index, &delivery, claims.over(source), content, dictionary);
        }
        // What a compressed payload became is in the batch too.
        self.payload_bytes += delivery.payload.len().max(expanded);
        self.batch.deliveries.push((delivery, tally));
    }

    fn add_items(
        &mut self,
        index: u32,
        delivery: &Delivery,
        source: Source<'_>,
        content: Content<'_>,
        dictionary: &Dictionary,
    ) {
        let known = dictionary.known();
        let (device, mut of_device) = known.device(&source).unzip();
        for sample in content.samples {
            let value = match sample.value {
                Value::Num(number) => RowValue::Num(number),
                Value::Bool(truth) => RowValue::Bool(truth),
                Value::Null => RowValue::Null,
                Value::Text(text) => {
                    let start = self.batch.arena.len() as u32;
                    self.batch.arena.push_str(&text);
                    RowValue::Text { start, len: text.len() as u32 }
                }
            };
            let unit = sample.unit.as_deref();
            let series = of_device.as_mut().and_then(|of_device| of_device.series(&sample.point, unit));
            let row = SampleRow {
                series_id: series.unwrap_or_default(),
                ts: sample.ts,
                value,
                quality: sample.quality,
                delivery: index,
                part: sample.part,
            };
            if series.is_some() {
                self.batch.samples.push(row);
            } else {
                self.unknown.push((Key::series(&source, &sample.point, unit), Pending::Sample(row)));
            }
        }
        let device_id = device.unwrap_or_default();
        let others = (content.acks.into_iter().map(|ack| {
            Pending::Ack(AckRow {
                device_id,
                cmd_id: ack.cmd_id.into_owned(),
                ok: ack.ok,
                executed_at: ack.executed_at,
                error: ack.error.map(std::borrow::Cow::into_owned),
                document: ack.document.into_owned(),
                delivery: index,
            })
        }))
        .chain(
            content
                .events
                .into_iter()
                .map(|event| Pending::Event(event_row(event, device_id, delivery, index))),
        )
        .chain(content.metadata.map(|metadata| {
            Pending::Metadata(MetadataRow {
                device_id,
                ts: metadata.ts,
                digest: blake3::hash(metadata.document.as_bytes()).into(),
                document: metadata.document.into_owned(),
                delivery: index,
            })
        }));
        for pending in others {
            if device.is_some() {
                self.place(pending);
            } else {
                self.unknown.push((Key::device(&source), pending));
            }
        }
    }

    fn add_effects(&mut self, index: u32, effects: Effects) {
        let rows = effects.changes.into_iter().map(|change| SparkplugRow { change, delivery: index });
        self.batch.sparkplug.extend(rows);
        self.asks.extend(effects.ask);
        self.gaps += u64::from(effects.gap);
    }

    /// Sparkplug's edge nodes to ask for their births: groups and nodes.
    pub fn asks(&self) -> &[(Box<str>, Box<str>)] {
        &self.asks
    }

    /// Sparkplug's messages before which others are missing.
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    fn place(&mut self, pending: Pending) {
        match pending {
            Pending::Sample(row) => self.batch.samples.push(row),
            Pending::Ack(row) => self.batch.acks.push(row),
            Pending::Event(row) => self.batch.events.push(row),
            Pending::Metadata(row) => self.batch.metadata.push(row),
        }
    }

    /// Whether all devices and series are known.
    pub fn is_resolved(&self) -> bool {
        self.unknown.is_empty()
    }

    /// Asks the database for what is unknown. After an error the draft is as it was.
    pub async fn resolve(&mut self, dictionary: &Dictionary) -> Result<(), sqlx::Error> {
        let keys = self.unknown.iter().map(|(key, _)| key.clone()).collect();
        let verdicts = dictionary.resolve(keys).await?;
        for ((_, mut pending), verdict) in std::mem::take(&mut self.unknown).into_iter().zip(verdicts) {
            match verdict {
                Verdict::Known(id) => {
                    match &mut pending {
                        Pending::Sample(row) => row.series_id = id,
                        Pending::Ack(row) => row.device_id = id,
                        Pending::Event(row) => row.device_id = id,
                        Pending::Metadata(row) => row.device_id = id,
                    }
                    self.place(pending);
                }
                Verdict::Later(wait) => {
                    let longest = self.late.entry(pending.place().0).or_default();
                    *longest = wait.max(*longest);
                }
                Verdict::Cardinality { detail } => {
                    let (delivery, part) = pending.place();
                    self.batch.dead.push(DeadRow { delivery, part, reason: Reason::Cardinality, detail });
                }
            }
        }
        Ok(())
    }

    /// Whether deliveries have to wait for their series: see [`Draft::part`].
    pub fn is_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// The deliveries that have to wait, each with how long, and the others. Both are decoded again.
    pub fn part(mut self) -> (Vec<(Delivery, Duration)>, Vec<Delivery>) {
        let (mut late, mut others) = (Vec::new(), Vec::new());
        for row in self.batch.sparkplug.drain(..) {
            if let Some((delivery, _)) = self.batch.deliveries.get_mut(row.delivery as usize) {
                delivery.told.push(row.change);
            }
        }
        for (index, (delivery, _)) in (0..).zip(self.batch.deliveries) {
            match self.late.get(&index) {
                Some(wait) => late.push((delivery, *wait)),
                None => others.push(delivery),
            }
        }
        (late, others)
    }

    /// The batch, once everything is resolved and nothing is late.
    pub fn finish(self) -> Batch {
        self.batch
    }
}

fn event_row(event: Event<'_>, device_id: i32, delivery: &Delivery, index: u32) -> EventRow {
    let event_id = event.event_id.map(std::borrow::Cow::into_owned);
    EventRow {
        device_id,
        event_key: event_id.clone().unwrap_or_else(|| blake3::hash(&delivery.payload).to_hex().to_string()),
        event_id,
        event_type: event.event_type.into_owned(),
        ts: event.ts,
        data: event.data.map(std::borrow::Cow::into_owned),
        delivery: index,
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgPoolOptions;

    use super::*;
    use crate::decode::sparkplug::births::{Change, Name, State};

    fn dictionary() -> Dictionary {
        Dictionary::new(PgPoolOptions::new().connect_lazy("postgres://localhost").unwrap(), 1)
    }

    #[tokio::test]
    async fn a_message_is_seen_by_those_whose_it_says_it_is_also_where_it_cannot_be_stored() {
        let mut draft = Draft::default();
        let topics = || Some("of-the-topic".into());
        for claimed in [None, Some("claimed")] {
            let claims = Claims { tenant: claimed.map(Into::into), device: None };
            draft.add(Delivery { tenant: topics(), ..Delivery::empty() }, 0, &dictionary(), |_| {
                let source = Source { tenant: "of-the-topic", site: "", device: "d" };
                (Some(source), Content { claims, ..Content::default() })
            });
        }
        let batch = draft.finish();
        let whose: Vec<_> = batch.deliveries.iter().map(|(delivery, _)| delivery.whose()).collect();
        assert_eq!(whose, [Some("of-the-topic"), Some("claimed")]);
    }

    #[tokio::test]
    async fn what_a_birth_told_is_stored_also_after_it_was_put_aside() {
        let dictionary = dictionary();
        let of = Name { group: "g".into(), node: "n".into(), device: "".into() };
        let change = Change::State { of, state: State { born_at: 1, bd_seq: None, stale_since: None } };
        let effects = Effects { changes: vec![change.clone()], ..Effects::default() };
        let mut draft = Draft::default();
        // The first time it is news; decoded again it is known.
        draft.add(Delivery::empty(), 0, &dictionary, |_| {
            (None, Content { sparkplug: Some(Box::new(effects)), ..Content::default() })
        });
        draft.late.insert(0, Duration::from_secs(1));
        for _ in 0..2 {
            let (mut late, others) = draft.part();
            assert!(others.is_empty());
            let (delivery, _) = late.pop().unwrap();
            draft = Draft::default();
            draft.add(delivery, 0, &dictionary, |_| (None, Content::default()));
            draft.late.insert(0, Duration::from_secs(1));
        }
        assert_eq!(draft.finish().sparkplug, [SparkplugRow { change, delivery: 0 }]);
    }
}
