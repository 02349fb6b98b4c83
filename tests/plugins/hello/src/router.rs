//! What it answers. The benches link this very file into a server without plugins.

use axum::{Router, routing::get};

/// Greets with the version at `/`.
pub(crate) fn router(version: &str) -> Router {
    let greeting = format!("hello {version}");
    Router::new().route("/", get(async move || greeting))
}
