//! A greeting with 48 MiB of data behind it, as of a model or of a page with everything in it.

use axum::{Router, extract::Path, http::StatusCode, routing::get};
use handover_plugin::{Context, Error};

/// What makes it heavy. Not zero, or it would be no part of the file.
static WEIGHT: [u8; 48 << 20] = [7; 48 << 20];

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let greeting = format!("hello {}", cx.version());
    Ok(Router::new()
        .route("/", get(async move || greeting))
        .route("/weight/{at}", get(weight)))
}

async fn weight(Path(at): Path<usize>) -> Result<String, StatusCode> {
    let byte = WEIGHT.get(at).ok_or(StatusCode::NOT_FOUND)?;
    Ok(byte.to_string())
}
