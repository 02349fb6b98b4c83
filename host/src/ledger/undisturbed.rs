//! Short sections that no signal interrupts, so that a handler on the same thread never waits for what its own thread holds.

use std::{
    mem::MaybeUninit,
    sync::atomic::{AtomicBool, Ordering},
};

use libc::sigset_t;

use super::masks;

/// A lock for a few instructions. Held by [`Undisturbed`] only, so never across code of a plugin.
#[derive(Debug)]
pub(super) struct Spin(AtomicBool);

impl Spin {
    pub(super) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }
}

/// A lock that is held, on a thread whose signals wait until this is dropped.
pub(super) struct Undisturbed<'a> {
    lock: &'a Spin,
    mask: sigset_t,
}

impl<'a> Undisturbed<'a> {
    /// Blocks the signals of this thread, then waits for the lock. May be called in a signal handler. Not in a forked child: the thread
    /// that holds the lock may not exist there.
    pub(super) fn lock(lock: &'a Spin) -> Self {
        let mut all = MaybeUninit::uninit();
        // SAFETY: fills the set.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: filled just now.
        let mask = masks::real(libc::SIG_BLOCK, Some(unsafe { all.assume_init_ref() }));
        while lock.0.swap(true, Ordering::Acquire) {
            std::thread::yield_now();
        }
        Self { lock, mask }
    }
}

impl Drop for Undisturbed<'_> {
    fn drop(&mut self) {
        self.lock.0.store(false, Ordering::Release);
        masks::real(libc::SIG_SETMASK, Some(&self.mask));
    }
}
