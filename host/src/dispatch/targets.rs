//! The generations behind a route.

use std::sync::Arc;

use crate::generation::Generation;

/// The generations behind a route, of which each request gets one.
///
/// Ways to choose among several (label, tenant, weight) will be variants beside [`Targets::One`],
/// whose path stays what it is: a branch.
#[derive(Clone, Debug, Default)]
pub enum Targets {
    /// Nothing is up.
    #[default]
    None,
    /// All requests go to one.
    One(Arc<Generation>),
}

impl Targets {
    /// Returns the generation that the next request goes to.
    #[inline]
    pub(super) fn choose(&self) -> Option<&Generation> {
        match self {
            Self::None => None,
            Self::One(generation) => Some(generation),
        }
    }
}
