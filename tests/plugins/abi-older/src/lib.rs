//! A plugin of an older minor version of the ABI: built with `--features abi-1-0` its table lacks the last method.

use axum::{Router, routing::get};
use handover_plugin::{Context, Error};

#[handover_plugin::app]
async fn app(_cx: Context) -> Result<Router, Error> {
    Ok(Router::new().route("/", get(async || "older, and well")))
}
