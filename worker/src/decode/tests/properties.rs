//! What must hold of every format: no input panics, and no part vanishes or changes its type.

use penstock_crds::mapping::TimeUnit;

use super::*;

/// Each format, with a good document of it.
fn formats() -> Vec<(Reading, Vec<u8>)> {
    let mapping = r#"{"time":{"pointer":"/ts"},"tenant":"/a/t","points":[{"name":"a","pointer":"/a/0"},{"name":"b","pointer":"/b","type":"Bool"}],
        "each":{"pointer":"/r","name":"/n","value":"/v","unit":"/u"}}"#;
    let v1 = r#"{"schema":"v1","ts":"2026-11-24T05:10:52Z","points":[{"name":"a","t":"float","v":1.5,"u":"V"}],"meta":{"a":1}}"#;
    let parsec = r#"{"timestamp":1795497052.5,"DI1":1,"DI2":0,"AI1":22.5,"rssi":-3,"fw":"1"}"#;
    let je02 = r#"{"DATA":{"TS":1795497052,"INPUT1":1,"INPUT2":0,"VAR0":1,"VAR1":2,"WRSSI":-3,"RELE":1,"CNTSERR":0,"UPTIME":9},"INFO":{"A":1}}"#;
    let sensors = r#"{"timestamp":1795497052,"sensors":[{"sensor_id":"t1","value":21.5,"unit":"c"}]}"#;
    let senml = r#"[{"bn":"a:","bt":1.795497052e9,"bu":"V","bv":1,"bs":2},{"n":"b","v":1.5,"s":2,"t":-1},{"n":"c","vs":"x"},{"n":"d","vb":true}]"#;
    let line =
        "m\\ x,a=b,c=d e=1,f=2i,g=\"x \\\" y\",h=t 1795497052000000000\n# c\nm a=1 1795497052000000000\n";
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        (Reading::Auto, text(v1)),
        (Reading::Auto, text(senml)),
        (Reading::V1, text(v1)),
        (Reading::Parsec, text(parsec)),
        (Reading::Je02, text(je02)),
        (Reading::Sensors, text(sensors)),
        (Reading::SenMl, text(senml)),
        (
            Reading::SenMl,
            b"\x82\xa3\x21\x61a\x22\x1a\x6b\x05\x1c\x5d\x08\x42\xfb\xff\xa1\x02\xc4\x82\x20\x18\xeb".to_vec(),
        ),
        (Reading::InfluxLine(TimeUnit::Nanoseconds), text(line)),
        (
            Reading::Fields { time_field: "ts".into(), unit: TimeUnit::Rfc3339 },
            text(r#"{"ts":"2026-11-24T05:10:52Z","a":1,"b":true,"c":"x"}"#),
        ),
        (
            Reading::Mapped(Arc::new(serde_json::from_str(mapping).unwrap())),
            text(
                r#"{"ts":"2026-11-24T05:10:52Z","a":{"0":1,"t":"x"},"b":true,"r":[{"n":"x","v":1,"u":"V"}]}"#,
            ),
        ),
        (Reading::Auto, zstd::encode_all(v1.as_bytes(), 3).unwrap()),
    ]
}

fn check(reading: &Reading, payload: &[u8]) -> Result<(), TestCaseError> {
    for receive_time in [false, true] {
        let (source, content) = decoder(receive_time).decode(reading, &input(TOPIC, payload));
        prop_assert!(source.is_some());
        let items = content.samples.len()
            + content.acks.len()
            + content.events.len()
            + usize::from(content.metadata.is_some());
        prop_assert!(items + content.rejects.len() > 0);
        for sample in &content.samples {
            prop_assert!(
                !sample.point.is_empty() && sample.point.len() <= MAX_NAME && !sample.point.contains('\0')
            );
            prop_assert!(sample.unit.as_ref().is_none_or(|unit| unit.len() <= 64 && !unit.contains('\0')));
            match &sample.value {
                Value::Num(number) => prop_assert!(number.is_finite()),
                Value::Text(text) => prop_assert!(text.len() <= value::MAX_TEXT && !text.contains('\0')),
                Value::Bool(_) => {}
                Value::Null => prop_assert!(false, "only Sparkplug has these"),
            }
        }
        for reject in &content.rejects {
            prop_assert!(!reject.detail.is_empty());
        }
    }
    Ok(())
}

#[test]
fn the_good_documents_are_good() {
    for (reading, payload) in formats() {
        let (_, content) = decoder(false).decode(&reading, &input(TOPIC, &payload));
        assert!(
            content.rejects.is_empty() && !content.samples.is_empty(),
            "{reading:?}: {:?}",
            content.rejects
        );
    }
}

