//! Requests and answers through both halves of the ABI: see the test of that name of
//! handover-plugin, whose exchanges these are.
#![no_main]

#[path = "../../../plugin-api/tests/crossing/exchange/mod.rs"]
mod exchange;
use handover_plugin::abi as theirs;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // Too few bytes are no exchange.
    let _ = exchange::run(input);
});
