//! The error of the current thread, as C functions leave it to their callers.

use std::ffi::c_int;

/// Returns the error of the current thread.
pub(super) fn get() -> c_int {
    // SAFETY: libc gives a valid pointer on every thread.
    unsafe { *libc::__errno_location() }
}

/// Sets the error of the current thread.
pub(super) fn set(error: c_int) {
    // SAFETY: libc gives a valid pointer on every thread.
    unsafe { *libc::__errno_location() = error }
}

/// Sets the error of the current thread and returns -1, as a C function that fails.
pub(super) fn fail(error: c_int) -> c_int {
    set(error);
    -1
}

/// Does something of which the caller of a C function is to see nothing.
pub(super) fn keeping<R>(does: impl FnOnce() -> R) -> R {
    let before = get();
    let answer = does();
    set(before);
    answer
}
