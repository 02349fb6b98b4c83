//! `exit`, called by a library: it ends the process, but not where the library was told to end.
//! Many a handler of a signal or of Ctrl-C calls it, and means its own program.
//!
//! Such a thread waits for ever, since nobody can end it from outside. So the library stays mapped,
//! which says why. Only a thread of the library does: one of the host that drops an app which exits
//! would never come back.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::c_int;

use super::{
    AccountId,
    interposed::{Symbol, interposed},
    notes::{self, Changed},
    process, signals, threads,
};

/// The libraries that were told to end.
static ENDING: Mutex<Vec<AccountId>> = Mutex::new(Vec::new());

fn ending() -> MutexGuard<'static, Vec<AccountId>> {
    ENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

interposed! {
    exit / exit_for / EXIT (status: c_int) -> c_int
        as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |real, caller| {
            if let Some(account) = process::changed_by(caller)
                && threads::current_owner() == account
                && ending().contains(&account)
            {
                wait_for_ever(account, status);
            }
            // SAFETY: the argument of the caller, as it came. It does not return.
            unsafe { real(status) }
        };
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

fn wait_for_ever(account: AccountId, status: c_int) -> ! {
    notes::note(account, Changed::Exit, || format!("called exit({status})"));
    loop {
        std::thread::park();
    }
}

/// Notes that the library of `account` is told to end: from now on it ends nothing but itself.
/// Comes before anything that tells it, since it may take that as the moment to call `exit`.
pub fn begin_end(account: AccountId) {
    let mut ending = ending();
    if !ending.contains(&account) {
        ending.push(account);
    }
}

/// Tells the library of `account` to end, by the signals that it may wait for, on this thread,
/// which is one that is waited for. [`begin_end`] came before.
pub fn ask_to_end(account: AccountId) {
    signals::ask_to_end(account);
}

/// Whether the library of `account` was told to end.
pub(super) fn is_ending(account: AccountId) -> bool {
    ending().contains(&account)
}

/// Forgets an account: its library is unmapped.
pub(super) fn forget(account: AccountId) {
    ending().retain(|ends| *ends != account);
}
