//! Exports the ledger's functions from every executable that links this crate, so that the libraries it loads find them
//! before libc's: the binary and the tests of this package. See `src/ledger`, which defines them.

/// What `src/ledger/interpose.rs` and `src/ledger/openers.rs` define. `ledger::armed` checks at run time that the dynamic
/// linker really finds it.
const INTERPOSED: &[&str] = &[
    "__cxa_thread_atexit_impl",
    "pthread_key_create",
    "__pthread_key_create",
    "pthread_key_delete",
    "pthread_setspecific",
    "pthread_create",
    "thrd_create",
    "clone",
    "timer_create",
    "timer_delete",
    "aio_read",
    "aio_read64",
    "aio_write",
    "aio_write64",
    "aio_fsync",
    "aio_fsync64",
    "lio_listio",
    "lio_listio64",
    "getaddrinfo_a",
    "mq_notify",
    "tss_create",
    "tss_delete",
    "tss_set",
    "sigaction",
    "socket",
    "socketpair",
    "accept",
    "accept4",
    "open",
    "open64",
    "openat",
    "openat64",
    "epoll_create",
    "epoll_create1",
    "eventfd",
    "timerfd_create",
    "signalfd",
    "inotify_init",
    "inotify_init1",
    "memfd_create",
    "pipe",
    "pipe2",
    "dup",
    "dup2",
    "dup3",
    "fcntl",
    "fcntl64",
    "close",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        for symbol in INTERPOSED {
            println!("cargo::rustc-link-arg=-Wl,--export-dynamic-symbol={symbol}");
        }
    }
}
