//! An app that logs as people have it: with no subscriber, with one of its own, and with one that
//! has the host's layer.

use std::{fs::OpenOptions, path::PathBuf};

use axum::{Router, routing::get};
use handover_plugin::{Context, Error};
use serde::Deserialize;
use tower_http::trace::TraceLayer;
use tracing::{Level, Span};
use tracing_subscriber::{
    Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt,
};

/// Compiled in, so that an answer proves which code made it.
const VERSION: &str = match option_env!("HANDOVER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

#[derive(Debug, Deserialize)]
struct Config {
    /// Where a subscriber of its own writes.
    lines: PathBuf,
    /// Which it has.
    has: String,
}

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let config: Config = cx.config()?;
    tracing::info!("before it is chosen");
    let lines = move || {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&config.lines);
        file.unwrap_or_else(|error| panic!("{error}"))
    };
    match config.has.as_str() {
        "none" => {}
        // As everybody has it: it panics where there is one already, and takes the records of `log`
        // as well.
        "its own" => tracing_subscriber::fmt()
            .with_writer(lines)
            .with_ansi(false)
            .init(),
        "both" => tracing_subscriber::registry()
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(lines)
                    .with_ansi(false)
                    .with_filter(LevelFilter::INFO),
            )
            .with(handover_plugin::layer())
            .init(),
        other => return Err(Error::msg(format_args!("nobody has `{other}`"))),
    }
    let trace = TraceLayer::new_for_http()
        .make_span_with(|request: &axum::http::Request<_>| {
            let (method, path) = (request.method(), request.uri().path());
            let parent = handover_plugin::request_span(request);
            tracing::info_span!(parent: &parent, "request", %method, path, late = tracing::field::Empty)
        })
        .on_request(|_: &axum::http::Request<_>, span: &Span| {
            span.record("late", 7);
        })
        .on_response(tower_http::trace::DefaultOnResponse::new().level(Level::INFO));
    Ok(Router::new().route("/version", get(speaks)).layer(trace))
}

async fn speaks() -> &'static str {
    tracing::info!(answer = 42, "the handler speaks");
    log::info!("a record speaks");
    VERSION
}
