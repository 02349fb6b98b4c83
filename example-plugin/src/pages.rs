//! The HTML: the home page with its form and its table, the redirects, and the page for what is not
//! there.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::FormRejection;
use axum::extract::{Form, Path, Query, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, LOCATION, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{Html as HtmlResponse, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use handover_plugin::StateError;
use serde::Deserialize;

use crate::api::Problem;
use crate::link::{Slug, Target, Wish};
use crate::site::Site;
use crate::store::Link;
use crate::template::{Html, render};

const LAYOUT: &str = include_str!("../templates/layout.html");
const HOME: &str = include_str!("../templates/home.html");
const ROW: &str = include_str!("../templates/row.html");
const NOTICE: &str = include_str!("../templates/notice.html");
const ERROR: &str = include_str!("../templates/error.html");

/// `/`, `/{slug}` and what the buttons of the home page post to.
pub(crate) fn router() -> Router<Arc<Site>> {
    Router::new()
        .route("/", get(home).post(create))
        .route("/links/{slug}/remove", post(remove))
        .route("/{slug}", get(follow))
        .fallback(async |State(site): State<Arc<Site>>| not_found(&site))
}

#[derive(Deserialize)]
struct Made {
    made: Option<String>,
}

async fn home(State(site): State<Arc<Site>>, Query(made): Query<Made>) -> Response {
    // The name comes from the address bar: only a link that is there is worth a notice.
    let mut made = made.made.and_then(|slug| Slug::parse(&slug).ok());
    if let Some(slug) = &made
        && !matches!(site.store.get(slug).await, Ok(Some(_)))
    {
        made = None;
    }
    let notice = made.map_or(Html::EMPTY, |slug| {
        render(NOTICE, &[("slug", slug.as_str().into())])
    });
    home_page(&site, StatusCode::OK, &notice, &Wish::default(), None).await
}

async fn create(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    wish: Result<Form<Wish>, FormRejection>,
) -> Response {
    if is_cross_site(&headers) {
        return forbidden(&site);
    }
    let wish = match wish {
        Ok(Form(wish)) => wish,
        Err(rejection) => {
            let why = "The form did not arrive whole: please fill it in again.";
            let wish = Wish::default();
            let status = rejection.status();
            return home_page(&site, status, &Html::EMPTY, &wish, Some(why)).await;
        }
    };
    let made = match wish.check() {
        Ok((url, slug)) => {
            let wanted = slug.clone();
            let made = site.store.add(url, slug).await;
            made.map_err(|refusal| Problem::refused(&refusal, wanted.as_ref()))
        }
        Err(invalid) => Err(Problem::from(invalid)),
    };
    match made {
        Ok(link) => {
            tracing::info!(slug = %link.slug, "a link was made");
            Redirect::to(&format!("/?made={}", link.slug)).into_response()
        }
        Err(Problem {
            status, message, ..
        }) => home_page(&site, status, &Html::EMPTY, &wish, Some(&message)).await,
    }
}

async fn remove(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    Path(slug): Path<String>,
) -> Response {
    if is_cross_site(&headers) {
        return forbidden(&site);
    }
    if let Ok(slug) = Slug::parse(&slug) {
        match site.store.remove(&slug).await {
            Ok(true) => tracing::info!(%slug, "a link was removed"),
            Ok(false) => {}
            Err(error) => return unavailable(&site, &error),
        }
    }
    // A link that is gone already is what was asked for.
    Redirect::to("/").into_response()
}

async fn follow(
    State(site): State<Arc<Site>>,
    method: Method,
    Path(slug): Path<String>,
) -> Response {
    let Ok(slug) = Slug::parse(&slug) else {
        return not_found(&site);
    };
    // A HEAD request looks where a link leads and does not follow it.
    let target = if method == Method::HEAD {
        let link = site.store.get(&slug).await;
        link.map(|link| link.map(|link| link.url))
    } else {
        site.store.follow(&slug).await
    };
    match target {
        Ok(Some(target)) => redirect(&target),
        Ok(None) => not_found(&site),
        Err(error) => unavailable(&site, &error),
    }
}

/// 302 and not to be cached, so that the next click is counted too.
fn redirect(target: &Target) -> Response {
    (
        StatusCode::FOUND,
        [(LOCATION, target.as_str()), (CACHE_CONTROL, "no-store")],
    )
        .into_response()
}

async fn home_page(
    site: &Site,
    status: StatusCode,
    notice: &Html,
    wish: &Wish,
    problem: Option<&str>,
) -> Response {
    let links = match site.store.list().await {
        Ok(links) => links,
        Err(error) => return unavailable(site, &error),
    };
    let total: u64 = links.iter().map(|link| link.hits).sum();
    let rows: Html = links.iter().map(row).collect();
    // The page's script fills this one in for links that come later.
    let blank = render(
        ROW,
        &[
            ("slug", "".into()),
            ("url", "".into()),
            ("shown", "".into()),
            ("hits", 0.into()),
        ],
    );
    let body = render(
        HOME,
        &[
            ("notice", notice.into()),
            ("url", (&wish.url).into()),
            ("slug", wish.slug.as_deref().unwrap_or_default().into()),
            ("problem", problem.unwrap_or_default().into()),
            (
                "problem_hidden",
                if problem.is_some() { "" } else { "hidden" }.into(),
            ),
            ("url_max", (Target::MAX_BYTES as u64).into()),
            ("slug_min", (*Slug::LENGTH.start() as u64).into()),
            ("slug_max", (*Slug::LENGTH.end() as u64).into()),
            ("count", (links.len() as u64).into()),
            (
                "links_word",
                if links.len() == 1 { "link" } else { "links" }.into(),
            ),
            ("total", total.into()),
            (
                "clicks_word",
                if total == 1 { "click" } else { "clicks" }.into(),
            ),
            (
                "empty_hidden",
                if links.is_empty() { "" } else { "hidden" }.into(),
            ),
            ("rows", (&rows).into()),
            ("blank", (&blank).into()),
        ],
    );
    page(site, status, &site.settings.title, &body)
}

fn row(link: &Link) -> Html {
    render(
        ROW,
        &[
            ("slug", link.slug.as_str().into()),
            ("url", link.url.as_str().into()),
            ("shown", without_scheme(link.url.as_str()).into()),
            ("hits", link.hits.into()),
        ],
    )
}

/// The address as people read it; the script of the page does the same.
fn without_scheme(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.strip_prefix("www.").unwrap_or(rest)
}

/// The page for a path that leads nowhere.
pub(crate) fn not_found(site: &Site) -> Response {
    error_page(
        site,
        StatusCode::NOT_FOUND,
        "This link leads nowhere",
        "Nobody made it, or it was removed. Check how it is spelled, or make it yourself.",
    )
}

fn unavailable(site: &Site, error: &StateError) -> Response {
    tracing::error!("the links cannot be had: {error}");
    error_page(
        site,
        StatusCode::SERVICE_UNAVAILABLE,
        "The links cannot be had right now",
        "Try again in a moment.",
    )
}

fn forbidden(site: &Site) -> Response {
    error_page(
        site,
        StatusCode::FORBIDDEN,
        "That form is not ours",
        "Another site sent it. Make your change on our own page.",
    )
}

fn error_page(site: &Site, status: StatusCode, heading: &str, why: &str) -> Response {
    let body = render(
        ERROR,
        &[
            ("status", u64::from(status.as_u16()).into()),
            ("heading", heading.into()),
            ("why", why.into()),
        ],
    );
    let title = format!("{heading} — {}", site.settings.title);
    page(site, status, &title, &body)
}

fn page(site: &Site, status: StatusCode, title: &str, body: &Html) -> Response {
    let html = render(
        LAYOUT,
        &[
            ("page_title", title.into()),
            ("title", (&site.settings.title).into()),
            ("version", (&site.identity.version).into()),
            ("generation", site.identity.generation.into()),
            ("style", (&site.assets.url("site.css")).into()),
            ("script", (&site.assets.url("site.js")).into()),
            ("icon", (&site.assets.url("icon.svg")).into()),
            ("body", body.into()),
        ],
    );
    let headers = [
        // A page is of one generation: it is never shown again in place of a newer one's.
        (CACHE_CONTROL, "no-cache"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
        (REFERRER_POLICY, "same-origin"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, HtmlResponse(html.into_string())).into_response()
}

/// Whether a browser says that another site's page made it send this. What is no browser says
/// nothing and is let in.
fn is_cross_site(headers: &HeaderMap) -> bool {
    headers
        .get("sec-fetch-site")
        .is_some_and(|site| site != "same-origin" && site != "none")
}
