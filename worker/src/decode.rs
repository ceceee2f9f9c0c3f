//! Bytes in; samples, acks, events, metadata and rejects out. Pure: no I/O, no clock.
//!
//! One file per format. A message is never half understood in silence: what cannot be stored
//! leaves as a [`Reject`].

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use penstock_crds::topic::{Layout, Named};
use serde::de::IgnoredAny;

mod ack_v1;
mod auto;
mod compression;
mod content;
mod event_v1;
mod fields;
mod influx_line;
mod je02;
mod json;
mod mapped;
mod parsec;
mod reading;
pub mod reject;
mod senml;
mod senml_cbor;
mod sensors;
pub mod sparkplug;
mod telemetry_v1;
mod time;
mod tree;
mod value;
mod word;

pub use compression::Compression;
pub use content::Claims;
pub use reading::Reading;
pub use reject::{Reason, Reject};
use sparkplug::births::{Births, Name};

/// Longest name of a tenant, site, device or point, longest id and type, in bytes.
pub const MAX_NAME: usize = 255;

/// Tenant of a layout that names none.
const ONLY_TENANT: &str = "default";

/// Microseconds since 1970-01-01T00:00:00Z, the resolution of a database timestamp.
pub type Micros = i64;

/// What the decoder may know of a delivery.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The topic, as the broker sent it.
    pub topic: &'a [u8],
    /// The payload, as the broker sent it.
    pub payload: &'a [u8],
    /// How it is compressed, where the publisher said so; otherwise its first bytes tell.
    pub compression: Option<Compression>,
    /// When the worker received it, by the database's clock.
    pub received_at: Micros,
    /// The database's clock now, for the accept window.
    pub now: Micros,
}

/// Whose message it is: the layout's placeholders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source<'a> {
    /// The `{tenant}` level.
    pub tenant: &'a str,
    /// The `{site}` level, or empty where the layout has none.
    pub site: &'a str,
    /// The `{device}` level.
    pub device: &'a str,
}

/// A value, of the type the device declared.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// A finite number.
    Num(f64),
    /// A truth value, never stored as a number too.
    Bool(bool),
    /// Text or a member of an enumeration; without NUL.
    Text(Cow<'a, str>),
    /// The device says that there is none: a gap in the series, not an error.
    Null,
}

/// One value at one time of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// Position in the message, counted from 0.
    pub part: u32,
    /// Name of the point, at most 255 bytes.
    pub point: Cow<'a, str>,
    /// Time of the value, by the device.
    pub ts: Micros,
    /// The value.
    pub value: Value<'a>,
    /// Unit, where the device gave one.
    pub unit: Option<Cow<'a, str>>,
    /// 0 is good.
    pub quality: i16,
}

/// A device's answer to a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Ack<'a> {
    /// The command answered.
    pub cmd_id: Cow<'a, str>,
    /// Whether the device carried it out.
    pub ok: bool,
    /// When it did, by the device.
    pub executed_at: Option<Micros>,
    /// What went wrong, in the device's words.
    pub error: Option<Cow<'a, str>>,
    /// The whole document, valid for a `jsonb` column.
    pub document: Cow<'a, str>,
}

/// Something that happened on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Event<'a> {
    /// The device's id for it; without one the payload's digest is its key.
    pub event_id: Option<Cow<'a, str>>,
    /// What kind of thing happened.
    pub event_type: Cow<'a, str>,
    /// When, by the device.
    pub ts: Micros,
    /// Details, valid for a `jsonb` column.
    pub data: Option<Cow<'a, str>>,
}

/// What a message says of itself beside its values.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata<'a> {
    /// Time of the message, by the device.
    pub ts: Micros,
    /// A JSON object, valid for a `jsonb` column.
    pub document: Cow<'a, str>,
}

/// All that one payload held. Borrowed from the payload wherever it can be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Content<'a> {
    /// Values to store.
    pub samples: Vec<Sample<'a>>,
    /// Command answers to store.
    pub acks: Vec<Ack<'a>>,
    /// Events to store.
    pub events: Vec<Event<'a>>,
    /// Metadata to store.
    pub metadata: Option<Metadata<'a>>,
    /// What cannot be stored, and why.
    pub rejects: Vec<Reject>,
    /// What a Sparkplug message says beside its items.
    pub sparkplug: Option<Box<sparkplug::Effects>>,
    /// Whose message it is by its own words, where the mapping says where to look.
    pub claims: Claims<'a>,
    /// Bytes of the payload once expanded; 0 where it was not compressed.
    pub expanded: usize,
}

