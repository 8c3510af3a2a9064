//! Any bytes as a GGUF header: a rule is broken or none is, but nothing panics, hangs or asks for more memory than the input has.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = bespoke::gguf::Gguf::check_bytes(bytes);
});
