//! Whose code asks? An address inside a library tells; where it does not, the thread does.
//!
//! What a plugin does by way of another library (libstdc++ starting a thread, a C library opening a
//! file) comes from an address that is no plugin's. It is done for whoever the thread works for at
//! that moment: the library that it is a thread of, or the one that it has been called into.

use std::{
    cell::Cell,
    marker::PhantomData,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{AccountId, call_slot, ranges, threads};

thread_local! {
    /// The account of the library whose code this thread of the host runs outside of a request: it
    /// loads or unloads it, or runs the constructor or the destructors of its app. Zero for none.
    static ACTING_FOR: Cell<AccountId> = const { Cell::new(0) };
}

/// The executable, from its first byte to its last. What calls from there is the host, whoever its
/// thread works for.
static HOST: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));

/// Notes where the executable is. Called before each load: as long as nothing is loaded nobody
/// asks.
pub(super) fn note_host(executable: &Range<usize>) {
    HOST.0.store(executable.start, Ordering::Relaxed);
    HOST.1.store(executable.end, Ordering::Relaxed);
}

/// Whether `address` lies in the executable. Nothing does before the first load.
pub(super) fn is_host(address: usize) -> bool {
    (HOST.0.load(Ordering::Relaxed)..HOST.1.load(Ordering::Relaxed)).contains(&address)
}

/// The current thread runs code of one library, from now until this is dropped.
#[derive(Debug)]
pub struct Acting {
    outer: AccountId,
    /// Ends on the thread that it began on.
    _here: PhantomData<*const ()>,
}

/// Says that the current thread, one of the host, runs code of the library of `account` outside of
/// a request.
pub(super) fn act_for(account: AccountId) -> Acting {
    Acting {
        outer: ACTING_FOR.replace(account),
        _here: PhantomData,
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        ACTING_FOR.set(self.outer);
    }
}

/// The account of the library that the current thread is loading; zero for none. Its ranges are not
/// known yet.
pub(super) fn loading() -> AccountId {
    match ACTING_FOR.get() {
        0 => 0,
        account if ranges::is_known(account) => 0,
        account => account,
    }
}

/// The account that the current thread works for. Neither blocks nor allocates.
pub(super) fn current() -> Option<AccountId> {
    let account = match threads::current_owner() {
        0 => ACTING_FOR.get(),
        account => account,
    };
    if account == 0 {
        call_slot::current_account()
    } else {
        Some(account)
    }
}

/// The account that code at `caller`, the address that a call returns to, does something for.
/// Neither blocks nor allocates.
pub(super) fn of_caller(caller: usize) -> Option<AccountId> {
    ranges::lookup(caller).or_else(|| if is_host(caller) { None } else { current() })
}
