//! A span for a request, with what the host tells of it.

use http::{HeaderMap, Request};
use tracing::Span;

/// Returns a span for `request`, so that what is logged within it can be found again: with its
/// `method`, its `path`, and where the host has `server.request_id` the `request_id` that its
/// client and the access log have as well, and the `trace_id` of a request that is part of a trace
/// of the W3C.
///
/// It is made for `tower_http`:
///
/// ```ignore
/// Router::new()
///     .route("/", get(page))
///     .layer(TraceLayer::new_for_http().make_span_with(handover_plugin::request_span))
/// ```
pub fn request_span<B>(request: &Request<B>) -> Span {
    let headers = request.headers();
    tracing::info_span!(
        "http",
        method = request.method().as_str(),
        path = request.uri().path(),
        request_id = field(headers, "x-request-id"),
        trace_id = field(headers, "traceparent").and_then(|trace| trace.split('-').nth(1)),
    )
}

fn field<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
