//! Whether this node is to be given traffic: what balancers and orchestrators ask for at
//! `/livez` and `/readyz`.
//!
//! A node that is not ready serves whatever comes: it only says that more should go elsewhere.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};

const LIVE: &str = "/livez";
const READY: &str = "/readyz";

/// What is known of the health of this node. Cheap to clone; every clone is of the same.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    /// Returns what should be up and is not.
    missing: Box<dyn Fn() -> Option<String> + Send + Sync>,
    drained: AtomicBool,
    ending: AtomicBool,
}

impl Health {
    /// That of a node of which `missing` tells what should be up and is not: a sentence without
    /// its full stop. It must not block for longer than a lock in memory does.
    pub fn new(missing: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            missing: Box::new(missing),
            drained: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        }))
    }

    /// Has the node be drained, or no longer. Returns whether that changed anything.
    pub(crate) fn set_drained(&self, drained: bool) -> bool {
        self.0.drained.swap(drained, Ordering::Relaxed) != drained
    }

    /// Returns whether an operator has drained the node.
    pub(crate) fn is_drained(&self) -> bool {
        self.0.drained.load(Ordering::Relaxed)
    }

    /// The host ends: nothing more is to come here, whatever else is said.
    pub(crate) fn end(&self) {
        self.0.ending.store(true, Ordering::Relaxed);
    }

    /// Returns why the node is not ready; none when it is.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.0.ending.load(Ordering::Relaxed) {
            return Some("the host ends".to_owned());
        }
        if self.is_drained() {
            return Some("the node is drained".to_owned());
        }
        (self.0.missing)()
    }

    /// Answers a request for the health of the node; none for another path.
    pub(crate) fn answer(&self, method: &Method, path: &str) -> Option<Response<Bytes>> {
        if path != LIVE && path != READY {
            return None;
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refused = plain(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{path} takes GET\n"),
            );
            refused
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Some(refused);
        }
        let why = if path == READY {
            self.not_ready()
        } else {
            None
        };
        Some(match why {
            None => plain(StatusCode::OK, "ok\n".to_owned()),
            Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        })
    }
}

fn plain(status: StatusCode, text: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("drained", &self.is_drained())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn asked(health: &Health, path: &str) -> (u16, String) {
        let answer = health.answer(&Method::GET, path).unwrap();
        let text = String::from_utf8(answer.body().to_vec()).unwrap();
        (answer.status().as_u16(), text)
    }

    #[test]
    fn a_node_is_ready_when_nothing_is_missing_and_it_is_not_drained() {
        let up = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&up);
        let health = Health::new(move || {
            let is_up = seen.load(Ordering::Relaxed);
            (!is_up).then(|| "shop 1.0.0 has not come up".to_owned())
        });
        let missing = (503, "shop 1.0.0 has not come up\n".to_owned());
        assert_eq!(asked(&health, READY), missing);
        assert_eq!(asked(&health, LIVE), (200, "ok\n".to_owned()));
        up.store(true, Ordering::Relaxed);
        assert_eq!(asked(&health, READY), (200, "ok\n".to_owned()));
        assert!(health.set_drained(true) && !health.set_drained(true));
        assert_eq!(asked(&health, READY).0, 503);
        assert!(health.set_drained(false));
        health.end();
        assert_eq!(asked(&health, READY), (503, "the host ends\n".to_owned()));
        assert_eq!(asked(&health, LIVE).0, 200);
    }

    #[test]
    fn other_paths_and_methods_are_not_answered_as_if_they_were_health() {
        let health = Health::new(|| None);
        assert!(health.answer(&Method::GET, "/readyz/").is_none());
        assert!(health.answer(&Method::GET, "/").is_none());
        let refused = health.answer(&Method::POST, READY).unwrap();
        assert_eq!(refused.status(), 405);
        assert_eq!(refused.headers()["allow"], "GET, HEAD");
    }
}
