//! Which app a request is for, and its active generation: one table, replaced as a whole at each
//! cutover, read without a lock.

use std::{borrow::Cow, cell::RefCell, mem::ManuallyDrop, net::SocketAddr, ptr, sync::Arc};

use arc_swap::{ArcSwap, Cache};
use handover_api::AppName;
use http::{HeaderMap, Uri, header::HOST};
use semver::Version;

use super::{
    durations::Durations,
    limits::Limits,
    targets::{Choice, Targets, Watched},
};
use crate::{
    assets::{Found, Served},
    config::{RoutePrefix, bare_host},
    generation::InFlight,
};

/// Where an app answers, and with what.
#[derive(Clone, Debug)]
pub struct Route {
    /// The prefix.
    pub prefix: RoutePrefix,
    /// Whether the path prefix is taken off before the app sees the path.
    pub strip: bool,
    /// The app.
    pub app: AppName,
    /// What answers.
    pub targets: Targets,
    /// Why nothing answers, where nothing does.
    pub down: Down,
    /// What the app may take, if that is limited.
    pub limits: Option<Arc<Limits>>,
    /// The files that the host serves for it, if there are any.
    pub(crate) assets: Option<Arc<Served>>,
    /// How long its requests took.
    pub(crate) durations: Arc<Durations>,
}

/// Why nothing answers.
#[derive(Clone, Debug, Default)]
pub enum Down {
    /// Nothing has been deployed.
    #[default]
    Empty,
    /// The version that was chosen is not up.
    Version(Version),
    /// Somebody has stopped the app, with this message for its clients; it may be empty.
    Stopped(Arc<str>),
}

/// The routes of all apps.
#[derive(Debug)]
pub struct Routes {
    table: Arc<ArcSwap<Table>>,
    /// How long requests took that are for no app.
    unrouted: Arc<Durations>,
}

type Seen = Cache<Arc<ArcSwap<Table>>, Arc<Table>>;

thread_local! {
    /// The table that this thread looked at last, which costs no reference to look at again as long
    /// as it is the newest. A thread that is asked nothing keeps an old one, and the few words that
    /// are left of its generations. It is not dropped, so it is there until the very end of a
    /// thread: the threads that ask are the host's workers, which end with it.
    static SEEN: RefCell<ManuallyDrop<Option<Seen>>> = const { RefCell::new(ManuallyDrop::new(None)) };
}

#[derive(Debug, Default)]
struct Table {
    /// The most specific first, their prefixes without slashes at the end.
    routes: Vec<Route>,
    /// Whether any of them asks for a host name, which then has to be looked for in each request.
    by_host: bool,
}

/// What the routes say to a request.
#[derive(Debug)]
pub(super) enum Chosen {
    /// It is counted in on the active generation of its app. The number of bytes of the path is to
    /// be taken off.
    Generation(InFlight, usize),
    /// The same, with what goes with it as long as it lasts.
    Watched(Box<(InFlight, usize, Watched)>),
    /// Its app has limits: ask again when they admit it.
    Limited(Arc<Limits>),
    /// An app answers there, but nothing of it has been deployed, or the version that was chosen is
    /// not up. In a box, since every request is given room for it.
    Empty(Box<(AppName, Down)>),
    /// The host answers for the app.
    Asset(Found),
    /// No app answers there.
    NoApp,
}

impl Routes {
    /// Replaces all routes at once. The longest prefix wins, one with a host name before one
    /// without.
    pub fn publish(&self, mut routes: Vec<Route>) {
        for Route { prefix, .. } in &mut routes {
            prefix
                .path
                .truncate(prefix.path.trim_end_matches('/').len());
        }
        routes.sort_by_key(|Route { prefix, .. }| {
            std::cmp::Reverse((prefix.host.is_some(), prefix.path.len()))
        });
        let by_host = routes.iter().any(|route| route.prefix.host.is_some());
        self.table.store(Arc::new(Table { routes, by_host }));
    }

    /// Returns where the duration of a request is counted: at its app, or with those for no app.
    pub(crate) fn durations(&self, uri: &Uri, headers: &HeaderMap) -> Arc<Durations> {
        let table = self.table.load();
        let route = table.route(uri, headers);
        Arc::clone(route.map_or(&self.unrouted, |route| &route.durations))
    }

    /// Returns how long requests took that are for no app.
    pub(crate) fn unrouted(&self) -> &Durations {
        &self.unrouted
    }

    /// Chooses for a request of `client`, and counts it in. `admitted`: the limits of its app were
    /// asked.
    #[inline]
    pub(super) fn choose(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        client: &Option<SocketAddr>,
        admitted: bool,
    ) -> Chosen {
        SEEN.with_borrow_mut(|seen| {
            let cache = match &mut **seen {
                Some(cache) if ptr::eq(cache.arc_swap(), &*self.table) => cache,
                other => other.insert(Cache::new(Arc::clone(&self.table))),
            };
            loop {
                if let Some(chosen) = cache.load().choose(uri, headers, client, admitted) {
                    return chosen;
                }
                // It was replaced between our look at the table and at its gate, so a newer table
                // is there already.
                std::hint::spin_loop();
            }
        })
    }
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            table: Arc::default(),
            unrouted: Arc::new(Durations::new(None)),
        }
    }
}

