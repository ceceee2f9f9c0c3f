//! What must hold of every payload, whatever its format.

use std::time::Duration;

use penstock_crds::topic::Layout;
use penstock_worker::decode::{Compression, Content, Decoder, Input, MAX_NAME, Reading, Rules, Value};

/// 2026-11-24T05:10:53Z.
const NOW: i64 = 1_795_497_053_000_000;
const MAX_PAYLOAD: usize = 1 << 16;

/// Decodes a payload by a reading, and checks what came of it.
pub fn check(reading: &Reading, payload: &[u8], compression: Option<Compression>) {
    for receive_time in [false, true] {
        let topic = b"traksense/acme/north/inv-01/telem";
        let input = Input { topic, payload, compression, received_at: NOW, now: NOW };
        let (source, content) = decoder(receive_time).decode(reading, &input);
        assert!(source.is_some(), "the topic is good");
        assert!(items(&content) + content.rejects.len() > 0, "the message vanished");
        require_good(&content);
    }
}

/// A birth of an edge node and one of its device, made by another implementation, with a topic's byte
/// before each.
const BIRTHS: [&[u8]; 2] =
    [include_bytes!("../corpus/sparkplug/nbirth"), include_bytes!("../corpus/sparkplug/dbirth")];
const TOPICS: [&str; 6] = [
    "spBv1.0/plant/NBIRTH/line",
    "spBv1.0/plant/DBIRTH/line/press",
    "spBv1.0/plant/NDATA/line",
    "spBv1.0/plant/DDATA/line/press",
    "spBv1.0/plant/NDEATH/line",
    "spBv1.0/plant/DDEATH/line/press",
];
/// Nobody was born before the message.
const UNBORN: u8 = 64;

/// Decodes a message of Sparkplug B whose first byte says which topic, then every good document after
/// it, so that what it taught is used.
pub fn check_sparkplug(message: &[u8], good: &[&[u8]]) {
    let Some(first) = message.first() else { return };
    for receive_time in [false, true] {
        let decoder = decoder(receive_time);
        let births = BIRTHS.iter().filter(|_| first & UNBORN == 0);
        for message in births.chain([&message]).chain(good) {
            let Some((topic, payload)) = message.split_first() else { continue };
            let topic = TOPICS[usize::from(topic & !UNBORN) % TOPICS.len()].as_bytes();
            let input = Input { topic, payload, compression: None, received_at: NOW, now: NOW };
            let (source, content) = decoder.decode(&Reading::SparkplugB, &input);
            assert!(source.is_some(), "the topic is good");
            require_good(&content);
            let mut parts: Vec<_> = content.samples.iter().map(|sample| sample.part).collect();
            parts.extend(content.rejects.iter().filter_map(|reject| reject.part));
            parts.sort_unstable();
            assert!(parts.iter().copied().eq(0..parts.len() as u32), "a metric vanished, or is there twice");
        }
    }
}

fn decoder(receive_time: bool) -> Decoder {
    let layout = Layout::parse("traksense/{tenant}/{site}/{device}/{kind}").expect("a layout");
    let rules = Rules {
        max_age: Duration::from_secs(30 * 86_400),
        max_ahead: Duration::from_secs(600),
        receive_time,
        max_payload: MAX_PAYLOAD,
    };
    Decoder::new(layout, rules, None)
}

fn items(content: &Content<'_>) -> usize {
    content.samples.len()
        + content.acks.len()
        + content.events.len()
        + usize::from(content.metadata.is_some())
}

fn require_good(content: &Content<'_>) {
    assert!(content.expanded <= MAX_PAYLOAD, "expanded to {} bytes", content.expanded);
    for sample in &content.samples {
        assert!((1..=MAX_NAME).contains(&sample.point.len()) && !sample.point.contains('\0'));
        assert!(sample.unit.as_ref().is_none_or(|unit| unit.len() <= 64 && !unit.contains('\0')));
        assert!(sample.ts <= NOW + 600_000_000 && sample.ts >= NOW - 30 * 86_400_000_000);
        match &sample.value {
            Value::Num(number) => assert!(number.is_finite()),
            Value::Text(text) => assert!(text.len() <= 64 * 1024 && !text.contains('\0')),
            Value::Bool(_) | Value::Null => {}
        }
    }
    for reject in &content.rejects {
        assert!(!reject.detail.is_empty() && reject.detail.len() <= 1500 && !reject.detail.contains('\0'));
    }
    for claim in [&content.claims.tenant, &content.claims.device].into_iter().flatten() {
        assert!((1..=MAX_NAME).contains(&claim.len()) && !claim.contains('\0'));
    }
}
