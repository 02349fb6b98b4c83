//! The environment, the working directory and the mask of new files: each is there once, for all.
//!
//! A library changes them for everybody, as it would in a process of its own. That is done as it is
//! asked for, and noted, so that people are told whose change it was; but the environment never
//! keeps a string that lies in a library, which would be read after that is unmapped.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::{
    borrow::Cow,
    ffi::{CStr, c_char},
    sync::OnceLock,
};

use libc::{c_int, mode_t};

use super::{
    AccountId,
    interposed::{Symbol, interposed},
    notes::{self, Changed},
    process,
};

interposed! {
    setenv / setenv_for / SETENV (name: *const c_char, value: *const c_char, overwrite: c_int) -> c_int
        as unsafe extern "C-unwind" fn(*const c_char, *const c_char, c_int) -> c_int,
        "rcx", "x3", |real, caller| {
            // SAFETY: the arguments of the caller, as they came: libc copies both strings.
            let answer = unsafe { real(name, value, overwrite) };
            if answer == 0 && let Some(account) = process::changed_by(caller) {
                // SAFETY: libc has just read it as a string.
                environment(account, "set", unsafe { CStr::from_ptr(name) });
            }
            answer
        };
    unsetenv / unsetenv_for / UNSETENV (name: *const c_char) -> c_int
        as unsafe extern "C-unwind" fn(*const c_char) -> c_int,
        "rsi", "x1", |real, caller| {
            // SAFETY: the argument of the caller, as it came.
            let answer = unsafe { real(name) };
            if answer == 0 && let Some(account) = process::changed_by(caller) {
                // SAFETY: libc has just read it as a string.
                environment(account, "removed", unsafe { CStr::from_ptr(name) });
            }
            answer
        };
    putenv / putenv_for / PUTENV (string: *mut c_char) -> c_int
        as unsafe extern "C-unwind" fn(*mut c_char) -> c_int,
        "rsi", "x1", |real, caller| {
            let Some(account) = process::changed_by(caller) else {
                // SAFETY: the argument of the caller, as it came.
                return unsafe { real(string) };
            };
            // SAFETY: a string, says the caller.
            let text = unsafe { CStr::from_ptr(string) };
            let answer = match put(text) {
                Some(answer) => answer,
                // SAFETY: the argument of the caller, as it came; libc keeps no string without a
                // value.
                None => unsafe { real(string) },
            };
            if answer == 0 {
                environment(account, "set", text);
            }
            answer
        };
    clearenv / clearenv_for / CLEARENV () -> c_int as unsafe extern "C-unwind" fn() -> c_int,
        "rdi", "x0", |real, caller| {
            // SAFETY: has no arguments.
            let answer = unsafe { real() };
            if answer == 0 && let Some(account) = process::changed_by(caller) {
                notes::note(account, Changed::Environment, || "removed all variables".to_owned());
            }
            answer
        };
    chdir / chdir_for / CHDIR (path: *const c_char) -> c_int
        as unsafe extern "C-unwind" fn(*const c_char) -> c_int,
        "rsi", "x1", |real, caller| {
            // SAFETY: the argument of the caller, as it came.
            let answer = unsafe { real(path) };
            moved(answer, caller);
            answer
        };
    fchdir / fchdir_for / FCHDIR (folder: c_int) -> c_int as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |real, caller| {
            // SAFETY: the argument of the caller, as it came.
            let answer = unsafe { real(folder) };
            moved(answer, caller);
            answer
        };
    umask / umask_for / UMASK (mask: mode_t) -> mode_t as unsafe extern "C-unwind" fn(mode_t) -> mode_t,
        "rsi", "x1", |real, caller| {
            // SAFETY: the argument of the caller, as it came.
            let old = unsafe { real(mask) };
            if let Some(account) = process::changed_by(caller) {
                notes::note(account, Changed::FileMask, || format!("set it to {mask:03o}"));
            }
            old
        };
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

/// `putenv` of a copy: as libc's, but what is written to the string afterwards changes nothing.
/// None when it has no name with a value, and is for libc to judge.
fn put(text: &CStr) -> Option<c_int> {
    type Set = unsafe extern "C-unwind" fn(*const c_char, *const c_char, c_int) -> c_int;
    type Put = unsafe extern "C-unwind" fn(*mut c_char) -> c_int;
    let bytes = text.to_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    if at == 0 {
        // `setenv` takes no empty name, and `putenv` does.
        // SAFETY: the address is libc's function of that name, and the type is its signature.
        let put = unsafe { std::mem::transmute::<usize, Put>(PUTENV.address()) };
        // SAFETY: a string that lives for ever.
        return Some(unsafe { put(text.to_owned().into_raw()) });
    }
    let name = [&bytes[..at], &[0]].concat();
    let value = &text.to_bytes_with_nul()[at + 1..];
    // SAFETY: the address is libc's function of that name, and the type is its signature.
    let set = unsafe { std::mem::transmute::<usize, Set>(SETENV.address()) };
    // SAFETY: two strings that end with a zero byte, of which libc makes copies; the same ones
    // again for the same value.
    Some(unsafe { set(name.as_ptr().cast(), value.as_ptr().cast(), 1) })
}

/// Notes a change of the environment, by the name of the variable: its value may be a secret.
fn environment(account: AccountId, what: &str, text: &CStr) {
    notes::note(account, Changed::Environment, || {
        let text = text.to_string_lossy();
        let name: Cow<'_, str> = match text.split_once('=') {
            Some((name, _)) => name.to_owned().into(),
            None => text,
        };
        format!("{what} `{name}`")
    });
}

/// Notes where the process is now, if `answer` says that code at `caller` moved it.
fn moved(answer: c_int, caller: usize) {
    if answer == 0
        && let Some(account) = process::changed_by(caller)
    {
        notes::note(
            account,
            Changed::WorkingDirectory,
            || match std::env::current_dir() {
                Ok(folder) => format!("went to {}", folder.display()),
                Err(_) => "went to a folder that is gone".to_owned(),
            },
        );
    }
}

/// The mask of new files before the first library was loaded, if the kernel tells.
static FILE_MASK: OnceLock<Option<String>> = OnceLock::new();

/// Notes what was there before any library. Called before each load.
pub(super) fn note_start() {
    FILE_MASK.get_or_init(file_mask);
}

/// Whether the mask of new files is another one than before the first library.
pub(super) fn file_mask_is_changed() -> bool {
    FILE_MASK.get().is_some_and(|before| *before != file_mask())
}

/// The mask of new files, as the kernel writes it. To ask libc for it is to change it.
fn file_mask() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))?;
    Some(line.trim().to_owned())
}
