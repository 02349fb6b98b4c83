//! What libraries ask libc to call on a thread of its own: `SIGEV_THREAD`.
//!
//! libc starts those threads itself, past the functions that the ledger stands before. So it is
//! given a function of ours, which makes the thread one of the library's and goes on to what the
//! library wanted. Between its start and that function such a thread is nobody's: that is why a
//! library that has ever asked for one is looked at more strictly ([`super::strangers`]).

use std::{
    collections::{HashMap, HashSet},
    ffi::c_void,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use libc::{c_int, sigval};

use super::{AccountId, ranges, threads};

/// What a library wants to be called. Unwinds: `pthread_exit` does.
type Function = unsafe extern "C-unwind" fn(sigval);

/// `struct sigevent`, with the members that the crate libc hides.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Notification {
    value: sigval,
    signal: c_int,
    pub(super) kind: c_int,
    function: Option<Function>,
    attributes: *mut c_void,
    rest: [c_int; 8],
}

const _: () = assert!(size_of::<Notification>() == size_of::<libc::sigevent>());

/// What is to be called for whom. Kept until the library is unmapped, since nobody knows of a
/// thread of libc's that has yet to begin; the same function with the same value is kept once, so
/// timers that come and go cost nothing.
struct Callback {
    owner: AccountId,
    function: Function,
    value: *mut c_void,
}

/// By owner, function and value: the callback, which [`forget`] frees.
type Kept = HashMap<(AccountId, usize, usize), usize>;

struct Books {
    kept: Kept,
    /// Libraries whose callbacks libc calls without us.
    direct: HashSet<AccountId>,
}

static BOOKS: LazyLock<Mutex<Books>> = LazyLock::new(|| {
    Mutex::new(Books {
        kept: Kept::new(),
        direct: HashSet::new(),
    })
});

fn books() -> MutexGuard<'static, Books> {
    BOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Notification {
    /// Whether it is to be by a call on a thread of libc's.
    pub(super) fn calls(&self) -> bool {
        self.kind == libc::SIGEV_THREAD
    }

    /// The library that wants to be called, by the address of what is called.
    pub(super) fn owner(&self) -> Option<AccountId> {
        let function = self.calls().then_some(self.function).flatten()?;
        ranges::lookup(function as usize)
    }

    /// The same, for libc: where it is to call the library of `owner` it calls us.
    pub(super) fn by_way_of_us(self, owner: AccountId) -> Self {
        let Some(function) = self.function.filter(|_| self.calls()) else {
            return self;
        };
        let value = self.value.sival_ptr;
        let key = (owner, function as usize, value.addr());
        let callback = *books().kept.entry(key).or_insert_with(|| {
            let callback = Callback {
                owner,
                function,
                value,
            };
            Box::into_raw(Box::new(callback)).expose_provenance()
        });
        Self {
            value: sigval {
                sival_ptr: std::ptr::with_exposed_provenance_mut(callback),
            },
            function: Some(call),
            ..self
        }
    }
}

/// The first function of the library on a thread that libc started for it.
///
/// # Safety
/// `value` is that of [`Notification::by_way_of_us`].
unsafe extern "C-unwind" fn call(value: sigval) {
    let (function, value) = {
        // SAFETY: the caller's promise; `forget` frees it when no task is left that could come
        // here.
        let callback = unsafe { &*value.sival_ptr.cast::<Callback>() };
        threads::adopt(callback.owner, callback.function as usize);
        (callback.function, callback.value)
    };
    // SAFETY: what the library gave to libc to be called with this value. It is mapped: it counts
    // this thread as its own.
    unsafe { function(sigval { sival_ptr: value }) }
}

/// Notes that libc calls the library of `owner` on threads of its own without coming by here.
pub(super) fn calls_directly(owner: AccountId) {
    books().direct.insert(owner);
}

/// Whether the library of `account` ever asked libc to call it on a thread of libc's.
pub(super) fn has(account: AccountId) -> bool {
    let books = books();
    books.direct.contains(&account) || books.kept.keys().any(|(owner, ..)| *owner == account)
}

/// Frees what was kept for `account`: its library is unmapped, so no task was left that could call
/// it.
pub(super) fn forget(account: AccountId) {
    let mut books = books();
    books.direct.remove(&account);
    books.kept.retain(|(owner, ..), callback| {
        let gone = *owner == account;
        if gone {
            // SAFETY: made by `by_way_of_us`, struck out as it is freed, and nobody calls it any
            // more.
            drop(unsafe {
                Box::from_raw(std::ptr::with_exposed_provenance_mut::<Callback>(*callback))
            });
        }
        !gone
    });
}
