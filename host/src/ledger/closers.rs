//! The C functions that close descriptors, which ends record locks, and those that take locks.
//!
//! As long as no plugin has a record lock, closing costs one look more. What closes past these
//! (`close_range`, system calls, a stream that libc closes for itself) leaves the locks of the file
//! until its owner closes another descriptor of it, or ends.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::ffi::{c_char, c_int, c_long, c_void};

use super::{
    descriptors, errno,
    interposed::{Symbol, interposed},
    listeners, process, record_locks, refused_locks,
};

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

interposed! {
    close / close_for / CLOSE (fd: c_int) -> c_int
        as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |real, caller| {
            closing(fd, caller);
            descriptors::closing(fd);
            // SAFETY: the argument of the caller, as it came.
            unsafe { real(fd) }
        };
    dup2 / dup2_for / DUP2 (old: c_int, new: c_int) -> c_int
        as unsafe extern "C-unwind" fn(c_int, c_int) -> c_int,
        "rdx", "x2", |real, caller| {
            replacing(old, new, caller);
            // SAFETY: the arguments of the caller, as they came.
            let fd = unsafe { real(old, new) };
            if old != new {
                descriptors::opened(fd, caller);
            }
            fd
        };
    dup3 / dup3_for / DUP3 (old: c_int, new: c_int, flags: c_int) -> c_int
        as unsafe extern "C-unwind" fn(c_int, c_int, c_int) -> c_int,
        "rcx", "x3", |real, caller| {
            if flags & !libc::O_CLOEXEC == 0 {
                replacing(old, new, caller);
            }
            // SAFETY: the arguments of the caller, as they came.
            let fd = unsafe { real(old, new, flags) };
            descriptors::opened(fd, caller);
            fd
        };
    fclose / fclose_for / FCLOSE (stream: *mut libc::FILE) -> c_int
        as unsafe extern "C-unwind" fn(*mut libc::FILE) -> c_int,
        "rsi", "x1", |real, caller| {
            closing_stream(stream, caller);
            // SAFETY: the argument of the caller, as it came.
            unsafe { real(stream) }
        };
    freopen / freopen_for / FREOPEN
        (path: *const c_char, mode: *const c_char, stream: *mut libc::FILE) -> *mut libc::FILE
        as unsafe extern "C-unwind" fn(*const c_char, *const c_char, *mut libc::FILE) -> *mut libc::FILE,
        "rcx", "x3", |real, caller| {
            closing_stream(stream, caller);
            // SAFETY: the arguments of the caller, as they came.
            unsafe { real(path, mode, stream) }
        };
    freopen64 / freopen64_for / FREOPEN64
        (path: *const c_char, mode: *const c_char, stream: *mut libc::FILE) -> *mut libc::FILE
        as unsafe extern "C-unwind" fn(*const c_char, *const c_char, *mut libc::FILE) -> *mut libc::FILE,
        "rcx", "x3", |real, caller| {
            closing_stream(stream, caller);
            // SAFETY: the arguments of the caller, as they came.
            unsafe { real(path, mode, stream) }
        };
    fcntl / fcntl_for / FCNTL (fd: c_int, command: c_int, argument: c_long) -> c_int
        as unsafe extern "C" fn(c_int, c_int, ...) -> c_int,
        "rcx", "x3", |real, caller| controlled(real, fd, command, argument, caller);
    fcntl64 / fcntl64_for / FCNTL64 (fd: c_int, command: c_int, argument: c_long) -> c_int
        as unsafe extern "C" fn(c_int, c_int, ...) -> c_int,
        "rcx", "x3", |real, caller| controlled(real, fd, command, argument, caller);
    lockf / lockf_for / LOCKF (fd: c_int, command: c_int, length: libc::off_t) -> c_int
        as Lockf,
        "rcx", "x3", |real, caller| locked(real, fd, command, length, caller);
    lockf64 / lockf64_for / LOCKF64 (fd: c_int, command: c_int, length: libc::off_t) -> c_int
        as Lockf,
        "rcx", "x3", |real, caller| locked(real, fd, command, length, caller);
    flock / flock_for / FLOCK (fd: c_int, operation: c_int) -> c_int
        as unsafe extern "C-unwind" fn(c_int, c_int) -> c_int,
        "rdx", "x2", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            let answer = unsafe { real(fd, operation) };
            if answer != 0 && let Some(owner) = record_locks::owner_of(caller) {
                refused_locks::note(answer, fd, owner, "flock");
            }
            answer
        };
}

