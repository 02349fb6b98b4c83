//! The JSON API: `/api/links` and `/api/links/{slug}`.
//!
//! An error is `{"error": "slug_taken", "message": "…"}`: the first for programs, the second a
//! sentence that says what to do.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use handover_plugin::StateError;
use serde::Serialize;

use crate::link::{Invalid, Slug, Wish};
use crate::site::Site;
use crate::store::{Link, MAX_LINKS, Refusal};

/// Everything below `/api`.
pub(crate) fn router() -> Router<Arc<Site>> {
    let api = Router::new()
        .route("/links", get(list).post(create))
        .route("/links/{slug}", get(show).delete(remove))
        .fallback(async || Problem::nothing_here())
        .method_not_allowed_fallback(async || Problem::method());
    Router::new().nest("/api", api)
}

#[derive(Serialize)]
struct List {
    links: Vec<Link>,
}

async fn list(State(site): State<Arc<Site>>) -> Result<Json<List>, Problem> {
    let links = site.store.list().await?;
    Ok(Json(List { links }))
}

async fn create(
    State(site): State<Arc<Site>>,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(wish) = wish?;
    let (target, slug) = wish.check()?;
    let wanted = slug.clone();
    let link = site
        .store
        .add(target, slug)
        .await
        .map_err(|refusal| Problem::refused(&refusal, wanted.as_ref()))?;
    tracing::info!(slug = %link.slug, "a link was made");
    let location = format!("/api/links/{}", link.slug);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(link)).into_response())
}

async fn show(
    State(site): State<Arc<Site>>,
    Path(slug): Path<String>,
) -> Result<Json<Link>, Problem> {
    let slug = Slug::parse(&slug).map_err(|_| Problem::no_such_link())?;
    let link = site.store.get(&slug).await?;
    link.map(Json).ok_or_else(Problem::no_such_link)
}

async fn remove(
    State(site): State<Arc<Site>>,
    Path(slug): Path<String>,
) -> Result<StatusCode, Problem> {
    match Slug::parse(&slug) {
        Ok(slug) if site.store.remove(&slug).await? => {
            tracing::info!(%slug, "a link was removed");
            Ok(StatusCode::NO_CONTENT)
        }
        _ => Err(Problem::no_such_link()),
    }
}

/// Why a request got nothing; the pages show its message too.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(skip)]
    pub(crate) status: StatusCode,
    error: &'static str,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

impl Problem {
    fn new(status: StatusCode, error: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            error,
            message: message.into(),
        }
    }

    /// The store did not take a link; `slug` is the one that was asked for.
    pub(crate) fn refused(refusal: &Refusal, slug: Option<&Slug>) -> Self {
        match refusal {
            Refusal::Taken => Self::new(
                StatusCode::CONFLICT,
                "slug_taken",
                format!(
                    "“{}” is taken. Choose another slug, or leave it out and get a free one.",
                    slug.map(Slug::as_str).unwrap_or_default()
                ),
            ),
            Refusal::Full => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "store_full",
                format!("There are {MAX_LINKS} links already. Remove one first."),
            ),
            Refusal::Unavailable(error) => error.clone().into(),
        }
    }

    fn no_such_link() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no_such_link",
            "There is no link of that name. GET /api/links lists those there are.",
        )
    }

    fn nothing_here() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "nothing_here",
            "The API has /api/links and /api/links/{slug} only.",
        )
    }

    fn method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "The `allow` header lists the methods that this path knows.",
        )
    }
}

impl From<StateError> for Problem {
    fn from(error: StateError) -> Self {
        tracing::error!("the links cannot be had: {error}");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "The links cannot be had right now. Try again in a moment.",
        )
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        let error = match invalid.field {
            "slug" => "invalid_slug",
            _ => "invalid_url",
        };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error, invalid.why)
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        const SHAPE: &str = r#"Send {"url": "https://…", "slug": "optional"}"#;
        match rejection.status() {
            status @ StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::new(
                status,
                "not_json",
                format!("{SHAPE} with `content-type: application/json`."),
            ),
            status @ StatusCode::PAYLOAD_TOO_LARGE => Self::new(
                status,
                "too_large",
                format!("{SHAPE}; more than {} bytes are not read.", crate::MAX_BODY),
            ),
            status => Self::new(
                status,
                "invalid_json",
                format!("{SHAPE}: {}.", rejection.body_text()),
            ),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(self)).into_response()
    }
}
