//! What spans say: from times and names to span data. Names follow OpenTelemetry's semantic conventions.

use std::borrow::Cow;
use std::ops::Range;
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};

use super::MessageTrace;
use crate::decode::Reason;

/// Most links of a batch's span: OpenTelemetry's default limit.
const MAX_LINKS: usize = 128;

/// What is the same in every span.
#[derive(Debug)]
pub struct Spans {
    ids: RandomIdGenerator,
    scope: InstrumentationScope,
    /// The layout, which names a message's span: topics would be too many names.
    layout: String,
    message: Vec<KeyValue>,
    batch: Vec<KeyValue>,
}

/// A place among the acknowledgements: session, epoch, and number.
pub type Place = (u8, u64, u64);

/// A sampled message whose transaction is committed.
#[derive(Debug)]
pub struct Stored {
    /// Its trace.
    pub trace: MessageTrace,
    /// Its place among the acknowledgements; none at QoS 0.
    pub place: Option<Place>,
    /// Its topic.
    pub topic: String,
    /// Bytes of its payload.
    pub bytes: usize,
    /// Whether the broker may have sent it before.
    pub dup: bool,
    /// Its first dead letter's reason.
    pub reject: Option<Reason>,
    /// When it arrived.
    pub arrived: Instant,
    /// When the transaction's last attempt began and ended.
    pub attempt: Range<Instant>,
    /// The batch's span.
    pub batch: SpanContext,
    /// What dates its times, and those of the batch.
    pub wall: Wall,
}

/// How large a batch was.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Messages.
    pub messages: usize,
    /// Rows.
    pub rows: usize,
    /// Payload bytes.
    pub bytes: usize,
}

/// This machine's clock, as far as it is needed to date what was measured.
#[derive(Debug, Clone, Copy)]
pub struct Wall {
    instant: Instant,
    time: SystemTime,
}

impl Wall {
    /// The time now.
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    fn of(&self, instant: Instant) -> SystemTime {
        let (earlier, later) = (
            self.instant.saturating_duration_since(instant),
            instant.saturating_duration_since(self.instant),
        );
        self.time - earlier + later
    }
}

impl Spans {
    /// Spans of messages and batches with these attributes.
    pub fn new(layout: String, mut message: Vec<KeyValue>, mut batch: Vec<KeyValue>) -> Self {
        message.extend([
            KeyValue::new("messaging.system", "mqtt"),
            KeyValue::new("messaging.operation.name", "process"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.destination.template", layout.clone()),
        ]);
        batch.push(KeyValue::new("db.system.name", "postgresql"));
        Self {
            ids: RandomIdGenerator::default(),
            scope: InstrumentationScope::builder("penstock").with_version(env!("CARGO_PKG_VERSION")).build(),
            layout,
            message,
            batch,
        }
    }

    /// An id for a trace that begins here.
    pub fn trace_id(&self) -> TraceId {
        self.ids.new_trace_id()
    }

    /// A sampled span of a trace.
    pub fn context(&self, trace_id: TraceId, state: TraceState) -> SpanContext {
        SpanContext::new(trace_id, self.ids.new_span_id(), TraceFlags::SAMPLED, false, state)
    }

    /// The span of one transaction, linked to its sampled messages.
    pub fn batch<'a>(
        &self,
        context: SpanContext,
        attempt: &Range<Instant>,
        size: Size,
        messages: impl ExactSizeIterator<Item = &'a SpanContext>,
        wall: &Wall,
    ) -> SpanData {
        let mut links = SpanLinks::default();
        links.dropped_count = messages.len().saturating_sub(MAX_LINKS) as u32;
        links.links =
            messages.take(MAX_LINKS).map(|context| Link::new(context.clone(), Vec::new(), 0)).collect();
        let mut attributes = self.batch.clone();
        attributes.extend([
            KeyValue::new("penstock.batch.messages", size.messages as i64),
            KeyValue::new("penstock.batch.rows", size.rows as i64),
            KeyValue::new("penstock.batch.bytes", size.bytes as i64),
        ]);
        let times = wall.of(attempt.start)..wall.of(attempt.end);
        SpanData {
            span_kind: SpanKind::Client,
            attributes,
            links,
            ..self.span("commit batch".into(), context, None, times)
        }
    }

