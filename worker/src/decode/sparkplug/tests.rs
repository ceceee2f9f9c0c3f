use crate::decode::Reading;
use penstock_crds::topic::Layout;
use proptest::prelude::*;

use super::super::{Decoder, Source, Value};
use super::births::{Births, State};
use super::*;

mod sequence;

/// 2026-11-24T05:10:53Z.
const NOW: Micros = 1_795_497_053_000_000;
/// When the golden payloads' birth was sent.
const BORN: Micros = NOW - 1_000_000;

// Made with pysparkplug 0.6.1, which was generated from Tahu's sparkplug_b.proto.
const NBIRTH: &str = "08e08edbdfa034120b0a05626453657120045807121a0a144e6f646520436f6e74726f6c2f52656269727468200b7000122f0a0b54656d7065726174757265100118fc8ddbdfa03420094a100a075175616c6974791205080318c001650000ac4112180a054c6576656c100218fc8ddbdfa034200350fbffffff0f12170a055374617465100318fc8ddbdfa034200c7a0352554e12130a044c6f7374100418fc8ddbdfa034200a3801121b0a055461626c65100520108a010d0801120161180322040a020804121c0a054d6f746f721006201392010e0a013112070a0372706d20032801120f0a04426c6f621007201182010200011800";
const NDATA: &str = "08c896dbdfa034120e100118e495dbdfa034650000b241120f100218e495dbdfa03450faffffff0f120f100318e495dbdfa0347a0453544f501801";
const NDEATH: &str = "08db8edbdfa034120b0a05626453657120045807";

fn golden(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn decoder() -> Decoder {
    let layout = Layout::parse("traksense/{tenant}/{site}/{device}/{kind}").unwrap();
    let rules = Rules {
        max_age: std::time::Duration::from_secs(30 * 86_400),
        max_ahead: std::time::Duration::from_secs(600),
        receive_time: false,
        max_payload: 1 << 20,
    };
    Decoder::new(layout, rules, None)
}

fn decode<'a>(decoder: &Decoder, topic: &'a str, payload: &'a [u8]) -> (Option<Source<'a>>, Content<'a>) {
    let input = Input { topic: topic.as_bytes(), payload, compression: None, received_at: NOW, now: NOW };
    decoder.decode(&Reading::SparkplugB, &input)
}

fn content<'a>(decoder: &Decoder, topic: &'a str, payload: &'a [u8]) -> Content<'a> {
    decode(decoder, topic, payload).1
}

fn effects(content: &Content<'_>) -> Effects {
    content.sparkplug.as_deref().cloned().unwrap_or_default()
}

/// A metric of data: an alias and a number.
fn alias(alias: u64, number: f64) -> proto::Metric {
    proto::Metric { alias: Some(alias), value: Some(proto::Value::Double(number)), ..Default::default() }
}

/// A metric of a birth: name, alias and a number.
fn named(name: &str, number: u64) -> proto::Metric {
    proto::Metric { name: Some(name.into()), datatype: Some(10), ..alias(number, 0.5) }
}

/// A payload sent so many milliseconds after [`BORN`].
fn payload(after: u64, seq: u64, metrics: Vec<proto::Metric>) -> Vec<u8> {
    let timestamp = Some(BORN as u64 / 1000 + after);
    Payload { timestamp, seq: Some(seq), metrics, uuid: None }.encode_to_vec()
}

fn points<'a>(content: &'a Content<'_>) -> Vec<(&'a str, Value<'a>, Micros, i16)> {
    content.samples.iter().map(|s| (&*s.point, s.value.clone(), s.ts, s.quality)).collect()
}

fn reasons(content: &Content<'_>) -> Vec<(Option<u32>, Reason)> {
    content.rejects.iter().map(|reject| (reject.part, reject.reason)).collect()
}