/// `fcntl`: record locks are the caller's, new descriptors are noted.
fn controlled(
    real: record_locks::Fcntl,
    fd: c_int,
    command: c_int,
    argument: c_long,
    caller: usize,
) -> c_int {
    let is_lock = matches!(command, libc::F_SETLK | libc::F_SETLKW | libc::F_GETLK);
    if is_lock && let Some(owner) = record_locks::owner_of(caller) {
        let lock = argument as *mut libc::flock;
        // SAFETY: with such a command the argument is a lock, says the caller. Nothing here is left
        // to drop when a cancellation unwinds.
        let answer = unsafe { record_locks::fcntl(real, fd, command, lock, owner) };
        // One for a part of the file is refused all the time, and waited for.
        // SAFETY: as above.
        if answer != 0 && command == libc::F_SETLK && unsafe { record_locks::is_of_all(lock) } {
            refused_locks::note(answer, fd, owner, "a record lock");
        }
        return answer;
    }
    // SAFETY: the arguments of the caller, as they came.
    let answer = unsafe { real(fd, command, argument) };
    if command == libc::F_DUPFD || command == libc::F_DUPFD_CLOEXEC {
        descriptors::opened(answer, caller);
    }
    answer
}

type Lockf = unsafe extern "C-unwind" fn(c_int, c_int, libc::off_t) -> c_int;

/// `lockf`: record locks are the caller's.
fn locked(real: Lockf, fd: c_int, command: c_int, length: libc::off_t, caller: usize) -> c_int {
    let Some(owner) = record_locks::owner_of(caller) else {
        // SAFETY: the arguments of the caller, as they came.
        return unsafe { real(fd, command, length) };
    };
    // SAFETY: nothing here is left to drop when a cancellation unwinds.
    let answer = unsafe { record_locks::lockf(libcs_fcntl(), fd, command, length, owner) };
    if command == libc::F_TLOCK && length == 0 {
        refused_locks::note(answer, fd, owner, "lockf");
    }
    answer
}

fn libcs_fcntl() -> record_locks::Fcntl {
    // SAFETY: the address is libc's function of that name, and the type is its signature.
    unsafe { std::mem::transmute::<usize, record_locks::Fcntl>(FCNTL.address()) }
}

/// Code at `caller` is about to close `fd`: the record locks of its owner on the file end,
/// whichever descriptor they were taken by. Before, because right after it another thread may have
/// new ones.
fn closing(fd: c_int, caller: usize) {
    if listeners::are_there()
        && let Some(owner) = process::changed_by(caller)
    {
        errno::keeping(|| listeners::closing(fd, owner));
    }
    if record_locks::any()
        && let Some(owner) = record_locks::owner_of(caller)
    {
        errno::keeping(|| {
            if let Some(status) = record_locks::status(fd) {
                record_locks::closing(owner, status.file);
            }
        });
    }
}

/// Code at `caller` is about to put a duplicate of `old` in the place of `new`, which closes that.
fn replacing(old: c_int, new: c_int, caller: usize) {
    if old != new && record_locks::any() {
        errno::keeping(|| {
            // SAFETY: reads the flags of a descriptor. Without an old one, nothing is closed.
            if unsafe { libc::fcntl(old, libc::F_GETFD) } >= 0 {
                closing(new, caller);
            }
        });
    }
}

/// Code at `caller` is about to close the descriptor of `stream`. What is buffered is written while
/// the locks are still there.
fn closing_stream(stream: *mut libc::FILE, caller: usize) {
    unsafe extern "C" {
        fn fflush(stream: *mut c_void) -> c_int;
    }
    if record_locks::any()
        && let Some(owner) = record_locks::owner_of(caller)
    {
        errno::keeping(|| {
            // SAFETY: the caller gives an open stream, and nobody else uses it any more.
            let status = record_locks::status(unsafe { libc::fileno(stream) });
            if let Some(status) = status
                && record_locks::has(owner, status.file)
            {
                // SAFETY: as above.
                unsafe { fflush(stream.cast()) };
                record_locks::closing(owner, status.file);
            }
        });
    }
}

/// libc's `close`.
///
/// # Safety
/// Nobody else uses the descriptor.
pub(super) unsafe fn real_close(fd: c_int) -> c_int {
    type Close = unsafe extern "C-unwind" fn(c_int) -> c_int;
    // SAFETY: the address is libc's function of that name, and the type is its signature.
    let real = unsafe { std::mem::transmute::<usize, Close>(CLOSE.address()) };
    // SAFETY: the caller's promise.
    unsafe { real(fd) }
}
