//! What crosses the boundary comes out as it went in, whatever it is: both halves of the ABI
//! against each other, in one process.
//!
//! Each [`exchange`] is made of bytes: a request, what the app does with it, its answer. Here they
//! come from a generator of numbers that begins anew in every run, in `tests/fuzz` from a fuzzer.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod exchange;

use handover_plugin::abi::head::ResponseHead;

/// The plugin's half: the crate compiled a second time, as in a plugin. So each side has functions,
/// tables and wakers of its own.
#[cfg(not(miri))]
#[path = "../../src/abi/mod.rs"]
#[allow(
    dead_code,
    missing_docs,
    unfulfilled_lint_expectations,
    unreachable_pub,
    reason = "this is another crate's source"
)]
mod theirs;
/// Miri refuses calls from one copy of a type to another, though they are laid out the same.
#[cfg(miri)]
use handover_plugin::abi as theirs;

/// As many as take about a second.
const EXCHANGES: usize = if cfg!(miri) { 20 } else { 4_000 };

#[test]
fn whatever_crosses_comes_out_as_it_went_in() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut complete = 0;
    for round in 0..EXCHANGES {
        // Mostly small ones, and each hundredth large.
        let length = match round % 100 {
            99 if !cfg!(miri) => 64 * 1024,
            _ => 64 + numbers.next() as usize % 1024,
        };
        let bytes: Vec<u8> = (0..length).map(|_| numbers.next() as u8).collect();
        complete += usize::from(exchange::run(&bytes).is_ok());
    }
    assert!(
        complete > EXCHANGES / 2,
        "{complete} of {EXCHANGES} were exchanges"
    );
}

/// The receiver made room for as many names as there are values, which is more than a map may have:
/// it panicked, and the host with it.
#[test]
fn a_name_with_more_values_than_a_map_may_have_names_crosses() {
    let mut sent = http::Response::new(());
    for _ in 0..if cfg!(miri) { 100 } else { 30_000 } {
        let value = http::HeaderValue::from_static("a=b");
        sent.headers_mut().append(http::header::SET_COOKIE, value);
    }
    let mut came = http::Response::new(());
    let (sent, ()) = sent.into_parts();
    ResponseHead::lend(&sent, None, b"", |head| head.fill(&mut came, &[]));
    assert_eq!(came.headers(), &sent.headers);
}

/// Xorshift: the same numbers in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}
