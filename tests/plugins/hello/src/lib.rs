//! The smallest app: one greeting, which names the version.

mod router;

use axum::Router;
use handover_plugin::{Context, Error};

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    Ok(router::router(cx.version()))
}
