//! Which call into a plugin each thread is inside of, for the watchdog that looks for those that do
//! not come back.
//!
//! A call that enters writes down a pointer to what it is, which lies on its own stack, and takes
//! it back when it leaves. Entering costs two stores, leaving one exchange. Whoever reads it marks
//! the pointer first; a call that leaves and finds the mark waits until the reader is done, so what
//! is read is always there.

use std::{
    cell::Cell,
    ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering},
    },
};

use super::{AccountId, threads};
use handover_api::{AppName, GenerationId};

/// A call into a plugin.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    /// The app.
    pub app: &'a AppName,
    /// The generation.
    pub generation: GenerationId,
    /// The account of its library.
    pub account: AccountId,
    /// What was asked for: a path, and maybe a query.
    pub target: &'a str,
    /// Whether what was made for it is dropped.
    pub dropped: bool,
    /// Counts the calls that did not come back in time.
    pub stalls: &'a AtomicU64,
}

impl Call<'_> {
    /// What the thread is in, for a sentence like "it blocks in …".
    pub(crate) fn place(&self) -> String {
        let path = self.path();
        if self.dropped {
            format!("the drop of {path}")
        } else {
            path.to_owned()
        }
    }

    /// What was asked for, without the query, which may be nobody else's business.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// One thread that calls plugins.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Slot {
    /// Null outside of a call. Marked with [`READ`] while it is read.
    at: AtomicPtr<Call<'static>>,
    /// Counts calls, so that two of them are not taken for one: both may lie at the same place on
    /// the stack.
    calls: AtomicU64,
    reading: AtomicBool,
    tid: i32,
    shared: bool,
}

/// The workers that all apps share are called so.
pub(crate) const SHARED_WORKER: &str = "handover-worker";

/// The bit of a pointer that says that somebody reads what it points to.
const READ: usize = 1;

/// The slots of all threads that ever called a plugin: the workers of the host, so there are few,
/// and they are never given back.
static SLOTS: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: Cell<Option<&'static Slot>> = const { Cell::new(None) };
}

#[inline]
fn own() -> &'static Slot {
    match OWN.get() {
        Some(slot) => slot,
        None => adopt(),
    }
}

#[cold]
fn adopt() -> &'static Slot {
    let slot: &'static Slot = Box::leak(Box::new(Slot {
        at: AtomicPtr::new(ptr::null_mut()),
        calls: AtomicU64::new(0),
        reading: AtomicBool::new(false),
        tid: threads::own_tid(),
        shared: std::thread::current().name() == Some(SHARED_WORKER),
    }));
    OWN.set(Some(slot));
    SLOTS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(slot);
    slot
}

/// Takes a call back when it leaves, also by unwinding.
struct Leave {
    slot: &'static Slot,
    /// The call that this one is made within.
    outer: *mut Call<'static>,
}

impl Drop for Leave {
    #[inline]
    fn drop(&mut self) {
        let left = self.slot.at.swap(self.outer, Ordering::AcqRel);
        if left.addr() & READ != 0 {
            self.slot.wait();
        }
    }
}

/// Runs `call`, which is `what`.
#[inline]
pub(crate) fn enter_call<R>(what: &Call<'_>, call: impl FnOnce() -> R) -> R {
    let slot = own();
    // Only this thread writes it.
    let calls = slot.calls.load(Ordering::Relaxed);
    slot.calls.store(calls + 1, Ordering::Relaxed);
    let outer = slot.at.load(Ordering::Relaxed);
    let leave = Leave { slot, outer };
    slot.at
        .store(ptr::from_ref(what).cast_mut().cast(), Ordering::Release);
    let returned = call();
    drop(leave);
    returned
}

/// The account of the library that the current thread is called into; none outside of a call.
pub(super) fn current_account() -> Option<AccountId> {
    current(|call| call.account)
}