#[test]
fn a_birth_and_data_made_by_another_implementation_are_read() {
    let (decoder, bytes) = (decoder(), golden(NBIRTH));
    let (source, born) = decode(&decoder, "spBv1.0/plant/NBIRTH/line", &bytes);
    assert_eq!(source, Some(Source { tenant: "plant", site: "line", device: "line" }));
    let taken = BORN - 100_000;
    assert_eq!(
        points(&born),
        [
            ("bdSeq", Value::Num(7.0), BORN, 0),
            ("Node Control/Rebirth", Value::Bool(false), BORN, 0),
            ("Temperature", Value::Num(21.5), taken, 0),
            ("Level", Value::Num(-5.0), taken, 0),
            ("State", Value::Text("RUN".into()), taken, 0),
            ("Lost", Value::Null, taken, 500),
        ]
    );
    let unsupported = [6, 7, 8].map(|part| (Some(part), Reason::InvalidValue));
    assert_eq!(reasons(&born), unsupported, "data set, template, bytes: {:?}", born.rejects);
    let state = State { born_at: BORN, bd_seq: Some(7), stale_since: None };
    assert!(matches!(&effects(&born).changes[..],
        [Change::Names { since: BORN, metrics, .. }, Change::State { state: stored, .. }]
        if metrics.all().len() == 9 && *stored == state));

    let bytes = golden(NDATA);
    let data = content(&decoder, "spBv1.0/plant/NDATA/line", &bytes);
    let taken = BORN + 900_000;
    assert_eq!(
        points(&data),
        [
            ("Temperature", Value::Num(22.25), taken, 0),
            ("Level", Value::Num(-6.0), taken, 0),
            ("State", Value::Text("STOP".into()), taken, 0),
        ]
    );
    assert!(data.rejects.is_empty());
    assert_eq!(effects(&data), Effects::default());

    let bytes = golden(NDEATH);
    let death = content(&decoder, "spBv1.0/plant/NDEATH/line", &bytes);
    assert_eq!((&*death.events[0].event_type, death.events[0].ts), ("sparkplug.ndeath", NOW));
    assert_eq!(death.events[0].data.as_deref(), Some(r#"{"bdSeq":7}"#));
    assert!(
        matches!(&effects(&death).changes[..], [Change::State { state, .. }] if state.stale_since.is_some())
    );
}

#[test]
fn the_topic_tells_who_it_is_and_what() {
    let bytes = payload(0, 0, vec![named("a", 1)]);
    let decoder = decoder();
    for (topic, expected) in [
        ("spBv1.0/g/NBIRTH/n", Some(("g", "n", "n"))),
        ("spBv1.0/g/DBIRTH/n/d", Some(("g", "n", "d"))),
        ("spBv1.0/g/NBIRTH/n/d", None),
        ("spBv1.0/g/DBIRTH/n", None),
        ("spBv1.0/g/DBIRTH/n/", Some(("", "", ""))),
        ("spBv1.0/g/XDATA/n", None),
        ("spBv1.0//NBIRTH/n", None),
        ("spBv1.0/g/NBIRTH/", None),
        ("spAv1.0/g/NBIRTH/n", None),
        ("traksense/a/b/c/telem", None),
    ] {
        let (source, content) = decode(&decoder, topic, &bytes);
        match expected.filter(|(tenant, ..)| !tenant.is_empty()) {
            Some((tenant, site, device)) => {
                assert_eq!(source, Some(Source { tenant, site, device }), "{topic}");
            }
            None => assert_eq!(reasons(&content), [(None, Reason::InvalidTopic)], "{topic}"),
        }
    }
}

#[test]
fn commands_and_host_states_are_for_others_and_hold_no_items() {
    let decoder = decoder();
    for topic in ["spBv1.0/g/NCMD/n", "spBv1.0/g/DCMD/n/d", "spBv1.0/STATE/scada"] {
        for payload in [&b"{\"online\":true}"[..], b""] {
            let (source, content) = decode(&decoder, topic, payload);
            assert_eq!((source, content), (None, Content::default()), "{topic}");
        }
    }
}

#[test]
fn the_namespace_tells_the_format_where_the_manifest_does_not() {
    let (decoder, bytes) = (decoder(), golden(NBIRTH));
    let of = |format, topic: &'static str| {
        let input =
            Input { topic: topic.as_bytes(), payload: &bytes, compression: None, received_at: NOW, now: NOW };
        decoder.decode(format, &input).1.samples.len()
    };
    assert_eq!(of(&Reading::Auto, "spBv1.0/g/NBIRTH/n"), 6);
    assert_eq!(of(&Reading::V1, "spBv1.0/g/NBIRTH/n"), 0);
    assert_eq!(of(&Reading::Auto, "traksense/a/b/c/telem"), 0);
}

#[test]
fn data_before_a_birth_is_a_dead_letter_that_a_later_birth_explains_and_asks_once_a_minute() {
    let decoder = decoder();
    let early = payload(10, 5, vec![alias(1, 1.0), alias(2, 2.0)]);
    let before = content(&decoder, "spBv1.0/g/DDATA/n/d", &early);
    assert_eq!(reasons(&before), [(None, Reason::UnknownAlias)]);
    assert_eq!(effects(&before).ask, Some(("g".into(), "n".into())));
    let again = payload(20, 6, vec![alias(1, 1.0)]);
    assert_eq!(effects(&content(&decoder, "spBv1.0/g/DDATA/n/d", &again)).ask, None, "asked just now");
    let born = payload(30, 0, vec![named("a", 1), named("b", 2)]);
    content(&decoder, "spBv1.0/g/DBIRTH/n/d", &born);
    let replayed = content(&decoder, "spBv1.0/g/DDATA/n/d", &early);
    assert_eq!(points(&replayed).iter().map(|point| point.0).collect::<Vec<_>>(), ["a", "b"]);
    // An alias of a node is none of its device.
    assert_eq!(reasons(&content(&decoder, "spBv1.0/g/NDATA/n", &early)), [(None, Reason::UnknownAlias)]);
}

#[test]
fn a_metric_that_tells_itself_needs_no_birth() {
    let decoder = decoder();
    let bytes = payload(0, 5, vec![proto::Metric { alias: None, ..named("a", 1) }]);
    let data = content(&decoder, "spBv1.0/g/NDATA/n", &bytes);
    assert_eq!(points(&data), [("a", Value::Num(0.5), BORN, 0)]);
    assert!(effects(&data).ask.is_some(), "the birth is still missing");
}

#[test]
fn bad_metrics_are_rejected_alone() {
    let decoder = decoder();
    let long = "n".repeat(300);
    let metrics = vec![
        named("a", 1),
        named("twice", 1),
        named(&long, 3),
        named("", 4),
        proto::Metric { name: Some(b"\xff".to_vec()), ..named("", 5) },
        proto::Metric { datatype: None, ..named("no type", 6) },
        proto::Metric { timestamp: Some(1), ..named("old", 7) },
        proto::Metric { timestamp: Some(u64::MAX), ..named("late", 8) },
        proto::Metric { value: None, ..named("no value", 9) },
    ];
    let bytes = payload(0, 0, metrics);
    let born = content(&decoder, "spBv1.0/g/NBIRTH/n", &bytes);
    use Reason::{InvalidEncoding, InvalidField, InvalidTime, InvalidValue, TooLong, TsWindow, UnknownAlias};
    let expected = [
        InvalidField,
        TooLong,
        InvalidField,
        InvalidEncoding,
        InvalidField,
        TsWindow,
        InvalidTime,
        InvalidValue,
    ];
    let numbered: Vec<_> = (1..).map(Some).zip(expected).collect();
    assert_eq!(reasons(&born), numbered);
    let metrics = vec![
        alias(1, 1.0),
        alias(3, 1.0),
        alias(99, 1.0),
        proto::Metric { alias: None, ..alias(1, 1.0) },
        proto::Metric { datatype: Some(9), ..alias(1, 1.0) },
        proto::Metric { name: Some(b"new".to_vec()), ..alias(1, 1.0) },
        proto::Metric { datatype: Some(10), ..alias(6, 3.0) },
    ];
    let bytes = payload(1, 1, metrics);
    let data = content(&decoder, "spBv1.0/g/NDATA/n", &bytes);
    let expected =
        [(1, InvalidField), (2, UnknownAlias), (3, InvalidField), (4, UnknownAlias), (5, UnknownAlias)];
    assert_eq!(reasons(&data), expected.map(|(part, reason)| (Some(part), reason)));
    assert_eq!(points(&data).iter().map(|point| point.0).collect::<Vec<_>>(), ["a", "no type"]);
    assert!(effects(&data).ask.is_some());
}

#[test]
fn each_bad_message_has_its_reason() {
    let decoder = decoder();
    let no_time = Payload { metrics: vec![named("a", 1)], ..Payload::default() }.encode_to_vec();
    let compressed = Payload { uuid: Some(COMPRESSED.to_vec()), ..Payload::default() }.encode_to_vec();
    let old = Payload { timestamp: Some(1), ..Payload::default() }.encode_to_vec();
    let never = Payload { timestamp: Some(u64::MAX), ..Payload::default() }.encode_to_vec();
    for (topic, payload, expected) in [
        ("spBv1.0/g/NBIRTH/n", &b""[..], Reason::EmptyPayload),
        ("spBv1.0/g/NBIRTH/n", b"{\"a\":1}", Reason::ParseError),
        ("spBv1.0/g/NBIRTH/n", &no_time, Reason::MissingTime),
        ("spBv1.0/g/NBIRTH/n", &compressed, Reason::UnknownSchema),
        ("spBv1.0/g/NBIRTH/n", &old, Reason::TsWindow),
        ("spBv1.0/g/NDATA/n", &never, Reason::InvalidTime),
        ("spBv1.0/g/DDEATH/n/d", &old, Reason::TsWindow),
        ("spBv1.0/g/NDATA/n", &vec![0; (1 << 20) + 1], Reason::TooLarge),
        ("spBv1.0/a\u{1}/NDATA/n", b"x", Reason::InvalidTopic),
    ] {
        assert_eq!(reasons(&content(&decoder, topic, payload)), [(None, expected)], "{topic}");
    }
    assert!(!decoder.births().node("g", "n").is_born(""));
}

#[test]
fn an_alias_that_changes_its_meaning_is_read_by_the_birth_of_its_time() {
    let decoder = decoder();
    let [first, second] = [(0, "a"), (100, "b")].map(|(at, name)| payload(at, 0, vec![named(name, 1)]));
    let [early, late] = [50, 150].map(|at| payload(at, 1, vec![alias(1, 1.0)]));
    let read = |decoder: &Decoder, bytes: &[u8]| {
        content(decoder, "spBv1.0/g/NDATA/n", bytes).samples[0].point.to_string()
    };
    content(&decoder, "spBv1.0/g/NBIRTH/n", &first);
    assert_eq!(read(&decoder, &early), "a");
    content(&decoder, "spBv1.0/g/NBIRTH/n", &second);
    assert_eq!(read(&decoder, &late), "b");
    // All of it again, as after a reconnect.
    assert_eq!(read(&decoder, &early), "a");
    content(&decoder, "spBv1.0/g/NBIRTH/n", &first);
    assert_eq!(read(&decoder, &late), "b");
}

/// Births, data and deaths of a node and two devices, in time.
fn script() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let step = (0usize..6, 0usize..3, prop::sample::select(vec!["a", "b"]), 0u64..3, 1u64..4);
    prop::collection::vec(step, 1..30).prop_map(|steps| {
        let (mut at, mut seq) = (0, 0);
        steps
            .into_iter()
            .map(|(kind, device, name, number, later)| {
                at += later;
                let kind = ["BIRTH", "BIRTH", "DATA", "DATA", "DATA", "DEATH"][kind];
                let metrics = match kind {
                    "BIRTH" => vec![named(name, 1), named(&format!("{name}2"), 2)],
                    "DATA" => vec![alias(number, 1.0)],
                    _ => Vec::new(),
                };
                seq = if (kind, device) == ("BIRTH", 0) { 0 } else { seq + 1 };
                let topic = match device {
                    0 => format!("spBv1.0/g/N{kind}/n"),
                    device => format!("spBv1.0/g/D{kind}/n/d{device}"),
                };
                (topic, payload(at, seq % 256, metrics))
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn no_payload_makes_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), topic in "spBv1.0/[a-z]{0,2}/(NBIRTH|NDATA|NDEATH|DBIRTH/d|DDATA|DDEATH|STATE)/[a-z]{0,2}(/d)?") {
        let decoder = decoder();
        let born = payload(0, 0, vec![named("a", 1)]);
        content(&decoder, "spBv1.0/g/NBIRTH/n", &born);
        for topic in [&*topic, "spBv1.0/g/NDATA/n", "spBv1.0/g/NBIRTH/n", "spBv1.0/g/NDEATH/n", "spBv1.0/g/DDEATH/n/d"] {
            let (source, content) = decode(&decoder, topic, &bytes);
            prop_assert!(source.is_some() || content.samples.len() + content.events.len() == 0);
        }
    }

    #[test]
    fn samples_and_rejects_cover_every_metric_once(
        metrics in prop::collection::vec((prop::option::of("[a-z]{0,3}"), prop::option::of(0u64..4), prop::option::of(0u32..22), any::<f64>(), 0u8..7), 1..20),
        is_birth in any::<bool>(),
    ) {
        let metrics: Vec<proto::Metric> = metrics.into_iter().map(|(name, alias, datatype, number, kind)| proto::Metric {
            name: name.map(String::into_bytes),
            alias,
            datatype,
            is_null: (kind == 6).then_some(true),
            value: [
                Some(proto::Value::Int(number as u32)), Some(proto::Value::Long(number as u64)), Some(proto::Value::Float(number as f32)),
                Some(proto::Value::Double(number)), Some(proto::Value::Boolean(true)), Some(proto::Value::Text(b"x".to_vec())), None,
            ][kind as usize].clone(),
            ..Default::default()
        }).collect();
        let count = metrics.len() as u32;
        let decoder = decoder();
        let born = payload(0, 0, vec![named("a", 1), named("b", 2)]);
        content(&decoder, "spBv1.0/g/NBIRTH/n", &born);
        let bytes = payload(1, 1, metrics);
        let decoded = content(&decoder, if is_birth { "spBv1.0/g/NBIRTH/n" } else { "spBv1.0/g/NDATA/n" }, &bytes);
        let mut parts: Vec<u32> = decoded.samples.iter().map(|s| s.part).chain(decoded.rejects.iter().filter_map(|r| r.part)).collect();
        parts.sort_unstable();
        prop_assert_eq!(parts, (0..count).collect::<Vec<_>>());
    }

    /// A worker that dies after some of the changes are stored reads what comes again by the same names.
    #[test]
    fn data_means_the_same_after_a_restart_and_a_redelivery(script in script(), stored in any::<prop::sample::Index>(), from in any::<prop::sample::Index>()) {
        let read = |decoder: &Decoder, from: usize| -> Vec<(Vec<String>, Vec<Change>)> {
            script[from..].iter().map(|(topic, bytes)| {
                let content = content(decoder, topic, bytes);
                (content.samples.iter().map(|s| format!("{} {}", s.point, s.ts)).collect(), effects(&content).changes)
            }).collect()
        };
        let first = read(&decoder(), 0);
        // What is acknowledged is stored, and maybe more.
        let (stored, from) = (stored.index(script.len()), from.index(script.len()));
        let after = decoder();
        for (_, changes) in &first[..=stored.max(from)] {
            for change in changes {
                after.births().learn(change.clone());
            }
        }
        for (index, (samples, _)) in read(&after, from).into_iter().enumerate() {
            let before = &first[from + index].0;
            // After a death that is stored already, what was sent after it needs its birth.
            prop_assert!(samples == *before || samples.is_empty() || before.is_empty(), "{:?} was {:?}", samples, before);
        }
    }
}

#[test]
fn what_the_database_holds_is_as_good_as_what_was_received() {
    let (live, loaded) = (decoder(), decoder());
    let bytes = golden(NBIRTH);
    let born = content(&live, "spBv1.0/g/NBIRTH/n", &bytes);
    let mut births: Births = Births::default();
    for change in effects(&born).changes {
        births.learn(change);
    }
    *loaded.births() = births;
    let bytes = golden(NDATA);
    let [live, loaded] =
        [live, loaded].map(|decoder| content(&decoder, "spBv1.0/g/NDATA/n", &bytes).samples.len());
    assert_eq!((live, loaded), (3, 3));
}
