//! How formats fill what a payload held.

use std::borrow::Cow;

use super::reject::Reject;
use super::{Ack, Content, Event, Metadata, Micros, Sample, Source, Value};

/// Names that a message gives instead of its topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claims<'a> {
    /// The tenant.
    pub tenant: Option<Cow<'a, str>>,
    /// The device.
    pub device: Option<Cow<'a, str>>,
}

impl Claims<'_> {
    /// The source that the topic names, with the names that the message gives.
    pub fn over<'b>(&'b self, topic: Source<'b>) -> Source<'b> {
        Source {
            tenant: self.tenant.as_deref().unwrap_or(topic.tenant),
            device: self.device.as_deref().unwrap_or(topic.device),
            site: topic.site,
        }
    }
}

impl<'a> Content<'a> {
    /// Takes in a part: a sample, or why it is none.
    pub(super) fn add(&mut self, part: u32, sample: Result<Sample<'a>, Reject>) {
        match sample {
            Ok(sample) => self.samples.push(sample),
            Err(reject) => self.rejects.push(Reject { part: Some(part), ..reject }),
        }
    }

    /// Takes in the next part of a format whose parts have fixed names.
    pub(super) fn put(
        &mut self,
        ts: Micros,
        point: impl Into<Cow<'a, str>>,
        unit: Option<&'static str>,
        value: Result<Value<'a>, Reject>,
    ) {
        let part = (self.samples.len() + self.rejects.len()) as u32;
        let (point, unit) = (point.into(), unit.map(Cow::Borrowed));
        self.add(part, value.map(|value| Sample { part, point, ts, value, unit, quality: 0 }));
    }

    /// The same, borrowed from nothing.
    pub(super) fn into_owned(self) -> Content<'static> {
        fn own<'b>(text: Cow<'_, str>) -> Cow<'b, str> {
            Cow::Owned(text.into_owned())
        }
        let value = |value: Value<'_>| match value {
            Value::Null => Value::Null,
            Value::Num(number) => Value::Num(number),
            Value::Bool(truth) => Value::Bool(truth),
            Value::Text(text) => Value::Text(own(text)),
        };
        Content {
            samples: (self.samples.into_iter())
                .map(|sample| Sample {
                    point: own(sample.point),
                    value: value(sample.value),
                    unit: sample.unit.map(own),
                    part: sample.part,
                    ts: sample.ts,
                    quality: sample.quality,
                })
                .collect(),
            acks: (self.acks.into_iter())
                .map(|ack| Ack {
                    cmd_id: own(ack.cmd_id),
                    error: ack.error.map(own),
                    document: own(ack.document),
                    ok: ack.ok,
                    executed_at: ack.executed_at,
                })
                .collect(),
            events: (self.events.into_iter())
                .map(|event| Event {
                    event_id: event.event_id.map(own),
                    event_type: own(event.event_type),
                    data: event.data.map(own),
                    ts: event.ts,
                })
                .collect(),
            metadata: self.metadata.map(|meta| Metadata { ts: meta.ts, document: own(meta.document) }),
            rejects: self.rejects,
            claims: Claims { tenant: self.claims.tenant.map(own), device: self.claims.device.map(own) },
            expanded: self.expanded,
            sparkplug: self.sparkplug,
        }
    }
}
