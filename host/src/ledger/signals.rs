//! The signal handlers that libraries installed.
//!
//! One disposition per signal is everybody's. The ledger keeps what each was before any plugin touched it (the base) and
//! puts that back when a library whose handler is installed retires. A plugin that asks what was there before it, to
//! chain to it as signal-hook and tokio do, is told the base and never the handler of another plugin, which may be
//! unmapped before it.

use std::{
    mem::MaybeUninit,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use libc::{c_int, sigaction};

use super::{interpose, ranges};

/// Signals are 1..=64 on Linux.
const SIGNALS: usize = 64;

static BASE: Mutex<[Option<sigaction>; SIGNALS + 1]> = Mutex::new([None; SIGNALS + 1]);

/// What is installed for `signal`; none for those that libc keeps for itself.
fn installed(signal: c_int) -> Option<sigaction> {
    let mut old = MaybeUninit::<sigaction>::uninit();
    // SAFETY: a null new action changes nothing; `old` has room for what is there and is only read when it was written.
    unsafe {
        (interpose::real_sigaction(signal, std::ptr::null(), old.as_mut_ptr()) == 0)
            .then(|| old.assume_init())
    }
}

/// Notes the dispositions that are no plugin's. Called before each load.
pub(super) fn note_base() {
    let mut base = BASE.lock().unwrap_or_else(PoisonError::into_inner);
    for (signal, base) in base.iter_mut().enumerate().skip(1) {
        if let Some(action) = installed(signal as c_int)
            && ranges::lookup(action.sa_sigaction).is_none()
        {
            *base = Some(action);
        }
    }
}

/// What a plugin is told instead of another plugin's handler. May be called in a signal handler: never blocks.
pub(super) fn base(signal: c_int) -> sigaction {
    let default = || {
        // SAFETY: all zeroes is the default disposition (SIG_DFL is 0) with an empty mask and no flags.
        unsafe { MaybeUninit::<sigaction>::zeroed().assume_init() }
    };
    let Ok(base) = BASE.try_lock() else {
        return default();
    };
    usize::try_from(signal)
        .ok()
        .and_then(|signal| *base.get(signal)?)
        .unwrap_or_else(default)
}

/// The signals whose handler lies in `ranges`.
pub(super) fn held(ranges: &[Range<usize>]) -> Vec<c_int> {
    (1..=SIGNALS as c_int)
        .filter(|signal| {
            installed(*signal).is_some_and(|action| {
                ranges
                    .iter()
                    .any(|range| range.contains(&action.sa_sigaction))
            })
        })
        .collect()
}

/// Puts the base back where a handler lies in `ranges`; gives the signals.
///
/// A handler that runs on some thread at this very instant cannot be seen; it has as long as settling takes.
pub(super) fn restore(ranges: &[Range<usize>]) -> Vec<c_int> {
    held(ranges)
        .into_iter()
        .inspect(|signal| {
            let base = base(*signal);
            // SAFETY: a disposition that the host itself had for this signal before, or the default one.
            unsafe { interpose::real_sigaction(*signal, &base, std::ptr::null_mut()) };
        })
        .collect()
}

/// `SIGUSR1 (10)`, for people.
pub(super) fn name(signal: c_int) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGTERM => "SIGTERM",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGCHLD => "SIGCHLD",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGABRT => "SIGABRT",
        _ => return format!("signal {signal}"),
    };
    format!("{name} ({signal})")
}
