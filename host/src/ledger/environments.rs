//! An environment for each library: `getenv` and its relatives, and `environ` as the library sees
//! it.
//!
//! A process has one, and apps that share it would read each other's `DATABASE_URL`, and what an
//! old generation set. So each library has one of its own, which begins with the variables that its
//! app may have: what it sets is seen by nobody else, and is gone with it. What the C library reads
//! for itself (`TZ`, the locale, `popen`) stays that of the process.
//!
//! Read at any time, in signal handlers and in forked children too, so reading takes no lock: an
//! array is never written, but replaced by another. The old ones stay as long as the library does,
//! since C code may have pointers into them.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::{
    ffi::{CStr, CString, OsStr, OsString, c_char, c_int},
    os::unix::ffi::OsStrExt,
    ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicPtr, AtomicU64, Ordering},
    },
};

use super::{
    AccountId, errno,
    interposed::{Symbol, interposed},
    owner,
};

/// How many libraries can be mapped at once.
const CAPACITY: usize = 1024;

/// The environment of one library.
struct Environment {
    /// Zero while it is nobody's.
    owner: AtomicU64,
    /// What `environ` is to it: an array of strings that ends with a null pointer.
    environ: AtomicPtr<*const c_char>,
}

static ENVIRONMENTS: [Environment; CAPACITY] = [const {
    Environment {
        owner: AtomicU64::new(0),
        environ: AtomicPtr::new(ptr::null_mut()),
    }
}; CAPACITY];

/// What the environments point to, by their owners.
#[derive(Default)]
struct Kept {
    arrays: Vec<(AccountId, Box<[Text]>)>,
    strings: Vec<(AccountId, CString)>,
}

/// A string of an environment, or the null pointer at its end.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Text(*const c_char);

// SAFETY: it is read only, and lives as long as its library is mapped.
unsafe impl Send for Text {}

/// RetainReasons by who changes an environment.
static KEPT: Mutex<Kept> = Mutex::new(Kept {
    arrays: Vec::new(),
    strings: Vec::new(),
});

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

