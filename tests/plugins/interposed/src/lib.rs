//! Measures each function that the host puts before one of libc's, beside libc's own, on one thread
//! of a plugin.
//!
//! `GET /cost` gives lines of what was done and the nanoseconds of one call: libc's own function,
//! then the host's. A case is a pair of closures that do the same; to add one, add it to [`cases`].

use std::{
    ffi::{CStr, c_char, c_int},
    time::Instant,
};

use axum::{Router, routing::get};
use handover_plugin::{Context, Error};

/// How often a case is done in a row, and how many rows there are, of each of the two: the fastest
/// row counts.
const CALLS: u32 = 2000;
const ROWS: u32 = 30;

/// What is done, once by libc's own functions and once by those that a plugin is bound to.
struct Case {
    what: &'static str,
    libcs: Box<dyn FnMut()>,
    hosts: Box<dyn FnMut()>,
}

fn case(what: &'static str, libcs: impl FnMut() + 'static, hosts: impl FnMut() + 'static) -> Case {
    Case {
        what,
        libcs: Box::new(libcs),
        hosts: Box::new(hosts),
    }
}

/// libc's own function of this name, past what stands before it.
///
/// # Safety
/// `F` is the type of a pointer to it.
unsafe fn libcs<F: Copy>(name: &CStr) -> F {
    // SAFETY: opens what is open already, and looks up an address.
    let address = unsafe {
        let libc = libc::dlopen(c"libc.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        libc::dlsym(libc, name.as_ptr())
    };
    assert!(!address.is_null() && size_of::<F>() == size_of_val(&address));
    // SAFETY: the caller's promise.
    unsafe { std::mem::transmute_copy(&address) }
}

type Open = unsafe extern "C" fn(*const c_char, c_int, ...) -> c_int;
type OfOne = unsafe extern "C" fn(c_int) -> c_int;
type OfTwo = unsafe extern "C" fn(c_int, c_int) -> c_int;
type Fcntl = unsafe extern "C" fn(c_int, c_int, ...) -> c_int;

fn open_and_close(open: Open, close: OfOne) {
    // SAFETY: the path ends with a zero, and the descriptor is nobody else's.
    unsafe { close(open(c"/dev/null".as_ptr(), libc::O_RDONLY)) };
}

fn dup_and_close(dup: OfOne, close: OfOne, fd: c_int) {
    // SAFETY: the new descriptor is nobody else's.
    unsafe { close(dup(fd)) };
}

fn get_flags(fcntl: Fcntl) {
    // SAFETY: reads the flags of a descriptor.
    unsafe { fcntl(0, libc::F_GETFD) };
}

fn lock_and_unlock(flock: OfTwo, fd: c_int) {
    // SAFETY: a descriptor of this fixture.
    unsafe {
        flock(fd, libc::LOCK_EX);
        flock(fd, libc::LOCK_UN);
    }
}

fn lock(fcntl: Fcntl, fd: c_int, command: c_int, kind: c_int) {
    // SAFETY: a structure of integers, and a lock on a descriptor of this fixture.
    unsafe {
        let mut lock = std::mem::zeroed::<libc::flock>();
        lock.l_type = kind as _;
        lock.l_len = 1;
        assert_eq!(fcntl(fd, command, &raw mut lock), 0);
    }
}

fn file() -> c_int {
    let mut template = *b"/tmp/handover-interposed-XXXXXX\0";
    // SAFETY: the template is one, and the name ends with a zero.
    let fd = unsafe {
        let fd = libc::mkstemp(template.as_mut_ptr().cast());
        libc::unlink(template.as_ptr().cast());
        fd
    };
    assert!(fd >= 0);
    fd
}

fn cases() -> Vec<Case> {
    // SAFETY: the types are those of libc's functions.
    let (open, close, dup, flock, fcntl): (Open, OfOne, OfOne, OfTwo, Fcntl) = unsafe {
        (
            libcs(c"open"),
            libcs(c"close"),
            libcs(c"dup"),
            libcs(c"flock"),
            libcs(c"fcntl"),
        )
    };
    // One file for each of the two, so that neither's locks are the other's.
    let (one, other) = (file(), file());
    let (third, fourth) = (file(), file());
    vec![
        case(
            "open and close",
            move || open_and_close(open, close),
            || open_and_close(libc::open, libc::close),
        ),
        case(
            "dup and close",
            move || dup_and_close(dup, close, 0),
            || dup_and_close(libc::dup, libc::close, 0),
        ),
        case(
            "fcntl that is no lock",
            move || get_flags(fcntl),
            || get_flags(libc::fcntl),
        ),
        case(
            "flock and unlock",
            move || lock_and_unlock(flock, one),
            move || lock_and_unlock(libc::flock, one),
        ),
        case(
            "a record lock: set and released",
            move || {
                lock(fcntl, one, libc::F_SETLK, libc::F_WRLCK);
                lock(fcntl, one, libc::F_SETLK, libc::F_UNLCK);
            },
            move || {
                lock(libc::fcntl, other, libc::F_SETLK, libc::F_WRLCK);
                lock(libc::fcntl, other, libc::F_SETLK, libc::F_UNLCK);
            },
        ),
        case(
            "a record lock: asked for",
            move || lock(fcntl, one, libc::F_GETLK, libc::F_WRLCK),
            move || lock(libc::fcntl, other, libc::F_GETLK, libc::F_WRLCK),
        ),
        case(
            "dup and close while there are record locks",
            move || dup_and_close(dup, close, 0),
            || dup_and_close(libc::dup, libc::close, 0),
        ),
        case(
            "a record lock that ends by closing another descriptor",
            move || {
                lock(fcntl, third, libc::F_SETLK, libc::F_WRLCK);
                dup_and_close(dup, close, third);
            },
            move || {
                lock(libc::fcntl, fourth, libc::F_SETLK, libc::F_WRLCK);
                dup_and_close(libc::dup, libc::close, fourth);
            },
        ),
    ]
}

/// The nanoseconds of one call, of the fastest row.
fn measure(case: &mut Case) -> (f64, f64) {
    let (mut libcs, mut hosts) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROWS {
        for (does, fastest) in [(&mut case.libcs, &mut libcs), (&mut case.hosts, &mut hosts)] {
            let began = Instant::now();
            for _ in 0..CALLS {
                does();
            }
            *fastest = fastest.min(began.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS));
        }
    }
    (libcs, hosts)
}

/// Builds it.
#[handover_plugin::app]
async fn app(_: Context) -> Result<Router, Error> {
    Ok(Router::new().route(
        "/cost",
        get(|| async {
            let measured = tokio::task::spawn_blocking(|| {
                let mut lines = String::new();
                for mut case in cases() {
                    let (libcs, hosts) = measure(&mut case);
                    lines.push_str(&format!("{}\t{libcs:.0}\t{hosts:.0}\n", case.what));
                }
                lines
            });
            measured.await.unwrap_or_default()
        }),
    ))
}
