//! The generations behind a route.

use std::{net::SocketAddr, sync::Arc};

use handover_api::Label;
use http::{HeaderMap, HeaderName, Uri};

use super::{
    key::{cookie, key_of},
    mirror::Mirror,
};
use crate::{
    canary::{Sample, Side, Trial},
    config::{self, Labels, RequestKey},
    generation::{Generation, TenantPlace},
};

/// The name of the header, and of the cookie, that asks for a label.
const NAME: &str = "handover-version";

/// The generations behind a route, of which each request gets one.
///
/// Whatever there is to choose among several, the path of [`Targets::One`] stays what it is: a
/// branch.
#[derive(Clone, Debug, Default)]
pub enum Targets {
    /// Nothing is up.
    #[default]
    None,
    /// All requests go to one.
    One(Arc<Generation>),
    /// A request may ask for one by its label, be given the one that is on trial, or that on which
    /// its tenant stays.
    Several(Arc<Several>),
}

/// A live generation, and others beside it.
#[derive(Debug)]
pub struct Several {
    /// What answers where nothing else does.
    pub live: Option<Arc<Generation>>,
    /// Those with a label.
    pub labelled: Vec<(Label, Arc<Generation>)>,
    /// Who may ask for them.
    pub allow: Arc<Labels>,
    /// The one that is on trial.
    pub on_trial: Option<OnTrial>,
    /// What gets copies of requests.
    pub(crate) mirror: Option<Arc<Mirror>>,
    /// How tenants move, each by itself.
    pub tenants: Option<ByTenant>,
}

/// The tenants of an app that move to the live generation when they have nothing in flight on the
/// one before.
#[derive(Debug)]
pub struct ByTenant {
    /// What of a request names its tenant.
    pub from: RequestKey,
    /// The generations that were replaced and have tenants still, oldest first.
    pub staying: Vec<Arc<Generation>>,
}

/// A generation that is on trial.
#[derive(Clone, Debug)]
pub struct OnTrial {
    /// The generation.
    pub(crate) generation: Arc<Generation>,
    /// Its trial.
    pub(crate) trial: Arc<Trial>,
    /// How its requests are chosen.
    pub(crate) settings: Arc<config::Canary>,
}

/// What a request was given.
pub(super) struct Choice<'a> {
    pub(super) generation: &'a Generation,
    /// What goes with it, of an app that has more than one.
    pub(super) watched: Option<Box<Watched>>,
}

/// What goes with a request for as long as it lasts.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// What is to be told of how it ended, where something is on trial.
    pub(super) sample: Option<Arc<Sample>>,
    /// What gets a copy of it.
    pub(super) mirror: Option<Arc<Mirror>>,
    /// That its tenant has it, where tenants move each by itself.
    pub(super) place: Option<Arc<TenantPlace>>,
}

/// The tenant of a request has moved on since the table was read: there is a newer one.
#[derive(Debug)]
pub(super) struct Moved;

impl<'a> Choice<'a> {
    fn of(generation: &'a Generation) -> Self {
        Self {
            generation,
            watched: None,
        }
    }
}

impl Choice<'_> {
    /// The same, copied to `mirror` where chance has it.
    fn copied_to(mut self, mirror: Option<&Arc<Mirror>>) -> Self {
        if let Some(mirror) = mirror.filter(|mirror| mirror.draws()) {
            self.watched.get_or_insert_default().mirror = Some(Arc::clone(mirror));
        }
        self
    }

    /// The same, of a tenant that has it.
    fn with(mut self, place: TenantPlace) -> Self {
        self.watched.get_or_insert_default().place = Some(Arc::new(place));
        self
    }
}

impl Targets {
    /// Returns the generation that a request of `client` goes to, none where nothing is up; no
    /// client is one of a unix socket.
    ///
    /// # Errors
    /// When the table has to be read again.
    #[inline]
    pub(super) fn choose(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        client: &Option<SocketAddr>,
    ) -> Result<Option<Choice<'_>>, Moved> {
        match self {
            Self::None => Ok(None),
            Self::One(generation) => Ok(Some(Choice::of(generation))),
            Self::Several(members) => members.choose(uri, headers, client),
        }
    }
}

impl Several {
    #[cold]
    fn choose(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        client: &Option<SocketAddr>,
    ) -> Result<Option<Choice<'_>>, Moved> {
        let asked_for = label_of(headers)
            .and_then(|label| {
                let mut all = self.labelled.iter();
                all.find(|(known, _)| known.as_str() == label)
            })
            .filter(|_| self.allow.allow.trusts(client.map(|client| client.ip())));
        if let Some((_, generation)) = asked_for {
            return Ok(Some(Choice::of(generation)));
        }
        let tenant = self.tenants.as_ref().and_then(|tenants| {
            let name = key_of(&tenants.from, uri, headers, client)?;
            Some((tenants, name))
        });
        if let Some((tenants, name)) = &tenant {
            for generation in &tenants.staying {
                if let Some(place) = generation.tenants().stay(name) {
                    return Ok(Some(Choice::of(generation).with(place)));
                }
            }
        }
        let choice = match (&self.live, &self.on_trial) {
            (Some(live), Some(on_trial)) => on_trial.choose(live, uri, headers, client),
            (Some(live), None) => Choice::of(live).copied_to(self.mirror.as_ref()),
            (None, _) => return Ok(None),
        };
        match tenant {
            None => Ok(Some(choice)),
            Some((_, name)) => {
                let tenants = choice.generation.tenants();
                tenants.begin();
                let place = tenants.enter(&name).ok_or(Moved)?;
                Ok(Some(choice.with(place)))
            }
        }
    }
}

impl OnTrial {
    /// Chooses between this one and `live`.
    fn choose<'a>(
        &'a self,
        live: &'a Generation,
        uri: &Uri,
        headers: &HeaderMap,
        client: &Option<SocketAddr>,
    ) -> Choice<'a> {
        let Self {
            generation,
            trial,
            settings,
        } = self;
        let find = |key| key_of(key, uri, headers, client);
        let key = settings.sticky.as_ref().map(find);
        let number = |key: &str| trial.number(key);
        let (side, share) = match &key {
            // Each request for itself.
            None => {
                let (side, share) = trial.choose(None);
                (side, Some(share))
            }
            Some(Some(key)) if settings.always.iter().any(|one| one == key) => {
                let side = match trial.is_condemned() {
                    true => Side::Live,
                    false => Side::Canary,
                };
                (side, None)
            }
            Some(Some(key)) => {
                let (side, share) = trial.choose(Some(number(key)));
                (side, Some(share))
            }
            // Nothing would bring it back to the same side.
            Some(None) => (Side::Live, None),
        };
        let who = match (&settings.client, key) {
            (Some(client), _) => find(client),
            (None, Some(key)) => key,
            (None, None) => find(&RequestKey::Address),
        };
        let sample = trial.sample(side, who.as_deref().map(number), share);
        let watched = Watched {
            sample: Some(Arc::new(sample)),
            mirror: None,
            place: None,
        };
        Choice {
            generation: match side {
                Side::Live => live,
                Side::Canary => generation,
            },
            watched: Some(Box::new(watched)),
        }
    }
}

/// Returns the label that a request asks for: that of its header, else that of its cookie.
fn label_of(headers: &HeaderMap) -> Option<&str> {
    const HEADER: HeaderName = HeaderName::from_static(NAME);
    if let Some(value) = headers.get(HEADER) {
        return value.to_str().ok();
    }
    cookie(headers, NAME)
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header::COOKIE};

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
