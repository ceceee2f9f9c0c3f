#![no_main]

use libfuzzer_sys::fuzz_target;

/// What may come after the message.
const GOOD: [&[u8]; 4] = [
    include_bytes!("../corpus/sparkplug/ndata_by_alias"),
    include_bytes!("../corpus/sparkplug/ddata_by_name"),
    include_bytes!("../corpus/sparkplug/ddeath"),
    include_bytes!("../corpus/sparkplug/ndeath"),
];

fuzz_target!(|message: &[u8]| penstock_fuzz::check_sparkplug(message, &GOOD));
