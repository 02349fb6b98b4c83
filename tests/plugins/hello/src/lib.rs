//! The smallest app.

use axum::{Router, routing::get};
use handover_plugin::{Context, Error};

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let text = format!("hello {}\n", cx.version());
    Ok(Router::new().route("/", get(async move || text)))
}
