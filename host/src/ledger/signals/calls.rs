//! The C functions that read and change what a signal does.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::{mem::MaybeUninit, ptr};

use libc::{c_int, sighandler_t, sigset_t};

use super::{action::Action, deliver, is_free, table};
use crate::ledger::{
    AccountId, errno,
    interposed::{Symbol, interposed},
    masks, owner,
    process::{self, Place},
    ranges,
};

/// What `sigset` takes and gives for a signal that is blocked.
const SIG_HOLD: sighandler_t = 2;

type Change =
    unsafe extern "C-unwind" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;

interposed! {
    sigaction / sigaction_for / SIGACTION
        (signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int,
        "rcx", "x3", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            unsafe { change(signal, new, old, caller, |new, old| real(signal, new, old)) }
        };
    __sigaction / __sigaction_for / SIGACTION_TOO
        (signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int,
        "rcx", "x3", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            unsafe { change(signal, new, old, caller, |new, old| real(signal, new, old)) }
        };
    signal / signal_for / SIGNAL (signal: c_int, handler: sighandler_t) -> sighandler_t
        as unsafe extern "C-unwind" fn(c_int, sighandler_t) -> sighandler_t,
        "rdx", "x2", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            simple(signal, bsd, handler, caller, || unsafe { real(signal, handler) })
        };
    bsd_signal / bsd_signal_for / BSD_SIGNAL (signal: c_int, handler: sighandler_t) -> sighandler_t
        as unsafe extern "C-unwind" fn(c_int, sighandler_t) -> sighandler_t,
        "rdx", "x2", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            simple(signal, bsd, handler, caller, || unsafe { real(signal, handler) })
        };
    ssignal / ssignal_for / SSIGNAL (signal: c_int, handler: sighandler_t) -> sighandler_t
        as unsafe extern "C-unwind" fn(c_int, sighandler_t) -> sighandler_t,
        "rdx", "x2", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            simple(signal, bsd, handler, caller, || unsafe { real(signal, handler) })
        };
    sysv_signal / sysv_signal_for / SYSV_SIGNAL (signal: c_int, handler: sighandler_t) -> sighandler_t
        as unsafe extern "C-unwind" fn(c_int, sighandler_t) -> sighandler_t,
        "rdx", "x2", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            simple(signal, sysv, handler, caller, || unsafe { real(signal, handler) })
        };
    __sysv_signal / __sysv_signal_for / SYSV_SIGNAL_TOO (signal: c_int, handler: sighandler_t) -> sighandler_t
        as unsafe extern "C-unwind" fn(c_int, sighandler_t) -> sighandler_t,
        "rdx", "x2", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            simple(signal, sysv, handler, caller, || unsafe { real(signal, handler) })
        };
    sigset / sigset_for / SIGSET (signal: c_int, handler: sighandler_t) -> sighandler_t
        as unsafe extern "C-unwind" fn(c_int, sighandler_t) -> sighandler_t,
        "rdx", "x2", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            set(signal, handler, caller, || unsafe { real(signal, handler) })
        };
    sigignore / sigignore_for / SIGIGNORE (signal: c_int) -> c_int
        as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |real, caller| {
            let ignore = Action { handler: libc::SIG_IGN, ..Action::DEFAULT };
            match virtually(signal, Some(ignore), caller) {
                // SAFETY: the argument of the caller, as it came.
                None => unsafe { real(signal) },
                Some(answer) => status(answer.map(|_| ())),
            }
        };
    siginterrupt / siginterrupt_for / SIGINTERRUPT (signal: c_int, interrupt: c_int) -> c_int
        as unsafe extern "C-unwind" fn(c_int, c_int) -> c_int,
        "rdx", "x2", |real, caller| {
            match virtually(signal, None, caller) {
                // SAFETY: the arguments of the caller, as they came.
                None => unsafe { real(signal, interrupt) },
                Some(Err(error)) => status(Err(error)),
                Some(Ok(action)) => {
                    let flags = action.flags & !(libc::SA_RESTART | INTERRUPTS);
                    let more = if interrupt == 0 { libc::SA_RESTART } else { INTERRUPTS };
                    let action = Action { flags: flags | more, ..action };
                    status(virtually(signal, Some(action), caller).map_or(Ok(()), |answer| answer.map(|_| ())))
                }
            }
        };
}

/// What this file defines in place of libc's.
pub(in crate::ledger) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

/// A flag that no `sigaction` knows: `siginterrupt` was called, and `signal` leaves `SA_RESTART`
/// out. libc has that for the whole process.
const INTERRUPTS: c_int = 0x0010_0000;

/// libc could not do it.
struct Failed(c_int);

fn status(done: Result<(), Failed>) -> c_int {
    match done {
        Ok(()) => 0,
        Err(Failed(error)) => errno::fail(error),
    }
}

/// Whose disposition code at `caller` means when it sets `handler`; none for the host's.
fn whose(handler: usize, caller: usize) -> Option<AccountId> {
    owner::of_caller(caller).or_else(|| ranges::lookup(handler))
}

/// Does for the account of the caller, or for the host, what libc would do for the process: gives
/// the old disposition. None when libc is to do it.
fn virtually(signal: c_int, new: Option<Action>, caller: usize) -> Option<Result<Action, Failed>> {
    if !is_free(signal) || process::place() != Place::Here {
        return None;
    }
    let table = table::of(signal)?;
    let account = whose(new.map_or(0, |new| new.handler), caller);
    // The kernel does not let these two be blocked.
    let unblockable = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);
    let new = new.map(|new| Action {
        mask: new.mask & !unblockable,
        ..new
    });
    Some(
        table
            .exchange(signal, account, new)
            .ok_or(Failed(libc::ENOMEM)),
    )
}

