#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_worker::decode::{Compression, Reading};

// The first byte says what the content type says; the rest is the payload.
fuzz_target!(|data: &[u8]| {
    let Some((first, payload)) = data.split_first() else { return };
    let said = [None, Some(Compression::Gzip), Some(Compression::Zlib), Some(Compression::Zstd)];
    penstock_fuzz::check(&Reading::Auto, payload, said[usize::from(*first) % said.len()]);
});
