//! Baton, a link shortener: a small real app to swap while somebody uses it.
//!
//! | path | what | file |
//! | --- | --- | --- |
//! | `/`, `/{slug}` | the page, the redirects | `pages` (over `template`) |
//! | `/api/links` | the same as JSON | `api` |
//! | `/events` | what an open page hears | `events` |
//! | `/assets/{version}/…` | style and script of one version | `assets` (with `accent`) |
//! | `/version`, `/healthz`, `/slow`, `/stream` | for watching a swap | `probe` |
//!
//! `link` says what a link may be, `store` keeps them, and `site` is what every handler knows. The
//! host is met in this file alone.

#![forbid(unsafe_code)]

mod accent;
mod api;
mod assets;
mod events;
mod link;
mod pages;
mod probe;
mod site;
mod store;
mod template;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;

use handover_plugin::{Context, Error};

use crate::site::{Identity, Settings, Site};
use crate::store::Store;

/// The largest request body that is read, in bytes: a link of the greatest length, percent-encoded
/// in a form, fits.
const MAX_BODY: usize = 16 * 1024;

/// What the host starts, once for each generation.
///
/// # Errors
/// The configuration has a key this app does not know, or a value that it cannot use; or its state
/// cannot be had.
#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let settings: Settings = cx.config()?;
    let identity = Identity {
        app: cx.app().to_owned(),
        version: cx.version().to_owned(),
        generation: cx.generation(),
        commit: option_env!("HANDOVER_COMMIT"),
    };
    let store = Store::open(cx.state().namespace("links")).await?;
    let site = Site::new(identity, settings, store, move || Box::pin(cx.draining()));
    Ok(router(Arc::new(site)))
}

/// The whole app, for one generation.
fn router(site: Arc<Site>) -> Router {
    Router::new()
        .merge(pages::router())
        .merge(api::router())
        .merge(events::router())
        .merge(assets::router())
        .merge(probe::router())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(site)
}
