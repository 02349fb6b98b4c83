//! The threads that libraries started, or that were started for them: alive until the kernel says otherwise.
//!
//! Whose a thread is depends on who made it, not on where its routine lies: C++ starts its threads in libstdc++, and a C library
//! that a plugin brought along starts its own. So the caller of `pthread_create` is asked, and where that is neither the host
//! nor a plugin, the thread that calls ([`super::owner`]); threads that such a thread makes are the library's as well.
//!
//! A thread's start routine returning is not its end: glibc then runs the destructors of its thread-locals, which are
//! code of the library, and only then leaves to the kernel. Nothing that runs on the thread itself can say that it is
//! past that point. So the only question asked is whether the kernel still knows the thread.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::{
    cell::Cell,
    ffi::c_void,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
};

use libc::{c_int, pthread_attr_t, pthread_t};

use super::{
    AccountId,
    interposed::{Symbol, interposed},
    masks, owner, ranges,
};

/// One thread that a library started, or that was started for it.
struct Started {
    /// The account of the library.
    owner: AccountId,
    /// The kernel's number for it; [`NOT_YET`] until its first instruction, [`NEVER`] when it could not be created.
    tid: AtomicI32,
}

const NOT_YET: i32 = 0;
const NEVER: i32 = -1;

impl Started {
    fn is_alive(&self) -> bool {
        match self.tid.load(Ordering::Acquire) {
            NOT_YET => true,
            NEVER => false,
            tid => exists(tid),
        }
    }
}

/// All that may be alive, and some that are not: the dead are swept when the list has doubled.
struct List {
    started: Vec<Arc<Started>>,
    sweep_at: usize,
}

static LIST: Mutex<List> = Mutex::new(List {
    started: Vec::new(),
    sweep_at: 64,
});

thread_local! {
    /// The account of the library that started this thread, zero for none.
    static OWNER: Cell<AccountId> = const { Cell::new(0) };
}

/// The account of the library that started the current thread, zero for none.
pub(super) fn current_owner() -> AccountId {
    OWNER.get()
}

/// Whether `account`'s library started the current thread. Everything registered on such a thread may go to libc: it
/// runs when the thread ends, and the library is not quiet before that.
pub(super) fn current_is_of(account: AccountId) -> bool {
    OWNER.get() == account
}

/// A start routine with its argument. Unwinds: `pthread_exit` and cancellation do.
type Routine = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;

/// What C11 calls the start routine of a thread.
type C11Routine = unsafe extern "C-unwind" fn(*mut c_void) -> c_int;

