//! The threads that libraries started, or that were started for them: alive until the kernel says
//! otherwise.
//!
//! Whose a thread is depends on who made it, not on where its routine lies: C++ starts its threads
//! in libstdc++, and a C library that a plugin brought along starts its own. So the caller of
//! `pthread_create` is asked, and where that is neither the host nor a plugin, the thread that
//! calls ([`super::owner`]); threads that such a thread makes are the library's as well. Every
//! other thread that is made is entered in [`super::tasks`]: those that are in neither are
//! [`super::strangers`].
//!
//! A thread's start routine returning is not its end: glibc then runs the destructors of its
//! thread-locals, which are code of the library, and only then leaves to the kernel. Nothing that
//! runs on the thread itself can say that it is past that point. So the only question asked is
//! whether the kernel still knows the thread.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::{
    cell::Cell,
    ffi::c_void,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
};

use libc::{c_int, pthread_attr_t, pthread_t};

use super::{
    AccountId,
    interposed::{Real, Symbol, interposed},
    masks, owner, ranges,
    stack::{Modules, Seen},
    tasks::{self, Task},
};

/// One thread that a library started, or that was started for it.
struct Started {
    /// The account of the library.
    owner: AccountId,
    /// The kernel's number for it; [`NOT_YET`] until its first instruction, [`NEVER`] when it could
    /// not be created.
    tid: AtomicI32,
    /// When it entered its number, which is after it began.
    entered: AtomicU64,
    /// Its first function.
    routine: usize,
    /// The address of the code that made it; zero when that is not known.
    maker: usize,
}

const NOT_YET: i32 = 0;
const NEVER: i32 = -1;

impl Started {
    fn is_alive(&self) -> bool {
        match self.tid.load(Ordering::Acquire) {
            NOT_YET => true,
            NEVER => false,
            // A task that began later was given the number of this one after its end.
            tid => self.may_be_alive() && Task::look(tid).is_none_or(|task| self.is_task(task)),
        }
    }

    /// The same, for less: also when the kernel has given its number to another thread.
    fn may_be_alive(&self) -> bool {
        match self.tid.load(Ordering::Acquire) {
            NOT_YET => true,
            NEVER => false,
            tid => exists(tid),
        }
    }

    /// Whether the task with its number is this one.
    fn is_task(&self, task: Task) -> bool {
        task.began <= self.entered.load(Ordering::Relaxed)
    }

    /// The current thread is this one.
    fn enter(&self) {
        OWNER.set(self.owner);
        self.is(own_tid());
    }

    fn is(&self, tid: i32) {
        self.entered.store(tasks::now(), Ordering::Relaxed);
        self.tid.store(tid, Ordering::Release);
    }
}

/// All that may be alive, and some that are not: the dead are swept when the list has doubled.
struct List {
    started: Vec<Arc<Started>>,
    sweep_at: usize,
}

static LIST: Mutex<List> = Mutex::new(List {
    started: Vec::new(),
    sweep_at: 64,
});

thread_local! {
    /// The account of the library that started this thread, zero for none.
    static OWNER: Cell<AccountId> = const { Cell::new(0) };
}

/// The account of the library that started the current thread, zero for none.
pub(super) fn current_owner() -> AccountId {
    OWNER.get()
}

/// Whether `account`'s library started the current thread. Everything registered on such a thread
/// may go to libc: it runs when the thread ends, and the library is not quiet before that.
pub(super) fn current_is_of(account: AccountId) -> bool {
    OWNER.get() == account
}

/// A start routine with its argument. Unwinds: `pthread_exit` and cancellation do.
type Routine = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;

/// What C11 calls the start routine of a thread.
type C11Routine = unsafe extern "C-unwind" fn(*mut c_void) -> c_int;

interposed! {
    pthread_create / pthread_create_for / CREATE
        (thread: *mut pthread_t, attributes: *const pthread_attr_t, routine: Routine, argument: *mut c_void) -> c_int
        as unsafe extern "C-unwind" fn(*mut pthread_t, *const pthread_attr_t, Routine, *mut c_void) -> c_int,
        "r8", "x4", |real, caller| {
            let starting = starting(routine, argument, caller);
            // SAFETY: the caller's, but for the routine, which is ours with the argument made for
            // it, once.
            let answer = masks::without_others(starting.owner, || unsafe {
                real(thread, attributes, first, starting.argument())
            });
            if answer != 0 {
                starting.failed();
            }
            answer
        };
    thrd_create / thrd_create_for / C11_CREATE
        (thread: *mut pthread_t, routine: C11Routine, argument: *mut c_void) -> c_int
        as unsafe extern "C-unwind" fn(*mut pthread_t, C11Routine, *mut c_void) -> c_int,
        "rcx", "x3", |real, caller| {
            // SAFETY: the routine's answer is an int in the register where the pointer is expected,
            // and `first` hands that register on as it is; `thrd_create` is given `first` under
            // C11's type, so it reads an int again.
            let routine = unsafe { std::mem::transmute::<C11Routine, Routine>(routine) };
            let starting = starting(routine, argument, caller);
            // SAFETY: as above.
            let first = unsafe { std::mem::transmute::<Routine, C11Routine>(first as Routine) };
            // SAFETY: the caller's, but for the routine, which is ours with the argument made for
            // it, once.
            let answer = masks::without_others(starting.owner, || unsafe {
                real(thread, first, starting.argument())
            });
            if answer != 0 {
                starting.failed();
            }
            answer
        };
}

