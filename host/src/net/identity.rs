//! Who a request is in logs and traces: `x-request-id`, and the trace context of the W3C.
//!
//! The host records no spans of its own, so a valid `traceparent` goes on as it came, and a request
//! without one begins no trace: whether that is sampled is the app's to decide.

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
};

use http::{HeaderMap, HeaderName, HeaderValue};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The longest id that is taken over, in bytes.
const LONGEST: usize = 128;

/// Gives the request with these `headers` its id, which it returns: the one that it has, where the
/// peer `is_trusted`, else a new one. Replaces a trace context that is none.
pub(super) fn identify(headers: &mut HeaderMap, is_trusted: bool) -> HeaderValue {
    trace(headers);
    if is_trusted
        && let Some(known) = only(headers, &REQUEST_ID)
        && is_id(known.as_bytes())
    {
        return known.clone();
    }
    let id = new_id();
    headers.insert(REQUEST_ID, id.clone());
    id
}

/// Tells the client of the request `id`.
pub(super) fn tell(id: HeaderValue, headers: &mut HeaderMap) {
    headers.insert(REQUEST_ID, id);
}

/// Leaves a valid trace context as it is, and begins a new one in the place of another. A client
/// that writes nonsense has nothing sampled.
fn trace(headers: &mut HeaderMap) {
    let is_valid =
        only(headers, &TRACEPARENT).is_some_and(|value| is_traceparent(value.as_bytes()));
    if is_valid {
        return;
    }
    // What other vendors know of a trace means nothing without it.
    headers.remove(TRACESTATE);
    if headers.contains_key(TRACEPARENT) {
        let (trace, parent) = (random(), random() as u64);
        // Zero is no id.
        let text = format!("00-{:032x}-{:016x}-00", trace.max(1), parent.max(1));
        headers.remove(TRACEPARENT);
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

/// The value of a field that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether `id` can be written into any log as it is: visible ASCII, of bounded length.
fn is_id(id: &[u8]) -> bool {
    (1..=LONGEST).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// Whether `value` is one of <https://www.w3.org/TR/trace-context-2/#traceparent-header>, of this
/// version or of a later one.
fn is_traceparent(value: &[u8]) -> bool {
    /// `00-` and 32 digits, `-` and 16 digits, `-` and 2 digits.
    const LENGTH: usize = 55;
    let Some((first, rest)) = value.split_at_checked(LENGTH) else {
        return false;
    };
    let hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &[u8]| part.iter().all(|b| *b == b'0');
    let (version, trace, parent, flags) =
        (&first[..2], &first[3..35], &first[36..52], &first[53..]);
    let has_dashes = [2, 35, 52].iter().all(|at| first[*at] == b'-');
    let is_whole = match version {
        b"00" => rest.is_empty(),
        b"ff" => false,
        _ => rest.first().is_none_or(|next| *next == b'-'),
    };
    let has_ids = !is_zero(trace) && !is_zero(parent);
    let is_hex = [version, trace, parent, flags].into_iter().all(hex);
    has_dashes && is_whole && has_ids && is_hex
}

fn new_id() -> HeaderValue {
    let id = format!("{:032x}", random());
    // Digits are visible ASCII.
    HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("0"))
}

/// A number that nobody has had before. No secret.
fn random() -> u128 {
    thread_local! {
        /// A key of this thread, and how often it was asked.
        static ASKED: (RandomState, Cell<u64>) = (RandomState::new(), Cell::new(0));
    }
    ASKED.with(|(key, asked)| {
        let count = asked.get().wrapping_add(1);
        asked.set(count);
        let half = |part: u8| u128::from(key.hash_one((count, part)));
        half(0) << 64 | half(1)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_traceparent_is_one_by_the_grammar_of_the_w3c() {
        let changed = |at: usize, with: &str| {
            let mut text = VALID.to_owned();
            text.replace_range(at..at + with.len(), with);
            text
        };
        let later = format!("cc{}-what-the-future-brings", &VALID[2..]);
        for (value, is_one) in [
            (VALID.to_owned(), true),
            (changed(0, "cc"), true),
            (later, true),
            (format!("{VALID}-more"), false),
            (format!("cc{}.more", &VALID[2..]), false),
            (changed(0, "ff"), false),
            (changed(0, "0x"), false),
            (changed(3, "A"), false),
            (changed(2, "_"), false),
            (changed(35, "0"), false),
            (changed(53, "g"), false),
            (changed(3, &"0".repeat(32)), false),
            (changed(36, &"0".repeat(16)), false),
            (VALID[..54].to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_traceparent(value.as_bytes()), is_one, "{value}");
        }
    }

    #[test]
    fn a_trace_that_is_none_is_replaced_and_its_state_goes() {
        let mut kept = headers(&[("traceparent", VALID), ("tracestate", "a=1")]);
        trace(&mut kept);
        assert_eq!(
            kept,
            headers(&[("traceparent", VALID), ("tracestate", "a=1")])
        );
        for fields in [
            &[("traceparent", "nonsense"), ("tracestate", "a=1")][..],
            &[("traceparent", VALID), ("traceparent", VALID)],
        ] {
            let mut replaced = headers(fields);
            trace(&mut replaced);
            let value = only(&replaced, &TRACEPARENT).unwrap();
            assert!(
                is_traceparent(value.as_bytes()) && value != VALID,
                "{value:?}"
            );
            assert!(!replaced.contains_key(TRACESTATE));
        }
        let mut none = headers(&[("tracestate", "a=1")]);
        trace(&mut none);
        assert!(none.is_empty());
    }

    #[test]
    fn an_id_is_taken_over_from_who_is_trusted_and_can_be_written_anywhere() {
        let long = "x".repeat(LONGEST + 1);
        for (fields, is_trusted, is_kept) in [
            (&[("x-request-id", "a-1")][..], true, true),
            (&[("x-request-id", "a-1")], false, false),
            (&[("x-request-id", "a 1")], true, false),
            (&[("x-request-id", "a\u{e9}1")], true, false),
            (&[("x-request-id", "")], true, false),
            (&[("x-request-id", &long)], true, false),
            (&[("x-request-id", "a"), ("x-request-id", "b")], true, false),
            (&[], true, false),
        ] {
            let mut headers = headers(fields);
            let id = identify(&mut headers, is_trusted);
            assert_eq!(id == "a-1", is_kept, "{fields:?}");
            assert!(is_id(id.as_bytes()) && id.len() <= 32, "{id:?}");
            assert_eq!(only(&headers, &REQUEST_ID), Some(&id));
        }
        assert_ne!(new_id(), new_id());
    }
}
