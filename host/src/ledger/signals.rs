//! The signals of the process: what each library wants to be done on them, and the one handler of
//! the host that does it.
//!
//! A signal has one disposition in a process, and generations that share it would take it from each
//! other, chain to handlers that are unmapped by then, and leave a default behind that kills. So
//! each account has a disposition of its own for each signal, the default one at the beginning as
//! in a fresh process, and so has the host. What a library sets is entered there, and what it asks
//! for is answered from there: it never sees the host's handler nor another library's. The kernel
//! has the host's handler, which calls them all.
//!
//! - [`action`]: a disposition as a value
//! - [`table`]: the dispositions of all accounts, and what of them the kernel is told
//! - [`deliver`]: the host's handler
//! - [`last_words`]: what is said when a fault ends the process
//! - [`calls`]: the C functions that read and change dispositions
//!
//! What a library wants never reaches another: to ignore SIGPIPE, to reap children by ignoring
//! SIGCHLD, and to die by SIGTERM are wishes of its own. A forked child has its own dispositions,
//! which its calls reach past all this.

mod action;
mod calls;
mod deliver;
mod last_words;
mod table;

use libc::c_int;

pub(crate) use self::last_words::{End, LAST_WORDS, LastWords, tell_exits, tell_last_words};
pub(super) use self::{
    calls::symbols,
    deliver::ask_to_end,
    table::{Holding, forget, held, leave},
};

/// Signals are 1..=64 on Linux.
const SIGNALS: usize = 64;

/// Whether anybody may choose what `signal` does: SIGKILL and SIGSTOP are the kernel's, and two are
/// kept by the C library for itself.
fn is_free(signal: c_int) -> bool {
    (1..=SIGNALS as c_int).contains(&signal)
        && !matches!(signal, libc::SIGKILL | libc::SIGSTOP | 32 | 33)
}

/// What a signal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// A fault of the code that runs. Only whoever runs there can do something about it.
    Fault,
    /// Told from outside or by habit to end or stop the process, or ignored by default: without a
    /// listener it does what the host wants.
    Process,
    /// Its default ends the process, and whoever sends it expects a handler: once a library has had
    /// one it never ends the host again.
    Notice,
}

fn class(signal: c_int) -> Class {
    match signal {
        libc::SIGSEGV
        | libc::SIGBUS
        | libc::SIGFPE
        | libc::SIGILL
        | libc::SIGTRAP
        | libc::SIGSYS
        | libc::SIGABRT => Class::Fault,
        libc::SIGHUP
        | libc::SIGINT
        | libc::SIGQUIT
        | libc::SIGTERM
        | libc::SIGXCPU
        | libc::SIGXFSZ
        | libc::SIGTSTP
        | libc::SIGTTIN
        | libc::SIGTTOU
        | libc::SIGCONT
        | libc::SIGCHLD
        | libc::SIGURG
        | libc::SIGWINCH => Class::Process,
        _ => Class::Notice,
    }
}

/// `SIGUSR1 (10)`, for people.
pub(super) fn name(signal: c_int) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGCHLD => "SIGCHLD",
        libc::SIGURG => "SIGURG",
        libc::SIGVTALRM => "SIGVTALRM",
        libc::SIGPROF => "SIGPROF",
        libc::SIGIO => "SIGIO",
        _ => return format!("signal {signal}"),
    };
    format!("{name} ({signal})")
}
