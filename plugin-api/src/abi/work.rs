//! Work that outlives the code, which the host keeps: the table of that service, and both halves
//! over it.
//!
//! There is one function for all operations, by their numbers: what they take and give is JSON,
//! with bytes beside it that cross as they are. So a later minor adds operations, and nothing of
//! the tables changes. The shapes are in docs/abi.md.

use std::{marker::PhantomData, ptr, ptr::NonNull, task::Waker};

use abi_stable::{
    StableAbi,
    std_types::{ROption, RSlice, RStr},
};

use super::{
    lent::{Grows, Lent, Size},
    panics::{catch_panic, drop_box, with_slot},
    poll::{PollCode, PollState},
    state::{Commit, codes},
    waker::WakerRef,
};

/// The number of this service for [`Host::service`](super::host::Host::service).
pub const WORK: u32 = 2;

/// Enqueues jobs, in one commit with changes of the state where there are any.
pub const ENQUEUE: u32 = 1;
/// Listens for jobs: each time that the handle is ready, it gives one to run.
pub const LISTEN: u32 = 2;
/// Belongs to an attempt: ready when that is to end early. Dropped without [`FINISH`], the attempt
/// is given up, and the job runs again.
pub const ATTEMPT: u32 = 3;
/// Ends an attempt, in one commit with changes of the state where there are any.
pub const FINISH: u32 = 4;
/// Tells how far an attempt is.
pub const PROGRESS: u32 = 5;
/// Tells of a job.
pub const FIND: u32 = 6;
/// Cancels a job.
pub const CANCEL: u32 = 7;
/// Waits for a lease; then for that it is asked back. Dropped, it is given back.
pub const LEASE: u32 = 8;

/// Gives the identity of a job that is enqueued with a transaction later.
pub const NEW_ID: u32 = 9;

/// Gives the live settings of the app. Since 1.4.
pub const SETTINGS: u32 = 10;
/// Listens for what the host asks: each time that the handle is ready, it gives one question. Since
/// 1.4.
pub const INBOX: u32 = 11;
/// Answers a question. Since 1.4.
pub const REPLY: u32 = 12;

/// Somebody else has the job by now: a code beside those of [`codes`].
pub const SUPERSEDED: u32 = 100;
/// There is no such job: a code beside those of [`codes`].
pub const UNKNOWN_JOB: u32 = 101;

/// What the host does for work that outlives the code. `begin` takes the pointer that came with the
/// host's table; it can grow at its end.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct WorkTable {
    pub(super) size: Size,
    /// Begins an operation; null when the host failed.
    pub(super) begin: unsafe extern "C" fn(*const (), Lent<'_, WorkRequest<'_>>) -> *mut (),
    pub(super) poll: unsafe extern "C" fn(*mut (), &WakerRef<'_>, &WorkSink<'_>) -> PollCode,
    pub(super) drop: unsafe extern "C" fn(*mut ()),
}

/// An operation with what it takes.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct WorkRequest<'a> {
    /// The bytes of it that are filled in.
    pub size: Size,
    /// [`ENQUEUE`] and the others. One that is not known is refused.
    pub operation: u32,
    /// What it takes: a JSON object, whose unknown keys are ignored.
    pub text: RStr<'a>,
    /// The bytes beside that: a payload, or a result.
    pub bytes: RSlice<'a, u8>,
    /// Checks and mutations of the state that happen with it, or not at all.
    pub commit: ROption<Lent<'a, Commit<'a>>>,
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for WorkTable {}
// SAFETY: as above.
unsafe impl Grows for WorkRequest<'_> {}
// SAFETY: as above.
unsafe impl Grows for WorkSinkTable {}

/// Where the host puts what it has to say, during a poll.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct WorkSink<'a> {
    pub(super) slot: *mut (),
    pub(super) table: Lent<'a, WorkSinkTable>,
}

/// The kinds of what the host says. It can grow at its end.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct WorkSinkTable {
    pub(super) size: Size,
    pub(super) answer: unsafe extern "C" fn(*mut (), RStr<'_>, RSlice<'_, u8>),
    pub(super) failed: unsafe extern "C" fn(*mut (), u32, RStr<'_>),
}

impl WorkSink<'_> {
    /// An answer: a JSON object, and bytes beside it.
    pub fn answer(&self, text: &str, bytes: &[u8]) {
        // SAFETY: the slot is live during the call that lent this sink.
        unsafe { (self.table.answer)(self.slot, text.into(), bytes.into()) }
    }

    /// It failed, with a code of [`codes`], [`SUPERSEDED`] or [`UNKNOWN_JOB`], and a sentence for
    /// people.
    pub fn failed(&self, code: u32, why: &str) {
        // SAFETY: as in `answer`.
        unsafe { (self.table.failed)(self.slot, code, why.into()) }
    }
}

/// What a plugin makes of what the host says.
pub trait TakeWork {
    /// An answer.
    fn answer(&mut self, text: &str, bytes: &[u8]);
    /// It failed.
    fn failed(&mut self, code: u32, why: &str);
}

struct Taking<T>(PhantomData<T>);

