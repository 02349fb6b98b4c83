//! The generations of an app that answer new requests: today one, with all of the traffic.

use std::sync::Arc;

use super::app::Live;
use crate::{dispatch::Targets, generation::Generation};

/// What answers new requests of an app.
///
/// Labels, weights, tenants and shadows will each be a way to choose among several members; the
/// one that is there today gets everything.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    member: Option<Live>,
}

impl Serving {
    /// Returns the member that gets what nothing else asks for.
    pub(crate) fn primary(&self) -> Option<&Live> {
        self.member.as_ref()
    }

    /// Returns the generation of [`primary`](Self::primary).
    pub(crate) fn generation(&self) -> Option<&Arc<Generation>> {
        self.primary().map(|live| live.active.generation())
    }

    /// Returns every member.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Live> {
        self.member.iter()
    }

    /// Returns whether nothing answers.
    pub(crate) fn is_empty(&self) -> bool {
        self.member.is_none()
    }

    /// Puts `next` in the place of all members. Returns who is replaced.
    pub(crate) fn replace(&mut self, next: Option<Live>) -> Option<Live> {
        std::mem::replace(&mut self.member, next)
    }

    /// Returns where a route of the app sends requests.
    pub(crate) fn targets(&self) -> Targets {
        self.generation().map_or(Targets::None, |generation| {
            Targets::One(Arc::clone(generation))
        })
    }
}
