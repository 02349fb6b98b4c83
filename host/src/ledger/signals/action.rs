//! A disposition of a signal as a value: what `sigaction` takes and gives.

use std::mem::MaybeUninit;

use libc::{c_int, sigaction as Sigaction};

use crate::ledger::masks;

/// What is done on a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Action {
    /// The address of a handler, `SIG_DFL` or `SIG_IGN`.
    pub(super) handler: usize,
    /// As `sigaction(2)` has them.
    pub(super) flags: c_int,
    /// The signals that are blocked while the handler runs.
    pub(super) mask: u64,
}

impl Action {
    /// That of a fresh process.
    pub(super) const DEFAULT: Self = Self {
        handler: libc::SIG_DFL,
        flags: 0,
        mask: 0,
    };

    pub(super) fn from_c(action: &Sigaction) -> Self {
        Self {
            handler: action.sa_sigaction,
            flags: action.sa_flags,
            mask: masks::bits(&action.sa_mask),
        }
    }

    pub(super) fn to_c(self) -> Sigaction {
        // SAFETY: all zeroes is the default disposition, with an empty mask and no flags.
        let mut action = unsafe { MaybeUninit::<Sigaction>::zeroed().assume_init() };
        action.sa_sigaction = self.handler;
        action.sa_flags = self.flags;
        action.sa_mask = masks::set(self.mask);
        action
    }

    /// Whether something is called.
    pub(super) fn calls(self) -> bool {
        self.handler != libc::SIG_DFL && self.handler != libc::SIG_IGN
    }
}
