//! `/events`: what a page that stays open hears, as server-sent events.
//!
//! | event | data | when |
//! | --- | --- | --- |
//! | `version` | as `/version` | first; a page of another version then offers to reload |
//! | `links` | `[{slug, url, hits}]` | second, and when links come or go |
//! | `hits` | `{slug: hits}` | links were followed; only those |
//! | `draining` | as `/version` | the generation leaves; the stream ends after it |
//!
//! A stream that went on for ever would hold its generation until the drain's deadline. This one
//! ends by itself as soon as the drain begins; the browser connects again, and the new generation
//! answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Error, Router};
use futures_util::stream;
use serde_json::{Map, Value};
use tokio::sync::watch;

use crate::site::{Draining, Site};
use crate::store::Link;

/// How long a browser waits before it connects again: long enough for a cutover, short enough not
/// to be seen.
const RETRY: Duration = Duration::from_millis(250);
/// At most one update in this time, however often the links are followed.
const PAUSE: Duration = Duration::from_millis(100);
/// A comment is sent after so long a silence, so that a browser that went away is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// `/events`.
pub(crate) fn router() -> Router<Arc<Site>> {
    Router::new().route("/events", get(events))
}

async fn events(State(site): State<Arc<Site>>) -> Response {
    let follower = Follower {
        changes: site.store.changes(),
        draining: site.draining(),
        shown: Vec::new(),
        stage: Stage::Version,
        site,
    };
    let events = stream::unfold(follower, async |mut follower| {
        let event = follower.next().await?;
        // The data is made of strings and numbers without a line break: it always fits an event.
        let event = event.unwrap_or_else(|_| Event::default().comment("left out"));
        Some((Ok::<_, Infallible>(event), follower))
    });
    let events = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    ([(CACHE_CONTROL, "no-store")], events).into_response()
}

/// One page that listens.
struct Follower {
    site: Arc<Site>,
    changes: watch::Receiver<()>,
    draining: Draining,
    /// The links as the page has them by now.
    shown: Vec<Link>,
    stage: Stage,
}

/// What is sent next.
enum Stage {
    Version,
    Links,
    Changes,
    Nothing,
}

impl Follower {
    /// The next event; `None` ends the stream.
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        match self.stage {
            Stage::Version => {
                self.stage = Stage::Links;
                let event = Event::default().event("version").retry(RETRY);
                Some(event.json_data(&self.site.identity))
            }
            Stage::Links => {
                self.stage = Stage::Changes;
                self.changes.mark_unchanged();
                self.shown = self.links().await;
                Some(Event::default().event("links").json_data(&self.shown))
            }
            Stage::Changes => loop {
                tokio::select! {
                    biased;
                    () = &mut self.draining => {
                        self.stage = Stage::Nothing;
                        let event = Event::default().event("draining");
                        return Some(event.json_data(&self.site.identity));
                    }
                    () = changed(&mut self.changes) => {}
                }
                if let Some(event) = self.update().await {
                    return Some(event);
                }
            },
            Stage::Nothing => None,
        }
    }

    /// The links; those that the page has where they cannot be had.
    async fn links(&mut self) -> Vec<Link> {
        let links = self.site.store.list().await;
        links.unwrap_or_else(|_| self.shown.clone())
    }

    /// What differs from what the page has; `None` when nothing does.
    async fn update(&mut self) -> Option<Result<Event, Error>> {
        let links = self.links().await;
        let before = std::mem::replace(&mut self.shown, links);
        let same_links = before.len() == self.shown.len()
            && before
                .iter()
                .zip(&self.shown)
                .all(|(before, now)| before.number == now.number);
        if !same_links {
            return Some(Event::default().event("links").json_data(&self.shown));
        }
        let hits: Map<String, Value> = before
            .iter()
            .zip(&self.shown)
            .filter(|(before, now)| before.hits != now.hits)
            .map(|(_, now)| (now.slug.to_string(), now.hits.into()))
            .collect();
        (!hits.is_empty()).then(|| Event::default().event("hits").json_data(hits))
    }
}

/// Waits for a change and then a little longer, for those that come right after it.
async fn changed(changes: &mut watch::Receiver<()>) {
    if changes.changed().await.is_err() {
        // The store lives as long as the site, which the follower holds: this does not happen, and
        // must not spin.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(PAUSE).await;
    changes.mark_unchanged();
}
