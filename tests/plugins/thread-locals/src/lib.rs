//! A library that registers everything with the C library that keeps a library from being unloaded:
//! destructors of thread-locals, a key of its own, std's and tokio's, threads, a signal handler. No
//! app of handover: the ledger's own test loads it.

use std::{
    cell::RefCell,
    ffi::{c_int, c_void},
    future::Future,
    mem::MaybeUninit,
    pin::pin,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use abi_stable::prefix_type::PrefixTypeTrait;

pub mod table;

use table::{Counts, Table, Table_Ref};

static COUNTS: OnceLock<&'static Counts> = OnceLock::new();
static RUNTIME: Mutex<Option<tokio::runtime::Runtime>> = Mutex::new(None);
/// Our own key plus one, zero before it is made.
static KEY: AtomicU32 = AtomicU32::new(0);

fn counts() -> &'static Counts {
    COUNTS.get().expect("start was called")
}

/// Tells when and where it ends.
struct Witness {
    thread: c_int,
}

fn tid() -> c_int {
    // SAFETY: has no preconditions.
    unsafe { libc::gettid() }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let counter = if self.thread == tid() {
            &counts().dropped
        } else {
            &counts().misplaced
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

thread_local! {
    static WITNESS: RefCell<Option<Witness>> = const { RefCell::new(None) };
    /// Its destructor makes a thread-local in turn.
    static LATE: Late = const { Late };
    /// Its destructor takes its time, after the thread's routine has returned.
    static SLOW: Slow = const { Slow };
}

struct Late;

impl Drop for Late {
    fn drop(&mut self) {
        thread_local!(static AFTER: RefCell<Option<Witness>> = const { RefCell::new(None) });
        let _ = AFTER.try_with(witness);
    }
}

struct Slow;

impl Drop for Slow {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(5));
        counts().ended.fetch_add(1, Ordering::SeqCst);
    }
}

fn witness(slot: &RefCell<Option<Witness>>) {
    slot.borrow_mut().get_or_insert_with(|| {
        counts().made.fetch_add(1, Ordering::SeqCst);
        Witness { thread: tid() }
    });
}

fn witnesses() {
    WITNESS.with(witness);
    LATE.with(|_| ());
}

extern "C" fn value_ends(_value: *mut c_void) {
    counts().values.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn start(counts: &'static Counts) {
    COUNTS.get_or_init(|| counts);
    let mut key = 0;
    // SAFETY: the destructor takes any value.
    let made = unsafe { libc::pthread_key_create(&mut key, Some(value_ends)) };
    assert_eq!(made, 0);
    KEY.store(key + 1, Ordering::SeqCst);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .on_thread_start(witnesses)
        .build()
        .expect("a runtime");
    *RUNTIME.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime);
}

extern "C" fn touch() {
    witnesses();
    let _ = std::thread::current().name().map(str::len);
    // SAFETY: `start` made the key; the value is never used as a pointer.
    unsafe {
        libc::pthread_setspecific(
            KEY.load(Ordering::SeqCst) - 1,
            std::ptr::dangling::<c_void>(),
        )
    };
    let handle = RUNTIME
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map(|runtime| runtime.handle().clone());
    if let Some(handle) = handle {
        let _within = handle.enter();
        let sleep = pin!(tokio::time::sleep(Duration::from_secs(60)));
        assert!(
            sleep
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_pending()
        );
    }
}

extern "C" fn spawn() {
    std::thread::Builder::new()
        .name("ender".into())
        .spawn(|| {
            SLOW.with(|_| ());
            witnesses();
        })
        .expect("a thread");
}

unsafe extern "C-unwind" {
    fn pthread_exit(value: *mut c_void) -> !;
}

extern "C-unwind" fn leave(_argument: *mut c_void) -> *mut c_void {
    witnesses();
    SLOW.with(|_| ());
    // SAFETY: nothing in this frame or the ones that called it waits to be dropped.
    unsafe { pthread_exit(std::ptr::null_mut()) }
}

extern "C" fn spawn_raw() {
    type Routine = extern "C" fn(*mut c_void) -> *mut c_void;
    // SAFETY: the two types differ in what may unwind through the call; the caller of the routine
    // is glibc, which may.
    let routine: Routine =
        unsafe { std::mem::transmute(leave as extern "C-unwind" fn(*mut c_void) -> *mut c_void) };
    let mut thread = MaybeUninit::uninit();
    // SAFETY: there is room for the thread, whose routine takes any argument; it is detached once.
    unsafe {
        let made = libc::pthread_create(
            thread.as_mut_ptr(),
            std::ptr::null(),
            routine,
            std::ptr::null_mut(),
        );
        assert_eq!(made, 0);
        libc::pthread_detach(thread.assume_init());
    }
}

extern "C" fn linger() {
    std::thread::Builder::new()
        .name("lingerer".into())
        .spawn(|| {
            while counts().release.load(Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            counts().ended.fetch_add(1, Ordering::SeqCst);
        })
        .expect("a thread");
}

extern "C" fn on_signal(_signal: c_int) {}

extern "C" fn handle_signal() -> bool {
    // SAFETY: all zeroes is an action with an empty mask.
    let mut new: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    new.sa_sigaction = on_signal as *const () as usize;
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the handler does nothing; there is room for the old action, which may be all zeroes
    // too.
    let old = unsafe {
        assert_eq!(libc::sigaction(libc::SIGUSR1, &new, old.as_mut_ptr()), 0);
        old.assume_init()
    };
    old.sa_sigaction != libc::SIG_DFL
}

extern "C" fn stop() {
    drop(
        RUNTIME
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(),
    );
}

#[abi_stable::export_root_module]
fn root() -> Table_Ref {
    Table {
        start,
        touch,
        spawn,
        spawn_raw,
        linger,
        handle_signal,
        stop,
    }
    .leak_into_prefix()
}
