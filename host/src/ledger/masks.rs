//! What code of a library changes of the signals of a thread of the host: which are blocked, and
//! the stack that handlers run on.
//!
//! Both are the thread's own, and a worker of the host goes on to serve others. Libraries block a
//! signal around a call and unblock it after it (libpq and OpenSSL do, for SIGPIPE), so the change
//! itself is done as it is asked for. What a library has left blocked on a thread, or an alternate
//! stack in its own memory, is taken back when the thread is visited for the end of that library.
//! On threads of the library nothing is noted: they end before it does.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::{cell::Cell, ffi::c_void, mem::MaybeUninit, ptr};

use libc::{c_int, sigset_t, stack_t};

use super::{
    AccountId,
    interposed::{Symbol, interposed},
    process, threads, tls_destructors,
};

/// How many libraries can have something left on one thread at once. What more of them leave stays.
const AT_ONCE: usize = 16;

/// What one library has left on a thread.
#[derive(Clone, Copy)]
struct Trace {
    /// Zero for none.
    account: AccountId,
    /// The signals that it blocked and has not unblocked, a bit each.
    blocked: u64,
    /// The alternate stack that it gave, zero for none.
    stack: usize,
}

const NONE: Trace = Trace {
    account: 0,
    blocked: 0,
    stack: 0,
};

thread_local! {
    static TRACES: [Cell<Trace>; AT_ONCE] = const { [const { Cell::new(NONE) }; AT_ONCE] };
    /// The alternate stack that the thread had before any library gave it one.
    static OWN_STACK: Cell<Option<stack_t>> = const { Cell::new(None) };
}

type Mask = unsafe extern "C-unwind" fn(c_int, *const sigset_t, *mut sigset_t) -> c_int;

