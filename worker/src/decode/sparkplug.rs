//! Sparkplug B: protobuf under `spBv1.0/{group}/{type}/{edge node}[/{device}]`.
//!
//! The group is the tenant, the edge node the site, and the device the device; metrics of the edge
//! node itself are those of a device with the node's name. Births give names and types to aliases:
//! see [`births`]. Metrics of births and data are samples, deaths are events.

use std::sync::Arc;

use penstock_crds::topic::Named;
use prost::Message;

use super::reject::{Reason, Reject};
use super::{Content, Event, Input, MAX_NAME, Micros, Rules, Sample};

pub mod births;
pub mod proto;
mod value;

use births::{Births, Change, Metric, Metrics, Name, Node, Sequence};
use proto::Payload;

/// The namespace: the first level of every topic.
const NAMESPACE: &[u8] = b"spBv1.0";
/// What a payload is that holds another one compressed.
const COMPRESSED: &[u8] = b"SPBV1.0_COMPRESSED";

/// What a message says beside its items.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Effects {
    /// What it changes of what is known, to be stored with it.
    pub changes: Vec<Change>,
    /// Messages of its edge node are missing before it.
    pub gap: bool,
    /// Its edge node must be asked for its births: group and node.
    pub ask: Option<(Box<str>, Box<str>)>,
}

/// Whether a topic is of Sparkplug's namespace.
pub fn is_topic(topic: &[u8]) -> bool {
    topic.strip_prefix(NAMESPACE).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Whether the topic is of commands or of a host's state, which are for others: nothing is stored.
pub fn is_for_others(topic: &[u8]) -> bool {
    let mut levels = topic.split(|byte| *byte == b'/');
    let (_, group, kind) = (levels.next(), levels.next(), levels.next());
    is_topic(topic) && (group == Some(b"STATE") || matches!(kind, Some(b"NCMD" | b"DCMD")))
}

/// The levels of a topic, the type of message as its kind.
pub fn split(topic: &[u8]) -> Option<Named<'_>> {
    let mut levels = topic.split(|byte| *byte == b'/');
    if levels.next() != Some(NAMESPACE) {
        return None;
    }
    let (tenant, kind, site, device) = (levels.next()?, levels.next()?, levels.next()?, levels.next());
    if levels.next().is_some() || tenant.is_empty() || site.is_empty() {
        return None;
    }
    let device = match (kind, device) {
        (b"NBIRTH" | b"NDATA" | b"NDEATH", None) => site,
        (b"DBIRTH" | b"DDATA" | b"DDEATH", Some(device)) => device,
        _ => return None,
    };
    Some(Named { tenant, site, device, kind: Some(kind) })
}

/// Decodes a payload of a topic that [`split`] takes; `kind` and `of` are what it says.
pub fn decode<'a>(
    births: &mut Births,
    (rules, input): (Rules, &Input<'a>),
    (kind, of): (&str, &Name),
    content: &mut Content<'a>,
) -> Result<(), Reject> {
    let payload = Payload::decode(input.payload).map_err(|error| {
        Reject::whole(Reason::ParseError, &format!("the payload is no Sparkplug B protobuf: {error}"))
    })?;
    if payload.uuid.as_deref() == Some(COMPRESSED) {
        return Err(Reject::whole(
            Reason::UnknownSchema,
            "the payload is compressed the Sparkplug way; send it plainly",
        ));
    }
    let sent_at = payload.timestamp.map(instant).transpose()?;
    let sent = Sent { rules, input, at: sent_at };
    let node = births.node(&of.group, &of.node);
    let mut effects = Effects::default();
    // A will has no sequence number, and its time is that of the connection's beginning.
    let sequence = match kind {
        "NDEATH" => Sequence::Unbroken,
        _ => node.follow(payload.seq, sent.accepted(), kind == "NBIRTH"),
    };
    effects.gap = sequence == Sequence::Gap;
    let decoded = match kind {
        "NBIRTH" | "DBIRTH" => birth(node, of, &sent, payload, &mut effects, content),
        "NDEATH" => {
            node_death(node, of, &sent, &payload, &mut effects, content);
            Ok(false)
        }
        "DDEATH" => device_death(node, of, &sent, &mut effects, content).map(|()| false),
        _ => data(node, of, &sent, payload, content),
    };
    // Also after a start: what was sent before it, and was not kept by the broker, may have been a birth.
    let ask = decoded.as_ref().map_or_else(|reject| reject.reason == Reason::UnknownAlias, |ask| *ask);
    if (ask || sequence != Sequence::Unbroken) && node.ask(input.now) {
        effects.ask = Some((of.group.clone(), of.node.clone()));
    }
    content.sparkplug = Some(Box::new(effects));
    decoded.map(drop)
}