interposed! {
    getenv / getenv_for / GETENV (name: *const c_char) -> *mut c_char
        as unsafe extern "C-unwind" fn(*const c_char) -> *mut c_char,
        "rsi", "x1", |real, caller| {
            match of_caller(caller) {
                // SAFETY: a string, says the caller.
                Some(environment) => environment.get(unsafe { CStr::from_ptr(name) }),
                // SAFETY: the argument of the caller, as it came.
                None => unsafe { real(name) },
            }
        };
    secure_getenv / secure_getenv_for / SECURE_GETENV (name: *const c_char) -> *mut c_char
        as unsafe extern "C-unwind" fn(*const c_char) -> *mut c_char,
        "rsi", "x1", |real, caller| {
            match of_caller(caller) {
                // SAFETY: a string, says the caller. A host never has more rights than who started
                // it.
                Some(environment) => environment.get(unsafe { CStr::from_ptr(name) }),
                // SAFETY: the argument of the caller, as it came.
                None => unsafe { real(name) },
            }
        };
    setenv / setenv_for / SETENV (name: *const c_char, value: *const c_char, overwrite: c_int) -> c_int
        as unsafe extern "C-unwind" fn(*const c_char, *const c_char, c_int) -> c_int,
        "rcx", "x3", |real, caller| {
            let Some(environment) = of_caller(caller) else {
                // SAFETY: the arguments of the caller, as they came.
                return unsafe { real(name, value, overwrite) };
            };
            if name.is_null() {
                return errno::fail(libc::EINVAL);
            }
            // SAFETY: two strings, says the caller.
            let (name, value) = unsafe { (CStr::from_ptr(name), CStr::from_ptr(value)) };
            if !is_name(name.to_bytes()) {
                return errno::fail(libc::EINVAL);
            }
            if overwrite != 0 || environment.get(name).is_null() {
                environment.set(name.to_bytes(), Some(&[name.to_bytes(), b"=", value.to_bytes()].concat()));
            }
            0
        };
    unsetenv / unsetenv_for / UNSETENV (name: *const c_char) -> c_int
        as unsafe extern "C-unwind" fn(*const c_char) -> c_int,
        "rsi", "x1", |real, caller| {
            let Some(environment) = of_caller(caller) else {
                // SAFETY: the argument of the caller, as it came.
                return unsafe { real(name) };
            };
            if name.is_null() {
                return errno::fail(libc::EINVAL);
            }
            // SAFETY: a string, says the caller.
            let name = unsafe { CStr::from_ptr(name) }.to_bytes();
            if !is_name(name) {
                return errno::fail(libc::EINVAL);
            }
            environment.set(name, None);
            0
        };
    putenv / putenv_for / PUTENV (string: *mut c_char) -> c_int
        as unsafe extern "C-unwind" fn(*mut c_char) -> c_int,
        "rsi", "x1", |real, caller| {
            let Some(environment) = of_caller(caller) else {
                // SAFETY: the argument of the caller, as it came.
                return unsafe { real(string) };
            };
            // SAFETY: a string, says the caller.
            let text = unsafe { CStr::from_ptr(string) }.to_bytes();
            match text.iter().position(|byte| *byte == b'=') {
                // The string itself: it is the library's, or somebody's who works for it, and goes
                // with it at the earliest.
                Some(at) => environment.replace(&text[..at], Some(Text(string))),
                None => environment.set(text, None),
            }
            0
        };
    clearenv / clearenv_for / CLEARENV () -> c_int as unsafe extern "C-unwind" fn() -> c_int,
        "rdi", "x0", |real, caller| {
            match of_caller(caller) {
                Some(environment) => {
                    environment.keep(environment.owner(), kept(), Vec::new());
                    0
                }
                // SAFETY: has no arguments.
                None => unsafe { real() },
            }
        };
    execv / execv_for / EXECV (path: *const c_char, arguments: *const *const c_char) -> c_int
        as unsafe extern "C-unwind" fn(*const c_char, *const *const c_char) -> c_int,
        "rdx", "x2", |real, caller| {
            match of_caller(caller) {
                // SAFETY: the arguments of the caller, and an environment.
                Some(environment) => unsafe { libc::execve(path, arguments, environment.array()) },
                // SAFETY: the arguments of the caller, as they came.
                None => unsafe { real(path, arguments) },
            }
        };
    execvp / execvp_for / EXECVP (file: *const c_char, arguments: *const *const c_char) -> c_int
        as unsafe extern "C-unwind" fn(*const c_char, *const *const c_char) -> c_int,
        "rdx", "x2", |real, caller| {
            match of_caller(caller) {
                // SAFETY: the arguments of the caller, and an environment.
                Some(environment) => unsafe { libc::execvpe(file, arguments, environment.array()) },
                // SAFETY: the arguments of the caller, as they came.
                None => unsafe { real(file, arguments) },
            }
        };
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'=')
}

/// The environment of the library of `account`, if it has one.
fn of(account: AccountId) -> Option<&'static Environment> {
    ENVIRONMENTS
        .iter()
        .find(|environment| environment.owner.load(Ordering::SeqCst) == account)
}

/// The environment that code at `caller` means; none for the host's.
fn of_caller(caller: usize) -> Option<&'static Environment> {
    owner::of_caller(caller).and_then(of)
}

/// The name and the value of a string of an environment.
fn parts(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|byte| *byte == b'=') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

impl Environment {
    fn owner(&self) -> AccountId {
        self.owner.load(Ordering::SeqCst)
    }

    /// Its strings, which end with a null pointer.
    fn array(&self) -> *const *const c_char {
        self.environ.load(Ordering::SeqCst)
    }

    fn texts(&self) -> impl Iterator<Item = Text> {
        let array = self.array();
        (0..)
            // SAFETY: the array ends with a null pointer, and is there as long as its library,
            // which asks.
            .map(move |at| Text(unsafe { *array.add(at) }))
            .take_while(|text| !text.0.is_null())
    }