/// What `clone` calls on the new task.
type CloneRoutine = unsafe extern "C" fn(*mut c_void) -> c_int;
type CloneFn = unsafe extern "C" fn(
    CloneRoutine,
    *mut c_void,
    c_int,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut c_void,
) -> c_int;

static CLONE: Real = Real::new(c"clone");

/// Makes a task. One that is a thread of this process has no thread-locals of its own unless its
/// maker has made them, so nothing of the ledger may run on it: it is entered by the one who made
/// it, which is in a call or on a thread of the library until this returns.
///
/// The last three arguments are those that libc takes from its variable ones. Where the caller gave
/// none they are what happens to be in their places, here as in libc, and the kernel reads none
/// that `flags` does not ask for.
///
/// # Safety
/// As `clone(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clone(
    routine: CloneRoutine,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    parent_tid: *mut c_void,
    tls: *mut c_void,
    child_tid: *mut c_void,
) -> c_int {
    // SAFETY: the address is libc's function of that name, and the type is its signature with all
    // that it may read.
    let real = unsafe { std::mem::transmute::<usize, CloneFn>(CLONE.address()) };
    // SAFETY: the arguments of the caller, as they came.
    let answer = unsafe { real(routine, stack, flags, argument, parent_tid, tls, child_tid) };
    if answer > 0 && flags & libc::CLONE_THREAD != 0 {
        let routine = routine as *const () as usize;
        // The host itself never calls this.
        if let Some(owner) = ranges::lookup(routine).or_else(owner::current) {
            enter(owner, routine, 0).is(answer);
        }
    }
    answer
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    let mut symbols = symbols_with_caller();
    symbols.push((&CLONE, clone as *const () as usize));
    symbols
}

/// Whose a thread is that begins with `routine` and is made by code at `caller`.
fn owner_of(routine: usize, caller: usize) -> Option<AccountId> {
    owner::of_caller(caller)
        .or_else(|| ranges::lookup(routine))
        .or_else(|| {
            // The host's threads begin in the host. What seems to be made by it and does not was
            // made by the last act of a function of a library that the host has called, which jumps
            // there and leaves its own caller's address.
            if owner::is_host(caller) && !owner::is_host(routine) {
                owner::current()
            } else {
                None
            }
        })
}

/// What the first function of a thread is given.
struct First {
    routine: Routine,
    argument: *mut c_void,
    /// None when it is no library's.
    started: Option<Arc<Started>>,
}

/// A thread that is about to be created.
struct Starting {
    first: *mut First,
    /// Whose it is; none when it is no library's.
    owner: Option<AccountId>,
}

/// Enters a thread that is about to be created by code at `caller`: when it is a library's it
/// counts from now on.
fn starting(routine: Routine, argument: *mut c_void, caller: usize) -> Starting {
    let address = routine as usize;
    let owner = owner_of(address, caller);
    let started = owner.map(|owner| enter(owner, address, caller));
    let first = Box::into_raw(Box::new(First {
        routine,
        argument,
        started,
    }));
    Starting { first, owner }
}

/// Enters a thread of `owner`'s that has no number yet.
fn enter(owner: AccountId, routine: usize, maker: usize) -> Arc<Started> {
    let started = Arc::new(Started {
        owner,
        tid: AtomicI32::new(NOT_YET),
        entered: AtomicU64::new(0),
        routine,
        maker,
    });
    let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    if list.started.len() >= list.sweep_at {
        list.started.retain(|started| started.may_be_alive());
        list.sweep_at = 64.max(2 * list.started.len());
    }
    list.started.push(Arc::clone(&started));
    started
}

impl Starting {
    /// The argument for [`first`].
    fn argument(&self) -> *mut c_void {
        self.first.cast()
    }