/// What all metrics of a payload share.
struct Sent<'a, 'b> {
    rules: Rules,
    input: &'b Input<'a>,
    /// When the payload was sent.
    at: Option<Micros>,
}

impl Sent<'_, '_> {
    /// When the payload was sent, where that is to be believed: after a time in the far future no message
    /// would be newer, and no death would count.
    fn accepted(&self) -> Option<Micros> {
        self.at.filter(|at| self.rules.accept(self.input.now, *at).is_ok())
    }

    /// The time of a metric, or that of its payload.
    fn time(&self, metric: Option<u64>) -> Result<Micros, Reject> {
        let time = match metric.map(instant).transpose()?.or(self.at) {
            Some(time) => time,
            None if self.rules.receive_time => self.input.received_at,
            None => {
                return Err(Reject::whole(
                    Reason::MissingTime,
                    "neither the metric nor the payload has a timestamp; send one, or set spec.accept.receiveTime: Allow",
                ));
            }
        };
        self.rules.accept(self.input.now, time)
    }
}

/// Sparkplug's time, in Unix milliseconds.
fn instant(millis: u64) -> Result<Micros, Reject> {
    i64::try_from(millis)
        .ok()
        .and_then(|millis| millis.checked_mul(1000))
        .filter(|micros| jiff::Timestamp::from_microsecond(*micros).is_ok())
        .ok_or_else(|| Reject::whole(Reason::InvalidTime, &format!("{millis} ms is after the year 9999")))
}

/// A birth: its metrics are samples, and from now on data may call them by their aliases. Whether
/// the node is to be asked again.
fn birth(
    node: &mut Node,
    of: &Name,
    sent: &Sent<'_, '_>,
    payload: Payload,
    effects: &mut Effects,
    content: &mut Content<'_>,
) -> Result<bool, Reject> {
    let at = sent.time(None)?;
    let bd_seq = payload.metrics.iter().find_map(bd_seq);
    let mut known: Vec<Metric> = Vec::with_capacity(payload.metrics.len());
    let mut aliases = hashbrown::HashSet::with_capacity(payload.metrics.len());
    for (part, metric) in (0u32..).zip(payload.metrics) {
        let datatype = metric.datatype.unwrap_or_default();
        let named = name(metric.name.as_deref().unwrap_or_default());
        if metric.alias.is_none_or(|alias| aliases.insert(alias)) {
            known.push(Metric {
                alias: metric.alias,
                name: named.as_deref().unwrap_or_default().into(),
                datatype,
            });
        } else {
            content.rejects.push(Reject::part(part, Reason::InvalidField, "another metric has this alias"));
            continue;
        }
        put(part, named.and_then(|name| sample(part, name, datatype, &metric, sent)), content);
    }
    Ok(node.birth(of, at, bd_seq, Metrics::new(known), &mut effects.changes))
}

/// Data: each metric by its name, or by the name that a birth gave to its alias. Whether the node is
/// to be asked for its births.
fn data(
    node: &Node,
    of: &Name,
    sent: &Sent<'_, '_>,
    payload: Payload,
    content: &mut Content<'_>,
) -> Result<bool, Reject> {
    let born = node.names_at(&of.device, sent.at);
    let tells_itself =
        |metric: &proto::Metric| metric.name.is_some() && metric.datatype.is_some_and(|t| t > 0);
    if born.is_none() && !payload.metrics.iter().all(tells_itself) {
        let why = if node.is_born(&of.device) { "since a death" } else { "yet" };
        return Err(Reject::whole(
            Reason::UnknownAlias,
            &format!("there was no birth {why}, so names and types of the metrics are not known"),
        ));
    }
    let mut ask = born.is_none();
    for (part, metric) in (0u32..).zip(payload.metrics) {
        let sample =
            identify(&metric, born).and_then(|(name, datatype)| sample(part, name, datatype, &metric, sent));
        ask |= sample.as_ref().is_err_and(|reject| reject.reason == Reason::UnknownAlias);
        put(part, sample, content);
    }
    Ok(ask)
}

