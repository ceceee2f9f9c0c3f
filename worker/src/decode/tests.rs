use proptest::prelude::*;

use super::*;

mod arrays;
mod formats;
mod properties;

const TOPIC: &[u8] = b"traksense/acme/north/inv-01/telem";
/// 2026-11-24T05:10:53Z.
const NOW: Micros = 1_795_497_053_000_000;

fn decoder(receive_time: bool) -> Decoder {
    let layout = Layout::parse("traksense/{tenant}/{site}/{device}/{kind}").unwrap();
    let rules = Rules {
        max_age: Duration::from_secs(30 * 86_400),
        max_ahead: Duration::from_secs(600),
        receive_time,
        max_payload: 1 << 20,
    };
    Decoder::new(layout, rules, None)
}

fn input<'a>(topic: &'a [u8], payload: &'a [u8]) -> Input<'a> {
    Input { topic, payload, compression: None, received_at: NOW, now: NOW }
}

fn decode<'a>(topic: &'a [u8], payload: &'a [u8]) -> (Option<Source<'a>>, Content<'a>) {
    decoder(false).decode(&Reading::Auto, &input(topic, payload))
}

fn reason(topic: &[u8], payload: &[u8]) -> Reason {
    let (_, content) = decode(topic, payload);
    assert_eq!(content.rejects.len(), 1, "{:?}", content.rejects);
    assert!(content.samples.is_empty() && content.acks.is_empty() && content.events.is_empty());
    content.rejects[0].reason
}

#[test]
fn a_normalized_message_gives_samples_of_their_declared_types() {
    let payload = br#"{"schema":"v1","ts":"2026-11-24T05:10:52.5Z","points":[
        {"name":"temp","t":"float","v":21.5,"u":"celsius"},{"name":"fault","t":"bool","v":true},
        {"name":"status","t":"enum","v":"RUN"},{"name":"count","v":7}],"meta":{"fw":"1.2"},"extra":1}"#;
    let (source, content) = decode(TOPIC, payload);
    assert_eq!(source, Some(Source { tenant: "acme", site: "north", device: "inv-01" }));
    let values: Vec<_> =
        content.samples.iter().map(|s| (&*s.point, s.value.clone(), s.unit.as_deref())).collect();
    assert_eq!(
        values,
        [
            ("temp", Value::Num(21.5), Some("celsius")),
            ("fault", Value::Bool(true), None),
            ("status", Value::Text("RUN".into()), None),
            ("count", Value::Num(7.0), None),
        ]
    );
    assert!(content.samples.iter().all(|sample| sample.ts == NOW - 500_000));
    assert_eq!(content.metadata.unwrap().document, r#"{"fw":"1.2"}"#);
    assert!(content.rejects.is_empty());
}

#[test]
fn bad_points_are_rejected_alone() {
    let payload = br#"{"schema":"v1","ts":"2026-11-24T05:10:52Z","points":[
        {"name":"a","v":1},{"name":"b","v":null},{"name":"c","t":"float","v":"7.3"},{"name":"d","t":"bool","v":1},
        {"name":"e","v":9007199254740993},{"name":"","v":1},{"v":1},{"name":"f","v":[1]},7,{"name":"g","t":"x","v":1},
        {"name":"h","t":"text","v":"a\u0000b"},{"name":"i","v":true}]}"#;
    let (_, content) = decode(TOPIC, payload);
    let reasons: Vec<_> = content.rejects.iter().map(|r| (r.part.unwrap(), r.reason)).collect();
    use Reason::{InvalidEncoding, InvalidField, InvalidValue, OutOfRange};
    assert_eq!(content.samples.len(), 1);
    assert_eq!(
        reasons,
        [
            (1, InvalidValue),
            (2, InvalidValue),
            (3, InvalidValue),
            (4, OutOfRange),
            (5, InvalidField),
            (6, InvalidField),
            (7, InvalidValue),
            (8, InvalidField),
            (9, InvalidField),
            (10, InvalidEncoding),
            (11, InvalidValue),
        ]
    );
}