    /// The value of a variable; null without one.
    fn get(&self, name: &CStr) -> *mut c_char {
        let name = name.to_bytes();
        for Text(text) in self.texts() {
            // SAFETY: a string of an environment.
            let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
            if let (found, Some(_)) = parts(bytes)
                && found == name
            {
                // SAFETY: after the `=`, which is in the string.
                return unsafe { text.add(name.len() + 1) }.cast_mut();
            }
        }
        ptr::null_mut()
    }

    /// Replaces the variable `name` by a copy of `text`, or removes it.
    fn set(&self, name: &[u8], text: Option<&[u8]>) {
        // It came as strings of C, so there is no zero byte in it.
        let text = text.and_then(|text| CString::new(text).ok());
        let pointer = text.as_deref().map(|text| Text(text.as_ptr()));
        if let Some(text) = text {
            kept().strings.push((self.owner(), text));
        }
        self.replace(name, pointer);
    }

    /// Replaces the variable `name` by `text`, or removes it.
    fn replace(&self, name: &[u8], text: Option<Text>) {
        let kept = kept();
        let mut texts: Vec<_> = self
            .texts()
            // SAFETY: a string of an environment.
            .filter(|text| parts(unsafe { CStr::from_ptr(text.0) }.to_bytes()).0 != name)
            .collect();
        texts.extend(text);
        self.keep(self.owner(), kept, texts);
    }

    /// Has it be `texts` from now on.
    fn keep(&self, owner: AccountId, mut kept: MutexGuard<'_, Kept>, mut texts: Vec<Text>) {
        texts.push(Text(ptr::null()));
        let array = texts.into_boxed_slice();
        // A `Text` is a pointer.
        let pointer = array.as_ptr().cast_mut().cast::<*const c_char>();
        kept.arrays.push((owner, array));
        self.environ.store(pointer, Ordering::SeqCst);
    }
}

/// Gives the library of `account` an environment of its own, with `variables`. Returns the address
/// of what is `environ` to it; none when there is no room, and it has that of the process.
pub fn own_environment(
    account: AccountId,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Option<usize> {
    let strings: Vec<_> = variables
        .into_iter()
        .filter_map(|(name, value)| {
            let text = [name.as_bytes(), b"=", OsStr::as_bytes(&value)].concat();
            CString::new(text).ok()
        })
        .collect();
    let mut kept = kept();
    let environment = of(account).or_else(|| of(0))?;
    let texts = strings.iter().map(|text| Text(text.as_ptr())).collect();
    kept.strings
        .extend(strings.into_iter().map(|text| (account, text)));
    // It is there before anybody can find it.
    environment.keep(account, kept, texts);
    environment.owner.store(account, Ordering::SeqCst);
    Some(ptr::from_ref(&environment.environ).addr())
}

/// Forgets an account: its library is unmapped.
pub(super) fn forget(account: AccountId) {
    let mut kept = kept();
    if let Some(environment) = of(account) {
        environment.owner.store(0, Ordering::SeqCst);
    }
    kept.arrays.retain(|(owner, _)| *owner != account);
    kept.strings.retain(|(owner, _)| *owner != account);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn an_environment_is_what_was_set_and_nothing_else() {
        let account = AccountId::MAX - 21;
        let given = [("A", "1"), ("EMPTY", "")];
        let given = given.map(|(name, value)| (name.into(), value.into()));
        let address = own_environment(account, given).unwrap();
        let environment = of(account).unwrap();
        assert_eq!(address, ptr::from_ref(&environment.environ).addr());
        let get = |name: &CStr| {
            let value = environment.get(name);
            // SAFETY: null or a string.
            (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_owned())
        };
        assert_eq!(get(c"A").unwrap().as_c_str(), c"1");
        assert_eq!(get(c"EMPTY").unwrap().as_c_str(), c"");
        assert_eq!(get(c"PATH"), None);
        environment.set(b"A", Some(b"A=2"));
        environment.set(b"B", Some(b"B=x=y"));
        environment.set(b"EMPTY", None);
        assert_eq!(get(c"A").unwrap().as_c_str(), c"2");
        assert_eq!(get(c"B").unwrap().as_c_str(), c"x=y");
        assert_eq!(get(c"EMPTY"), None);
        assert_eq!(environment.texts().count(), 2);
        forget(account);
        assert!(of(account).is_none());
    }
}
