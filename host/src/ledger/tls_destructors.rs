//! The host's own threads: what each of them still has to run for which library, and the running of
//! it.
//!
//! A thread-local lives on one thread and its destructor must run there. libc would run it when the
//! thread ends, which workers of the host do not do before the host ends, and keep the library
//! mapped until then. So what a library registers on a thread that is not its own is written down
//! here, and run when the thread is visited ([`here`]), or when it ends before that, whichever
//! comes first.

use std::{
    cell::Cell,
    ffi::c_void,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use libc::pthread_key_t;

use super::{AccountId, Call, enter_call, interpose, interposed, keys, owner, threads};

/// A destructor of a thread-local or of a key's value.
pub(super) type Destructor = unsafe extern "C" fn(*mut c_void);

/// How often a visit begins anew because destructors registered new ones. libc stops after 4 rounds
/// for keys.
const ROUNDS: usize = 64;

/// A destructor that a library registered for a thread-local of one thread.
struct Entry {
    owner: AccountId,
    destructor: Destructor,
    object: *mut c_void,
}

// SAFETY: `object` is only ever used by the thread that entered it (`run` takes entries of the
// current thread only); others look at `owner`.
unsafe impl Send for Entry {}

/// One thread of the host that is a worker, or that ran code of a plugin.
struct HostThread {
    tid: i32,
    /// Its number, if it was marked as a worker.
    worker: Option<usize>,
    state: Mutex<State>,
    /// One bit for each key of a plugin that this thread has a value for. A bit too many costs a
    /// visit, nothing more.
    values: [AtomicU64; keys::MAX / 64],
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    /// Whose destructor is running now.
    running: Option<AccountId>,
    /// Every library that registered something here since the thread began, as long as its account
    /// is open.
    touched: Vec<AccountId>,
    /// The thread is on its way out: it has run what it had, the kernel still knows it.
    ending: bool,
}

/// Every thread that may have something to run. A thread leaves the list only when the kernel no
/// longer knows it.
static THREADS: Mutex<Vec<Arc<HostThread>>> = Mutex::new(Vec::new());

static WORKERS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's record, null before it has one. Valid as long as the thread lives: see
    /// [`THREADS`].
    static OWN: Cell<*const HostThread> = const { Cell::new(std::ptr::null()) };
    /// Runs what is left when this thread ends.
    static END: End = const { End };
}

struct End;

impl Drop for End {
    fn drop(&mut self) {
        if let Some(thread) = own() {
            run(thread, None, None);
            thread.lock().ending = true;
        }
    }
}

impl State {
    fn touch(&mut self, account: AccountId) {
        if !self.touched.contains(&account) {
            self.touched.push(account);
        }
    }
}

impl HostThread {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the kernel may still know it.
    fn exists(&self) -> bool {
        !self.lock().ending || threads::exists(self.tid)
    }

    fn has_value(&self, key: pthread_key_t) -> bool {
        self.values[key as usize / 64].load(Ordering::Acquire) & (1 << (key % 64)) != 0
    }

    fn set_value(&self, key: pthread_key_t, some: bool) {
        let (word, bit) = (&self.values[key as usize / 64], 1 << (key % 64));
        if some {
            word.fetch_or(bit, Ordering::Release);
        } else {
            word.fetch_and(!bit, Ordering::Release);
        }
    }
}

/// Tells the ledger that the current thread is a worker of the host's runtime: `on_thread_start` of
/// the runtime calls it. Only gives the thread its number in what people read; threads that were
/// not marked are known from the first thing that a library registers on them.
pub fn mark_worker() {
    interposed::find_all();
    if OWN.get().is_null() {
        adopt(Some(WORKERS.fetch_add(1, Ordering::Relaxed)));
    }
}

/// Whether the current thread was marked as a worker.
pub(super) fn on_worker() -> bool {
    own().is_some_and(|thread| thread.worker.is_some())
}

fn own() -> Option<&'static HostThread> {
    // SAFETY: null, or the record of this thread, which `THREADS` keeps for as long as the kernel
    // knows the thread.
    unsafe { OWN.get().as_ref() }
}

/// The record of the current thread; none when the thread is so far on its way out that nobody
/// would run what it holds.
fn adopt(worker: Option<usize>) -> Option<&'static HostThread> {
    if let Some(thread) = own() {
        return (!thread.lock().ending).then_some(thread);
    }
    END.try_with(|_| ()).ok()?;
    let thread = Arc::new(HostThread {
        tid: threads::own_tid(),
        worker,
        state: Mutex::default(),
        values: [const { AtomicU64::new(0) }; keys::MAX / 64],
    });
    OWN.set(Arc::as_ptr(&thread));
    let mut all = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len().is_power_of_two() {
        // Threads that ended since the last library was unloaded.
        all.retain(|thread| thread.exists());
    }
    all.push(thread);
    own()
}

/// Writes down a destructor of `owner` for the current thread. `false` when libc must take it: the
/// thread is ending, libc runs it right away and keeps the library until then.
pub(super) fn enter(owner: AccountId, destructor: Destructor, object: *mut c_void) -> bool {
    let Some(thread) = adopt(None) else {
        return false;
    };
    let mut state = thread.lock();
    state.touch(owner);
    state.entries.push(Entry {
        owner,
        destructor,
        object,
    });
    true
}

