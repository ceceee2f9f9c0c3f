//! What must hold of every payload, whatever its format.

use std::time::Duration;

use penstock_crds::topic::Layout;
use penstock_worker::decode::{Compression, Decoder, Input, MAX_NAME, Reading, Rules, Value};

/// 2026-11-24T05:10:53Z.
const NOW: i64 = 1_795_497_053_000_000;
const MAX_PAYLOAD: usize = 1 << 16;

/// Decodes a payload by a reading, and checks what came of it.
pub fn check(reading: &Reading, payload: &[u8], compression: Option<Compression>) {
    let layout = Layout::parse("traksense/{tenant}/{site}/{device}/{kind}").expect("a layout");
    for receive_time in [false, true] {
        let rules = Rules {
            max_age: Duration::from_secs(30 * 86_400),
            max_ahead: Duration::from_secs(600),
            receive_time,
            max_payload: MAX_PAYLOAD,
        };
        let decoder = Decoder::new(layout.clone(), rules, None);
        let topic = b"traksense/acme/north/inv-01/telem";
        let input = Input { topic, payload, compression, received_at: NOW, now: NOW };
        let (source, content) = decoder.decode(reading, &input);
        assert!(source.is_some(), "the topic is good");
        let items = content.samples.len()
            + content.acks.len()
            + content.events.len()
            + usize::from(content.metadata.is_some());
        assert!(items + content.rejects.len() > 0, "the message vanished");
        assert!(content.expanded <= MAX_PAYLOAD, "expanded to {} bytes", content.expanded);
        for sample in &content.samples {
            assert!((1..=MAX_NAME).contains(&sample.point.len()) && !sample.point.contains('\0'));
            assert!(sample.unit.as_ref().is_none_or(|unit| unit.len() <= 64 && !unit.contains('\0')));
            assert!(sample.ts <= NOW + 600_000_000 && sample.ts >= NOW - 30 * 86_400_000_000);
            match &sample.value {
                Value::Num(number) => assert!(number.is_finite()),
                Value::Text(text) => assert!(text.len() <= 64 * 1024 && !text.contains('\0')),
                Value::Bool(_) => {}
            }
        }
        for reject in &content.rejects {
            assert!(!reject.detail.is_empty() && reject.detail.len() <= 1500 && !reject.detail.contains('\0'));
        }
        for claim in [&content.claims.tenant, &content.claims.device].into_iter().flatten() {
            assert!((1..=MAX_NAME).contains(&claim.len()) && !claim.contains('\0'));
        }
    }
}
