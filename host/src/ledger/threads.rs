//! The threads that libraries started: alive until the kernel says otherwise.
//!
//! A thread's start routine returning is not its end: glibc then runs the destructors of its thread-locals, which are
//! code of the library, and only then leaves to the kernel. Nothing that runs on the thread itself can say that it is
//! past that point. So the only question asked is whether the kernel still knows the thread.

use std::{
    cell::Cell,
    ffi::c_void,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
};

use super::{AccountId, ranges};

/// One thread that was started with a routine of a library.
struct Started {
    /// The address of the start routine.
    routine: usize,
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
    /// The start routine of this thread if a library started it, else zero.
    static ROUTINE: Cell<usize> = const { Cell::new(0) };
}

/// Whether `account`'s library started the current thread. Everything registered on such a thread may go to libc: it
/// runs when the thread ends, and the library is not quiet before that.
pub(super) fn current_is_of(account: AccountId) -> bool {
    let routine = ROUTINE.get();
    routine != 0 && ranges::lookup(routine) == Some(account)
}

/// A start routine with its argument. Unwinds: `pthread_exit` and cancellation do.
pub(super) type Routine = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;

/// What the first function of a thread of a library is given.
struct First {
    routine: Routine,
    argument: *mut c_void,
    started: Arc<Started>,
}

/// A thread of a library that is about to be created.
pub(super) struct Starting {
    first: *mut First,
    started: Arc<Started>,
}

/// Enters a thread that is about to be created: it counts from now on.
pub(super) fn starting(routine: Routine, argument: *mut c_void) -> Starting {
    let started = Arc::new(Started {
        routine: routine as usize,
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
    pub(super) fn argument(&self) -> *mut c_void {
        self.first.cast()
    }

    /// The thread could not be created.
    pub(super) fn failed(self) {
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
pub(super) unsafe extern "C-unwind" fn first(argument: *mut c_void) -> *mut c_void {
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
    ROUTINE.set(first.routine as usize);
    first.started.tid.store(own_tid(), Ordering::Release);
    (first.routine, first.argument)
}

/// The threads alive that were started with a routine in `ranges`: the kernel's numbers, zero where it has none yet.
pub(super) fn alive(ranges: &[Range<usize>]) -> Vec<i32> {
    let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    list.started.retain(|started| {
        // Others are swept elsewhere: asking the kernel about each of them here would cost every settling library.
        !ranges.iter().any(|range| range.contains(&started.routine)) || started.is_alive()
    });
    list.started
        .iter()
        .filter(|started| ranges.iter().any(|range| range.contains(&started.routine)))
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