/// `sigaction`.
///
/// # Safety
/// As `sigaction(2)`; `real` is libc's.
unsafe fn change(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
    caller: usize,
    real: impl FnOnce(*const libc::sigaction, *mut libc::sigaction) -> c_int,
) -> c_int {
    // SAFETY: null or a valid action, says the caller; read before anything is written to `old`,
    // which may be the same.
    let asked = unsafe { new.as_ref() }.map(Action::from_c);
    if let Some(answer) = virtually(signal, asked, caller) {
        return status(answer.map(|action| {
            // SAFETY: null or room for an action, says the caller.
            if let Some(old) = unsafe { old.as_mut() } {
                let flags = action.flags & !INTERRUPTS;
                *old = Action { flags, ..action }.to_c();
            }
        }));
    }
    let answer = real(new, old);
    if answer == 0 && is_free(signal) {
        if let Some(asked) = asked {
            catch_up(signal, asked);
        }
        // SAFETY: null or room for an action, says the caller, and libc has filled it.
        if let Some(old) = unsafe { old.as_mut() } {
            // A forked child has the host's handler as long as nobody changed it.
            if deliver::is_ours(old.sa_sigaction) {
                *old = inherited(signal, caller).to_c();
            }
        }
    }
    answer
}

/// A library is being loaded by now, though none was when libc was asked: what was set is what the
/// host wants.
fn catch_up(signal: c_int, set: Action) {
    if process::place() == Place::Here
        && let Some(table) = table::of(signal)
    {
        table.host_set(signal, set);
    }
}

/// What a forked child has as the disposition that whoever is at `caller` had in the parent. Takes
/// no lock.
fn inherited(signal: c_int, caller: usize) -> Action {
    let Some(table) = table::of(signal) else {
        return Action::DEFAULT;
    };
    match owner::of_caller(caller) {
        None => table.host.action(),
        Some(account) => table
            .wish(account)
            .map_or(Action::DEFAULT, table::Wish::action),
    }
}

/// The flags and the mask that `signal` sets for a signal.
fn bsd(signal: c_int, before: &Action) -> Action {
    Action {
        handler: libc::SIG_DFL,
        flags: match before.flags & INTERRUPTS {
            0 => libc::SA_RESTART,
            kept => kept,
        },
        mask: 1 << (signal - 1),
    }
}

/// Those that System V's `signal` sets.
fn sysv(_: c_int, before: &Action) -> Action {
    Action {
        handler: libc::SIG_DFL,
        flags: libc::SA_RESETHAND | libc::SA_NODEFER | before.flags & INTERRUPTS,
        mask: 0,
    }
}

/// `signal` in one of its kinds.
fn simple(
    signal: c_int,
    kind: fn(c_int, &Action) -> Action,
    handler: sighandler_t,
    caller: usize,
    real: impl FnOnce() -> sighandler_t,
) -> sighandler_t {
    if handler == libc::SIG_ERR {
        return real();
    }
    // Its flags depend on what `siginterrupt` has said before.
    let before = match virtually(signal, None, caller) {
        Some(Ok(before)) => before,
        Some(Err(_)) | None => Action::DEFAULT,
    };
    if !is_free(signal) {
        return real();
    }
    let new = Action {
        handler,
        ..kind(signal, &before)
    };
    match virtually(signal, Some(new), caller) {
        Some(Ok(old)) => old.handler,
        Some(Err(error)) => {
            errno::set(error.0);
            libc::SIG_ERR
        }
        None => {
            let old = real();
            if old == libc::SIG_ERR {
                return old;
            }
            catch_up(signal, new);
            if deliver::is_ours(old) {
                inherited(signal, caller).handler
            } else {
                old
            }
        }
    }
}

/// `sigset`.
fn set(
    signal: c_int,
    handler: sighandler_t,
    caller: usize,
    real: impl FnOnce() -> sighandler_t,
) -> sighandler_t {
    if handler == libc::SIG_ERR || !is_free(signal) {
        return real();
    }
    let holds = handler == SIG_HOLD;
    let new = Action {
        handler,
        ..Action::DEFAULT
    };
    let old = match virtually(signal, (!holds).then_some(new), caller) {
        None => return real(),
        Some(Err(error)) => {
            errno::set(error.0);
            return libc::SIG_ERR;
        }
        Some(Ok(old)) => old.handler,
    };
    let this: sigset_t = masks::set(1 << (signal - 1));
    let how = if holds {
        libc::SIG_BLOCK
    } else {
        libc::SIG_UNBLOCK
    };
    let was = masks::change_for(caller, how, &this);
    if masks::bits(&was) & masks::bits(&this) != 0 {
        SIG_HOLD
    } else {
        old
    }
}

/// What the kernel has for `signal`, and with `new` is to have from now on. Past all accounts.
pub(super) fn kernel(signal: c_int, new: Option<Action>) -> Action {
    // SAFETY: the address is libc's function of that name, and the type is its signature.
    let change = unsafe { std::mem::transmute::<usize, Change>(SIGACTION.address()) };
    let new = new.map(|new| {
        Action {
            flags: new.flags & !INTERRUPTS,
            ..new
        }
        .to_c()
    });
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: null or a disposition that is the host's or the default one, and room for the old
    // one.
    unsafe {
        change(
            signal,
            new.as_ref().map_or(ptr::null(), ptr::from_ref),
            old.as_mut_ptr(),
        )
    };
    // SAFETY: zeroes are the default disposition, which libc has written over.
    Action::from_c(unsafe { old.assume_init_ref() })
}
