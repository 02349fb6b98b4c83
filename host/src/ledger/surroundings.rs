//! The working directory and the mask of new files: each is there once, for all.
//!
//! A library that wants to work in another folder is refused, since everybody would. The mask it
//! changes for everybody, as it would in a process of its own, and that is noted, so that people
//! are told whose change it was.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::{
    ffi::{CStr, c_char},
    sync::OnceLock,
};

use libc::{c_int, mode_t};

use super::{
    AccountId, errno,
    interposed::{Symbol, interposed},
    notes::{self, Changed},
    process::{self, Place},
    ranges,
};

interposed! {
    chdir / chdir_for / CHDIR (path: *const c_char) -> c_int
        as unsafe extern "C-unwind" fn(*const c_char) -> c_int,
        "rsi", "x1", |real, caller| {
            match process::changed_by(caller) {
                // SAFETY: the argument of the caller, as it came.
                None => unsafe { real(path) },
                Some(account) => {
                    // SAFETY: null or a string, says the caller.
                    let path = (!path.is_null()).then(|| unsafe { CStr::from_ptr(path) });
                    stay(account, path)
                }
            }
        };
    fchdir / fchdir_for / FCHDIR (folder: c_int) -> c_int as unsafe extern "C-unwind" fn(c_int) -> c_int,
        "rsi", "x1", |real, caller| {
            match process::changed_by(caller) {
                // SAFETY: the argument of the caller, as it came.
                None => unsafe { real(folder) },
                Some(account) => stay(account, None),
            }
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

/// Refuses to go to another folder: the host and all other apps would be there too.
fn stay(account: AccountId, to: Option<&CStr>) -> c_int {
    notes::note(account, Changed::WorkingDirectory, || match to {
        Some(path) => format!("wanted to go to {}", path.to_string_lossy()),
        None => "wanted to go to a folder that it has open".to_owned(),
    });
    errno::fail(libc::EPERM)
}

/// Notes that code at `caller` opens `path`, if that is a relative one: it means the folder that
/// the host was started in.
///
/// # Safety
/// `path` is null or a string.
pub(super) unsafe fn opens(path: *const c_char, caller: usize) {
    // SAFETY: the caller's promise.
    let Some(path) = (!path.is_null()).then(|| unsafe { CStr::from_ptr(path) }) else {
        return;
    };
    if path.to_bytes().starts_with(b"/") || path.is_empty() {
        return;
    }
    if let Some(account) = ranges::lookup(caller).filter(|_| process::place() == Place::Here) {
        notes::note(account, Changed::RelativePath, || {
            let folder = std::env::current_dir().unwrap_or_default();
            format!(
                "opened `{}`, which is in {}",
                path.to_string_lossy(),
                folder.display()
            )
        });
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
