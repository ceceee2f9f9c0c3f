//! Foreign JSON, read by the manifest's mapping.

use super::*;

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
