//! The host's handler: calls the handlers of all that listen, the host's own first.
//!
//! It runs on any thread, between any two instructions, so it takes no lock and allocates nothing.
//! Who hears a signal:
//! - all that listen, when it was sent to the process;
//! - nobody but the host, when it was sent to the process and is one that asks it to end: a library
//!   hears those when its generation is to end ([`ask_to_end`]);
//! - only the library that a thread belongs to, when it was sent to that thread and the library
//!   listens (one that comes before the thread has run its first instruction is heard by all);
//! - only the library that armed it, when it comes from an interval timer;
//! - for a fault, only the library whose code ran into it, or the one that its thread works for
//!   when it happened in the C library or in code that was made at run time. If that one does not
//!   listen, or nobody's code did it, the host's handler is called, and without one the process
//!   dies of that very signal.

use std::ffi::c_void;

use libc::{c_int, siginfo_t};

use super::{
    Class,
    action::Action,
    calls, class,
    last_words::{self, End, Fault},
    table::{self, Table, Wish},
};
use crate::ledger::{AccountId, errno, interval_timers, masks, owner, threads};

/// What the kernel calls.
type Handler = unsafe extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void);

/// The signals that ask a process to end, in the order in which a library is asked by them.
const ENDS: [c_int; 2] = [libc::SIGTERM, libc::SIGINT];

/// Asks the library of `account` to end as whoever stops a process does: calls its handler for
/// SIGTERM, or that for SIGINT if it has only that one, on this thread. Not both: a second one
/// means to end at once.
pub(in crate::ledger) fn ask_to_end(account: AccountId) {
    for number in ENDS {
        // SAFETY: all zeroes is a value of it.
        let mut info = unsafe { std::mem::MaybeUninit::<siginfo_t>::zeroed().assume_init() };
        info.si_signo = number;
        info.si_code = libc::SI_USER;
        // SAFETY: all zeroes is a value of it.
        let mut context =
            unsafe { std::mem::MaybeUninit::<libc::ucontext_t>::zeroed().assume_init() };
        let signal = Signal {
            number,
            info: &raw mut info,
            context: (&raw mut context).cast(),
        };
        if table::of(number).is_some_and(|table| signal.tell_one(table, account)) {
            return;
        }
    }
}

/// The address of the host's handler.
pub(super) fn address() -> usize {
    deliver as Handler as usize
}

/// Whether `handler` is the host's.
pub(super) fn is_ours(handler: usize) -> bool {
    handler == address()
}

/// Who hears a signal.
enum Audience {
    /// All that listen.
    All,
    /// The library that the thread belongs to; all, if it does not listen.
    Thread(AccountId),
    /// The library that armed the timer, and nobody if it does not listen any more.
    Timer(AccountId),
}

/// A signal as it came.
struct Signal {
    number: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
}

/// The handler that the kernel has for every signal that a library listens to. Unwinds when a
/// thread is cancelled in a handler of a library.
///
/// # Safety
/// For the kernel to call, with `SA_SIGINFO`.
unsafe extern "C-unwind" fn deliver(number: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let signal = Signal {
        number,
        info,
        context,
    };
    // What was interrupted may be about to read it.
    errno::keeping(|| {
        if let Some(table) = table::of(number) {
            match class(number) {
                Class::Fault => signal.fault(table),
                Class::Process | Class::Notice => signal.tell(table),
            }
        }
    });
}

impl Signal {
    /// Where the signal comes from, as `sigaction(2)` lists it.
    fn code(&self) -> c_int {
        // SAFETY: the kernel gives a handler with `SA_SIGINFO` what it knows of the signal.
        unsafe { (*self.info).si_code }
    }

    fn tell(&self, table: &Table) {
        match self.audience() {
            Audience::Thread(account) if self.tell_one(table, account) => return,
            Audience::Timer(account) => {
                self.tell_one(table, account);
                return;
            }
            Audience::Thread(_) | Audience::All => {}
        }
        let is_heard = self.call(&table.host, None);
        if ENDS.contains(&self.number) {
            // That a library listens does not keep the host from ending where it has no handler of
            // its own, as a preflight child.
            if !is_heard && table.host.action().handler == libc::SIG_DFL {
                self.die();
            }
            return;
        }
        for wish in table.wishes() {
            self.call(wish, None);
        }
    }

