//! What a generation is to the requests that it answers.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use super::shared::Label;

/// What a generation is to the requests that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// It answers what nothing else does, or did so before tenants stayed on it.
    Live,
    /// It is on trial.
    Canary,
    /// It is reached by its label.
    Label,
}

impl Role {
    /// Returns the word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Canary => "canary",
            Self::Label => "label",
        }
    }
}

/// The role of a generation, which changes while it answers.
#[derive(Debug, Default)]
pub(super) struct CurrentRole(AtomicU8);

impl CurrentRole {
    pub(super) fn set(&self, role: Role) {
        self.0.store(role as u8, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Role {
        match self.0.load(Ordering::Relaxed) {
            0 => Role::Live,
            1 => Role::Canary,
            _ => Role::Label,
        }
    }
}

/// Which generation an answer is from. It travels on the answer, and holds nothing of the plugin.
#[derive(Clone, Debug)]
pub(crate) struct AnsweredBy {
    /// Its version and number.
    pub(crate) label: Arc<Label>,
    /// What it was to the request.
    pub(crate) role: Role,
}
