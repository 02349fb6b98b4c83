//! The state of an app, which the host keeps: the table of that service, and both halves over it.
//!
//! What is read is there at once and lent to a sink, so bytes are copied by who keeps them and by
//! nobody else. A commit is handed over whole; from then on it is made or refused, whatever becomes
//! of the handle that waits for it.

use std::{any::Any, marker::PhantomData, ptr, ptr::NonNull, task::Waker};

use abi_stable::{
    StableAbi,
    std_types::{RSlice, RStr},
};

use super::{
    lent::{Grows, Lent, Size},
    panics::{catch_panic, drop_box, with_slot},
    poll::{PollCode, PollState},
    waker::WakerRef,
};

/// The number of this service for [`Host::service`](super::host::Host::service).
pub const STATE: u32 = 1;

/// Answers wait until the writes of their requests are on the disk: a bit of
/// [`StateTable::settings`].
pub const ANSWERS_WAIT: u64 = 1;

/// What the host does for the state of an app. Every function takes the pointer that came with the
/// host's table, or one that this table gave. It can grow at its end.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct StateTable {
    pub(super) size: Size,
    /// How it is set up: bits, of which those that are not known are ignored.
    pub(super) settings: unsafe extern "C" fn(*const ()) -> u64,
    /// Gives one entry to the sink, if there is one.
    pub(super) get: unsafe extern "C" fn(*const (), Lent<'_, Get<'_>>, &StateSink<'_>),
    /// Gives entries of a range to the sink, then how the page ended.
    pub(super) scan: unsafe extern "C" fn(*const (), Lent<'_, Scan<'_>>, &StateSink<'_>),
    /// What was committed last, to be read later; null when there is none.
    pub(super) snapshot: unsafe extern "C" fn(*const ()) -> *mut (),
    pub(super) drop_snapshot: unsafe extern "C" fn(*mut ()),
    /// Hands a commit over, and gives the handle that says what became of it.
    pub(super) commit: unsafe extern "C" fn(*const (), Lent<'_, Commit<'_>>) -> *mut (),
    /// Begins to watch, and gives the handle that says what changed.
    pub(super) watch: unsafe extern "C" fn(*const (), Lent<'_, Watch<'_>>) -> *mut (),
    /// Polls a handle of `commit` or of `watch`.
    pub(super) poll: unsafe extern "C" fn(*mut (), &WakerRef<'_>, &StateSink<'_>) -> PollCode,
    pub(super) drop: unsafe extern "C" fn(*mut ()),
}

/// One entry that is asked for.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Get<'a> {
    /// The bytes of it that are filled in.
    pub size: Size,
    /// The namespace.
    pub namespace: RStr<'a>,
    /// The key.
    pub key: RSlice<'a, u8>,
    /// A snapshot of this host; null is what was committed last.
    pub snapshot: *const (),
}

/// `from` is what keys begin with, and there is no `to`: a bit of the flags of a range.
pub const PREFIX: u32 = 1;
/// There is a `to`: a bit of the flags of a range.
pub const HAS_TO: u32 = 2;
/// There is an `after`: a bit of the flags of a scan.
pub const HAS_AFTER: u32 = 4;
/// From the end to the begin: a bit of the flags of a scan.
pub const REVERSE: u32 = 8;

/// A page of a range that is asked for.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Scan<'a> {
    /// The bytes of it that are filled in.
    pub size: Size,
    /// [`PREFIX`], [`HAS_TO`], [`HAS_AFTER`], [`REVERSE`]; bits that are not known are ignored.
    pub flags: u32,
    /// The namespace.
    pub namespace: RStr<'a>,
    /// The first key, or the prefix.
    pub from: RSlice<'a, u8>,
    /// The key before which it ends.
    pub to: RSlice<'a, u8>,
    /// The key behind which it goes on.
    pub after: RSlice<'a, u8>,
    /// As in [`Get`].
    pub snapshot: *const (),
    /// Entries of a page, at most.
    pub limit: u64,
}

