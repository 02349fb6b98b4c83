//! The smallest app: one greeting, which names the version.

use axum::{Router, routing::get};
use handover_plugin::{Context, Error};

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let greeting = format!("hello {}", cx.version());
    Ok(Router::new().route("/", get(async move || greeting)))
}