impl Route {
    /// What of `assets` a request is for.
    #[cold]
    fn asset(&self, assets: &Served, uri: &Uri) -> Option<Found> {
        let strip = if self.strip {
            self.prefix.path.len()
        } else {
            0
        };
        assets.find(uri.path().get(strip..)?)
    }
}

impl Table {
    /// The route of a request, if an app answers there.
    #[inline]
    fn route(&self, uri: &Uri, headers: &HeaderMap) -> Option<&Route> {
        let host = if self.by_host {
            host_of(uri, headers)
        } else {
            None
        };
        let path = uri.path();
        self.routes
            .iter()
            .find(|route| route.prefix.matches(host.as_deref(), path))
    }

    /// None when what it names is no longer active.
    #[inline]
    fn choose(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        client: &Option<SocketAddr>,
        admitted: bool,
    ) -> Option<Chosen> {
        let Some(route) = self.route(uri, headers) else {
            return Some(Chosen::NoApp);
        };
        if let Some(assets) = &route.assets
            && let Some(found) = route.asset(assets, uri)
        {
            return Some(Chosen::Asset(found));
        }
        let chosen = route.targets.choose(uri, headers, client).ok()?;
        let Some(Choice {
            generation,
            watched,
        }) = chosen
        else {
            if let Some(limits) = &route.limits
                && limits.is_paused()
                && !admitted
            {
                return Some(Chosen::Limited(Arc::clone(limits)));
            }
            return Some(Chosen::Empty(Box::new((
                route.app.clone(),
                route.down.clone(),
            ))));
        };
        if let Some(limits) = &route.limits
            && !admitted
        {
            return Some(Chosen::Limited(Arc::clone(limits)));
        }
        let in_flight = generation.enter()?;
        let strip = if route.strip {
            route.prefix.path.len()
        } else {
            0
        };
        Some(match watched {
            None => Chosen::Generation(in_flight, strip),
            Some(watched) => Chosen::Watched(Box::new((in_flight, strip, *watched))),
        })
    }
}

pub(super) fn host_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<Cow<'a, str>> {
    let host = match uri.host() {
        Some(host) => host,
        None => headers.get(HOST)?.to_str().ok()?,
    };
    let host = bare_host(host);
    Some(if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    })
}

/// The path and query of a request; empty where it names an authority only, as CONNECT does.
#[inline]
pub(crate) fn whole_target(uri: &Uri) -> &str {
    uri.path_and_query().map_or("", |target| target.as_str())
}

/// What a request is for, as people are told.
#[inline]
pub(crate) fn told_target(uri: &Uri) -> &str {
    let authority = || uri.authority().map_or("/", |authority| authority.as_str());
    uri.path_and_query()
        .map_or_else(authority, |target| target.as_str())
}

/// The path and query that an app is to see of `whole`: without the first `strip` bytes, and never
/// without a slash.
#[inline]
pub(crate) fn target(whole: &str, strip: usize) -> Cow<'_, str> {
    if strip == 0 {
        return Cow::Borrowed(whole);
    }
    match whole.get(strip..) {
        Some(rest) if rest.starts_with('/') => Cow::Borrowed(rest),
        Some(rest) => Cow::Owned(format!("/{rest}")),
        None => Cow::Borrowed(whole),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(hosts: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_static(host));
        }
        headers
    }

    #[test]
    fn the_host_of_a_request_is_that_of_its_target_else_of_its_header() {
        for (target, field, host) in [
            ("/x", "example.org", "example.org"),
            ("/x", "EXAMPLE.org:8080", "example.org"),
            ("/x", "example.org.", "example.org"),
            ("/x", "example.org.:80", "example.org"),
            ("/x", "[::1]:80", "[::1]"),
            ("http://Other.example.:80/x", "example.org", "other.example"),
        ] {
            let (uri, headers) = (Uri::from_static(target), headers(&[field]));
            assert_eq!(host_of(&uri, &headers).as_deref(), Some(host));
        }
        assert_eq!(host_of(&Uri::from_static("/x"), &headers(&[])), None);
    }

    #[test]
    fn a_stripped_path_begins_with_a_slash() {
        let seen = |text, strip| target(whole_target(&Uri::from_static(text)), strip).into_owned();
        assert_eq!(seen("/shop/cart?x=1", 5), "/cart?x=1");
        assert_eq!(seen("/shop", 5), "/");
        assert_eq!(seen("/shop?x=1", 5), "/?x=1");
        assert_eq!(seen("/shop/cart", 0), "/shop/cart");
    }
}