interposed! {
    pthread_create / pthread_create_for / CREATE
        (thread: *mut pthread_t, attributes: *const pthread_attr_t, routine: Routine, argument: *mut c_void) -> c_int
        as unsafe extern "C-unwind" fn(*mut pthread_t, *const pthread_attr_t, Routine, *mut c_void) -> c_int,
        "r8", "x4", |real, caller| {
            let Some(owner) = owner_of(routine as usize, caller) else {
                // SAFETY: the arguments of the caller, as they came.
                return masks::without_others(None, || unsafe { real(thread, attributes, routine, argument) });
            };
            let starting = starting(owner, routine, argument);
            // SAFETY: the caller's, but for the routine, which is ours with the argument made for it, once.
            let answer = masks::without_others(Some(owner), || unsafe {
                real(thread, attributes, first, starting.argument())
            });
            if answer != 0 {
                starting.failed();
            }
            answer
        };
    thrd_create / thrd_create_for / C11_CREATE
        (thread: *mut pthread_t, routine: C11Routine, argument: *mut c_void) -> c_int
        as unsafe extern "C-unwind" fn(*mut pthread_t, C11Routine, *mut c_void) -> c_int,
        "rcx", "x3", |real, caller| {
            let Some(owner) = owner_of(routine as *const () as usize, caller) else {
                // SAFETY: the arguments of the caller, as they came.
                return unsafe { real(thread, routine, argument) };
            };
            // SAFETY: the routine's answer is an int in the register where the pointer is expected, and `first` hands that
            // register on as it is; `thrd_create` is given `first` under C11's type, so it reads an int again.
            let routine = unsafe { std::mem::transmute::<C11Routine, Routine>(routine) };
            let starting = starting(owner, routine, argument);
            // SAFETY: as above.
            let first = unsafe { std::mem::transmute::<Routine, C11Routine>(first as Routine) };
            // SAFETY: the caller's, but for the routine, which is ours with the argument made for it, once.
            let answer = unsafe { real(thread, first, starting.argument()) };
            if answer != 0 {
                starting.failed();
            }
            answer
        };
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

/// Whose a thread is that begins with `routine` and is made by code at `caller`.
fn owner_of(routine: usize, caller: usize) -> Option<AccountId> {
    owner::of_caller(caller).or_else(|| ranges::lookup(routine))
}

/// What the first function of a thread of a library is given.
struct First {
    routine: Routine,
    argument: *mut c_void,
    started: Arc<Started>,
}

/// A thread of a library that is about to be created.
struct Starting {
    first: *mut First,
    started: Arc<Started>,
}

/// Enters a thread that is about to be created: it counts from now on.
fn starting(owner: AccountId, routine: Routine, argument: *mut c_void) -> Starting {
    let started = Arc::new(Started {
        owner,
        tid: AtomicI32::new(NOT_YET),
    });
    {
        let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
        if list.started.len() >= list.sweep_at {
            list.started.retain(|started| started.is_alive());
            list.sweep_at = 64.max(2 * list.started.len());
        }
        list.started.push(Arc::clone(&started));
    }
    let first = Box::into_raw(Box::new(First {
        routine,
        argument,
        started: Arc::clone(&started),
    }));
    Starting { first, started }
}

impl Starting {
    /// The argument for [`first`].
    fn argument(&self) -> *mut c_void {
        self.first.cast()
    }

    /// The thread could not be created.
    fn failed(self) {
        self.started.tid.store(NEVER, Ordering::Release);
        // SAFETY: made by `starting` with `Box::into_raw`; the thread that would have taken it does not exist.
        drop(unsafe { Box::from_raw(self.first) });
    }
}

/// The first function of every thread of a library: enters its number and goes on to the library's routine.
///
/// Nothing here runs after the routine and nothing is left to drop, so that `pthread_exit` may unwind through it.
///
/// # Safety
/// `argument` comes from [`Starting::argument`], once.
unsafe extern "C-unwind" fn first(argument: *mut c_void) -> *mut c_void {
    // SAFETY: the caller's promise; `pthread_create` calls this at most once.
    let (routine, argument) = unsafe { enter(argument.cast()) };
    // SAFETY: the routine and the argument that the library gave to `pthread_create`. The library is mapped: it counts
    // this thread as its own, and is not unmapped while the kernel knows the thread.
    unsafe { routine(argument) }
}

/// # Safety
/// `first` was made by [`starting`] and is taken by nobody else.
unsafe fn enter(first: *mut First) -> (Routine, *mut c_void) {
    // SAFETY: the caller's promise.
    let first = unsafe { Box::from_raw(first) };
    OWNER.set(first.started.owner);
    first.started.tid.store(own_tid(), Ordering::Release);
    (first.routine, first.argument)
}

/// The threads alive that the library of `account` started: the kernel's numbers, zero where it has none yet.
pub(super) fn alive(account: AccountId) -> Vec<i32> {
    let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    list.started.retain(|started| {
        // Others are swept elsewhere: asking the kernel about each of them here would cost every settling library.
        started.owner != account || started.is_alive()
    });
    list.started
        .iter()
        .filter(|started| started.owner == account)
        .map(|started| started.tid.load(Ordering::Acquire))
        .collect()
}

/// The kernel's number of the current thread.
pub(super) fn own_tid() -> i32 {
    // SAFETY: has no preconditions. Asked anew each time, so that a forked child is not taken for its parent.
    unsafe { libc::gettid() }
}

/// Whether the kernel still knows the thread `tid` of this process.
pub(super) fn exists(tid: i32) -> bool {
    // SAFETY: signal 0 is never delivered; only the existence of the thread is looked up.
    let answer = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, 0) };
    answer == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// `tid 4711 "tokio-rt-worker"`, for people.
pub(super) fn describe(tid: i32) -> String {
    match std::fs::read_to_string(format!("/proc/self/task/{tid}/comm")) {
        Ok(name) => format!("tid {tid} `{}`", name.trim_end()),
        Err(_) => format!("tid {tid}"),
    }
}
