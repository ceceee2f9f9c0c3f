#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use penstock_worker::decode::Reading;

static READING: LazyLock<Reading> = LazyLock::new(|| {
    let mapping = r#"{
        "time": {"pointer": "/ts", "unit": "Seconds"}, "tenant": "/a/t", "device": "/a/d",
        "points": [
            {"name": "a", "pointer": "/p/0", "scale": 0.1, "offset": -40},
            {"name": "b", "pointer": "/b", "type": "Bool"},
            {"name": "c", "pointer": "/a~1b/m~0n", "type": "Text"}
        ],
        "each": {"pointer": "/r", "name": "/n", "value": "/v", "unit": "/u", "time": {"pointer": "/t"}}
    }"#;
    Reading::Mapped(Arc::new(serde_json::from_str(mapping).expect("a mapping")))
});

fuzz_target!(|payload: &[u8]| penstock_fuzz::check(&READING, payload, None));