/// What is to be watched.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Watch<'a> {
    /// The bytes of it that are filled in.
    pub size: Size,
    /// [`HAS_TO`]: there is a token; bits that are not known are ignored.
    pub flags: u32,
    /// The namespace.
    pub namespace: RStr<'a>,
    /// What keys begin with.
    pub prefix: RSlice<'a, u8>,
    /// The version to go on from.
    pub token: u64,
}

/// Checks and mutations, all or none of which happen.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Commit<'a> {
    /// The bytes of it that are filled in.
    pub size: Size,
    /// What must be there.
    pub checks: RSlice<'a, Check<'a>>,
    /// What must not have changed.
    pub ranges: RSlice<'a, RangeCheck<'a>>,
    /// What is done, in order.
    pub mutations: RSlice<'a, Mutation<'a>>,
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for StateTable {}
// SAFETY: as above.
unsafe impl Grows for Get<'_> {}
// SAFETY: as above.
unsafe impl Grows for Scan<'_> {}
// SAFETY: as above.
unsafe impl Grows for Watch<'_> {}
// SAFETY: as above.
unsafe impl Grows for Commit<'_> {}
// SAFETY: as above.
unsafe impl Grows for SinkTable {}

/// A check of one key. It lies in lists, and so does not grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Check<'a> {
    /// The namespace.
    pub namespace: RStr<'a>,
    /// The key.
    pub key: RSlice<'a, u8>,
    /// The version that it must have; 0: it must not be there.
    pub version: u64,
}

/// A check of a range. It lies in lists, and so does not grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct RangeCheck<'a> {
    /// The namespace.
    pub namespace: RStr<'a>,
    /// The first key, or the prefix.
    pub from: RSlice<'a, u8>,
    /// The key before which it ends.
    pub to: RSlice<'a, u8>,
    /// Nothing in there may have changed after this version.
    pub version: u64,
    /// [`PREFIX`], [`HAS_TO`].
    pub flags: u32,
}

/// Puts a value: a kind of mutation.
pub const PUT: u32 = 0;
/// Removes a key: a kind of mutation.
pub const DELETE: u32 = 1;
/// Adds to a number: a kind of mutation.
pub const ADD: u32 = 2;

/// A change of one key. It lies in lists, and so does not grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Mutation<'a> {
    /// The namespace.
    pub namespace: RStr<'a>,
    /// The key.
    pub key: RSlice<'a, u8>,
    /// The value of a [`PUT`].
    pub value: RSlice<'a, u8>,
    /// How long it stays, in milliseconds; 0 is for ever.
    pub ttl_ms: u64,
    /// What an [`ADD`] adds.
    pub delta: i64,
    /// [`PUT`], [`DELETE`], [`ADD`]. A commit with any other is refused.
    pub kind: u32,
}

/// Something is there now: a bit of the flags of a change.
pub const IS_THERE: u32 = 1;

/// A change that a watcher is told of. It lies in lists, and so does not grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Change<'a> {
    /// The key.
    pub key: RSlice<'a, u8>,
    /// The version of the commit that changed it.
    pub version: u64,
    /// [`IS_THERE`]; bits that are not known are ignored.
    pub flags: u32,
}

/// There is more behind the page: a bit of the flags of a page.
pub const MORE: u32 = 1;
/// There were changes that are no longer known: a bit of the flags of what a watcher is told.
pub const MISSED: u32 = 1;

/// Why something was refused, as it crosses. A number that is none of these is
/// [`UNAVAILABLE`](codes::UNAVAILABLE).
pub mod codes {
    /// Somebody else changed what the commit was based on.
    pub const CONFLICT: u32 = 1;
    /// A namespace, a key or a commit is none.
    pub const INVALID: u32 = 2;
    /// A value or a commit is too large.
    pub const TOO_LARGE: u32 = 3;
    /// The app would hold more than it may.
    pub const QUOTA: u32 = 4;
    /// What is to be added to is no number.
    pub const NO_COUNTER: u32 = 5;
    /// It cannot be read or written now.
    pub const UNAVAILABLE: u32 = 6;
    /// More is written than the disk takes.
    pub const BUSY: u32 = 7;
    /// The generation has ended.
    pub const ENDED: u32 = 8;
}