interposed! {
    pthread_sigmask / pthread_sigmask_for / PTHREAD_SIGMASK
        (how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *const sigset_t, *mut sigset_t) -> c_int,
        "rcx", "x3", |libc, caller| {
            // SAFETY: the arguments of the caller, as they came.
            noted(caller, || unsafe { libc(how, set, old) })
        };
    sigprocmask / sigprocmask_for / SIGPROCMASK
        (how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *const sigset_t, *mut sigset_t) -> c_int,
        "rcx", "x3", |libc, caller| {
            // SAFETY: the arguments of the caller, as they came.
            noted(caller, || unsafe { libc(how, set, old) })
        };
    sighold / sighold_for / SIGHOLD (signal: c_int) -> c_int as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |libc, caller| {
            // SAFETY: the argument of the caller, as it came.
            noted(caller, || unsafe { libc(signal) })
        };
    sigrelse / sigrelse_for / SIGRELSE (signal: c_int) -> c_int as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |libc, caller| {
            // SAFETY: the argument of the caller, as it came.
            noted(caller, || unsafe { libc(signal) })
        };
    sigblock / sigblock_for / SIGBLOCK (mask: c_int) -> c_int as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |libc, caller| {
            // SAFETY: the argument of the caller, as it came.
            noted(caller, || unsafe { libc(mask) })
        };
    sigsetmask / sigsetmask_for / SIGSETMASK (mask: c_int) -> c_int as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |libc, caller| {
            // SAFETY: the argument of the caller, as it came.
            noted(caller, || unsafe { libc(mask) })
        };
    sigaltstack / sigaltstack_for / SIGALTSTACK (stack: *const stack_t, old: *mut stack_t) -> c_int
        as unsafe extern "C-unwind" fn(*const stack_t, *mut stack_t) -> c_int,
        "rdx", "x2", |libc, caller| {
            // SAFETY: null or a stack, says the caller.
            let given = unsafe { stack.as_ref() }.map(|stack| stack.ss_sp as usize);
            let whose = given.and_then(|_| guest(caller));
            let before = whose.map(|_| alternate_stack());
            // SAFETY: the arguments of the caller, as they came.
            let answer = unsafe { libc(stack, old) };
            if answer == 0
                && let (Some(account), Some(before), Some(stack)) = (whose, before, given)
            {
                leave_stack(account, stack, before);
            }
            answer
        };
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

/// libc's `pthread_sigmask`; gives what was blocked before.
pub(super) fn real(how: c_int, set: Option<&sigset_t>) -> sigset_t {
    // SAFETY: the address is libc's function of that name, and the type is its signature.
    let mask = unsafe { std::mem::transmute::<usize, Mask>(PTHREAD_SIGMASK.address()) };
    let mut before = MaybeUninit::zeroed();
    // SAFETY: null or a set, and room for one.
    unsafe {
        mask(
            how,
            set.map_or(ptr::null(), ptr::from_ref),
            before.as_mut_ptr(),
        )
    };
    // SAFETY: zeroes are the empty set, which libc has written over.
    unsafe { before.assume_init() }
}

/// The signals of a set, the first one as the lowest bit: as the kernel has them.
pub(super) fn bits(set: &sigset_t) -> u64 {
    // SAFETY: a `sigset_t` is an array of words of 64 bits and begins with signals 1 to 64, as the
    // kernel has them.
    unsafe { ptr::from_ref(set).cast::<u64>().read() }
}

/// The set of those signals.
pub(super) fn set(bits: u64) -> sigset_t {
    // SAFETY: all zeroes is the empty set.
    let mut set = unsafe { MaybeUninit::<sigset_t>::zeroed().assume_init() };
    // SAFETY: as in `bits`.
    unsafe { ptr::from_mut(&mut set).cast::<u64>().write(bits) };
    set
}

/// The library that code at `caller` works for on this thread, when the thread is the host's.
fn guest(caller: usize) -> Option<AccountId> {
    if threads::current_owner() != 0 {
        return None;
    }
    process::changed_by(caller)
}

/// Does `change` and notes what it blocked or unblocked for a library on a thread of the host.
fn noted(caller: usize, change: impl FnOnce() -> c_int) -> c_int {
    let Some(account) = guest(caller) else {
        return change();
    };
    let before = bits(&real(libc::SIG_BLOCK, None));
    let answer = change();
    let after = bits(&real(libc::SIG_BLOCK, None));
    let (blocked, unblocked) = (after & !before, before & !after);
    if blocked != 0 {
        leave(account, |trace| trace.blocked |= blocked);
    }
    if unblocked != 0 {
        TRACES.with(|traces| {
            if let Some(trace) = traces.iter().find(|trace| trace.get().account == account) {
                let was = trace.get();
                trace.set(Trace {
                    blocked: was.blocked & !unblocked,
                    ..was
                });
            }
        });
    }
    answer
}

/// Changes which signals are blocked, for code at `caller`; gives what was blocked before.
pub(super) fn change_for(caller: usize, how: c_int, set: &sigset_t) -> sigset_t {
    let mut before = self::set(0);
    noted(caller, || {
        before = real(how, Some(set));
        0
    });
    before
}

/// Runs `start`, which starts a thread for `account` or for the host: it does not inherit what
/// other libraries have left blocked on this one.
pub(super) fn without_others<R>(account: Option<AccountId>, start: impl FnOnce() -> R) -> R {
    let blocked = TRACES.with(|traces| {
        let traces = traces.iter().map(Cell::get);
        let others = traces.filter(|trace| Some(trace.account) != account);
        others.fold(0, |bits, trace| bits | trace.blocked)
    });
    if blocked == 0 {
        return start();
    }
    let before = real(libc::SIG_UNBLOCK, Some(&set(blocked)));
    let started = start();
    real(libc::SIG_SETMASK, Some(&before));
    started
}

fn leave_stack(account: AccountId, stack: usize, before: stack_t) {
    let theirs = TRACES.with(|traces| {
        let stack = before.ss_sp as usize;
        stack != 0 && traces.iter().any(|trace| trace.get().stack == stack)
    });
    if !theirs {
        OWN_STACK.set(Some(before));
    }
    if OWN_STACK
        .get()
        .is_none_or(|own| own.ss_sp as usize != stack)
    {
        leave(account, |trace| trace.stack = stack);
    }
}

/// Notes something that the library of `account` leaves on this thread, to be taken back on a
/// visit.
fn leave(account: AccountId, change: impl FnOnce(&mut Trace)) {
    TRACES.with(|traces| {
        let known = traces.iter().find(|trace| trace.get().account == account);
        let trace = known.or_else(|| {
            let free = traces.iter().find(|trace| trace.get().account == 0)?;
            // Given to the visit as a number, not as an address.
            let object = ptr::without_provenance_mut(account as usize);
            tls_destructors::enter(account, take_back, object).then_some(free)
        });
        if let Some(trace) = trace {
            let mut new = Trace {
                account,
                ..trace.get()
            };
            change(&mut new);
            trace.set(new);
        }
    });
}

/// Takes back what the library of an account left on this thread. A destructor of a visit.
unsafe extern "C" fn take_back(account: *mut c_void) {
    let account = account.addr() as AccountId;
    let trace = TRACES.with(|traces| {
        let trace = traces.iter().find(|trace| trace.get().account == account);
        trace.map_or(NONE, |trace| trace.replace(NONE))
    });
    if trace.blocked != 0 {
        real(libc::SIG_UNBLOCK, Some(&set(trace.blocked)));
    }
    if trace.stack != 0 && alternate_stack().ss_sp as usize == trace.stack {
        let none = stack_t {
            ss_sp: ptr::null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: 0,
        };
        let mut own = OWN_STACK.get().unwrap_or(none);
        own.ss_flags &= libc::SS_DISABLE; // what else the kernel told is not to be asked for
        // SAFETY: the stack that this thread had before, which its owner keeps until the thread
        // ends, or none.
        unsafe { real_stack(&own, ptr::null_mut()) };
    }
}

/// The alternate stack of this thread.
fn alternate_stack() -> stack_t {
    let mut now = MaybeUninit::zeroed();
    // SAFETY: a null stack changes nothing; there is room for what is there.
    unsafe { real_stack(ptr::null(), now.as_mut_ptr()) };
    // SAFETY: zeroes are a valid stack, which libc has written over.
    unsafe { now.assume_init() }
}

/// libc's `sigaltstack`.
///
/// # Safety
/// As `sigaltstack(2)`.
unsafe fn real_stack(stack: *const stack_t, old: *mut stack_t) -> c_int {
    type Stack = unsafe extern "C-unwind" fn(*const stack_t, *mut stack_t) -> c_int;
    // SAFETY: the address is libc's function of that name, and the type is its signature.
    let libc = unsafe { std::mem::transmute::<usize, Stack>(SIGALTSTACK.address()) };
    // SAFETY: the caller's promise.
    unsafe { libc(stack, old) }
}