#[test]
fn each_bad_message_has_its_reason() {
    let long = format!(
        r#"{{"schema":"v1","ts":"2026-11-24T05:10:52Z","points":[],"meta":{{"a":"{}"}}}}"#,
        "x".repeat(300_000)
    );
    let deep = format!(r#"{{"schema":"v1","ts":{}"#, "[".repeat(100_000));
    for (topic, payload, expected) in [
        (TOPIC, &b""[..], Reason::EmptyPayload),
        (TOPIC, b"\xff\xfe", Reason::InvalidEncoding),
        (TOPIC, b"{", Reason::ParseError),
        (TOPIC, b"NaN", Reason::ParseError),
        (TOPIC, deep.as_bytes(), Reason::ParseError),
        (TOPIC, b"[1]", Reason::InvalidField),
        (TOPIC, b"{\"schema\":\"v2\"}", Reason::UnknownSchema),
        (TOPIC, b"{\"a\":1}", Reason::UnknownSchema),
        (TOPIC, br#"{"schema":"v1","schema":"v1"}"#, Reason::InvalidField),
        (TOPIC, br#"{"schema":"v1","points":[{"name":"a","v":1}]}"#, Reason::MissingTime),
        (TOPIC, br#"{"schema":"v1","ts":1795497053,"points":[{"name":"a","v":1}]}"#, Reason::InvalidTime),
        (
            TOPIC,
            br#"{"schema":"v1","ts":"2026-11-24T05:10:52","points":[{"name":"a","v":1}]}"#,
            Reason::InvalidTime,
        ),
        (
            TOPIC,
            br#"{"schema":"v1","ts":"1970-01-01T00:00:00Z","points":[{"name":"a","v":1}]}"#,
            Reason::TsWindow,
        ),
        (
            TOPIC,
            br#"{"schema":"v1","ts":"2099-01-01T00:00:00Z","points":[{"name":"a","v":1}]}"#,
            Reason::TsWindow,
        ),
        (TOPIC, br#"{"schema":"v1","ts":"2026-11-24T05:10:52Z","points":[]}"#, Reason::InvalidField),
        (TOPIC, long.as_bytes(), Reason::TooLong),
        (TOPIC, &vec![b' '; (1 << 20) + 1], Reason::TooLarge),
        (b"traksense/acme/north/telem", b"{}", Reason::InvalidTopic),
        (b"traksense//north/inv-01/telem", b"{}", Reason::InvalidTopic),
        (b"traksense/a\0b/north/inv-01/telem", b"{}", Reason::InvalidTopic),
        (b"traksense/a/\xff/inv-01/telem", b"{}", Reason::InvalidTopic),
        (b"traksense/acme/north/inv-01/state", b"{}", Reason::UnknownSchema),
        (b"traksense/acme/north/inv-01/ack", br#"{"cmd_id":"1"}"#, Reason::InvalidField),
        (
            b"traksense/acme/north/inv-01/ack",
            br#"{"cmd_id":"1","ok":true,"ts_exec":"x"}"#,
            Reason::InvalidTime,
        ),
        (b"traksense/acme/north/inv-01/event", br#"{"schema":"v1","event_type":"x"}"#, Reason::MissingTime),
        (
            b"traksense/acme/north/inv-01/event",
            br#"{"schema":"v1","event_type":"x","ts":1795497053}"#,
            Reason::InvalidTime,
        ),
    ] {
        assert_eq!(
            reason(topic, payload),
            expected,
            "{}",
            String::from_utf8_lossy(&payload[..payload.len().min(80)])
        );
    }
}

#[test]
fn names_from_topics_are_text_and_never_sql() {
    let (source, content) = decode(
        br#"traksense/a'; DROP TABLE x;--/"n"/d/telem"#,
        br#"{"schema":"v1","ts":"2026-11-24T05:10:52Z","points":[{"name":"a","v":1}]}"#,
    );
    assert_eq!(source.unwrap().tenant, "a'; DROP TABLE x;--");
    assert_eq!(content.samples.len(), 1);
}

#[test]
fn an_answer_may_be_the_original_simulators() {
    let topic = b"traksense/acme/north/inv-01/ack";
    let (_, content) = decode(topic, br#"{"cmd_id":"c1","ok":false,"ts_exec":1795497053.25,"err":"busy"}"#);
    let ack = &content.acks[0];
    assert_eq!(
        (&*ack.cmd_id, ack.ok, ack.executed_at, ack.error.as_deref()),
        ("c1", false, Some(NOW + 250_000), Some("busy"))
    );
}

#[test]
fn an_event_keeps_its_data() {
    let topic = b"traksense/acme/north/inv-01/event";
    let (_, content) = decode(topic, br#"{"schema":"v1","event_id":"e1","event_type":"door","ts":"2026-11-24T05:10:53Z","data":{"open":true}}"#);
    let event = &content.events[0];
    assert_eq!((event.event_id.as_deref(), &*event.event_type, event.ts), (Some("e1"), "door", NOW));
    assert_eq!(event.data.as_deref(), Some(r#"{"open":true}"#));
}

#[test]
fn where_tenants_are_listed_others_are_refused() {
    let decoder = Decoder { tenants: Some(["acme".to_owned()].into()), ..decoder(false) };
    for (topic, expected) in
        [(TOPIC, Reason::EmptyPayload), (&b"traksense/other/n/d/telem"[..], Reason::UnknownTenant)]
    {
        let (_, content) = decoder.decode(&Reading::Auto, &input(topic, b""));
        assert_eq!(content.rejects[0].reason, expected);
    }
}

#[test]
fn receive_time_stands_in_only_where_it_is_allowed() {
    let payload = br#"{"schema":"v1","points":[{"name":"a","v":1}]}"#;
    let input = Input { received_at: NOW - 7, ..input(TOPIC, payload) };
    let (_, content) = decoder(true).decode(&Reading::V1, &input);
    assert_eq!(content.samples[0].ts, NOW - 7);
}

#[test]
fn without_a_kind_in_the_topic_the_payload_tells() {
    let decoder = Decoder { layout: Layout::parse("{device}").unwrap(), ..decoder(false) };
    for (payload, acks, events) in [
        (r#"{"cmd_id":"1","ok":true}"#, 1, 0),
        (r#"{"schema":"v1","event_type":"x","ts":"2026-11-24T05:10:53Z"}"#, 0, 1),
    ] {
        let input = input(b"d", payload.as_bytes());
        let (source, content) = decoder.decode(&Reading::Auto, &input);
        assert_eq!(source.unwrap().tenant, "default");
        assert_eq!((content.acks.len(), content.events.len()), (acks, events));
    }
}

#[test]
fn metadata_alone_is_telemetry_also_without_a_kind_in_the_topic() {
    let bare = Decoder { layout: Layout::parse("{device}").unwrap(), ..decoder(false) };
    for reading in [Reading::V1, Reading::Auto] {
        let decode = |payload: &'static [u8]| bare.decode(&reading, &input(b"d", payload)).1;
        let content = decode(br#"{"schema":"v1","ts":"2026-11-24T05:10:53Z","meta":{"fw":"1.2"}}"#);
        assert!(content.rejects.is_empty(), "{:?}", content.rejects);
        assert_eq!(content.metadata.unwrap().document, r#"{"fw":"1.2"}"#);
        for (payload, expected) in [
            (&br#"{"schema":"v1","ts":"2026-11-24T05:10:53Z"}"#[..], Reason::InvalidField),
            (br#"{"schema":"v2","meta":{}}"#, Reason::UnknownSchema),
            (br#"{"a":1}"#, Reason::UnknownSchema),
        ] {
            assert_eq!(decode(payload).rejects[0].reason, expected);
        }
    }
}

fn point() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(|f| format!("{f:e}")),
        any::<i64>().prop_map(|i| i.to_string()),
        Just("true".to_owned()),
        Just("null".to_owned()),
        Just("[]".to_owned()),
        Just("\"text\"".to_owned()),
    ];
    (
        prop::option::of("[a-z]{0,4}"),
        prop::sample::select(vec!["num", "float", "bool", "text", "enum", "x"]),
        value,
    )
        .prop_map(|(name, t, v)| match name {
            Some(name) => format!(r#"{{"name":"{name}","t":"{t}","v":{v}}}"#),
            None => format!(r#"{{"t":"{t}","v":{v}}}"#),
        })
}

proptest! {
    #[test]
    fn no_input_makes_the_decoder_panic_and_none_vanishes(topic in prop::collection::vec(any::<u8>(), 0..40), payload in prop::collection::vec(any::<u8>(), 0..200)) {
        for topic in [&topic[..], TOPIC, b"traksense/a/b/c/ack", b"traksense/a/b/c/event"] {
            let (source, content) = decode(topic, &payload);
            let items = content.samples.len() + content.acks.len() + content.events.len() + usize::from(content.metadata.is_some());
            prop_assert!(items + content.rejects.len() > 0);
            prop_assert!(source.is_some() || items == 0);
        }
    }

    #[test]
    fn samples_and_rejects_cover_every_point_once(points in prop::collection::vec(point(), 1..20)) {
        let payload = format!(r#"{{"schema":"v1","ts":"2026-11-24T05:10:52Z","points":[{}]}}"#, points.join(","));
        let (_, content) = decode(TOPIC, payload.as_bytes());
        let mut parts: Vec<u32> = content.samples.iter().map(|s| s.part).chain(content.rejects.iter().filter_map(|r| r.part)).collect();
        parts.sort_unstable();
        prop_assert_eq!(parts, (0..points.len() as u32).collect::<Vec<_>>());
        for sample in &content.samples {
            let source = &points[sample.part as usize];
            prop_assert_eq!(matches!(sample.value, Value::Num(_)), source.contains(r#""t":"num""#) || source.contains(r#""t":"float""#));
            prop_assert_eq!(matches!(sample.value, Value::Bool(_)), source.contains(r#""t":"bool""#));
        }
    }

    #[test]
    fn a_point_that_is_none_changes_nothing_of_the_others(points in prop::collection::vec(point(), 1..20)) {
        let document = |points: &str| format!(r#"{{"schema":"v1","ts":"2026-11-24T05:10:52Z","points":[{points}]}}"#);
        let points = points.join(",");
        let (alone, beside) = (document(&points), document(&format!("{points},7")));
        let ((_, alone), (_, mut beside)) = (decode(TOPIC, alone.as_bytes()), decode(TOPIC, beside.as_bytes()));
        prop_assert_eq!(beside.rejects.pop().map(|reject| reject.reason), Some(Reason::InvalidField));
        prop_assert_eq!(alone, beside);
    }
}
