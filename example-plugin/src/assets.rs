//! Style sheet, script and icon, compiled in and served under a path that names their version.
//!
//! A page asks for the files it was made with: `/assets/1.0.0/site.css?h=…`. The hash tells apart
//! two builds of one version, as `handover dev` makes them, so the answer may be cached for ever.
//!
//! A page that was sent just before a swap asks just after it, and the new generation answers. It
//! has only its own files: it gives those, not to be cached, because a page that is a version off
//! looks better than one without style.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use crate::accent::Accent;
use crate::pages;
use crate::site::Site;

/// The files of this generation.
pub(crate) struct Assets {
    version: String,
    /// Of all files together, in hexadecimal.
    hash: String,
    style: String,
}

const SCRIPT: &str = include_str!("../assets/site.js");
const ICON: &str = include_str!("../assets/icon.svg");

impl Assets {
    /// The files of `version`, in the operator's colour.
    pub(crate) fn new(version: &str, accent: Accent) -> Self {
        let style = accent.css() + include_str!("../assets/site.css");
        // Equal within one build of this crate, which is all that a cache key has to be.
        let mut hasher = DefaultHasher::new();
        (&style, SCRIPT, ICON).hash(&mut hasher);
        Self {
            version: version.to_owned(),
            hash: format!("{:016x}", hasher.finish()),
            style,
        }
    }

    /// The path by which a page of this generation asks for `file`.
    pub(crate) fn url(&self, file: &str) -> String {
        format!("/assets/{}/{file}?h={}", self.version, self.hash)
    }

    /// Type and content.
    fn find(&self, file: &str) -> Option<(&'static str, String)> {
        Some(match file {
            "site.css" => ("text/css; charset=utf-8", self.style.clone()),
            "site.js" => ("text/javascript; charset=utf-8", SCRIPT.to_owned()),
            "icon.svg" => ("image/svg+xml", ICON.to_owned()),
            _ => return None,
        })
    }
}

/// `/assets/{version}/{file}`.
pub(crate) fn router() -> Router<Arc<Site>> {
    Router::new().route("/assets/{version}/{file}", get(asset))
}

#[derive(Deserialize)]
struct Wanted {
    h: Option<String>,
}

async fn asset(
    State(site): State<Arc<Site>>,
    Path((version, file)): Path<(String, String)>,
    Query(wanted): Query<Wanted>,
) -> Response {
    let Some((content_type, content)) = site.assets.find(&file) else {
        return pages::not_found(&site);
    };
    let is_ours = version == site.assets.version && wanted.h.as_ref() == Some(&site.assets.hash);
    let cache = if is_ours {
        "public, max-age=31536000, immutable"
    } else {
        "no-store"
    };
    (
        [(CONTENT_TYPE, content_type), (CACHE_CONTROL, cache)],
        content,
    )
        .into_response()
}
