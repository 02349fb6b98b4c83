//! The three interval timers of the process, and which library armed each.
//!
//! A process has one of each kind, so a library that arms one takes it from whoever had it, as the
//! answer says. It is disarmed for the library that armed it last when that one leaves, and for no
//! other; its signal goes to that library alone.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::{
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use libc::{c_int, c_uint, itimerval};

use super::{
    AccountId,
    interposed::{Symbol, interposed},
    process,
    undisturbed::{Spin, Undisturbed},
};

/// By the number of the timer.
static ARMED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// RetainReasons while a timer is armed or disarmed and that is written down.
static LOCK: Spin = Spin::new();

type Set = unsafe extern "C-unwind" fn(c_int, *const itimerval, *mut itimerval) -> c_int;

interposed! {
    setitimer / setitimer_for / SETITIMER (which: c_int, new: *const itimerval, old: *mut itimerval) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *const itimerval, *mut itimerval) -> c_int,
        "rcx", "x3", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            armed(which, caller, |answer| *answer == 0, || unsafe { real(which, new, old) })
        };
    alarm / alarm_for / ALARM (seconds: c_uint) -> c_uint as unsafe extern "C-unwind" fn(c_uint) -> c_uint,
        "rsi", "x1", |real, caller| {
            // SAFETY: the argument of the caller, as it came.
            armed(libc::ITIMER_REAL as c_int, caller, |_| true, || unsafe { real(seconds) })
        };
    ualarm / ualarm_for / UALARM (first: c_uint, interval: c_uint) -> c_uint
        as unsafe extern "C-unwind" fn(c_uint, c_uint) -> c_uint,
        "rdx", "x2", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            armed(libc::ITIMER_REAL as c_int, caller, |answer| *answer != c_uint::MAX, || unsafe { real(first, interval) })
        };
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

/// Arms a timer, which is the caller's from then on if that is a library. Until its signal has come
/// the handler of the library has to hear it, so disarming it changes nobody.
fn armed<T>(
    which: c_int,
    caller: usize,
    done: impl FnOnce(&T) -> bool,
    arm: impl FnOnce() -> T,
) -> T {
    let timer = usize::try_from(which).ok().and_then(|at| ARMED.get(at));
    let (Some(timer), true) = (timer, process::place() == process::Place::Here) else {
        return arm();
    };
    let account = process::changed_by(caller).unwrap_or(0);
    let _lock = Undisturbed::lock(&LOCK);
    let answer = arm();
    if done(&answer) {
        timer.store(account, Ordering::SeqCst);
    }
    answer
}

/// The account whose timer sends `signal`; zero for none. May be called in a signal handler.
pub(super) fn armed_by(signal: c_int) -> AccountId {
    let timer = match signal {
        libc::SIGALRM => libc::ITIMER_REAL,
        libc::SIGVTALRM => libc::ITIMER_VIRTUAL,
        libc::SIGPROF => libc::ITIMER_PROF,
        _ => return 0,
    };
    ARMED[timer as usize].load(Ordering::SeqCst)
}

/// Disarms the timers that the library of `account` armed last.
pub(super) fn disarm(account: AccountId) {
    for (which, timer) in (0..).zip(&ARMED) {
        if timer.load(Ordering::SeqCst) != account {
            continue;
        }
        let _lock = Undisturbed::lock(&LOCK);
        if timer.load(Ordering::SeqCst) != account {
            continue;
        }
        // SAFETY: the address is libc's function of that name, and the type is its signature.
        let set = unsafe { std::mem::transmute::<usize, Set>(SETITIMER.address()) };
        // SAFETY: all zeroes disarms a timer.
        let never = unsafe { MaybeUninit::<itimerval>::zeroed().assume_init() };
        // SAFETY: a valid time, and nobody wants to know the old one.
        unsafe { set(which, &never, ptr::null_mut()) };
        timer.store(0, Ordering::SeqCst);
    }
}
