//! Golden cases: documents as devices send them, and what becomes of each part.

use penstock_crds::mapping::{Mapping, TimeUnit};

use super::*;

/// What a part became, in a line: `point = value unit @seconds before NOW`, or `part: reason`.
fn lines(content: &Content<'_>) -> Vec<String> {
    let mut lines: Vec<(u32, String)> = Vec::new();
    for sample in &content.samples {
        let value = match &sample.value {
            Value::Null => "null".to_owned(),
            Value::Num(number) => format!("{number}"),
            Value::Bool(truth) => format!("{truth}"),
            Value::Text(text) => format!("{text:?}"),
        };
        let unit = sample.unit.as_ref().map_or(String::new(), |unit| format!(" {unit}"));
        let ago = (NOW - sample.ts) as f64 / 1e6;
        lines.push((sample.part, format!("{} = {value}{unit} @{ago}", sample.point)));
    }
    for reject in &content.rejects {
        let part = reject.part.map_or("whole".to_owned(), |part| part.to_string());
        lines.push((reject.part.unwrap_or(u32::MAX), format!("{part}: {}", reject.reason.as_str())));
    }
    lines.sort_by_key(|(part, _)| *part);
    lines.into_iter().map(|(_, line)| line).collect()
}

fn decoded(reading: &Reading, receive_time: bool, payload: &[u8]) -> Vec<String> {
    let (_, content) = decoder(receive_time).decode(reading, &input(TOPIC, payload));
    lines(&content)
}

/// Each payload becomes these lines, read as the format, and by `Auto` as well where it is told.
fn golden(reading: &Reading, with_auto: bool, cases: &[(&str, &[&str])]) {
    for (payload, expected) in cases {
        assert_eq!(decoded(reading, false, payload.as_bytes()), *expected, "{payload}");
        if with_auto {
            assert_eq!(decoded(&Reading::Auto, false, payload.as_bytes()), *expected, "Auto: {payload}");
        }
    }
}

