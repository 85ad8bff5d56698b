#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgmahout_fuzz::transfer_target(data));