/// What is accepted.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Oldest time.
    pub max_age: Duration,
    /// Farthest time in the future.
    pub max_ahead: Duration,
    /// A sample without a time gets the time of its receipt.
    pub receive_time: bool,
    /// Largest payload, in bytes.
    pub max_payload: usize,
}

/// Decodes deliveries of one pipeline. All that it remembers is what Sparkplug's births said.
#[derive(Debug)]
pub struct Decoder {
    layout: Layout,
    rules: Rules,
    /// Who may store; everybody, if not given.
    tenants: Option<BTreeSet<String>>,
    births: Arc<Mutex<Births>>,
}

/// A message that is decoded: its text, and what the format needs to know of it.
struct Message<'a> {
    input: Input<'a>,
    rules: Rules,
    text: &'a str,
}

/// A format's decoder: puts all that it finds into the content.
type Decode = for<'a> fn(&Message<'a>, &mut Content<'a>) -> Result<(), Reject>;

/// The formats of Penstock's normalized JSON by the topic's kind.
const KINDS: [(&str, Decode); 3] =
    [("telem", telemetry_v1::decode), ("ack", ack_v1::decode), ("event", event_v1::decode)];

impl Decoder {
    /// A decoder for topics of this layout.
    pub fn new(layout: Layout, rules: Rules, tenants: Option<BTreeSet<String>>) -> Self {
        Self { layout, rules, tenants, births: Arc::default() }
    }

    /// The same, with all that another knows of births, now and later.
    #[must_use]
    pub fn knowing(self, other: &Self) -> Self {
        Self { births: Arc::clone(&other.births), ..self }
    }

    /// What a topic's levels mean.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What is accepted.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// What Sparkplug's births said. Before the first delivery it must hold what is stored.
    pub fn births(&self) -> MutexGuard<'_, Births> {
        self.births.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decodes a message. Each part of it is an item or a reject; without a source all is a reject.
    pub fn decode<'a>(&self, reading: &Reading, input: &Input<'a>) -> (Option<Source<'a>>, Content<'a>) {
        let whole = |reject| Content { rejects: vec![reject], ..Content::default() };
        if reading.is_sparkplug(input.topic) && sparkplug::is_for_others(input.topic) {
            return (None, Content::default());
        }
        let (source, kind) = match self.source(reading, input.topic) {
            Ok((source, _)) if !reading.names_tenant() && !self.admits(source.tenant) => {
                return (None, whole(unlisted(source.tenant)));
            }
            Ok(found) => found,
            Err(reject) => return (None, whole(reject)),
        };
        let content = self.decode_payload(reading, kind, source, input).unwrap_or_else(whole);
        match &content.claims.tenant {
            Some(tenant) if !self.admits(tenant) => (Some(source), whole(unlisted(tenant))),
            _ => (Some(source), content),
        }
    }

    fn source<'a>(
        &self,
        reading: &Reading,
        topic: &'a [u8],
    ) -> Result<(Source<'a>, Option<&'a str>), Reject> {
        let invalid = |detail: &str| Reject::whole(Reason::InvalidTopic, detail);
        let Named { tenant, site, device, kind } = if reading.is_sparkplug(topic) {
            sparkplug::split(topic).ok_or_else(|| invalid("the topic is none of Sparkplug B's"))?
        } else {
            self.layout.split(topic).ok_or_else(|| invalid("the topic does not fit the layout"))?
        };
        let name = |level: &'a [u8], what: &str| {
            level_name(level).map_err(|problem| invalid(&format!("the {what} {problem}")))
        };
        let source = Source {
            tenant: name(tenant, "tenant")?,
            site: name(site, "site")?,
            device: name(device, "device")?,
        };
        if source.device.is_empty() || (self.layout.names_tenant() && source.tenant.is_empty()) {
            return Err(invalid("the tenant or the device is empty"));
        }
        let tenant = if source.tenant.is_empty() { ONLY_TENANT } else { source.tenant };
        Ok((Source { tenant, ..source }, kind.map(|kind| name(kind, "kind")).transpose()?))
    }

    /// Whether the tenant may store.
    fn admits(&self, tenant: &str) -> bool {
        self.tenants.as_ref().is_none_or(|listed| listed.contains(tenant))
    }

    fn decode_payload<'a>(
        &self,
        reading: &Reading,
        kind: Option<&str>,
        source: Source<'_>,
        input: &Input<'a>,
    ) -> Result<Content<'a>, Reject> {
        if input.payload.is_empty() {
            return Err(Reject::whole(Reason::EmptyPayload, "the payload has no bytes"));
        }
        let most = self.rules.max_payload;
        if input.payload.len() > most {
            let detail = format!(
                "the payload has {} bytes; spec.source.mqtt.maxPacketSize allows {most}",
                input.payload.len()
            );
            return Err(Reject::whole(Reason::TooLarge, &detail));
        }
        if reading.is_sparkplug(input.topic) {
            return Ok(self.decode_sparkplug(kind.unwrap_or_default(), source, input));
        }
        match input.compression.or_else(|| Compression::of_payload(input.payload)) {
            None => self.decode_plain(reading, kind, input),
            Some(compression) => {
                let expanded = compression.expand(input.payload, most)?;
                let input = Input { payload: &expanded, ..*input };
                let content = self.decode_plain(reading, kind, &input)?;
                Ok(Content { expanded: expanded.len(), ..content.into_owned() })
            }
        }
    }

    /// What a message says of the edge node itself counts also where it is rejected.
    fn decode_sparkplug<'a>(&self, kind: &str, source: Source<'_>, input: &Input<'a>) -> Content<'a> {
        let device = if kind.starts_with('D') { source.device } else { "" };
        let of = Name { group: source.tenant.into(), node: source.site.into(), device: device.into() };
        let mut content = Content::default();
        match sparkplug::decode(&mut self.births(), (self.rules, input), (kind, &of), &mut content) {
            Ok(()) => content,
            Err(reject) => {
                Content { rejects: vec![reject], sparkplug: content.sparkplug, ..Content::default() }
            }
        }
    }

    fn decode_plain<'a>(
        &self,
        reading: &Reading,
        kind: Option<&str>,
        input: &Input<'a>,
    ) -> Result<Content<'a>, Reject> {
        let message = |text| Message { input: *input, rules: self.rules, text };
        let mut content = Content::default();
        if reading.may_be_cbor(kind) && senml::is_cbor(input.payload) {
            senml::decode_cbor(&message(""), &mut content)?;
        } else {
            let text = std::str::from_utf8(input.payload).map_err(|error| {
                Reject::whole(Reason::InvalidEncoding, &format!("the payload is not UTF-8: {error}"))
            })?;
            reading.decode(kind, &message(text), &mut content)?;
        }
        Ok(content)
    }
}

