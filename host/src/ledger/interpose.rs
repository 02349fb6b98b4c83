//! The C functions that plugins call instead of libc's.
//!
//! The executable exports them (`build.rs`), so the dynamic linker binds every library that is
//! loaded to them, and so does the static linker everything inside the host. They run before
//! `main`, on every thread, inside allocators, and in forked children: what is not of a plugin goes
//! on to libc without a lock and without an allocation. Each behaves for its caller exactly as
//! libc's.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::ffi::{c_int, c_void};

use libc::pthread_key_t;

use super::{
    interposed::{Real, Symbol},
    keys, owner, ranges, threads,
    tls_destructors::{self, Destructor},
};

type ThreadAtexit = unsafe extern "C" fn(Destructor, *mut c_void, *mut c_void) -> c_int;
type KeyCreate = unsafe extern "C" fn(*mut pthread_key_t, Option<Destructor>) -> c_int;
type KeyDelete = unsafe extern "C" fn(pthread_key_t) -> c_int;
type SetSpecific = unsafe extern "C" fn(pthread_key_t, *const c_void) -> c_int;

static THREAD_ATEXIT: Real = Real::new(c"__cxa_thread_atexit_impl");
static KEY_CREATE: Real = Real::new(c"pthread_key_create");
static KEY_DELETE: Real = Real::new(c"pthread_key_delete");
static SET_SPECIFIC: Real = Real::new(c"pthread_setspecific");

macro_rules! real {
    ($real:ident as $type:ty) => {
        // SAFETY: the address is libc's function of that name, and the type is its signature.
        unsafe { std::mem::transmute::<usize, $type>($real.address()) }
    };
}

/// libc's `pthread_key_delete`.
///
/// # Safety
/// The key exists.
pub(super) unsafe fn real_key_delete(key: pthread_key_t) -> c_int {
    let real = real!(KEY_DELETE as KeyDelete);
    // SAFETY: the caller's promise.
    unsafe { real(key) }
}

/// libc's `pthread_setspecific`.
///
/// # Safety
/// The key exists, and its destructor can bear the value.
pub(super) unsafe fn real_setspecific(key: pthread_key_t, value: *const c_void) -> c_int {
    let real = real!(SET_SPECIFIC as SetSpecific);
    // SAFETY: the caller's promise.
    unsafe { real(key, value) }
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    vec![
        (
            &THREAD_ATEXIT,
            __cxa_thread_atexit_impl as *const () as usize,
        ),
        (&KEY_CREATE, pthread_key_create as *const () as usize),
        (&KEY_DELETE, pthread_key_delete as *const () as usize),
        (&SET_SPECIFIC, pthread_setspecific as *const () as usize),
    ]
}

/// Registers the destructor of a thread-local of the current thread.
///
/// # Safety
/// As the Itanium C++ ABI's `__cxa_thread_atexit`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cxa_thread_atexit_impl(
    destructor: Destructor,
    object: *mut c_void,
    dso: *mut c_void,
) -> c_int {
    // `dso` is an address inside the library too: it tells whose a destructor is that lies in a
    // shared library.
    let owner = ranges::lookup(destructor as usize).or_else(|| ranges::lookup(dso as usize));
    if let Some(owner) = owner
        && !threads::current_is_of(owner)
        && tls_destructors::enter(owner, destructor, object)
    {
        return 0;
    }
    // Constructors of a library that is being loaded come here too: the thread that loads is the
    // loader's own and ends before the library is given to anybody.
    let real = real!(THREAD_ATEXIT as ThreadAtexit);
    // SAFETY: the arguments of the caller, as they came.
    unsafe { real(destructor, object, dso) }
}

/// Creates a thread-specific key.
///
/// # Safety
/// As `pthread_key_create(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_key_create(
    key: *mut pthread_key_t,
    destructor: Option<Destructor>,
) -> c_int {
    let real = real!(KEY_CREATE as KeyCreate);
    // SAFETY: the arguments of the caller, as they came.
    let answer = unsafe { real(key, destructor) };
    if answer == 0 {
        let destructor = destructor.map_or(0, |destructor| destructor as usize);
        let owner = ranges::lookup(destructor)
            .or_else(|| ranges::lookup(key as usize))
            .unwrap_or_else(owner::loading);
        // SAFETY: libc has just written the key there.
        keys::created(unsafe { *key }, owner, destructor, key as usize);
    }
    answer
}

/// The name under which libstdc++ knows `pthread_key_create`.
///
/// # Safety
/// As `pthread_key_create(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __pthread_key_create(
    key: *mut pthread_key_t,
    destructor: Option<Destructor>,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { pthread_key_create(key, destructor) }
}

/// Deletes a thread-specific key.
///
/// # Safety
/// As `pthread_key_delete(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_key_delete(key: pthread_key_t) -> c_int {
    // Before libc does it: right after that the number may be given to somebody else.
    keys::deleted(key);
    // SAFETY: the argument of the caller, as it came.
    unsafe { real_key_delete(key) }
}

/// Sets the current thread's value for a key.
///
/// # Safety
/// As `pthread_setspecific(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_setspecific(key: pthread_key_t, value: *const c_void) -> c_int {
    // Before libc has it: a value that nobody knows of is a jump into unmapped code when the thread
    // ends.
    if let Some(owner) = keys::owner(key)
        && !threads::current_is_of(owner)
    {
        tls_destructors::value_set(owner, key, !value.is_null());
    }
    // SAFETY: the arguments of the caller, as they came.
    unsafe { real_setspecific(key, value) }
}

/// What C11's threads answer.
const THRD_SUCCESS: c_int = 0;
const THRD_ERROR: c_int = 2;
const THRD_NOMEM: c_int = 3;

fn c11(answer: c_int) -> c_int {
    match answer {
        0 => THRD_SUCCESS,
        libc::ENOMEM | libc::EAGAIN => THRD_NOMEM,
        _ => THRD_ERROR,
    }
}

/// Creates a thread-specific key, by its C11 name.
///
/// # Safety
/// As `tss_create(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tss_create(
    key: *mut pthread_key_t,
    destructor: Option<Destructor>,
) -> c_int {
    // SAFETY: the caller's promise; `tss_t` is a `pthread_key_t`.
    c11(unsafe { pthread_key_create(key, destructor) })
}

/// Deletes a thread-specific key, by its C11 name.
///
/// # Safety
/// As `tss_delete(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tss_delete(key: pthread_key_t) {
    // SAFETY: the caller's promise.
    unsafe { pthread_key_delete(key) };
}

/// Sets the current thread's value for a key, by its C11 name.
///
/// # Safety
/// As `tss_set(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tss_set(key: pthread_key_t, value: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    c11(unsafe { pthread_setspecific(key, value) })
}
