//! Exports the ledger's functions from every executable that links this crate, so that the
//! libraries it loads find them before libc's, and what plugins ask the host for: the binary and
//! the tests of this package. See `src/ledger`, which defines them, and `src/loader/heap.rs`.

/// What the files of `src/ledger` define. `ledger::armed` checks at run time that the dynamic
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
    "__sigaction",
    "signal",
    "bsd_signal",
    "ssignal",
    "sysv_signal",
    "__sysv_signal",
    "sigset",
    "sigignore",
    "siginterrupt",
    "pthread_sigmask",
    "sigprocmask",
    "sighold",
    "sigrelse",
    "sigblock",
    "sigsetmask",
    "sigaltstack",
    "setitimer",
    "alarm",
    "ualarm",
    "getenv",
    "secure_getenv",
    "execv",
    "execvp",
    "setenv",
    "unsetenv",
    "putenv",
    "clearenv",
    "exit",
    "chdir",
    "fchdir",
    "umask",
    "bind",
    "listen",
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
    // closers.rs
    "close",
    "dup2",
    "dup3",
    "fclose",
    "freopen",
    "freopen64",
    "fcntl",
    "fcntl64",
    "lockf",
    "lockf64",
    "flock",
];

/// What plugins ask the host for by name: `src/loader/heap.rs`.
const ASKED: &[&str] = &["handover_heap"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        for symbol in INTERPOSED.iter().chain(ASKED) {
            println!("cargo::rustc-link-arg=-Wl,--export-dynamic-symbol={symbol}");
        }
    }
}