impl<T: TakeWork> Taking<T> {
    const TABLE: &'static WorkSinkTable = &WorkSinkTable {
        size: Size::of::<WorkSinkTable>(),
        answer: Self::answer,
        failed: Self::failed,
    };

    /// # Safety
    /// `slot` is that of `lend`.
    unsafe fn with(slot: *mut (), f: impl FnOnce(&mut T)) {
        // SAFETY: `slot` is the exclusive borrow of `lend`, which waits below us on the stack.
        unsafe { with_slot(slot, f) }
    }

    unsafe extern "C" fn answer(slot: *mut (), text: RStr<'_>, bytes: RSlice<'_, u8>) {
        // SAFETY: the host gives back the slot that it was lent.
        unsafe { Self::with(slot, |take| take.answer(text.as_str(), bytes.into())) }
    }

    unsafe extern "C" fn failed(slot: *mut (), code: u32, why: RStr<'_>) {
        // SAFETY: as above.
        unsafe { Self::with(slot, |take| take.failed(code, why.as_str())) }
    }

    fn lend<R>(take: &mut T, f: impl FnOnce(&WorkSink<'_>) -> R) -> R {
        f(&WorkSink {
            slot: ptr::from_mut(take).cast(),
            table: Lent::of(Self::TABLE),
        })
    }
}

/// The work that the host keeps, as a plugin asks for it. It may be kept for ever.
#[derive(Clone, Copy, Debug)]
pub struct WorkHandle {
    table: NonNull<WorkTable>,
    data: *const (),
}

// SAFETY: the functions of the table may be called on any thread.
unsafe impl Send for WorkHandle {}
// SAFETY: as above.
unsafe impl Sync for WorkHandle {}

impl WorkHandle {
    /// # Safety
    /// `table` is what the host gave as the service [`WORK`], for `data`.
    pub(super) unsafe fn new(table: NonNull<()>, data: *const ()) -> Self {
        Self {
            table: table.cast(),
            data,
        }
    }

    /// Begins the operation of this number with what it takes.
    pub fn begin(
        &self,
        operation: u32,
        text: &str,
        bytes: &[u8],
        commit: Option<&Commit<'_>>,
    ) -> WorkCall {
        let request = WorkRequest {
            size: Size::of::<WorkRequest<'_>>(),
            operation,
            text: text.into(),
            bytes: bytes.into(),
            commit: commit.map(Lent::of).into(),
        };
        // SAFETY: the data came with the table, which lives as long as this code is mapped.
        let handle = unsafe { (self.table.as_ref().begin)(self.data, Lent::of(&request)) };
        WorkCall {
            handle,
            table: self.table,
        }
    }
}

/// An operation on its way.
#[derive(Debug)]
pub struct WorkCall {
    /// Null when the host could not even begin.
    handle: *mut (),
    table: NonNull<WorkTable>,
}

// SAFETY: what is behind it is Send (see `WorkFuture`).
unsafe impl Send for WorkCall {}
// SAFETY: all use needs `&mut`.
unsafe impl Sync for WorkCall {}

impl WorkCall {
    /// Polls it. What there is goes into `take`, where the state is `Ready` or `Failed`.
    pub fn poll<T: TakeWork>(&mut self, waker: &Waker, take: &mut T) -> PollState {
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

impl Drop for WorkCall {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: as in `poll`; this is the last use.
            unsafe { (self.table.as_ref().drop)(self.handle) }
        }
    }
}

/// The work that a host keeps, for one generation. Called on any thread of the plugin, and a panic
/// in it ends at the boundary.
pub trait WorkService: Send + Sync {
    /// Begins an operation.
    fn begin(&self, request: Lent<'_, WorkRequest<'_>>) -> Box<dyn WorkFuture>;
}

/// What a plugin waits for. The waker is the plugin's: it must not be left with anybody who could
/// use it when its library is gone.
pub trait WorkFuture: Send {
    /// `Ready` when something was given to `sink`; `Failed` when it failed, which was said there.
    fn poll(&mut self, waker: &Waker, sink: &WorkSink<'_>) -> PollState;
}

/// Whom a table of the host serves.
pub(super) trait ServesWork: 'static {
    /// The work behind `data`.
    ///
    /// # Safety
    /// `data` is what the plugin was given with the table of the host.
    unsafe fn work<'a>(data: *const ()) -> Option<&'a dyn WorkService>;
}

pub(super) struct Service<S>(PhantomData<S>);

impl<S: ServesWork> Service<S> {
    pub(super) const TABLE: &'static WorkTable = &WorkTable {
        size: Size::of::<WorkTable>(),
        begin: Self::begin,
        poll,
        drop: drop_future,
    };

    unsafe extern "C" fn begin(data: *const (), request: Lent<'_, WorkRequest<'_>>) -> *mut () {
        // SAFETY: the plugin gives back the data that it was given.
        let Some(work) = (unsafe { S::work(data) }) else {
            return ptr::null_mut();
        };
        catch_panic(|| Box::new(work.begin(request)))
            .map_or(ptr::null_mut(), |future| Box::into_raw(future).cast())
    }
}

unsafe extern "C" fn poll(future: *mut (), waker: &WakerRef<'_>, sink: &WorkSink<'_>) -> PollCode {
    // SAFETY: it is the box that `begin` made, polled by its only owner.
    let future = unsafe { &mut *future.cast::<Box<dyn WorkFuture>>() };
    let polled = catch_panic(|| waker.with(|waker| future.poll(waker, sink)));
    polled
        .unwrap_or_else(|| {
            sink.failed(codes::UNAVAILABLE, "the host failed");
            PollState::Failed
        })
        .into()
}

unsafe extern "C" fn drop_future(future: *mut ()) {
    // SAFETY: it is the box that `begin` made, given up by its only owner.
    unsafe { drop_box::<Box<dyn WorkFuture>>(future) }
}
