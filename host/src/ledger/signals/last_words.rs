//! What a process says when a fault ends it: the signal, where it happened, and for whom its thread
//! worked.
//!
//! It is one line, sent by the host's handler to a descriptor that was chosen before: to the
//! supervisor, or into a file. The next host reads it. Nobody else knows where the fault was: the
//! parent of a process hears of the signal alone.

use std::{
    fmt::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use handover_api::{AppName, GenerationId};
use libc::c_int;

use super::{
    Class, SIGNALS, class, is_free,
    table::{self, Table},
};
use crate::ledger::{AccountId, call_slot, errno, owner, ranges};

/// What the line begins with.
pub(crate) const LAST_WORDS: &[u8] = b"X_HANDOVER_LAST_WORDS=";
/// The longest line. It lies on the alternate stack of a thread, which is small.
const LONGEST: usize = 320;

/// What the last words are written to, and whose they are.
struct Listener {
    descriptor: OwnedFd,
    /// Forked children have their own faults.
    pid: libc::pid_t,
}

static LISTENER: OnceLock<Listener> = OnceLock::new();
/// Said once: what follows a fault on the way to the end is not another reason.
static SAID: AtomicBool = AtomicBool::new(false);

/// What ends a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A signal.
    Signal(c_int),
    /// A call of `exit`.
    Exit(c_int),
}

impl Default for End {
    fn default() -> Self {
        Self::Exit(0)
    }
}

/// In the line codes lie above signals.
const EXIT: u64 = 0x100;

impl End {
    fn number(self) -> u64 {
        match self {
            Self::Signal(signal) => u64::from(signal.unsigned_abs()),
            // The kernel keeps as much of it.
            Self::Exit(code) => EXIT | u64::from(code as u8),
        }
    }

    fn of(number: u64) -> Self {
        let low = c_int::from(number as u8);
        if number & EXIT == 0 {
            Self::Signal(low)
        } else {
            Self::Exit(low)
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(signal) => f.write_str(signal.as_str()),
                Err(_) => write!(f, "signal {signal}"),
            },
            Self::Exit(code) => write!(f, "exit with code {code}"),
        }
    }
}

/// What was said when a fault, or a call of `exit`, ended a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastWords {
    /// What ends the process: a signal, or a call of `exit` with a code.
    pub end: End,
    /// Whether it was a fault of the code that ran, or a signal that the process sent itself.
    /// Otherwise somebody else sent it.
    pub is_own: bool,
    /// The address of the instruction; zero when that says nothing.
    pub instruction: u64,
    /// The address that was reached for; zero when that says nothing.
    pub address: u64,
    /// The library that was mapped at the address of the instruction; zero for none.
    pub code: AccountId,
    /// The library that was mapped at the address that was reached for; zero for none.
    pub data: AccountId,
    /// The library that the thread worked for; zero for none.
    pub account: AccountId,
    /// The call that the thread was in: the app, the generation, and what was asked for.
    pub call: Option<(AppName, GenerationId, String)>,
}

impl LastWords {
    /// Reads a line, with or without its beginning.
    pub fn parse(line: &str) -> Option<Self> {
        let beginning = std::str::from_utf8(LAST_WORDS).ok()?;
        let line = line.strip_prefix(beginning).unwrap_or(line).trim_end();
        let mut words = line.splitn(10, ' ');
        let mut number = || u64::from_str_radix(words.next()?, 16).ok();
        let (end, is_own) = (End::of(number()?), number()? == 1);
        let (instruction, address) = (number()?, number()?);
        let (code, data, account) = (number()?, number()?, number()?);
        let call = || {
            let app = words.next()?.parse().ok()?;
            let generation = GenerationId(words.next()?.parse().ok()?);
            Some((app, generation, words.next()?.to_owned()))
        };
        Some(Self {
            end,
            is_own,
            instruction,
            address,
            code,
            data,
            account,
            call: { call }(),
        })
    }
}

/// Where a fault happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) end: End,
    pub(super) is_own: bool,
    pub(super) instruction: usize,
    pub(super) address: usize,
}

/// A line without a heap.
struct Line {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        let fits = text.len().min(room.len());
        // What is cut off is the end of a path.
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        Ok(())
    }
}

