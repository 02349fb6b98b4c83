//! The smallest app: one greeting.

use axum::{Router, routing::get};
use handover_plugin::{Context, Error};

#[handover_plugin::app]
async fn app(_cx: Context) -> Result<Router, Error> {
    Ok(Router::new().route("/", get(|| async { "hello" })))
}