/// Writes down that the current thread has a value for `key`, a key of `owner`, or has none any
/// more.
pub(super) fn value_set(owner: AccountId, key: pthread_key_t, some: bool) {
    if !some {
        if let Some(thread) = own() {
            thread.set_value(key, false);
        }
        return;
    }
    if let Some(thread) = adopt(None) {
        thread.set_value(key, true);
        thread.lock().touch(owner);
    } else if let Some(thread) = own() {
        // It is ending: libc calls the destructor, and `held` counts the thread until it is gone.
        thread.lock().touch(owner);
    }
}

/// Runs on the current thread what it has to run for `account`; gives how many destructors ran.
/// Each is `call` to the watchdog.
pub(super) fn here(account: AccountId, call: Option<&Call<'_>>) -> usize {
    own().map_or(0, |thread| run(thread, Some(account), call))
}

/// Runs `destructor`, which is `call` to the watchdog.
fn watched(call: Option<&Call<'_>>, destructor: impl FnOnce()) {
    match call {
        Some(call) => enter_call(call, destructor),
        None => destructor(),
    }
}

/// Runs what `thread`, the current one, has to run for `account`, or for all: newest first, until
/// nothing is left.
fn run(thread: &HostThread, account: Option<AccountId>, call: Option<&Call<'_>>) -> usize {
    let mut ran = 0;
    for _ in 0..ROUNDS {
        let before = ran;
        while let Some(entry) = take(thread, account) {
            let _acting = owner::act_for(entry.owner);
            // SAFETY: the library registered this destructor for this object, on this thread
            // (`Entry`), and it is taken out before it runs, so it runs once. The library is
            // mapped: it is not quiet while an entry of it is in a list or running (`held`), and
            // only a quiet library is unmapped (`Library::close`).
            watched(call, || unsafe { (entry.destructor)(entry.object) });
            thread.lock().running = None;
            ran += 1;
        }
        for (index, word) in thread.values.iter().enumerate() {
            let mut bits = word.load(Ordering::Acquire);
            while bits != 0 {
                let key = index as pthread_key_t * 64 + bits.trailing_zeros();
                bits &= bits - 1;
                ran += usize::from(run_value(thread, key, account, call));
            }
        }
        if ran == before {
            break;
        }
    }
    ran
}

fn take(thread: &HostThread, account: Option<AccountId>) -> Option<Entry> {
    let mut state = thread.lock();
    let index = state
        .entries
        .iter()
        .rposition(|entry| account.is_none_or(|account| entry.owner == account))?;
    let entry = state.entries.remove(index);
    state.running = Some(entry.owner);
    Some(entry)
}

/// Ends the value that this thread has for `key`; `false` when there is none, or it is not of
/// `account`.
fn run_value(
    thread: &HostThread,
    key: pthread_key_t,
    account: Option<AccountId>,
    call: Option<&Call<'_>>,
) -> bool {
    let Some(owner) = keys::owner(key) else {
        thread.set_value(key, false); // the library deleted the key itself
        return false;
    };
    if account.is_some_and(|account| account != owner) {
        return false;
    }
    // SAFETY: the key exists: its owner did not delete it, and the ledger does so only when no
    // thread has a value.
    let value = unsafe { libc::pthread_getspecific(key) };
    thread.lock().running = Some(owner);
    thread.set_value(key, false);
    let destructor = keys::destructor(key);
    let runs = !value.is_null() && destructor != 0;
    if !value.is_null() {
        // SAFETY: as above.
        unsafe { interpose::real_setspecific(key, std::ptr::null()) };
    }
    if runs {
        let _acting = owner::act_for(owner);
        // SAFETY: `keys` keeps the very address that the library gave to `pthread_key_create`,
        // which is not zero.
        let destructor = unsafe { std::mem::transmute::<usize, Destructor>(destructor) };
        // SAFETY: the destructor of the key is called with this thread's value after the value was
        // set to null, as libc would. The library is mapped, see `run`.
        watched(call, || unsafe { destructor(value) });
    }
    thread.lock().running = None;
    runs
}

/// A thread of the host that holds a library.
pub(super) struct BlockingThread {
    pub(super) tid: i32,
    pub(super) worker: Option<usize>,
    /// Destructors and values that wait for the thread to be visited.
    pub(super) waiting: usize,
    /// A destructor of the library is running on it.
    pub(super) running: bool,
    /// It ran code of the library and is on its way out.
    pub(super) ending: bool,
}

/// The threads of the host that hold the library of `account`.
pub(super) fn held(account: AccountId) -> Vec<BlockingThread> {
    let keys: Vec<_> = keys::of(account).collect();
    let mut all = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|thread| thread.exists());
    all.iter()
        .filter_map(|thread| {
            let state = thread.lock();
            let entries = state
                .entries
                .iter()
                .filter(|entry| entry.owner == account)
                .count();
            let values = keys.iter().filter(|key| thread.has_value(**key)).count();
            let holder = BlockingThread {
                tid: thread.tid,
                worker: thread.worker,
                waiting: entries + values,
                running: state.running == Some(account),
                ending: state.ending && state.touched.contains(&account),
            };
            (holder.waiting > 0 || holder.running || holder.ending).then_some(holder)
        })
        .collect()
}

/// Strikes out what threads have written down for `account` without running it: its library is
/// unmapped. Nothing is there but what finalizers registered while it was being unmapped.
pub(super) fn forget(account: AccountId) {
    for thread in THREADS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        let mut state = thread.lock();
        state.entries.retain(|entry| entry.owner != account);
        state.touched.retain(|touched| *touched != account);
        drop(state);
        for key in keys::of(account) {
            thread.set_value(key, false);
        }
    }
}