    /// The thread could not be created.
    fn failed(self) {
        // SAFETY: made by `starting` with `Box::into_raw`; the thread that would have taken it does
        // not exist.
        let first = unsafe { Box::from_raw(self.first) };
        if let Some(started) = first.started {
            started.tid.store(NEVER, Ordering::Release);
        }
    }
}

/// The first function of every thread that is made by libc's names: enters its number and goes on
/// to its own.
///
/// Nothing here runs after the routine and nothing is left to drop, so that `pthread_exit` may
/// unwind through it.
///
/// # Safety
/// `argument` comes from [`Starting::argument`], once.
unsafe extern "C-unwind" fn first(argument: *mut c_void) -> *mut c_void {
    // SAFETY: the caller's promise; `pthread_create` calls this at most once.
    let (routine, argument) = unsafe { take(argument.cast()) };
    // SAFETY: the routine and the argument that were given to `pthread_create`. Where it is a
    // library's that is mapped: it counts this thread as its own, and is not unmapped while the
    // kernel knows the thread.
    unsafe { routine(argument) }
}

/// # Safety
/// `first` was made by [`starting`] and is taken by nobody else.
unsafe fn take(first: *mut First) -> (Routine, *mut c_void) {
    // SAFETY: the caller's promise.
    let first = unsafe { Box::from_raw(first) };
    match &first.started {
        Some(started) => started.enter(),
        None => tasks::begin(),
    }
    (first.routine, first.argument)
}

/// The current thread, which libc has started for it, is one of the library of `owner` from now on,
/// and calls `routine` of it.
pub(super) fn adopt(owner: AccountId, routine: usize) {
    enter(owner, routine, 0).enter();
}

/// A thread alive that was made for a library.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alive {
    pub(super) owner: AccountId,
    /// The kernel's number, zero when it has none yet.
    pub(super) tid: i32,
    /// Its first function.
    pub(super) routine: usize,
    entered: u64,
    maker: usize,
}

impl Alive {
    /// Whether the task of its number is this thread, and no later one that was given the same
    /// number.
    pub(super) fn is(&self, task: Task) -> bool {
        task.began <= self.entered
    }

    /// ``tid 4711 `cb` (started by libcb.so; on its stack: librdkafka.so.1)``, for people.
    pub(super) fn describe(&self, modules: &Modules) -> String {
        let maker = modules
            .name_at(self.maker)
            .map(|name| format!("started by {name}"));
        let on_stack = match modules.look(self.tid) {
            Seen::Waiting(waiting) => {
                let mut names = waiting.modules;
                names.retain(|name| !Modules::is_libc(name));
                (!names.is_empty()).then(|| format!("on its stack: {}", names.join(", ")))
            }
            Seen::Running | Seen::Nothing => None,
        };
        let more: Vec<_> = maker.into_iter().chain(on_stack).collect();
        let name = describe(self.tid);
        if more.is_empty() {
            name
        } else {
            format!("{name} ({})", more.join("; "))
        }
    }
}

/// The threads alive that the library of `account` started.
pub(super) fn alive(account: AccountId) -> Vec<Alive> {
    let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    list.started.retain(|started| {
        // Others are swept elsewhere: asking the kernel about each of them here would cost every
        // settling library.
        started.owner != account || started.is_alive()
    });
    list.of(|started| started.owner == account)
}

/// All threads that were made for libraries and may be alive.
pub(super) fn all() -> Vec<Alive> {
    LIST.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .of(|_| true)
}

impl List {
    fn of(&self, which: impl Fn(&Started) -> bool) -> Vec<Alive> {
        let started = self.started.iter().filter(|started| which(started));
        started
            .map(|started| Alive {
                owner: started.owner,
                tid: started.tid.load(Ordering::Acquire),
                routine: started.routine,
                entered: started.entered.load(Ordering::Relaxed),
                maker: started.maker,
            })
            .collect()
    }
}

/// The kernel's number of the current thread.
pub(super) fn own_tid() -> i32 {
    // SAFETY: has no preconditions. Asked anew each time, so that a forked child is not taken for
    // its parent.
    unsafe { libc::gettid() }
}

/// Whether the kernel still knows the thread `tid` of this process.
pub(super) fn exists(tid: i32) -> bool {
    // SAFETY: signal 0 is never delivered; only the existence of the thread is looked up.
    let answer = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, 0) };
    answer == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// `tid 4711 "tokio-rt-worker"`, for people.
pub(super) fn describe(tid: i32) -> String {
    match std::fs::read_to_string(format!("/proc/self/task/{tid}/comm")) {
        Ok(name) => format!("tid {tid} `{}`", name.trim_end()),
        Err(_) => format!("tid {tid}"),
    }
}