/// A JSON value, and which kind of value it is: number, bool, text or none.
fn json_value() -> impl Strategy<Value = (String, char)> {
    prop_oneof![
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(|f| (format!("{f:e}"), 'n')),
        any::<i32>().prop_map(|i| (i.to_string(), 'n')),
        any::<bool>().prop_map(|b| (b.to_string(), 'b')),
        "[a-z ]{0,6}".prop_map(|s| (format!("\"{s}\""), 't')),
        Just(("null".to_owned(), '-')),
        Just(("[]".to_owned(), '-')),
        Just(("9007199254740993".to_owned(), '-')),
    ]
}

proptest! {
    #[test]
    fn no_bytes_make_a_format_panic(payload in prop::collection::vec(any::<u8>(), 1..200)) {
        for (reading, _) in formats() {
            check(&reading, &payload)?;
        }
    }

    #[test]
    fn no_change_to_a_good_document_makes_its_format_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        for (reading, mut payload) in formats() {
            for (at, byte, edit) in &edits {
                let at = at.index(payload.len());
                match edit {
                    0 => payload[at] = *byte,
                    1 => payload.insert(at, *byte),
                    _ => payload.insert(at, payload[at]),
                }
            }
            check(&reading, &payload)?;
            payload.truncate(cut.index(payload.len()) + 1);
            check(&reading, &payload)?;
        }
    }

    #[test]
    fn every_value_is_kept_as_its_type_or_rejected_alone(values in prop::collection::vec(json_value(), 1..12)) {
        let part = |format: &str, n: usize| format.replace("%n", &n.to_string()).replace("%v", &values[n].0);
        let all = |format: &str| (0..values.len()).map(|n| part(format, n)).collect::<Vec<_>>().join(",");
        let mapping = r#"{"time":{"pointer":"/ts","unit":"Seconds"},"each":{"pointer":"/v"}}"#;
        for (reading, payload) in [
            (Reading::Sensors, format!(r#"{{"timestamp":1795497053,"sensors":[{}]}}"#, all(r#"{"sensor_id":"p%n","value":%v}"#))),
            (Reading::Fields { time_field: "ts".into(), unit: TimeUnit::Seconds }, format!(r#"{{"ts":1795497053,{}}}"#, all(r#""p%n":%v"#))),
            (Reading::Mapped(Arc::new(serde_json::from_str(mapping).unwrap())), format!(r#"{{"ts":1795497053,"v":{{{}}}}}"#, all(r#""p%n":%v"#))),
        ] {
            let (_, content) = decoder(false).decode(&reading, &input(TOPIC, payload.as_bytes()));
            let mut parts: Vec<u32> = content.samples.iter().map(|s| s.part).chain(content.rejects.iter().filter_map(|r| r.part)).collect();
            parts.sort_unstable();
            prop_assert_eq!(parts, (0..values.len() as u32).collect::<Vec<_>>(), "{}", payload);
            for sample in &content.samples {
                let (text, kind) = &values[sample.part as usize];
                prop_assert_eq!(&*sample.point, format!("p{}", sample.part));
                match &sample.value {
                    Value::Null => prop_assert!(false, "v1 has none"),
                    Value::Num(number) => prop_assert!(*kind == 'n' && text.parse::<f64>() == Ok(*number)),
                    Value::Bool(truth) => prop_assert!(*kind == 'b' && *text == truth.to_string()),
                    Value::Text(found) => prop_assert_eq!((*kind, text.trim_matches('"')), ('t', &**found)),
                }
            }
            prop_assert_eq!(content.rejects.len(), values.iter().filter(|(_, kind)| *kind == '-').count());
        }
    }

    #[test]
    fn line_protocol_is_read_back(fields in prop::collection::btree_map("[a-zé ,=]{1,5}", any::<i32>(), 1..6), tag in "[a-z ,=]{1,5}") {
        let escape = |text: &str| text.replace(',', "\\,").replace('=', "\\=").replace(' ', "\\ ");
        let joined: Vec<_> = fields.iter().map(|(key, value)| format!("{}={value}i", escape(key))).collect();
        let line = format!("m,t={} {} 1795497053", escape(&tag), joined.join(","));
        let (_, content) = decoder(false).decode(&Reading::InfluxLine(TimeUnit::Seconds), &input(TOPIC, line.as_bytes()));
        prop_assert!(content.rejects.is_empty(), "{line}: {:?}", content.rejects);
        let found: Vec<_> = content.samples.iter().map(|s| (s.point.to_string(), s.value.clone())).collect();
        let tag = tag.replace(',', "\\,").replace('=', "\\=");
        let expected: Vec<_> = fields.iter().map(|(key, value)| (format!("m.{key}{{t={tag}}}"), Value::Num(f64::from(*value)))).collect();
        prop_assert_eq!(found, expected);
    }
}