/// Has the last words of this process written to `descriptor`, from now on. Once.
pub(crate) fn tell_last_words(descriptor: OwnedFd) {
    let listener = Listener {
        descriptor,
        pid: own_pid(),
    };
    if LISTENER.set(listener).is_err() {
        return;
    }
    for signal in (1..=SIGNALS as c_int).filter(|signal| is_free(*signal)) {
        if class(signal) == Class::Fault
            && let Some(table) = table::of(signal)
        {
            Table::watch(table, signal);
        }
    }
}

/// Tells of every call of `exit` in this process, which can only be one of a plugin, as of a fault.
/// With `fails` it ends with a failure whatever the plugin says: whoever starts the host again
/// takes 0 for an end that was meant.
pub(crate) fn tell_exits(fails: bool) {
    FAILS.store(fails, Ordering::Relaxed);
    extern "C" fn exits(status: c_int, _: *mut libc::c_void) {
        if LISTENER.get().is_none_or(|to| to.pid != own_pid()) {
            return;
        }
        say(Fault {
            end: End::Exit(status),
            is_own: true,
            instruction: 0,
            address: 0,
        });
        if status == 0 && FAILS.load(Ordering::Relaxed) {
            // SAFETY: ends the process, which is about to end anyway. Nothing of the host waits in
            // a buffer.
            unsafe { libc::_exit(EXITED) };
        }
    }
    // SAFETY: a function that is there as long as the process is. It fails without memory; then an
    // exit says nothing.
    unsafe { on_exit(exits, std::ptr::null_mut()) };
}

/// Whether a process in which a plugin calls `exit(0)` ends with [`EXITED`].
static FAILS: AtomicBool = AtomicBool::new(false);
/// That of a fault inside (`EX_SOFTWARE`).
const EXITED: c_int = 70;

unsafe extern "C" {
    /// `on_exit(3)`: as `atexit`, with the exit code.
    fn on_exit(
        function: extern "C" fn(c_int, *mut libc::c_void),
        argument: *mut libc::c_void,
    ) -> c_int;
}

fn own_pid() -> libc::pid_t {
    // SAFETY: has no preconditions.
    unsafe { libc::getpid() }
}

/// Says them, on the thread that ran into the fault. Neither blocks nor allocates.
pub(super) fn say(fault: Fault) {
    let Some(to) = LISTENER.get().filter(|to| to.pid == own_pid()) else {
        return;
    };
    if SAID.swap(true, Ordering::SeqCst) {
        return;
    }
    let mut line = Line {
        bytes: [0; LONGEST],
        length: 0,
    };
    let (is_own, account) = (u8::from(fault.is_own), owner::current().unwrap_or_default());
    let mapped = |address| ranges::lookup(address).unwrap_or_default();
    let (code, data) = (mapped(fault.instruction), mapped(fault.address));
    // Writing into a line cannot fail.
    let _ = line.write_str(std::str::from_utf8(LAST_WORDS).unwrap_or_default());
    let _ = write!(
        line,
        "{:x} {is_own:x} {:x} {:x} {code:x} {data:x} {account:x}",
        fault.end.number(),
        fault.instruction,
        fault.address
    );
    call_slot::current(|call| {
        let _ = write!(
            line,
            " {} {} {}",
            call.app.as_str(),
            call.generation.0,
            call.path()
        );
    });
    let bytes = &line.bytes[..line.length];
    errno::keeping(|| {
        let descriptor = to.descriptor.as_raw_fd();
        // SAFETY: the bytes are there. A listener that is gone costs an error, no signal.
        let sent = unsafe {
            libc::send(
                descriptor,
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        if sent < 0 && errno::get() == libc::ENOTSOCK {
            // SAFETY: the same bytes, to a file.
            unsafe { libc::pwrite(descriptor, bytes.as_ptr().cast(), bytes.len(), 0) };
        }
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn words_are_read_as_they_are_said() {
        let words =
            LastWords::parse("X_HANDOVER_LAST_WORDS=b 1 7f00 10 2a 0 2a shop 7 /a path\n").unwrap();
        let call = ("shop".parse().unwrap(), GenerationId(7), "/a path".into());
        assert_eq!(
            words,
            LastWords {
                end: End::Signal(libc::SIGSEGV),
                is_own: true,
                instruction: 0x7f00,
                address: 0x10,
                code: 42,
                data: 0,
                account: 42,
                call: Some(call),
            }
        );
        assert_eq!(
            LastWords::parse("100 0 0 0 0 0 0").unwrap(),
            LastWords::default()
        );
        assert_eq!(LastWords::parse("b 1 7f00 1 0 0"), None);
    }
}
