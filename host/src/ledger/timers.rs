//! The POSIX timers of libraries. They end with the library that made them: what a timer does when
//! it expires (a call on a thread of libc's, a signal that was the library's) is nobody's any more
//! then.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::{
    ffi::c_void,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use libc::{c_int, clockid_t};

use super::{
    AccountId,
    callbacks::Notification,
    interposed::{Symbol, interposed},
    owner,
};

/// `timer_t`: for libc an address or a number, which it may give out again once the timer is
/// deleted.
type Id = *mut c_void;

struct Timer {
    owner: AccountId,
    id: usize,
}

static TIMERS: Mutex<Vec<Timer>> = Mutex::new(Vec::new());

/// How many there are: without any, deleting one takes no lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

interposed! {
    timer_create / timer_create_for / CREATE
        (clock: clockid_t, notification: *mut Notification, timer: *mut Id) -> c_int
        as unsafe extern "C-unwind" fn(clockid_t, *mut Notification, *mut Id) -> c_int,
        "rcx", "x3", |real, caller| {
            // SAFETY: null or a notification, says the caller.
            let wanted = unsafe { notification.as_ref() };
            let owner = owner::of_caller(caller)
                .or_else(|| wanted.and_then(Notification::owner));
            let Some(owner) = owner else {
                // SAFETY: the arguments of the caller, as they came.
                return unsafe { real(clock, notification, timer) };
            };
            let mut ours = wanted.map(|wanted| wanted.by_way_of_us(owner));
            let ours = ours.as_mut().map_or(std::ptr::null_mut(), |ours| ours);
            // SAFETY: the caller's, but for the notification, which libc only reads and copies.
            let answer = unsafe { real(clock, ours, timer) };
            if answer == 0 {
                let mut timers = TIMERS.lock().unwrap_or_else(PoisonError::into_inner);
                // SAFETY: libc has just written the timer there.
                let id = unsafe { *timer }.expose_provenance();
                timers.push(Timer { owner, id });
                COUNT.store(timers.len(), Ordering::Release);
            }
            answer
        };
    timer_delete / timer_delete_for / DELETE (timer: Id) -> c_int
        as unsafe extern "C-unwind" fn(Id) -> c_int,
        "rsi", "x1", |real, _caller| {
            if COUNT.load(Ordering::Acquire) > 0 {
                // Before libc does it: right after that the timer's name may be given to somebody
                // else.
                take(|of| of.id == timer.addr());
            }
            // SAFETY: the argument of the caller, as it came.
            unsafe { real(timer) }
        };
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

fn take(which: impl Fn(&Timer) -> bool) -> Vec<Timer> {
    let mut timers = TIMERS.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = timers.extract_if(.., |timer| which(timer)).collect();
    COUNT.store(timers.len(), Ordering::Release);
    taken
}

/// Deletes the timers of `account`, whose library nothing calls any more; gives how many. A thread
/// that libc has started for one by then is a task of this process when this returns.
pub(super) fn disarm(account: AccountId) -> usize {
    if COUNT.load(Ordering::Acquire) == 0 {
        return 0;
    }
    let timers = take(|timer| timer.owner == account);
    // SAFETY: the address is libc's function of that name, and the type is its signature.
    let delete = unsafe {
        std::mem::transmute::<usize, unsafe extern "C-unwind" fn(Id) -> c_int>(DELETE.address())
    };
    for timer in &timers {
        // SAFETY: libc gave out this timer, and it was not deleted since: `timer_delete` strikes it
        // out of this list.
        unsafe { delete(std::ptr::with_exposed_provenance_mut(timer.id)) };
    }
    timers.len()
}