    /// The spans of a message: one from its arrival to its acknowledgement, divided among its children.
    /// Without an acknowledgement it ends with the commit.
    pub fn message(&self, stored: &Stored, acknowledged: Option<Instant>) -> Vec<SpanData> {
        let Stored { trace, attempt, wall, .. } = stored;
        let end = acknowledged.unwrap_or(attempt.end);
        let mut attributes = self.message.clone();
        attributes.extend([
            KeyValue::new("messaging.destination.name", stored.topic.clone()),
            KeyValue::new("messaging.message.body.size", stored.bytes as i64),
            KeyValue::new("penstock.redelivered", stored.dup),
            KeyValue::new("penstock.acknowledged", acknowledged.is_some()),
        ]);
        if let Some(reason) = stored.reject {
            attributes.push(KeyValue::new("error.type", reason.as_str()));
        }
        let name = format!("process {}", self.layout);
        let own = trace.context.clone();
        let mut spans = vec![SpanData {
            parent_span_is_remote: trace.parent.is_some(),
            span_kind: SpanKind::Consumer,
            attributes,
            status: stored.reject.map_or(Status::Unset, |reason| Status::error(reason.as_str())),
            ..self.span(name.into(), own, trace.parent, wall.of(stored.arrived)..wall.of(end))
        }];
        let mut child = |name: &'static str, times: Range<Instant>| {
            let context = self.context(trace.context.trace_id(), trace.context.trace_state().clone());
            let times = wall.of(times.start)..wall.of(times.end);
            spans.push(self.span(name.into(), context, Some(trace.context.span_id()), times));
        };
        child("receive", stored.arrived..trace.taken);
        child("decode", trace.taken..trace.decoded);
        child("wait", trace.decoded..attempt.start);
        child("commit", attempt.clone());
        if let Some(acknowledged) = acknowledged {
            child("ack", attempt.end..acknowledged);
        }
        if let Some(commit) = spans.iter_mut().find(|span| span.name == "commit") {
            commit.links.links.push(Link::new(stored.batch.clone(), Vec::new(), 0));
        }
        spans
    }

    fn span(
        &self,
        name: Cow<'static, str>,
        span_context: SpanContext,
        parent: Option<SpanId>,
        times: Range<SystemTime>,
    ) -> SpanData {
        SpanData {
            span_context,
            parent_span_id: parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name,
            start_time: times.start,
            end_time: times.end,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::time::Duration;

    use super::*;

    /// A span for tests of what carries spans.
    pub fn any_span() -> SpanData {
        let spans = spans();
        let context = spans.context(spans.trace_id(), TraceState::default());
        let now = SystemTime::now();
        spans.span("any".into(), context, None, now..now)
    }

    fn spans() -> Spans {
        Spans::new("plant/{device}".to_owned(), Vec::new(), Vec::new())
    }

    fn stored(spans: &Spans, start: Instant) -> Stored {
        let at = |millis| start + Duration::from_millis(millis);
        Stored {
            trace: MessageTrace {
                context: spans.context(TraceId::from(7u128), TraceState::default()),
                parent: Some(SpanId::from(9u64)),
                taken: at(10),
                decoded: at(30),
            },
            place: Some((0, 1, 0)),
            topic: "plant/a".to_owned(),
            bytes: 100,
            dup: false,
            reject: None,
            arrived: start,
            attempt: at(60)..at(100),
            batch: spans.context(TraceId::from(8u128), TraceState::default()),
            wall: Wall::now(),
        }
    }

    #[test]
    fn the_children_of_a_message_fill_it_in_the_order_of_its_way() {
        let (spans, start) = (spans(), Instant::now());
        let stored = stored(&spans, start);
        let found = spans.message(&stored, Some(start + Duration::from_millis(150)));
        let (own, children) = found.split_first().unwrap();
        assert_eq!(own.name, "process plant/{device}");
        assert_eq!(own.span_context, stored.trace.context);
        assert_eq!((own.parent_span_id, own.parent_span_is_remote), (SpanId::from(9u64), true));
        let names: Vec<&str> = children.iter().map(|child| &*child.name).collect();
        assert_eq!(names, ["receive", "decode", "wait", "commit", "ack"]);
        let mut end = own.start_time;
        for (child, millis) in children.iter().zip([10, 20, 30, 40, 50]) {
            assert_eq!(child.start_time, end, "{} begins where the one before ends", child.name);
            end = child.end_time;
            assert_eq!(end.duration_since(child.start_time).unwrap(), Duration::from_millis(millis));
            assert_eq!(child.parent_span_id, own.span_context.span_id());
            assert_eq!(child.span_context.trace_id(), own.span_context.trace_id());
        }
        assert_eq!(end, own.end_time);
        assert_eq!(children[3].links[0].span_context, stored.batch);
    }

    #[test]
    fn a_message_that_is_not_acknowledged_ends_with_its_commit() {
        let (spans, start) = (spans(), Instant::now());
        let stored = Stored { reject: Some(Reason::ParseError), ..stored(&spans, start) };
        let found = spans.message(&stored, None);
        assert_eq!(found.len(), 5);
        assert_eq!(found[0].end_time, found[4].end_time);
        assert_eq!(found[0].status, Status::error("parse_error"));
        assert!(found[0].attributes.contains(&KeyValue::new("penstock.acknowledged", false)));
    }

    #[test]
    fn a_batch_links_its_messages_and_counts_those_that_are_too_many() {
        let (spans, start) = (spans(), Instant::now());
        let size = Size { messages: 500, rows: 4000, bytes: 70_000 };
        let messages: Vec<SpanContext> =
            (1..=130u128).map(|id| spans.context(id.into(), TraceState::default())).collect();
        let context = spans.context(spans.trace_id(), TraceState::default());
        let found = spans.batch(context, &(start..start), size, messages.iter(), &Wall::now());
        assert_eq!((found.links.len(), found.links.dropped_count), (128, 2));
        assert!(found.links.iter().zip(&messages).all(|(link, message)| link.span_context == *message));
        assert_eq!(found.span_kind, SpanKind::Client);
    }
}
