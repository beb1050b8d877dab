//! Fuzzes Snowflake's answers.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| snowfence_fuzz::answer(data));