#[test]
fn parsec_in_all_its_spellings() {
    golden(
        &Reading::Parsec,
        true,
        &[
            (
                r#"{"di1":1,"di2":0,"rssi":-67,"fw":"1.2","ts":"2026-11-24T05:10:52Z"}"#,
                &["status = \"RUN\" @1", "fault = false @1", "rssi = -67 dBm @1"],
            ),
            (
                r#"{"schema":"parsec_v1","ts":"2026-11-24T05:10:52Z","DI1":0,"DI2":0,"rssi":-67}"#,
                &["status = \"STOP\" @1", "fault = false @1", "rssi = -67 dBm @1"],
            ),
            (
                r#"{"timestamp":1795497052.5,"DI1":1,"DI2":0,"AI1":22.5,"AI2":null,"AIRFLOW":1}"#,
                &["status = \"RUN\" @0.5", "fault = false @0.5", "ai1 = 22.5 @0.5", "3: invalid_value"],
            ),
            // FAULT wins over RUN and STOP, also where input 1 is missing.
            (r#"{"timestamp":1795497053,"DI1":1,"DI2":1}"#, &["status = \"FAULT\" @0", "fault = true @0"]),
            (
                r#"{"ts":"2026-11-24T05:10:53Z","di1":0,"di2":1}"#,
                &["status = \"FAULT\" @0", "fault = true @0"],
            ),
            (r#"{"timestamp":1795497053,"DI2":true}"#, &["status = \"FAULT\" @0", "fault = true @0"]),
            // Nothing is assumed of an input that is missing or strange.
            (r#"{"timestamp":1795497053,"DI1":1}"#, &["0: invalid_field", "1: invalid_field"]),
            (r#"{"timestamp":1795497053,"DI2":0}"#, &["0: invalid_field", "fault = false @0"]),
            (r#"{"timestamp":1795497053,"DI1":"1","DI2":0}"#, &["0: invalid_value", "fault = false @0"]),
            (r#"{"timestamp":1795497053,"DI1":2,"DI2":2}"#, &["0: invalid_value", "1: invalid_value"]),
            (r#"{"DI1":1,"DI2":0}"#, &["whole: missing_time"]),
            (r#"{"ts":"2026-11-24T05:10:53","DI1":1,"DI2":0}"#, &["whole: invalid_time"]),
            (r#"{"schema":"parsec_v1","ts":"2026-11-24T05:10:53Z"}"#, &["whole: invalid_field"]),
            (r#"{"ts":"2026-11-24T05:10:53Z","timestamp":1,"di1":1,"di2":1}"#, &["whole: invalid_field"]),
        ],
    );
    let both = r#"{"ts":"2026-11-24T05:10:53Z","di1":0,"DI1":1,"di2":1}"#;
    assert_eq!(decoded(&Reading::Parsec, false, both.as_bytes()), ["whole: invalid_field"]);
    golden(
        &Reading::Parsec,
        false,
        &[(r#"{"ts":"2026-11-24T05:10:53Z","rssi":-5,"AI12":7}"#, &["rssi = -5 dBm @0", "ai12 = 7 @0"])],
    );
    let (_, content) = decode(TOPIC, br#"{"di1":1,"di2":0,"fw":"1 \"b\"","ts":"2026-11-24T05:10:52Z"}"#);
    assert_eq!(content.metadata.unwrap().document, r#"{"fw":"1 \"b\""}"#);
}

#[test]
fn je02_data_and_info() {
    let rest = r#""VAR0":235,"VAR1":-5,"WRSSI":-71,"RELE":1,"CNTSERR":3,"UPTIME":86400"#;
    let all = |status: &str, fault: bool| {
        vec![
            format!("status = \"{status}\" @1"),
            format!("fault = {fault} @1"),
            "rssi = -71 dBm @1".to_owned(),
            "uptime = 86400 s @1".into(),
            "cntserr = 3 @1".into(),
            "var0 = 23.5 celsius @1".into(),
            "var1 = -0.5 % @1".into(),
            "rele = true @1".into(),
        ]
    };
    for (one, two, status) in [(1, 0, "RUN"), (0, 0, "STOP"), (0, 1, "FAULT"), (1, 1, "FAULT")] {
        let payload = format!(r#"{{"DATA":{{"TS":1795497052,"INPUT1":{one},"INPUT2":{two},{rest}}}}}"#);
        for reading in [Reading::Je02, Reading::Auto] {
            assert_eq!(decoded(&reading, false, payload.as_bytes()), all(status, two == 1), "{payload}");
        }
    }
    golden(
        &Reading::Je02,
        true,
        &[
            // One broken field is one dead letter.
            (
                r#"{"DATA":{"TS":1795497053,"INPUT1":0,"INPUT2":0,"VAR0":"x","VAR1":1,"RELE":2,"CNTSERR":0}}"#,
                &[
                    "status = \"STOP\" @0",
                    "fault = false @0",
                    "2: invalid_field",
                    "3: invalid_field",
                    "cntserr = 0 @0",
                    "5: invalid_value",
                    "var1 = 0.1 % @0",
                    "7: invalid_value",
                ],
            ),
            (r#"{"DATA":{"INPUT1":0}}"#, &["whole: missing_time"]),
            (r#"{"DATA":{"TS":"now"}}"#, &["whole: invalid_time"]),
            (r#"{"DATA":{"TS":0}}"#, &["whole: ts_window"]),
            (r#"{"DATA":7}"#, &["whole: invalid_field"]),
            (r#"{"INFO":7}"#, &["whole: invalid_field"]),
        ],
    );
    let (_, content) = decode(TOPIC, br#"{"INFO":{"FW_VERSION":"1.2","MODEL":"JE02"}}"#);
    let metadata = content.metadata.unwrap();
    assert_eq!((metadata.ts, &*metadata.document), (0, r#"{"FW_VERSION":"1.2","MODEL":"JE02"}"#));
    assert!(content.samples.is_empty() && content.rejects.is_empty());
}

#[test]
fn sensors_of_the_later_platform() {
    golden(
        &Reading::Sensors,
        true,
        &[
            (
                r#"{"device_id":"d","timestamp":"2026-11-24T05:10:52Z","sensors":[
                {"sensor_id":"t1","value":21.5,"unit":"celsius","type":"temperature","labels":["a"]},
                {"sensor_id":"on","value":true},{"sensor_id":"mode","value":"auto"},{"sensor_id":"x","value":null},
                {"value":1},{"sensor_id":"big","value":9007199254740993}]}"#,
                &[
                    "t1 = 21.5 celsius @1",
                    "on = true @1",
                    "mode = \"auto\" @1",
                    "3: invalid_value",
                    "4: invalid_field",
                    "5: out_of_range",
                ],
            ),
            (r#"{"timestamp":1795497053,"sensors":[{"sensor_id":"t1","value":1}]}"#, &["t1 = 1 @0"]),
            (r#"{"sensors":[{"sensor_id":"t1","value":1}]}"#, &["whole: missing_time"]),
            (r#"{"timestamp":1795497053,"sensors":[]}"#, &["whole: invalid_field"]),
            (r#"{"timestamp":1795497053,"sensors":{}}"#, &["whole: invalid_field"]),
        ],
    );
}

#[test]
fn senml_is_resolved_as_rfc_8428_says() {
    golden(
        &Reading::SenMl,
        true,
        &[
            // §5.1.3, with times of today.
            (
                r#"[{"bn":"urn:dev:ow:10e2073a0108006:","bt":1.795497053e+09,"bu":"A","bver":5,"n":"voltage","u":"V","v":120.1},
                {"n":"current","t":-5,"v":1.2},{"n":"current","t":-4.5,"v":1.3}]"#,
                &[
                    "urn:dev:ow:10e2073a0108006:voltage = 120.1 V @0",
                    "urn:dev:ow:10e2073a0108006:current = 1.2 A @5",
                    "urn:dev:ow:10e2073a0108006:current = 1.3 A @4.5",
                ],
            ),
            // A gateway: the first record holds base fields alone.
            (
                r#"[{"bn":"F803320100023C6E","bt":1795497053},{"n":"model","vs":"ITG 200"},{"n":"-A","u":"Cel","v":23.5},
                {"n":"-C1","vb":true},{"n":"-raw","vd":"-_8"},{"bn":"28FF","v":1}]"#,
                &[
                    "F803320100023C6Emodel = \"ITG 200\" @0",
                    "F803320100023C6E-A = 23.5 Cel @0",
                    "F803320100023C6E-C1 = true @0",
                    "F803320100023C6E-raw = \"-_8\" @0",
                    "28FF = 1 @0",
                ],
            ),
            // Base value, base sum; a sum is a point of its own.
            (
                r#"[{"bn":"m","bt":1795497053,"bv":100,"bs":1000,"n":"1","u":"W","v":5,"s":7},{"n":"2","s":1},
                {"n":"3","v":0.5,"bv":9007199254740992},{"n":"4","v":1},{"n":"5","v":2}]"#,
                &[
                    "m1#sum = 1007 W*s @0",
                    "m1 = 105 W @0",
                    "m2#sum = 1001 @0",
                    "m3 = 9007199254740992 @0",
                    "3: out_of_range",
                    "m5 = 9007199254740994 @0",
                ],
            ),
            // A bad entry is rejected alone.
            (
                r#"[{"bn":"a","bt":1795497053},{"v":1,"vb":true},{"n":" ","v":1},{"n":"b"},{"n":"b","v":"1"},{"n":"b","vb":1},
                {"n":"b","v":1,"t":"x"},{"n":"b","v":9007199254740993},{"n":"b","vs":"\u0000"},{"n":"b","v":1,"t":-1e9},{"n":"b","v":1,"foo":[1]}]"#,
                &[
                    "1: invalid_field",
                    "2: invalid_field",
                    "3: invalid_field",
                    "4: invalid_value",
                    "5: invalid_value",
                    "6: invalid_field",
                    "7: out_of_range",
                    "8: invalid_encoding",
                    "9: ts_window",
                    "ab = 1 @0",
                ],
            ),
            // What would falsify all that follows rejects the pack.
            (r#"[{"bn":"a","bt":1795497053,"v":1,"lat_":5}]"#, &["whole: unknown_schema"]),
            (r#"[{"bn":"a","bver":11,"v":1}]"#, &["whole: unknown_schema"]),
            (r#"[{"bn":"a","bt":"1795497053","v":1}]"#, &["whole: invalid_field"]),
            (r#"[{"bn":"a","v":1,"v":1}]"#, &["whole: invalid_field"]),
            (r#"[{"bn":"a","bt":1795497053}]"#, &["whole: invalid_field"]),
            (r#"[{"bn":"a","v":1},7]"#, &["whole: invalid_field"]),
            // A relative time needs the time of receipt.
            (r#"[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1}]"#, &["0: missing_time"]),
            (
                r#"[{"n":"a","t":268435455.9,"v":23.1},{"n":"a","t":268435456,"v":1}]"#,
                &["0: missing_time", "1: ts_window"],
            ),
        ],
    );
    let relative = br#"[{"bn":"a","bt":-10,"v":1},{"t":4,"v":2}]"#;
    assert_eq!(decoded(&Reading::Auto, true, relative), ["a = 1 @10", "a = 2 @6"]);
    assert_eq!(decoded(&Reading::SenMl, false, b"{}"), ["whole: invalid_field"]);
}

#[test]
fn senml_in_cbor_is_the_same() {
    // The first two records of RFC 8428 §6.
    let mut pack = b"\x82\xa7\x21\x78\x1burn:dev:ow:10e2073a0108006:\x22\xfb\x41\xd3\x03\xa1\x5b\x00\x10\x62\x23\x61A\x20\x05\x00\x67voltage\x01\x61V\x02\xfb\x40\x5e\x06\x66\x66\x66\x66\x66".to_vec();
    pack.extend(b"\xa3\x00\x67current\x06\x24\x02\xfb\x3f\xf3\x33\x33\x33\x33\x33\x33");
    let rules = Rules { max_age: Duration::from_secs(100 * 366 * 86_400), ..decoder(false).rules };
    let wide = Decoder { rules, ..decoder(false) };
    for reading in [Reading::SenMl, Reading::Auto] {
        let (_, content) = wide.decode(&reading, &input(TOPIC, &pack));
        let found: Vec<_> =
            content.samples.iter().map(|s| (&*s.point, s.value.clone(), s.unit.as_deref(), s.ts)).collect();
        assert_eq!(
            found,
            [
                ("urn:dev:ow:10e2073a0108006:voltage", Value::Num(120.1), Some("V"), 1_276_020_076_001_000),
                ("urn:dev:ow:10e2073a0108006:current", Value::Num(1.2), Some("A"), 1_276_020_071_001_000),
            ]
        );
    }
    // [{bn: "a", bt: 1795497053, vd: h'fbff'}, {v: 4([-1, 235])}, {vb: true}, {"foo_": 1, v: 1}]
    let head = b"\xa3\x21\x61a\x22\x1a\x6b\x05\x1c\x5d\x08\x42\xfb\xff";
    let of = |count: u8, records: &[&[u8]]| [&[0x80 + count][..], head, &records.concat()].concat();
    let decoded = |payload: Vec<u8>| decoded(&Reading::SenMl, false, &payload);
    assert_eq!(
        decoded(of(3, &[b"\xa1\x02\xc4\x82\x20\x18\xeb", b"\xa1\x04\xf5"])),
        ["a = \"-_8\" @0", "a = 23.5 @0", "a = true @0"]
    );
    assert_eq!(
        decoded(of(2, &[b"\xa1\x02\x1b\x00\x20\x00\x00\x00\x00\x00\x01"])),
        ["a = \"-_8\" @0", "1: out_of_range"]
    );
    assert_eq!(decoded(of(2, &[b"\xa1\x02\xf9\x7e\x00"])), ["a = \"-_8\" @0", "1: invalid_value"]);
    assert_eq!(decoded(of(2, &[b"\xa2\x02\x01\x64foo_\x01"])), ["whole: unknown_schema"]);
    assert_eq!(decoded(of(2, &[b"\xa2\x02\x01\x02\x01"])), ["whole: invalid_field"]);
    assert_eq!(decoded(of(2, &[])), ["whole: parse_error"]);
    assert_eq!(decoded(of(1, &[b"\x00"])), ["whole: parse_error"]);
    assert_eq!(decoded([b"\x81".repeat(100), vec![0x80]].concat()), ["whole: parse_error"]);
}

#[test]
fn line_protocol_is_read_with_its_escapes_and_types() {
    golden(
        &Reading::InfluxLine(TimeUnit::Nanoseconds),
        false,
        &[
            (
                "# a comment\r\nweather,location=us-midwest,b=1 temperature=82,on=t,n=7i,m=7u,s=\"a \\\"b\\\" \\\\ c\" 1795497052999999999\r\n\n",
                &[
                    "weather.temperature{b=1,location=us-midwest} = 82 @0.000001",
                    "weather.on{b=1,location=us-midwest} = true @0.000001",
                    "weather.n{b=1,location=us-midwest} = 7 @0.000001",
                    "weather.m{b=1,location=us-midwest} = 7 @0.000001",
                    "weather.s{b=1,location=us-midwest} = \"a \\\"b\\\" \\\\ c\" @0.000001",
                ],
            ),
            (
                "wea\\,th\\ er,t\\=\\,a\\ g=v\\ al f\\=i\\,e\\ ld=-1.5e1 1795497053000000000",
                &["wea,th er.f=i,e ld{t=,a g=v al} = -15 @0"],
            ),
            ("größe,ö=ü ä=\"ß\nzwei\" 1795497053000000000", &["größe.ä{ö=ü} = \"ß\\nzwei\" @0"]),
            // A bad value is rejected alone, a bad line too.
            (
                "m a=1,b=9223372036854775808i,c=9007199254740993i,d=x,e=nan,f=-1u,g=\"\",h=.5 1795497053000000000\nm\nm a=2 1795497052000000000",
                &[
                    "m.a = 1 @0",
                    "1: invalid_value",
                    "2: out_of_range",
                    "3: invalid_value",
                    "4: invalid_value",
                    "5: invalid_value",
                    "m.g = \"\" @0",
                    "m.h = 0.5 @0",
                    "8: parse_error",
                    "m.a = 2 @1",
                ],
            ),
            ("m a=1", &["0: missing_time"]),
            ("m a=1 12.5", &["0: invalid_time"]),
            ("m a=1 1", &["0: ts_window"]),
            ("m a=1,a=2 1795497053000000000", &["0: invalid_field"]),
            ("m,t=1,t=2 a=1 1795497053000000000", &["0: invalid_field"]),
            ("m,t= a=1 1795497053000000000", &["0: parse_error"]),
            (",t=1 a=1 1795497053000000000", &["0: parse_error"]),
            ("m a=1 1795497053000000000 x", &["0: parse_error"]),
            ("m a=\"open 1795497053000000000\nm a=1 1795497053000000000", &["0: parse_error", "m.a = 1 @0"]),
            ("{\"schema\":\"v1\"}", &["0: parse_error"]),
            ("# nothing", &["whole: invalid_field"]),
        ],
    );
    let seconds = Reading::InfluxLine(TimeUnit::Seconds);
    golden(&seconds, false, &[("m a=1 1795497053", &["m.a = 1 @0"])]);
    assert_eq!(decoded(&seconds, true, b"m a=1"), ["m.a = 1 @0"]);
}

#[test]
fn plain_objects_have_their_time_where_the_manifest_says() {
    let fields = |field: &str, unit| Reading::Fields { time_field: field.into(), unit };
    golden(
        &fields("at", TimeUnit::Milliseconds),
        false,
        &[
            (
                r#"{"temp":21.5,"at":1795497052500,"on":true,"mode":"a","x":null,"y":[1],"ts":1,"":1,"big":9007199254740993}"#,
                &[
                    "temp = 21.5 @0.5",
                    "on = true @0.5",
                    "mode = \"a\" @0.5",
                    "3: invalid_value",
                    "4: invalid_value",
                    "ts = 1 @0.5",
                    "6: invalid_field",
                    "7: out_of_range",
                ],
            ),
            (r#"{"temp":1}"#, &["whole: missing_time"]),
            (r#"{"at":"2026-11-24T05:10:53Z","temp":1}"#, &["whole: invalid_time"]),
            (r#"{"at":1795497053000}"#, &["whole: invalid_field"]),
            (r#"{"at":1795497053000,"a":1,"a":2}"#, &["whole: invalid_field"]),
            ("[1]", &["whole: invalid_field"]),
            ("{", &["whole: parse_error"]),
        ],
    );
    golden(
        &fields("ts", TimeUnit::Rfc3339),
        false,
        &[(r#"{"ts":"2026-11-24T05:10:53Z","a":1}"#, &["a = 1 @0"])],
    );
}

fn mapped(mapping: &str) -> Reading {
    let mapping: Mapping = serde_json::from_str(mapping).unwrap();
    Reading::Mapped(mapping.into())
}

#[test]
fn foreign_json_is_read_by_its_mapping() {
    let points = mapped(
        r#"{"time":{"pointer":"/meta/t","unit":"Seconds"},"device":"/meta/id","points":[
        {"name":"temp","pointer":"/d/0/v","unit":"celsius","scale":0.1,"offset":-40},
        {"name":"door","pointer":"/door","type":"Bool"},{"name":"mode","pointer":"/mode","type":"Text"},
        {"name":"count","pointer":"/n","type":"Number"},{"name":"any","pointer":"/any"}]}"#,
    );
    golden(
        &points,
        false,
        &[
            (
                r#"{"meta":{"t":1795497053,"id":"x"},"d":[{"v":615}],"door":1,"mode":"a","n":3,"any":false}"#,
                &[
                    "temp = 21.5 celsius @0",
                    "door = true @0",
                    "mode = \"a\" @0",
                    "count = 3 @0",
                    "any = false @0",
                ],
            ),
            (
                r#"{"meta":{"t":1795497053,"id":"x"},"d":[{"v":"6"}],"door":2,"mode":1,"n":"3","any":[]}"#,
                &[
                    "0: invalid_value",
                    "1: invalid_value",
                    "2: invalid_value",
                    "3: invalid_value",
                    "4: invalid_value",
                ],
            ),
            (r#"{"meta":{"t":1795497053,"id":"x"},"n":3}"#, &["count = 3 @0"]),
            (r#"{"meta":{"t":1795497053,"id":"x"}}"#, &["whole: invalid_field"]),
            (r#"{"meta":{"t":1795497053},"n":3}"#, &["whole: invalid_field"]),
            (r#"{"meta":{"id":"x"},"n":3}"#, &["whole: missing_time"]),
            (r#"{"meta":{"t":1795497053,"id":"x","id":"y"},"n":3}"#, &["whole: invalid_field"]),
            ("[", &["whole: parse_error"]),
        ],
    );
    let payload = br#"{"meta":{"t":1795497053,"id":"d\u0061"},"n":3}"#;
    let (source, content) = decoder(false).decode(&points, &input(TOPIC, payload));
    assert_eq!(content.claims.over(source.unwrap()), Source { tenant: "acme", site: "north", device: "da" });

    let each = mapped(
        r#"{"each":{"pointer":"/readings","name":"/n","value":"/v","unit":"/u","time":{"pointer":"/t","unit":"Milliseconds"},"scale":2}}"#,
    );
    golden(
        &each,
        false,
        &[
            (
                r#"{"readings":[{"n":"a","v":1,"u":"V","t":1795497053000},{"n":"b","v":2},{"v":2,"t":1795497053000},{"n":"c","v":true,"t":1795497053000},7]}"#,
                &[
                    "a = 2 V @0",
                    "1: missing_time",
                    "2: invalid_field",
                    "3: invalid_value",
                    "4: invalid_field",
                ],
            ),
            (r#"{"readings":7}"#, &["whole: invalid_field"]),
            (r#"{"readings":[]}"#, &["whole: invalid_field"]),
        ],
    );
    let object = mapped(r#"{"time":{"pointer":"/ts"},"each":{"pointer":"/values"}}"#);
    golden(
        &object,
        false,
        &[(
            r#"{"ts":"2026-11-24T05:10:53Z","values":{"a":1,"b":"x","c":null}}"#,
            &["a = 1 @0", "b = \"x\" @0", "2: invalid_value"],
        )],
    );
}

#[test]
fn a_tenant_that_a_message_claims_must_be_listed() {
    let reading =
        mapped(r#"{"tenant":"/t","time":{"pointer":"/ts"},"points":[{"name":"a","pointer":"/a"}]}"#);
    let listed = Decoder { tenants: Some(["beta".to_owned()].into()), ..decoder(false) };
    for (tenant, expected) in
        [("beta", "a = 1 @0"), ("acme", "whole: unknown_tenant"), ("", "whole: invalid_field")]
    {
        let payload = format!(r#"{{"t":"{tenant}","ts":"2026-11-24T05:10:53Z","a":1}}"#);
        let (source, content) = listed.decode(&reading, &input(TOPIC, payload.as_bytes()));
        assert_eq!(lines(&content), [expected]);
        assert!(expected != "a = 1 @0" || content.claims.over(source.unwrap()).tenant == "beta");
    }
}

#[test]
fn auto_guesses_nothing_that_has_no_marks() {
    for payload in [
        r#"{"temp":21.5,"ts":"2026-11-24T05:10:53Z"}"#,
        r#"{"schema":"v2","DI3":1}"#,
        r#"[{"a":1}]"#,
        "[1,2]",
        "[]",
    ] {
        let found = decoded(&Reading::Auto, false, payload.as_bytes());
        assert!(
            found == ["whole: unknown_schema"] || found == ["whole: invalid_field"],
            "{payload}: {found:?}"
        );
    }
    assert_eq!(decoded(&Reading::Auto, false, b"m a=1 1795497053000000000"), ["whole: parse_error"]);
    // The normalized schema wins over every other mark.
    let payload = br#"{"schema":"v1","ts":"2026-11-24T05:10:53Z","points":[{"name":"a","v":1}],"DATA":{},"DI1":1,"sensors":[]}"#;
    assert_eq!(decoded(&Reading::Auto, false, payload), ["a = 1 @0"]);
    // Without a kind in the topic the same is detected.
    let bare = Decoder { layout: Layout::parse("{device}").unwrap(), ..decoder(false) };
    for (payload, first) in [
        (&br#"{"DATA":{"TS":1795497053,"INPUT1":1,"INPUT2":0}}"#[..], "status = \"RUN\" @0"),
        (br#"{"timestamp":1795497053,"DI1":1,"DI2":0}"#, "status = \"RUN\" @0"),
        (br#"{"timestamp":1795497053,"sensors":[{"sensor_id":"a","value":1}]}"#, "a = 1 @0"),
        (br#"[{"n":"a","t":1795497053,"v":1}]"#, "a = 1 @0"),
        (br#"{"schema":"v1","ts":"2026-11-24T05:10:53Z","points":[{"name":"a","v":1}]}"#, "a = 1 @0"),
        (br#"{"a":1}"#, "whole: unknown_schema"),
    ] {
        let (_, content) = bare.decode(&Reading::Auto, &input(b"d", payload));
        assert_eq!(lines(&content)[0], first);
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8], level: u32) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_payloads_are_expanded() {
    let plain = br#"{"schema":"v1","ts":"2026-11-24T05:10:53Z","points":[{"name":"a","t":"text","v":"b"}],"meta":{}}"#;
    for payload in [
        gzip(plain),
        [gzip(&plain[..20]), gzip(&plain[20..])].concat(),
        zlib(plain, 1),
        zlib(plain, 6),
        zlib(plain, 9),
        zstd::encode_all(&plain[..], 3).unwrap(),
        zstd::encode_all(&plain[..], 19).unwrap(),
    ] {
        let (_, content) = decode(TOPIC, &payload);
        assert_eq!(lines(&content), ["a = \"b\" @0"]);
        assert_eq!(content.metadata.unwrap().document, "{}");
        assert_eq!(content.expanded, plain.len());
    }
    for payload in [
        &gzip(plain)[..30],
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        &[gzip(plain), b"x".to_vec()].concat(),
        &zlib(plain, 6)[..20],
    ] {
        assert_eq!(reason(TOPIC, payload), Reason::InvalidCompression);
    }
    // Said by the content type, and not so.
    let input = Input { compression: Some(Compression::Gzip), ..input(TOPIC, plain) };
    let (_, content) = decoder(false).decode(&Reading::Auto, &input);
    assert_eq!(content.rejects[0].reason, Reason::InvalidCompression);
}

#[test]
fn a_bomb_is_too_large() {
    let most = 1 << 20;
    for (size, expected) in
        [(most, Reason::ParseError), (most + 1, Reason::TooLarge), (50 << 20, Reason::TooLarge)]
    {
        let zeros = vec![b' '; size];
        for payload in [gzip(&zeros), zlib(&zeros, 6), zstd::encode_all(&zeros[..], 3).unwrap()] {
            assert!(payload.len() < most, "{} bytes", payload.len());
            assert_eq!(reason(TOPIC, &payload), expected, "{size}");
        }
    }
}

#[test]
fn content_types_tell_the_compression() {
    for (content_type, expected) in [
        ("application/gzip", Some(Compression::Gzip)),
        ("application/json+gzip; charset=utf-8", Some(Compression::Gzip)),
        ("application/x-gzip", Some(Compression::Gzip)),
        ("Application/ZSTD", Some(Compression::Zstd)),
        ("deflate", Some(Compression::Zlib)),
        ("application/zlib", Some(Compression::Zlib)),
        ("application/json", None),
        ("", None),
    ] {
        assert_eq!(Compression::of_content_type(content_type), expected, "{content_type}");
    }
}