    fn tell_one(&self, table: &Table, account: AccountId) -> bool {
        let wish = table.wish(account);
        wish.is_some_and(|wish| self.call(wish, Some(account)))
    }

    fn audience(&self) -> Audience {
        let (account, audience): (_, fn(_) -> _) = match self.code() {
            libc::SI_TKILL | libc::SI_TIMER => (threads::current_owner(), Audience::Thread),
            // What an interval timer sends comes as from the kernel.
            libc::SI_KERNEL => (interval_timers::armed_by(self.number), Audience::Timer),
            _ => return Audience::All,
        };
        if account == 0 {
            Audience::All
        } else {
            audience(account)
        }
    }

    fn fault(&self, table: &Table) {
        // The kernel's codes are positive, but a process may send any signal.
        let is_real = self.code() > 0;
        let account = match self.counter() {
            Some(counter) if is_real => owner::of_caller(counter),
            _ => owner::current(),
        };
        if let Some(account) = account
            && let Some(wish) = table.wish(account)
        {
            // One that returns means that it has seen to it, and that the code goes on where it
            // was.
            if self.call(wish, Some(account)) {
                return;
            }
            if !is_real && wish.action().handler == libc::SIG_IGN {
                return;
            }
            // It takes its handler away and sends the signal to itself: it means to die of it.
            if !is_real && self.is_own() {
                self.say_last_words();
                self.die();
                return;
            }
        }
        self.say_last_words();
        // Whoever ends the process for it does so by aborting, on what is left of a small stack.
        calls::kernel(libc::SIGABRT, Some(Action::DEFAULT));
        if !self.call(&table.host, None) {
            self.die();
        }
    }

    fn say_last_words(&self) {
        let is_real = self.code() > 0;
        let address = || {
            // SAFETY: what the kernel found wrong says where.
            unsafe { (*self.info).si_addr() }.addr()
        };
        last_words::say(Fault {
            end: End::Signal(self.number),
            is_own: is_real || self.is_own(),
            instruction: self.counter().filter(|_| is_real).unwrap_or_default(),
            address: if is_real { address() } else { 0 },
        });
    }

    /// Whether this process sent it.
    fn is_own(&self) -> bool {
        // SAFETY: a signal that was sent by a process says which.
        let sender = unsafe { (*self.info).si_pid() };
        // SAFETY: has no preconditions.
        sender == unsafe { libc::getpid() }
    }

    /// The address of the instruction that was interrupted.
    fn counter(&self) -> Option<usize> {
        // SAFETY: null, or the context of what was interrupted, which is what the kernel gives a
        // handler with `SA_SIGINFO`.
        let context = unsafe { self.context.cast::<libc::ucontext_t>().as_ref() }?;
        #[cfg(target_arch = "x86_64")]
        let counter = context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize;
        #[cfg(target_arch = "aarch64")]
        let counter = context.uc_mcontext.pc as usize;
        Some(counter)
    }

    /// Calls the handler of a wish; whether it has one.
    fn call(&self, wish: &Wish, account: Option<AccountId>) -> bool {
        wish.call(account, |handler| {
            // SAFETY: an address that was set as a handler for this signal. One that takes the
            // number only does not look at the other two registers. Its library is mapped: `wish`
            // counts the call, and nothing is unmapped while it does (`table::held`).
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            // SAFETY: called as the kernel would, with what it gave.
            unsafe { handler(self.number, self.info, self.context) };
        })
    }

    /// Ends the process by this signal. Returns when that is to happen where it came from.
    fn die(&self) {
        calls::kernel(self.number, Some(Action::DEFAULT));
        let comes_again = matches!(
            self.number,
            libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL
        );
        if comes_again && self.code() > 0 {
            return; // the same instruction runs again, and a dump shows it
        }
        // SAFETY: sends the signal to this very thread.
        unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                libc::getpid(),
                threads::own_tid(),
                self.number,
            )
        };
        let this = masks::set(1 << (self.number - 1));
        masks::real(libc::SIG_UNBLOCK, Some(&this));
    }
}