/// Name and data type of a metric of data.
fn identify(metric: &proto::Metric, born: Option<&Arc<Metrics>>) -> Result<(String, u32), Reject> {
    let unknown = |detail: String| Reject::whole(Reason::UnknownAlias, &detail);
    let told = metric.datatype.filter(|datatype| *datatype > 0);
    match (metric.name.as_deref().filter(|name| !name.is_empty()), metric.alias) {
        (Some(given), _) => {
            let given = name(given)?;
            let known = born.and_then(|born| born.name(&given)).map(|metric| metric.datatype);
            let datatype =
                told.or(known).ok_or_else(|| unknown(format!("no birth tells the type of '{given}'")))?;
            Ok((given, datatype))
        }
        (None, Some(alias)) => {
            let known = born
                .and_then(|born| born.alias(alias))
                .ok_or_else(|| unknown(format!("the birth has no alias {alias}")))?;
            if known.datatype > 0 && told.is_some_and(|told| told != known.datatype) {
                let [born, told] = [known.datatype, told.unwrap_or_default()].map(value::type_name);
                return Err(unknown(format!(
                    "alias {alias} is {told}, but {born} in the birth that is known"
                )));
            }
            Ok((name(known.name.as_bytes())?, told.unwrap_or(known.datatype)))
        }
        (None, None) => Err(Reject::whole(Reason::InvalidField, "the metric has neither name nor alias")),
    }
}

fn put<'a>(part: u32, sample: Result<Sample<'a>, Reject>, content: &mut Content<'a>) {
    match sample {
        Ok(sample) => content.samples.push(sample),
        Err(reject) => content.rejects.push(Reject { part: Some(part), ..reject }),
    }
}

fn sample<'a>(
    part: u32,
    name: String,
    datatype: u32,
    metric: &proto::Metric,
    sent: &Sent<'_, '_>,
) -> Result<Sample<'a>, Reject> {
    Ok(Sample {
        part,
        value: value::value(datatype, metric)
            .map_err(|(reason, detail)| Reject::whole(reason, &format!("'{name}': {detail}")))?,
        point: name.into(),
        ts: sent.time(metric.timestamp)?,
        unit: None,
        quality: value::quality(metric),
    })
}

/// The name of a point.
fn name(name: &[u8]) -> Result<String, Reject> {
    let wrong = |reason, what: &str| Err(Reject::whole(reason, &format!("the metric's name {what}")));
    if name.len() > MAX_NAME {
        return wrong(Reason::TooLong, &format!("has {} bytes; {MAX_NAME} are allowed", name.len()));
    }
    match std::str::from_utf8(name) {
        Err(_) => wrong(Reason::InvalidEncoding, "is not UTF-8"),
        Ok(name) if name.is_empty() || name.chars().any(char::is_control) => {
            wrong(Reason::InvalidField, "is missing, empty or holds a control character")
        }
        Ok(name) => Ok(name.to_owned()),
    }
}

/// Which of the node's connections a birth or death belongs to.
fn bd_seq(metric: &proto::Metric) -> Option<i64> {
    match metric.value {
        Some(proto::Value::Long(number)) if is_bd_seq(metric) => i64::try_from(number).ok(),
        Some(proto::Value::Int(number)) if is_bd_seq(metric) => Some(number.into()),
        _ => None,
    }
}

fn is_bd_seq(metric: &proto::Metric) -> bool {
    metric.name.as_deref() == Some(b"bdSeq")
}

/// The edge node's death is an event at the time of its receipt, once for each birth. That of an
/// older connection than the last birth's is outdated, and nothing.
fn node_death(
    node: &mut Node,
    of: &Name,
    sent: &Sent<'_, '_>,
    payload: &Payload,
    effects: &mut Effects,
    content: &mut Content<'_>,
) {
    let bd_seq = payload.metrics.iter().find_map(bd_seq);
    let Some(born_at) = node.node_death(of, sent.input.received_at, bd_seq, &mut effects.changes) else {
        return;
    };
    content.events.push(Event {
        event_id: born_at.map(|born_at| format!("sparkplug.ndeath-{born_at}").into()),
        event_type: "sparkplug.ndeath".into(),
        ts: sent.input.received_at,
        data: bd_seq.map(|bd_seq| format!(r#"{{"bdSeq":{bd_seq}}}"#).into()),
    });
}

/// A device's death is an event at its own time; one from before the device's last birth is nothing.
fn device_death(
    node: &mut Node,
    of: &Name,
    sent: &Sent<'_, '_>,
    effects: &mut Effects,
    content: &mut Content<'_>,
) -> Result<(), Reject> {
    let at = sent.time(None)?;
    if node.device_death(of, at, &mut effects.changes) {
        content.events.push(Event {
            event_id: Some(format!("sparkplug.ddeath-{at}").into()),
            event_type: "sparkplug.ddeath".into(),
            ts: at,
            data: None,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
