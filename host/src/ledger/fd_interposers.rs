//! The C functions that give out descriptors. Those that also close one are in [`super::closers`].
//!
//! What is not of a plugin costs a look at the table of ranges on top of the system call, and
//! nothing on the way of a request, which opens nothing.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::{
    descriptors,
    interposed::{Symbol, interposed},
    surroundings,
};

/// Defines functions that give out descriptors: [`interposed!`] with what to do with the answer.
macro_rules! interposed_openings {
    ($($name:ident / $inner:ident / $real:ident ($($argument:ident: $type:ty),*) as $signature:ty,
        $x86_64:literal, $aarch64:literal, |$answer:ident, $caller:ident| $then:expr;)*) => {
        interposed! {
            $($name / $inner / $real ($($argument: $type),*) -> c_int as $signature,
                $x86_64, $aarch64, |real, $caller| {
                    // SAFETY: the arguments of the caller, as they came.
                    let $answer = unsafe { real($($argument),*) };
                    $then;
                    $answer
                };)*
        }
    };
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

interposed_openings! {
    socket / socket_for / SOCKET (domain: c_int, kind: c_int, protocol: c_int)
        as unsafe extern "C-unwind" fn(c_int, c_int, c_int) -> c_int,
        "rcx", "x3", |fd, caller| descriptors::opened(fd, caller);
    socketpair / socketpair_for / SOCKETPAIR (domain: c_int, kind: c_int, protocol: c_int, pair: *mut c_int)
        as unsafe extern "C-unwind" fn(c_int, c_int, c_int, *mut c_int) -> c_int,
        "r8", "x4", |answer, caller| both(answer, pair, caller);
    open / open_for / OPEN (path: *const c_char, flags: c_int, mode: c_uint)
        as unsafe extern "C" fn(*const c_char, c_int, ...) -> c_int,
        "rcx", "x3", |fd, caller| {
            descriptors::opened(fd, caller);
            if fd >= 0 {
                // SAFETY: libc has just read it as a string.
                unsafe { surroundings::opens(path, caller) };
            }
        };
    open64 / open64_for / OPEN64 (path: *const c_char, flags: c_int, mode: c_uint)
        as unsafe extern "C" fn(*const c_char, c_int, ...) -> c_int,
        "rcx", "x3", |fd, caller| {
            descriptors::opened(fd, caller);
            if fd >= 0 {
                // SAFETY: libc has just read it as a string.
                unsafe { surroundings::opens(path, caller) };
            }
        };
    openat / openat_for / OPENAT (folder: c_int, path: *const c_char, flags: c_int, mode: c_uint)
        as unsafe extern "C" fn(c_int, *const c_char, c_int, ...) -> c_int,
        "r8", "x4", |fd, caller| descriptors::opened(fd, caller);
    openat64 / openat64_for / OPENAT64 (folder: c_int, path: *const c_char, flags: c_int, mode: c_uint)
        as unsafe extern "C" fn(c_int, *const c_char, c_int, ...) -> c_int,
        "r8", "x4", |fd, caller| descriptors::opened(fd, caller);
    epoll_create / epoll_create_for / EPOLL_CREATE (size: c_int)
        as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |fd, caller| descriptors::opened(fd, caller);
    epoll_create1 / epoll_create1_for / EPOLL_CREATE1 (flags: c_int)
        as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |fd, caller| descriptors::opened(fd, caller);
    eventfd / eventfd_for / EVENTFD (value: c_uint, flags: c_int)
        as unsafe extern "C-unwind" fn(c_uint, c_int) -> c_int,
        "rdx", "x2", |fd, caller| descriptors::opened(fd, caller);
    timerfd_create / timerfd_create_for / TIMERFD_CREATE (clock: c_int, flags: c_int)
        as unsafe extern "C-unwind" fn(c_int, c_int) -> c_int,
        "rdx", "x2", |fd, caller| descriptors::opened(fd, caller);
    signalfd / signalfd_for / SIGNALFD (old: c_int, mask: *const c_void, flags: c_int)
        as unsafe extern "C-unwind" fn(c_int, *const c_void, c_int) -> c_int,
        "rcx", "x3", |fd, caller| if fd != old { descriptors::opened(fd, caller) };
    inotify_init / inotify_init_for / INOTIFY_INIT ()
        as unsafe extern "C-unwind" fn() -> c_int,
        "rdi", "x0", |fd, caller| descriptors::opened(fd, caller);
    inotify_init1 / inotify_init1_for / INOTIFY_INIT1 (flags: c_int)
        as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |fd, caller| descriptors::opened(fd, caller);
    memfd_create / memfd_create_for / MEMFD_CREATE (name: *const c_char, flags: c_uint)
        as unsafe extern "C-unwind" fn(*const c_char, c_uint) -> c_int,
        "rdx", "x2", |fd, caller| descriptors::opened(fd, caller);
    pipe / pipe_for / PIPE (pair: *mut c_int)
        as unsafe extern "C-unwind" fn(*mut c_int) -> c_int,
        "rsi", "x1", |answer, caller| both(answer, pair, caller);
    pipe2 / pipe2_for / PIPE2 (pair: *mut c_int, flags: c_int)
        as unsafe extern "C-unwind" fn(*mut c_int, c_int) -> c_int,
        "rdx", "x2", |answer, caller| both(answer, pair, caller);
    dup / dup_for / DUP (old: c_int)
        as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |fd, caller| descriptors::opened(fd, caller);
}

/// Two descriptors at once.
fn both(answer: c_int, pair: *mut c_int, caller: usize) {
    if answer == 0 {
        // SAFETY: the caller gave room for two, and libc has filled it.
        let [one, two] = unsafe { *pair.cast::<[c_int; 2]>() };
        descriptors::opened(one, caller);
        descriptors::opened(two, caller);
    }
}
