//! The signals of a host and of its supervisor that do not ask for anything, and what they must not
//! do.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};

/// Signals that end a process by default and say nothing to a host. Somebody sends them out of
/// habit: `logrotate` sends SIGUSR1, a profiler SIGPROF, a shell's `kill` whatever was typed.
const MEANINGLESS: [i32; 9] = [
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGPIPE,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    // With a handler a write beyond the limit of file sizes fails, instead of ending the process.
    libc::SIGXFSZ,
];

/// Takes the signals that would end this process and mean nothing to it, for good.
///
/// # Errors
/// When a handler cannot be installed.
///
/// # Panics
/// Outside of a tokio runtime.
pub(crate) fn outlive() -> io::Result<()> {
    for number in MEANINGLESS {
        // A handler of tokio stays when nobody listens any more.
        drop(signal(SignalKind::from_raw(number))?);
    }
    // SIGRTMIN and SIGRTMAX as the C library has them: it keeps the first ones for itself.
    for number in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // A debugger or a profiler that the host runs under may keep one of them for itself, as
        // valgrind does.
        drop(signal(SignalKind::from_raw(number)));
    }
    Ok(())
}

/// Lets this thread, and those that it starts, write to a terminal that stops the output of
/// background processes.
pub(crate) fn let_background_write() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTTOU);
    // Fails only for a number that is no signal.
    let _ = signals.thread_block();
}

/// Returns the name of a signal: `SIGSEGV`, or `signal 34` for one without a name.
pub(crate) fn name(number: i32) -> String {
    Signal::try_from(number).map_or_else(
        |_| format!("signal {number}"),
        |signal| signal.as_str().to_owned(),
    )
}
