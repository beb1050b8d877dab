//! Fuzzes method, path and query string.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| snowfence_fuzz::request(data));