/// Looks at the call that the current thread is inside of; none outside of one. Neither blocks nor
/// allocates.
pub(super) fn current<R>(look: impl FnOnce(&Call<'_>) -> R) -> Option<R> {
    let at = OWN.get()?.at.load(Ordering::Relaxed);
    let at = at.map_addr(|address| address & !READ);
    // SAFETY: null, or what `call_slot` published on this very thread and has not taken back; a
    // mark is no part of the address.
    unsafe { at.as_ref() }.map(look)
}

/// Every thread that ever called a plugin.
pub(crate) fn slots() -> Vec<&'static Slot> {
    SLOTS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Slot {
    /// The kernel's number of the thread.
    pub(crate) fn tid(&self) -> i32 {
        self.tid
    }

    /// Whether other apps need this thread as well.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// The number of the call that the thread is inside of; none outside of one.
    pub(crate) fn call(&self) -> Option<u64> {
        let inside = !self.at.load(Ordering::Acquire).is_null();
        inside.then(|| self.calls.load(Ordering::Relaxed))
    }

    /// Looks at the call that the thread is inside of. It cannot leave meanwhile, so `look` must be
    /// quick. One reader at a time.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&Call<'_>) -> R) -> Option<R> {
        let at = self.at.load(Ordering::Acquire);
        if at.is_null() {
            return None;
        }
        let marked = at.map_addr(|address| address | READ);
        self.reading.store(true, Ordering::SeqCst);
        let held = self
            .at
            .compare_exchange(at, marked, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        let seen = held.then(|| {
            // SAFETY: `at` was published by `call_slot`, which keeps what it points to borrowed
            // until its `Leave` is dropped. That exchanges the pointer, finds our mark, and waits
            // until `reading` is false again, which is below. Were the pointer exchanged before the
            // mark was set, then setting it would have failed, unless another call has published
            // the same address since: then that one is what is read.
            look(unsafe { &*at })
        });
        self.reading.store(false, Ordering::Release);
        if held {
            // Fails when the call has left, and whatever is there then is not marked.
            let _ = self
                .at
                .compare_exchange(marked, at, Ordering::AcqRel, Ordering::Relaxed);
        }
        seen
    }

    #[cold]
    fn wait(&self) {
        while self.reading.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::{
        sync::{Arc, mpsc},
        thread,
    };

    use super::*;

    fn own_path() -> Option<String> {
        own().read(|call| call.path().to_owned())
    }

    #[test]
    fn a_call_is_seen_while_it_is_inside_and_the_outer_one_after_it() {
        let (app, stalls) = ("shop".parse().unwrap(), AtomicU64::new(0));
        let call = |target| Call {
            app: &app,
            generation: GenerationId(7),
            account: 7,
            target,
            dropped: false,
            stalls: &stalls,
        };
        assert_eq!(own_path(), None);
        enter_call(&call("/outer?token=x"), || {
            let first = own().call().unwrap();
            enter_call(&call("/inner"), || {
                assert_eq!(own_path().as_deref(), Some("/inner"));
                assert_ne!(own().call(), Some(first));
            });
            assert_eq!(own_path().as_deref(), Some("/outer"));
        });
        assert_eq!(own().call(), None);
    }

    #[test]
    fn what_is_read_is_whole_while_calls_come_and_go() {
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, slot) = mpsc::channel();
        let calling = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                tell.send(own()).unwrap();
                let (app, stalls) = ("shop".parse().unwrap(), AtomicU64::new(0));
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let path = format!("{number} {number}");
                    let generation = GenerationId(number);
                    let call = Call {
                        app: &app,
                        generation,
                        account: number,
                        target: &path,
                        dropped: false,
                        stalls: &stalls,
                    };
                    enter_call(&call, || std::hint::black_box(&path).len());
                    // Freed memory is soon something else.
                    drop(path);
                }
            }
        });
        let slot = slot.recv().unwrap();
        let mut seen = 0;
        while seen < 2_000 {
            let read = slot.read(|call| (call.generation.0, call.path().to_owned()));
            if let Some((number, path)) = read {
                assert_eq!(path, format!("{number} {number}"));
                seen += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        calling.join().unwrap();
    }
}