/// Where the host puts what it has to say, during a call.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct StateSink<'a> {
    pub(super) slot: *mut (),
    pub(super) table: Lent<'a, SinkTable>,
}

/// The kinds of what the host says. It can grow at its end.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct SinkTable {
    pub(super) size: Size,
    pub(super) entry: unsafe extern "C" fn(*mut (), RSlice<'_, u8>, RSlice<'_, u8>, u64),
    pub(super) page: unsafe extern "C" fn(*mut (), u64, u32),
    pub(super) committed: unsafe extern "C" fn(*mut (), u64, RSlice<'_, i64>),
    pub(super) changed: unsafe extern "C" fn(*mut (), RSlice<'_, Change<'_>>, u64, u32),
    pub(super) failed: unsafe extern "C" fn(*mut (), u32, RStr<'_>),
}

impl StateSink<'_> {
    /// An entry: its key, its value, the version of its commit.
    pub fn entry(&self, key: &[u8], value: &[u8], version: u64) {
        // SAFETY: the slot is live during the call that lent this sink.
        unsafe { (self.table.entry)(self.slot, key.into(), value.into(), version) }
    }

    /// The end of a page: the version of the snapshot that was read, and whether there is more
    /// behind it.
    pub fn page(&self, version: u64, more: bool) {
        // SAFETY: as in `entry`.
        unsafe { (self.table.page)(self.slot, version, if more { MORE } else { 0 }) }
    }

    /// The commit was made: its version, and the sums of its additions.
    pub fn committed(&self, version: u64, sums: &[i64]) {
        // SAFETY: as in `entry`.
        unsafe { (self.table.committed)(self.slot, version, sums.into()) }
    }

    /// What changed, the token to go on from, and whether something was missed before that.
    pub fn changed(&self, changes: &[Change<'_>], token: u64, missed: bool) {
        let flags = if missed { MISSED } else { 0 };
        // SAFETY: as in `entry`.
        unsafe { (self.table.changed)(self.slot, changes.into(), token, flags) }
    }

    /// It failed, with a code of [`codes`] and a sentence for people.
    pub fn failed(&self, code: u32, why: &str) {
        // SAFETY: as in `entry`.
        unsafe { (self.table.failed)(self.slot, code, why.into()) }
    }
}

/// What a plugin makes of what the host says.
pub trait TakeState {
    /// An entry.
    fn entry(&mut self, _key: &[u8], _value: &[u8], _version: u64) {}
    /// The end of a page.
    fn page(&mut self, _version: u64, _more: bool) {}
    /// A commit was made.
    fn committed(&mut self, _version: u64, _sums: &[i64]) {}
    /// Something changed.
    fn changed(&mut self, _changes: &[Change<'_>], _token: u64, _missed: bool) {}
    /// It failed.
    fn failed(&mut self, code: u32, why: &str);
}

struct Taking<T>(PhantomData<T>);

impl<T: TakeState> Taking<T> {
    const TABLE: &'static SinkTable = &SinkTable {
        size: Size::of::<SinkTable>(),
        entry: Self::entry,
        page: Self::page,
        committed: Self::committed,
        changed: Self::changed,
        failed: Self::failed,
    };

    /// # Safety
    /// `slot` is that of `lend`.
    unsafe fn with(slot: *mut (), f: impl FnOnce(&mut T)) {
        // SAFETY: `slot` is the exclusive borrow of `lend`, which waits below us on the stack.
        unsafe { with_slot(slot, f) }
    }

    unsafe extern "C" fn entry(
        slot: *mut (),
        key: RSlice<'_, u8>,
        value: RSlice<'_, u8>,
        version: u64,
    ) {
        // SAFETY: the host gives back the slot that it was lent.
        unsafe { Self::with(slot, |take| take.entry(key.into(), value.into(), version)) }
    }

    unsafe extern "C" fn page(slot: *mut (), version: u64, flags: u32) {
        // SAFETY: as above.
        unsafe { Self::with(slot, |take| take.page(version, flags & MORE != 0)) }
    }

    unsafe extern "C" fn committed(slot: *mut (), version: u64, sums: RSlice<'_, i64>) {
        // SAFETY: as above.
        unsafe { Self::with(slot, |take| take.committed(version, sums.into())) }
    }

    unsafe extern "C" fn changed(
        slot: *mut (),
        changes: RSlice<'_, Change<'_>>,
        token: u64,
        flags: u32,
    ) {
        // SAFETY: as above.
        unsafe {
            Self::with(slot, |take| {
                take.changed(changes.into(), token, flags & MISSED != 0);
            });
        }
    }

    unsafe extern "C" fn failed(slot: *mut (), code: u32, why: RStr<'_>) {
        // SAFETY: as above.
        unsafe { Self::with(slot, |take| take.failed(code, why.as_str())) }
    }

    fn lend<R>(take: &mut T, f: impl FnOnce(&StateSink<'_>) -> R) -> R {
        f(&StateSink {
            slot: ptr::from_mut(take).cast(),
            table: Lent::of(Self::TABLE),
        })
    }
}

/// The state as a plugin asks for it. It may be kept for ever.
#[derive(Clone, Copy, Debug)]
pub struct StateHandle {
    table: NonNull<StateTable>,
    data: *const (),
}

// SAFETY: the functions of the table may be called on any thread.
unsafe impl Send for StateHandle {}
// SAFETY: as above.
unsafe impl Sync for StateHandle {}

impl StateHandle {
    /// # Safety
    /// `table` is what the host gave as the service [`STATE`], for `data`.
    pub(super) unsafe fn new(table: NonNull<()>, data: *const ()) -> Self {
        Self {
            table: table.cast(),
            data,
        }
    }

    fn table(&self) -> &StateTable {
        // SAFETY: by the contract of `new`: it lives as long as this code is mapped.
        unsafe { self.table.as_ref() }
    }

    /// The bits of how it is set up.
    pub fn settings(&self) -> u64 {
        // SAFETY: the data came with the table.
        unsafe { (self.table().settings)(self.data) }
    }

    /// Reads one entry into `take`.
    pub fn get<T: TakeState>(
        &self,
        snapshot: Option<&StateSnapshot>,
        namespace: &str,
        key: &[u8],
        take: &mut T,
    ) {
        let get = Get {
            size: Size::of::<Get<'_>>(),
            namespace: namespace.into(),
            key: key.into(),
            snapshot: StateSnapshot::pointer(snapshot),
        };
        Taking::lend(take, |sink| {
            // SAFETY: as in `settings`, and the snapshot is live.
            unsafe { (self.table().get)(self.data, Lent::of(&get), sink) }
        });
    }

    /// Reads a page of a range into `take`. The snapshot is that of `scan` if it is none here.
    pub fn scan<T: TakeState>(
        &self,
        snapshot: Option<&StateSnapshot>,
        scan: Scan<'_>,
        take: &mut T,
    ) {
        let scan = Scan {
            snapshot: StateSnapshot::pointer(snapshot),
            ..scan
        };
        Taking::lend(take, |sink| {
            // SAFETY: as in `get`.
            unsafe { (self.table().scan)(self.data, Lent::of(&scan), sink) }
        });
    }

    /// What was committed last, to be read later; none when the host has none to give.
    pub fn snapshot(&self) -> Option<StateSnapshot> {
        // SAFETY: as in `settings`.
        let pointer = unsafe { (self.table().snapshot)(self.data) };
        Some(StateSnapshot {
            pointer: NonNull::new(pointer)?,
            table: self.table,
        })
    }

    /// Hands `commit` over. It is made or refused, whatever becomes of what this gives.
    pub fn commit(&self, commit: &Commit<'_>) -> StateCall {
        // SAFETY: as in `settings`.
        let handle = unsafe { (self.table().commit)(self.data, Lent::of(commit)) };
        StateCall {
            handle,
            table: self.table,
        }
    }

    /// Begins to watch.
    pub fn watch(&self, watch: &Watch<'_>) -> StateCall {
        // SAFETY: as in `settings`.
        let handle = unsafe { (self.table().watch)(self.data, Lent::of(watch)) };
        StateCall {
            handle,
            table: self.table,
        }
    }
}

/// What was committed at one time.
#[derive(Debug)]
pub struct StateSnapshot {
    pointer: NonNull<()>,
    table: NonNull<StateTable>,
}

// SAFETY: what the host gives is Send and Sync (see `StateService::snapshot`).
unsafe impl Send for StateSnapshot {}
// SAFETY: as above.
unsafe impl Sync for StateSnapshot {}

impl StateSnapshot {
    fn pointer(snapshot: Option<&Self>) -> *const () {
        snapshot.map_or(ptr::null(), |snapshot| snapshot.pointer.as_ptr())
    }
}

impl Drop for StateSnapshot {
    fn drop(&mut self) {
        // SAFETY: the table is live, and this is the last use of the pointer that it gave.
        unsafe { (self.table.as_ref().drop_snapshot)(self.pointer.as_ptr()) }
    }
}

/// A commit on its way, or somebody who watches.
#[derive(Debug)]
pub struct StateCall {
    /// Null when the host could not even begin.
    handle: *mut (),
    table: NonNull<StateTable>,
}

// SAFETY: what is behind it is Send (see `StateFuture`).
unsafe impl Send for StateCall {}
// SAFETY: all use needs `&mut`.
unsafe impl Sync for StateCall {}

impl StateCall {
    /// Polls it. What there is goes into `take`, where the state is `Ready` or `Failed`.
    pub fn poll<T: TakeState>(&mut self, waker: &Waker, take: &mut T) -> PollState {
        if self.handle.is_null() {
            take.failed(codes::UNAVAILABLE, "the host failed");
            return PollState::Failed;
        }
        Taking::lend(take, |sink| {
            // SAFETY: the table is live, and the handle is owned by this value.
            unsafe { (self.table.as_ref().poll)(self.handle, &WakerRef::of(waker), sink) }.state()
        })
    }
}

impl Drop for StateCall {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: as in `poll`; this is the last use.
            unsafe { (self.table.as_ref().drop)(self.handle) }
        }
    }
}

/// The state as a host keeps it, for one generation. Its functions are called on any thread of the
/// plugin, and a panic in them ends at the boundary. Those that read may block on the disk.
pub trait StateService: Send + Sync {
    /// See [`StateTable::settings`].
    fn settings(&self) -> u64;
    /// Gives the entry to `sink`, if there is one.
    fn get(&self, get: Lent<'_, Get<'_>>, snapshot: Option<&Snapshot>, sink: &StateSink<'_>);
    /// Gives a page to `sink`.
    fn scan(&self, scan: Lent<'_, Scan<'_>>, snapshot: Option<&Snapshot>, sink: &StateSink<'_>);
    /// What was committed last.
    fn snapshot(&self) -> Snapshot;
    /// Takes a commit.
    fn commit(&self, commit: Lent<'_, Commit<'_>>) -> Box<dyn StateFuture>;
    /// Begins to watch.
    fn watch(&self, watch: Lent<'_, Watch<'_>>) -> Box<dyn StateFuture>;
}

/// What a host gives as a snapshot, and gets back.
pub type Snapshot = Box<dyn Any + Send + Sync>;

/// What a plugin waits for. The waker is the plugin's: it must not be left with anybody who could
/// use it when its library is gone.
pub trait StateFuture: Send {
    /// `Ready` when something was given to `sink`; `Failed` when it failed, which was said there.
    fn poll(&mut self, waker: &Waker, sink: &StateSink<'_>) -> PollState;
}

/// Whom a table of the host serves.
pub(super) trait Serves: 'static {
    /// The state behind `data`.
    ///
    /// # Safety
    /// `data` is what the plugin was given with the table of the host.
    unsafe fn state<'a>(data: *const ()) -> Option<&'a dyn StateService>;
}

pub(super) struct Service<S>(PhantomData<S>);

impl<S: Serves> Service<S> {
    pub(super) const TABLE: &'static StateTable = &StateTable {
        size: Size::of::<StateTable>(),
        settings: Self::settings,
        get: Self::get,
        scan: Self::scan,
        snapshot: Self::snapshot,
        drop_snapshot,
        commit: Self::commit,
        watch: Self::watch,
        poll,
        drop: drop_future,
    };

    /// Runs `f` on the state behind `data`; none without one, or when it panicked.
    ///
    /// # Safety
    /// As for `Serves::state`.
    unsafe fn with<R>(data: *const (), f: impl FnOnce(&dyn StateService) -> R) -> Option<R> {
        // SAFETY: by the contract of this function.
        let state = unsafe { S::state(data) }?;
        catch_panic(|| f(state))
    }

    unsafe extern "C" fn settings(data: *const ()) -> u64 {
        // SAFETY: the plugin gives back the data that it was given.
        unsafe { Self::with(data, |state| state.settings()) }.unwrap_or(0)
    }

    unsafe extern "C" fn get(data: *const (), get: Lent<'_, Get<'_>>, sink: &StateSink<'_>) {
        // SAFETY: as above, and a snapshot is one that `snapshot` gave.
        let done = unsafe {
            let snapshot = get.snapshot.cast::<Snapshot>().as_ref();
            Self::with(data, |state| state.get(get, snapshot, sink))
        };
        if done.is_none() {
            sink.failed(codes::UNAVAILABLE, "the host failed");
        }
    }

    unsafe extern "C" fn scan(data: *const (), scan: Lent<'_, Scan<'_>>, sink: &StateSink<'_>) {
        // SAFETY: as in `get`.
        let done = unsafe {
            let snapshot = scan.snapshot.cast::<Snapshot>().as_ref();
            Self::with(data, |state| state.scan(scan, snapshot, sink))
        };
        if done.is_none() {
            sink.failed(codes::UNAVAILABLE, "the host failed");
        }
    }

    unsafe extern "C" fn snapshot(data: *const ()) -> *mut () {
        // SAFETY: as in `settings`.
        unsafe { Self::with(data, |state| Box::new(state.snapshot())) }
            .map_or(ptr::null_mut(), |snapshot| Box::into_raw(snapshot).cast())
    }

    unsafe extern "C" fn commit(data: *const (), commit: Lent<'_, Commit<'_>>) -> *mut () {
        // SAFETY: as in `settings`.
        unsafe { Self::with(data, |state| Box::new(state.commit(commit))) }
            .map_or(ptr::null_mut(), |future| Box::into_raw(future).cast())
    }

    unsafe extern "C" fn watch(data: *const (), watch: Lent<'_, Watch<'_>>) -> *mut () {
        // SAFETY: as in `settings`.
        unsafe { Self::with(data, |state| Box::new(state.watch(watch))) }
            .map_or(ptr::null_mut(), |future| Box::into_raw(future).cast())
    }
}

unsafe extern "C" fn drop_snapshot(snapshot: *mut ()) {
    // SAFETY: it is the box that `snapshot` made, given up by its only owner.
    unsafe { drop_box::<Snapshot>(snapshot) }
}

unsafe extern "C" fn poll(future: *mut (), waker: &WakerRef<'_>, sink: &StateSink<'_>) -> PollCode {
    // SAFETY: it is the box that `commit` or `watch` made, polled by its only owner.
    let future = unsafe { &mut *future.cast::<Box<dyn StateFuture>>() };
    let polled = catch_panic(|| waker.with(|waker| future.poll(waker, sink)));
    polled
        .unwrap_or_else(|| {
            sink.failed(codes::UNAVAILABLE, "the host failed");
            PollState::Failed
        })
        .into()
}

unsafe extern "C" fn drop_future(future: *mut ()) {
    // SAFETY: it is the box that `commit` or `watch` made, given up by its only owner.
    unsafe { drop_box::<Box<dyn StateFuture>>(future) }
}
