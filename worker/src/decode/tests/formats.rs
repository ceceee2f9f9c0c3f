//! Golden cases: documents as devices send them, and what becomes of each part.

mod compression;
mod large;
mod mapped;
mod senml;

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
                &["wea,th er.f=i,e ld{t\\=\\,a g=v al} = -15 @0"],
            ),
            // What InfluxDB keeps apart has names of its own.
            ("m,a=1,b=2 f=1 1795497053000000000", &["m.f{a=1,b=2} = 1 @0"]),
            ("m,a=1\\,b\\=2 f=1 1795497053000000000", &["m.f{a=1\\,b\\=2} = 1 @0"]),
            ("m,a=1\\\\,b\\=2 f=1 1795497053000000000", &["m.f{a=1\\\\\\,b\\=2} = 1 @0"]),
            ("m,{a}={1}\\x f=1 1795497053000000000", &["m.f{\\{a\\}=\\{1\\}\\\\x} = 1 @0"]),
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
