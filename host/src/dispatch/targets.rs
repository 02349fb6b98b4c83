//! The generations behind a route.

use std::{net::SocketAddr, sync::Arc};

use handover_api::Label;
use http::{HeaderMap, HeaderName, header::COOKIE};

use crate::{config::Labels, generation::Generation};

/// The name of the header, and of the cookie, that asks for a label.
const NAME: &str = "handover-version";

/// The generations behind a route, of which each request gets one.
///
/// Further ways to choose among several (tenant, weight) will be variants beside [`Targets::One`],
/// whose path stays what it is: a branch.
#[derive(Clone, Debug, Default)]
pub enum Targets {
    /// Nothing is up.
    #[default]
    None,
    /// All requests go to one.
    One(Arc<Generation>),
    /// A request may ask for one by its label.
    Labelled(Arc<ByLabel>),
}

/// A live generation, and others beside it that are chosen by their label.
#[derive(Debug)]
pub struct ByLabel {
    /// What answers where no label is asked for, or none that there is.
    pub live: Option<Arc<Generation>>,
    /// The others.
    pub labelled: Vec<(Label, Arc<Generation>)>,
    /// Who may ask for them.
    pub allow: Arc<Labels>,
}

impl Targets {
    /// Returns the generation that a request of `client` with `headers` goes to; no client is one
    /// of a unix socket.
    #[inline]
    pub(super) fn choose(
        &self,
        headers: &HeaderMap,
        client: &Option<SocketAddr>,
    ) -> Option<&Generation> {
        match self {
            Self::None => None,
            Self::One(generation) => Some(generation),
            Self::Labelled(members) => members.choose(headers, client),
        }
    }
}

impl ByLabel {
    #[cold]
    fn choose(&self, headers: &HeaderMap, client: &Option<SocketAddr>) -> Option<&Generation> {
        let chosen = label_of(headers)
            .and_then(|label| {
                let mut all = self.labelled.iter();
                all.find(|(known, _)| known.as_str() == label)
            })
            .filter(|_| self.allow.allow.trusts(client.map(|client| client.ip())))
            .map(|(_, generation)| generation);
        chosen
            .or(self.live.as_ref())
            .map(|generation| &**generation)
    }
}

/// Returns the label that a request asks for: that of its header, else that of its cookie.
fn label_of(headers: &HeaderMap) -> Option<&str> {
    const HEADER: HeaderName = HeaderName::from_static(NAME);
    if let Some(value) = headers.get(HEADER) {
        return value.to_str().ok();
    }
    let lines = headers.get_all(COOKIE).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(NAME)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn asked(fields: &[(HeaderName, &'static str)]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_static(value));
        }
        label_of(&headers).map(str::to_owned)
    }

    #[test]
    fn a_label_is_asked_for_by_header_or_by_cookie() {
        let header = HeaderName::from_static(NAME);
        for (fields, label) in [
            (&[(header.clone(), "next")][..], Some("next")),
            (&[(COOKIE, "a=b; handover-version=next; c=d")], Some("next")),
            (
                &[(COOKIE, "a=b"), (COOKIE, "handover-version=x-1")],
                Some("x-1"),
            ),
            (
                &[(COOKIE, "handover-version=x"), (header, "next")],
                Some("next"),
            ),
            (
                &[(COOKIE, "not-handover-version=x; handover-versions=y")],
                None,
            ),
            (&[], None),
        ] {
            assert_eq!(asked(fields).as_deref(), label, "{fields:?}");
        }
    }
}
