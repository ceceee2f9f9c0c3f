#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_crds::mapping::TimeUnit;
use penstock_worker::decode::Reading;

fuzz_target!(|payload: &[u8]| {
    for unit in [TimeUnit::Rfc3339, TimeUnit::Milliseconds] {
        let reading = Reading::Fields { time_field: "ts".to_owned(), unit };
        penstock_fuzz::check(&reading, payload, None);
    }
});
