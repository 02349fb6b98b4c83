//! Short sections that no signal interrupts, so that a handler on the same thread never waits for
//! what its own thread holds.

use std::{
    marker::PhantomData,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

/// How many bytes the kernel's set of signals has.
const SET: usize = size_of::<u64>();

/// All signals of this thread wait until this is dropped. By system calls, as libc leaves two
/// signals of its own out: one of them cancels threads.
#[derive(Debug)]
pub(super) struct SignalsBlocked {
    before: u64,
    /// Ends on the thread that it began on.
    _here: PhantomData<*const ()>,
}

impl SignalsBlocked {
    /// Blocks them. May be called in a signal handler.
    pub(super) fn begin() -> Self {
        let (all, mut before) = (u64::MAX, 0_u64);
        change(&all, &raw mut before);
        Self {
            before,
            _here: PhantomData,
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        change(&self.before, ptr::null_mut());
    }
}

fn change(to: &u64, before: *mut u64) {
    // SAFETY: both sets have the size that is told; the second one is null or has room for what was
    // there.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::from_ref(to),
            before,
            SET,
        )
    };
}

/// A lock for a few instructions. Held by [`Undisturbed`] only, so never across code of a
/// plugin.
#[derive(Debug)]
pub(super) struct Spin(AtomicBool);

impl Spin {
    pub(super) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }
}

/// A lock that is held, on a thread whose signals wait until this is dropped.
pub(super) struct Undisturbed<'a> {
    // Released before a signal can come.
    _lock: SpinGuard<'a>,
    _blocked: SignalsBlocked,
}

struct SpinGuard<'a>(&'a Spin);

impl Drop for SpinGuard<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

impl<'a> Undisturbed<'a> {
    /// Blocks the signals of this thread, then waits for the lock. May be called in a signal
    /// handler. Not in a forked child: the thread that holds the lock may not exist there.
    pub(super) fn lock(lock: &'a Spin) -> Self {
        let blocked = SignalsBlocked::begin();
        while lock.0.swap(true, Ordering::Acquire) {
            std::thread::yield_now();
        }
        Self {
            _lock: SpinGuard(lock),
            _blocked: blocked,
        }
    }
}
