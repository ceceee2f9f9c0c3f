#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_crds::mapping::TimeUnit;
use penstock_worker::decode::Reading;

fuzz_target!(|payload: &[u8]| penstock_fuzz::check(
    &Reading::InfluxLine(TimeUnit::Nanoseconds),
    payload,
    None
));
