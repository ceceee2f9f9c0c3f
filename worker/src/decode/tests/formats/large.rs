//! Documents as large as they may be: decoding costs no more than in proportion to their size.

use super::*;

/// So many records or fields stand behind a beginning that all of them share.
const COUNT: usize = 50_000;
/// Bytes of that beginning.
const LONG: usize = 500_000;

/// What a document without compression became.
fn of_full_size(reading: &Reading, document: &str) -> Vec<String> {
    assert!((900_000..1 << 20).contains(&document.len()), "{} bytes", document.len());
    decoded(reading, false, document.as_bytes())
}

#[test]
fn each_field_of_a_line_with_too_long_a_beginning_is_a_reject() {
    let fields: Vec<_> = (0..COUNT).map(|field| format!("f{field}=1")).collect();
    let tags: Vec<_> = (0..COUNT).map(|tag| format!("t{tag}=vv")).collect();
    for beginning in ["m".repeat(LONG), format!("m,{}", tags.join(","))] {
        let line = format!("{beginning} {} 1795497053000000000", fields.join(","));
        let expected: Vec<_> = (0..COUNT).map(|field| format!("{field}: too_long")).collect();
        assert!(of_full_size(&Reading::InfluxLine(TimeUnit::Nanoseconds), &line) == expected);
    }
}

#[test]
fn a_lines_names_have_their_full_length() {
    let line = |tag: usize| format!("m,t={} f=1 1795497053000000000", "v".repeat(tag));
    let decoded = |line: String| decoded(&Reading::InfluxLine(TimeUnit::Nanoseconds), false, line.as_bytes());
    let rest = "m.f{t=}".len();
    assert_eq!(decoded(line(256 - rest)), ["0: too_long"]);
    assert_eq!(decoded(line(255 - rest)), [format!("m.f{{t={}}} = 1 @0", "v".repeat(255 - rest))]);
}

/// A pack whose first record holds the base alone, and that ends with a record of its own name and unit.
fn pack(base: &str) -> String {
    let records = r#"{"v":1},"#.repeat(COUNT);
    format!(r#"[{{{base},"bt":1795497053}},{records}{{"bn":"b","u":"V","v":1}}]"#)
}

#[test]
fn each_record_that_uses_too_long_a_base_is_a_reject() {
    let (name, unit) = ("a".repeat(LONG), "A".repeat(LONG));
    for base in [format!(r#""bn":"{name}""#), format!(r#""bn":"a","bu":"\u0041{unit}""#)] {
        let mut expected: Vec<_> = (1..=COUNT).map(|record| format!("{record}: too_long")).collect();
        expected.push("b = 1 V @0".to_owned());
        assert!(of_full_size(&Reading::SenMl, &pack(&base)) == expected);
    }
}

#[test]
fn a_base_value_of_many_digits_is_added_to_each_record() {
    let base = format!(r#""bn":"a","bv":1.{}"#, "0".repeat(LONG));
    let mut expected = vec!["a = 2 @0"; COUNT];
    expected.push("b = 2 V @0");
    assert!(of_full_size(&Reading::SenMl, &pack(&base)) == expected);
}
