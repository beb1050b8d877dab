//! Fuzzes bodies of queries.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| snowfence_fuzz::query(data));
