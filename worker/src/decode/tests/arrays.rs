//! An array is no object, though its items may stand in the order of an object's fields.

use super::*;

#[test]
fn an_array_in_the_place_of_a_part_is_rejected_alone() {
    let points = r#"{"schema":"v1","ts":"2026-11-24T05:10:53Z","points":[["temp","float",21.5,"C"],{"name":"a","v":1},[]]}"#;
    let sensors = r#"{"timestamp":1795497053,"sensors":[["temp",21.5,"C"],{"sensor_id":"a","value":1},[]]}"#;
    for (reading, payload) in [
        (Reading::V1, points),
        (Reading::Auto, points),
        (Reading::Sensors, sensors),
        (Reading::Auto, sensors),
    ] {
        let (_, content) = decoder(false).decode(&reading, &input(TOPIC, payload.as_bytes()));
        let samples: Vec<_> = content.samples.iter().map(|sample| (sample.part, &*sample.point)).collect();
        let rejects: Vec<_> = content.rejects.iter().map(|reject| (reject.part, reject.reason)).collect();
        assert_eq!(samples, [(1, "a")], "{payload}");
        let expected = [(Some(0), Reason::InvalidField), (Some(2), Reason::InvalidField)];
        assert_eq!(rejects, expected, "{payload}");
    }
}

#[test]
fn an_array_in_the_place_of_a_document_is_rejected() {
    let telemetry = r#" ["v1","2026-11-24T05:10:53Z",[{"name":"a","v":1}],null]"#;
    let ack = r#"["v1","c1",true,null,null]"#;
    let event = r#"["v1","e1","door","2026-11-24T05:10:53Z",null]"#;
    let sensors = r#"[1795497053,[{"sensor_id":"a","value":1}]]"#;
    let je02 = r#"[{"TS":1795497053,"INPUT1":1,"INPUT2":0},null]"#;
    let marks = r#"[null,"c1",null,null,null,null,null,null,null]"#;
    let bare = Decoder { layout: Layout::parse("{device}").unwrap(), ..decoder(false) };
    let kind = |kind: &str| format!("traksense/acme/north/inv-01/{kind}");
    for (topic, reading, payload) in [
        (kind("telem"), Reading::V1, telemetry),
        (kind("telem"), Reading::Auto, telemetry),
        (kind("ack"), Reading::V1, ack),
        (kind("ack"), Reading::Auto, ack),
        (kind("event"), Reading::V1, event),
        (kind("event"), Reading::Auto, event),
        (kind("telem"), Reading::Sensors, sensors),
        (kind("telem"), Reading::Je02, je02),
        ("d".to_owned(), Reading::V1, telemetry),
        ("d".to_owned(), Reading::V1, r#"["c1",null]"#),
        ("d".to_owned(), Reading::Auto, marks),
        // SenML only where the first record has a name.
        (kind("telem"), Reading::Auto, r#"[{"a":1},{"n":"x","v":1,"t":1795497053}]"#),
        ("d".to_owned(), Reading::Auto, r#"[{"a":1},{"n":"x","v":1,"t":1795497053}]"#),
    ] {
        let decoder = if topic == "d" { &bare } else { &decoder(false) };
        let (_, content) = decoder.decode(&reading, &input(topic.as_bytes(), payload.as_bytes()));
        let rejects: Vec<_> = content.rejects.iter().map(|reject| (reject.part, reject.reason)).collect();
        assert_eq!(rejects, [(None, Reason::InvalidField)], "{reading:?}: {payload}");
        assert!(content.samples.is_empty() && content.acks.is_empty() && content.events.is_empty());
    }
}

#[test]
fn an_array_that_breaks_off_is_a_parse_error() {
    for payload in [r#"[{"n":"a","v":1},"#, "[1,"] {
        assert_eq!(reason(TOPIC, payload.as_bytes()), Reason::ParseError, "{payload}");
    }
}
