//! SenML, in JSON and in CBOR.

use super::*;

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
                {"n":"b","v":1,"t":"x"},{"n":"b","v":9007199254740993},{"n":"b","vs":"\u0000"},{"n":"b","v":1,"t":-1e9},{"n":"b","v":1,"foo":[1]},
                {"n":"b","u":"\u0000","v":1},{"n":"b","u":"012345678901234567890123456789012345678901234567890123456789012","v":1}]"#,
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
                    "11: invalid_encoding",
                    "12: too_long",
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
    for number in [2f64.powi(60), -2f64.powi(53), 6.022_140_76e23, 1e300, f64::MAX, 5e-324, 1e15 + 0.125, 7.0]
    {
        let record = [b"\xa1\x02\xfb", &number.to_be_bytes()[..]].concat();
        assert_eq!(decoded(of(2, &[&record])), ["a = \"-_8\" @0".to_owned(), format!("a = {number} @0")]);
    }
    // A decimal fraction without a fraction is an integer, and exact like others.
    for (fraction, expected) in [
        (&b"\x00\x1b\x00\x20\x00\x00\x00\x00\x00\x01"[..], "1: out_of_range"),
        (b"\x00\x3b\x00\x20\x00\x00\x00\x00\x00\x00", "1: out_of_range"),
        (b"\x00\x1b\x00\x20\x00\x00\x00\x00\x00\x00", "a = 9007199254740992 @0"),
        (b"\x02\x05", "a = 500 @0"),
    ] {
        let record = [b"\xa1\x02\xc4\x82", fraction].concat();
        assert_eq!(decoded(of(2, &[&record])), ["a = \"-_8\" @0", expected]);
    }
    assert_eq!(decoded(of(2, &[b"\xa2\x02\x01\x64foo_\x01"])), ["whole: unknown_schema"]);
    assert_eq!(decoded(of(2, &[b"\xa2\x02\x01\x02\x01"])), ["whole: invalid_field"]);
    assert_eq!(decoded(of(2, &[])), ["whole: parse_error"]);
    assert_eq!(decoded(of(1, &[b"\x00"])), ["whole: parse_error"]);
    assert_eq!(decoded([b"\x81".repeat(100), vec![0x80]].concat()), ["whole: parse_error"]);
}