fn unlisted(tenant: &str) -> Reject {
    let detail = format!("tenant '{tenant}' is not in the store's spec.tenants.names");
    Reject::whole(Reason::UnknownTenant, &detail)
}

/// Whose message it is, as far as the topic tells; `None` where it names nobody who could be. Messages
/// of one tenant stay in their order, so Sparkplug's births and data must be of one.
pub fn tenant<'a>(layout: &Layout, topic: &'a [u8]) -> Option<&'a str> {
    if sparkplug::is_topic(topic) {
        return sparkplug::split(topic).and_then(|named| level_name(named.tenant).ok());
    }
    let tenant = level_name(layout.split(topic)?.tenant).ok()?;
    match tenant {
        "" if layout.names_tenant() => None,
        "" => Some(ONLY_TENANT),
        tenant => Some(tenant),
    }
}

/// A level of a topic as a name. The error says what is wrong with it.
fn level_name(level: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(level).map_err(|_| "is not UTF-8".to_owned())?;
    if text.len() > MAX_NAME {
        return Err(format!("is longer than {MAX_NAME} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err("holds a control character".to_owned());
    }
    Ok(text)
}

/// The decoder for the topic's kind; without one, for what the payload's fields say.
fn kind_of(kind: Option<&str>, text: &str) -> Result<Decode, Reject> {
    #[derive(serde::Deserialize)]
    struct Marks {
        cmd_id: Option<IgnoredAny>,
        event_type: Option<IgnoredAny>,
    }
    let kind = match kind {
        Some(kind) => kind,
        None => match json::object::<Marks>(text)? {
            Marks { cmd_id: Some(_), .. } => "ack",
            Marks { event_type: Some(_), .. } => "event",
            // Its decoder looks whether it is, also where there are no points but metadata.
            _ => "telem",
        },
    };
    let known = KINDS.iter().find(|(name, _)| *name == kind);
    known.map(|(_, decode)| *decode).ok_or_else(|| {
        let names = KINDS.map(|(name, _)| name).join(", ");
        Reject::whole(Reason::UnknownSchema, &format!("the kind '{kind}' is not known; known are {names}"))
    })
}

#[cfg(test)]
mod tests;
