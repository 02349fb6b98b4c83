//! The process whose libraries the ledger follows, as opposed to a child that it forked.
//!
//! A forked child has a copy of every table of the ledger, and of every lock in the state that some
//! other thread had it in. What is done there is done to the child, by the rules of libc alone.

use std::sync::atomic::{AtomicI32, Ordering};

use libc::pid_t;

use super::{AccountId, owner};

/// The process that loads libraries; zero as long as none was loaded.
static LOADS: AtomicI32 = AtomicI32::new(0);

/// Notes that this process is about to load a library.
pub(super) fn loads() {
    LOADS.store(own_pid(), Ordering::SeqCst);
}

fn own_pid() -> pid_t {
    // SAFETY: has no preconditions. Asked anew each time: a forked child has another one, also
    // after `vfork`.
    unsafe { libc::getpid() }
}

/// Where code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In a process that never loaded a library.
    NothingLoaded,
    /// In the process that loads libraries.
    Here,
    /// In a child that it forked.
    Child,
}

/// Where this code runs. Neither blocks nor allocates; one system call when a library was ever
/// loaded.
pub(super) fn place() -> Place {
    match LOADS.load(Ordering::SeqCst) {
        0 => Place::NothingLoaded,
        pid if pid == own_pid() => Place::Here,
        _ => Place::Child,
    }
}

/// The account that code at `caller` changes something of this process for; none for the host, and
/// for anybody in a forked child. Neither blocks nor allocates.
pub(super) fn changed_by(caller: usize) -> Option<AccountId> {
    owner::of_caller(caller).filter(|_| place() == Place::Here)
}
