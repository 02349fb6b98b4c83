//! What libc does for libraries on threads of its own: asynchronous input and output, look-ups of
//! names, notices of message queues.
//!
//! libc reads and writes the memory of whoever asked until the request has ended. So a library is
//! not quiet before that; what can be cancelled is.
#![allow(
    unreachable_pub,
    reason = "the dynamic linker reaches what Rust's modules do not"
)]

use std::{
    fs::File,
    mem::MaybeUninit,
    os::unix::fs::FileExt,
    ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use libc::{aiocb, c_int};

use super::{
    AccountId,
    callbacks::{self, Notification},
    descriptors,
    interposed::{Symbol, interposed},
    owner,
};

/// What libc keeps of a look-up. Only its size counts here, and where its answer lies.
#[repr(C)]
pub struct Lookup {
    name: *const u8,
    service: *const u8,
    request: *const u8,
    result: *mut u8,
    answer: c_int,
    unused: [c_int; 5],
}

/// `EAI_INPROGRESS` of glibc.
const LOOKING_UP: c_int = -100;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Reads, writes and syncs of this descriptor.
    File(c_int),
    Lookup,
}

/// A request of a library. The block at `address` is the library's, and may be gone when the
/// request has ended.
struct Request {
    owner: AccountId,
    kind: Kind,
    address: usize,
}

/// A library that is to be told of the next message.
struct Notice {
    owner: AccountId,
    queue: c_int,
    /// The device and inode of the queue: nobody else can be told of the same one.
    object: (u64, u64),
}

struct Books {
    requests: Vec<Request>,
    sweep_at: usize,
    notices: Vec<Notice>,
}

static BOOKS: Mutex<Books> = Mutex::new(Books {
    requests: Vec::new(),
    sweep_at: 64,
    notices: Vec::new(),
});

/// Whether a library ever asked for any of this.
static USED: AtomicBool = AtomicBool::new(false);

fn books() -> MutexGuard<'static, Books> {
    USED.store(true, Ordering::Release);
    BOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

interposed! {
    lio_listio / lio_listio_for / LIST
        (mode: c_int, list: *const *mut aiocb, count: c_int, notification: *mut Notification) -> c_int
        as Listed,
        "r8", "x4", |real, caller| {
            // SAFETY: the arguments of the caller, as they came, and libc's function.
            unsafe { listed(real, mode, list, count, notification, caller) }
        };
    lio_listio64 / lio_listio64_for / LIST64
        (mode: c_int, list: *const *mut aiocb, count: c_int, notification: *mut Notification) -> c_int
        as Listed,
        "r8", "x4", |real, caller| {
            // SAFETY: the arguments of the caller, as they came, and libc's function.
            unsafe { listed(real, mode, list, count, notification, caller) }
        };
    getaddrinfo_a / getaddrinfo_a_for / LOOK_UP
        (mode: c_int, list: *mut *mut Lookup, count: c_int, notification: *mut Notification) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *mut *mut Lookup, c_int, *mut Notification) -> c_int,
        "r8", "x4", |real, caller| {
            // SAFETY: null or a notification, says the caller.
            let (owner, mut ours) = unsafe { ours(notification, caller) };
            let notification = ours.as_mut().map_or(notification, |ours| ours);
            // SAFETY: the caller's, but for the notification, which libc only reads and copies.
            let answer = unsafe { real(mode, list, count, notification) };
            if let Some(owner) = owner {
                for at in 0..usize::try_from(count).unwrap_or(0) {
                    // SAFETY: that many are there, says the caller.
                    let request = unsafe { *list.add(at) };
                    begun(owner, Kind::Lookup, request.addr());
                }
            }
            answer
        };
    mq_notify / mq_notify_for / NOTIFY (queue: c_int, notification: *mut Notification) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *mut Notification) -> c_int,
        "rdx", "x2", |real, caller| {
            // SAFETY: null or a notification, says the caller.
            let (owner, mut ours) = unsafe { ours(notification, caller) };
            let notification = ours.as_mut().map_or(notification, |ours| ours);
            // SAFETY: the caller's, but for the notification, which libc only reads and copies.
            let answer = unsafe { real(queue, notification) };
            if answer == 0 && let Some(owner) = owner {
                to_be_told(owner, queue, !notification.is_null());
            }
            answer
        };
    aio_read / aio_read_for / READ (request: *mut aiocb) -> c_int
        as unsafe extern "C-unwind" fn(*mut aiocb) -> c_int,
        "rsi", "x1", |real, caller| {
            // SAFETY: the argument of the caller, as it came.
            let answer = unsafe { real(request) };
            // SAFETY: what libc has just answered to this.
            unsafe { answered(answer, request, caller) }
        };
    aio_read64 / aio_read64_for / READ64 (request: *mut aiocb) -> c_int
        as unsafe extern "C-unwind" fn(*mut aiocb) -> c_int,
        "rsi", "x1", |real, caller| {
            // SAFETY: the argument of the caller, as it came.
            let answer = unsafe { real(request) };
            // SAFETY: what libc has just answered to this.
            unsafe { answered(answer, request, caller) }
        };
    aio_write / aio_write_for / WRITE (request: *mut aiocb) -> c_int
        as unsafe extern "C-unwind" fn(*mut aiocb) -> c_int,
        "rsi", "x1", |real, caller| {
            // SAFETY: the argument of the caller, as it came.
            let answer = unsafe { real(request) };
            // SAFETY: what libc has just answered to this.
            unsafe { answered(answer, request, caller) }
        };
    aio_write64 / aio_write64_for / WRITE64 (request: *mut aiocb) -> c_int
        as unsafe extern "C-unwind" fn(*mut aiocb) -> c_int,
        "rsi", "x1", |real, caller| {
            // SAFETY: the argument of the caller, as it came.
            let answer = unsafe { real(request) };
            // SAFETY: what libc has just answered to this.
            unsafe { answered(answer, request, caller) }
        };
    aio_fsync / aio_fsync_for / SYNC (how: c_int, request: *mut aiocb) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *mut aiocb) -> c_int,
        "rdx", "x2", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            let answer = unsafe { real(how, request) };
            // SAFETY: what libc has just answered to this.
            unsafe { answered(answer, request, caller) }
        };
    aio_fsync64 / aio_fsync64_for / SYNC64 (how: c_int, request: *mut aiocb) -> c_int
        as unsafe extern "C-unwind" fn(c_int, *mut aiocb) -> c_int,
        "rdx", "x2", |real, caller| {
            // SAFETY: the arguments of the caller, as they came.
            let answer = unsafe { real(how, request) };
            // SAFETY: what libc has just answered to this.
            unsafe { answered(answer, request, caller) }
        };
}

/// What this file defines in place of libc's.
pub(super) fn symbols() -> Vec<Symbol> {
    symbols_with_caller()
}

/// libc's `mq_notify` without a notification, which ends the registration of this process, if there
/// is one.
fn untell(queue: c_int) {
    type Notify = unsafe extern "C-unwind" fn(c_int, *mut Notification) -> c_int;
    // SAFETY: the address is libc's function of that name, and the type is its signature.
    let real = unsafe { std::mem::transmute::<usize, Notify>(NOTIFY.address()) };
    // SAFETY: null is allowed, and any descriptor may be asked.
    unsafe { real(queue, ptr::null_mut()) };
}

type Listed =
    unsafe extern "C-unwind" fn(c_int, *const *mut aiocb, c_int, *mut Notification) -> c_int;

/// # Safety
/// As `lio_listio(3)`, with libc's as `real`.
unsafe fn listed(
    real: Listed,
    mode: c_int,
    list: *const *mut aiocb,
    count: c_int,
    notification: *mut Notification,
    caller: usize,
) -> c_int {
    // SAFETY: null or a notification, says the caller.
    let (owner, mut ours) = unsafe { ours(notification, caller) };
    let notification = ours.as_mut().map_or(notification, |ours| ours);
    // SAFETY: the caller's, but for the notification, which libc only reads and copies.
    let answer = unsafe { real(mode, list, count, notification) };
    if let Some(owner) = owner {
        for at in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: that many are there, says the caller.
            let request = unsafe { *list.add(at) };
            // SAFETY: null, or a request whose block stays until the caller has seen it end.
            unsafe { begun_on_file(owner, request) };
        }
    }
    answer
}

/// Who asks, and the notification that libc is to have for it instead of the caller's.
///
/// # Safety
/// `notification` is null or one.
unsafe fn ours(
    notification: *mut Notification,
    caller: usize,
) -> (Option<AccountId>, Option<Notification>) {
    // SAFETY: the caller's promise.
    let wanted = unsafe { notification.as_ref() };
    let owner = owner::of_caller(caller).or_else(|| wanted.and_then(Notification::owner));
    let ours = owner.and_then(|owner| Some(wanted?.by_way_of_us(owner)));
    (owner, ours)
}

/// Enters the request that libc has taken, and gives libc's answer back.
///
/// # Safety
/// As [`begun_on_file`], if the answer is zero.
unsafe fn answered(answer: c_int, request: *mut aiocb, caller: usize) -> c_int {
    if answer == 0
        && let Some(owner) = owner::of_caller(caller)
    {
        // SAFETY: the caller's promise.
        unsafe { begun_on_file(owner, request) };
    }
    answer
}

/// # Safety
/// `request` is null or the block of a request that the library of `owner` has just begun.
unsafe fn begun_on_file(owner: AccountId, request: *mut aiocb) {
    // SAFETY: the caller's promise.
    let Some(block) = (unsafe { request.as_ref() }) else {
        return;
    };
    // The notification is read by libc when the request has ended, in the caller's own block, where
    // it cannot be exchanged unseen.
    if block.aio_sigevent.sigev_notify == libc::SIGEV_THREAD {
        callbacks::calls_directly(owner);
    }
    begun(owner, Kind::File(block.aio_fildes), request.addr());
}

/// Enters a request of `owner`.
fn begun(owner: AccountId, kind: Kind, address: usize) {
    if address == 0 {
        return;
    }
    let mut books = books();
    books.requests.retain(|request| request.address != address);
    if books.requests.len() >= books.sweep_at {
        sweep(&mut books.requests);
        books.sweep_at = 64.max(2 * books.requests.len());
    }
    books.requests.push(Request {
        owner,
        kind,
        address,
    });
}

/// Strikes out the requests that have ended.
fn sweep(requests: &mut Vec<Request>) {
    let memory = File::open("/proc/self/mem").ok();
    requests.retain(|request| memory.as_ref().is_none_or(|memory| request.goes_on(memory)));
}

impl Request {
    /// Whether it has not ended. What it says of itself lies in the library's memory, which is read
    /// by way of the kernel: when the request has ended the library may have given that memory
    /// back.
    fn goes_on(&self, memory: &File) -> bool {
        match self.kind {
            Kind::File(fd) => read::<aiocb>(memory, self.address).is_some_and(|block| {
                // SAFETY: a copy of the block: only looked at.
                block.aio_fildes == fd && unsafe { libc::aio_error(&block) } == libc::EINPROGRESS
            }),
            Kind::Lookup => {
                read::<Lookup>(memory, self.address).is_some_and(|block| block.answer == LOOKING_UP)
            }
        }
    }

    fn cancel(&self) {
        match self.kind {
            Kind::File(fd) => {
                // SAFETY: libc looks for a request with this address among its own, and reads the
                // block, which was there just now. Nothing of the library runs that would give it
                // back.
                unsafe { libc::aio_cancel(fd, ptr::with_exposed_provenance_mut(self.address)) };
            }
            Kind::Lookup => {
                unsafe extern "C" {
                    fn gai_cancel(request: *mut Lookup) -> c_int;
                }
                // SAFETY: as above.
                unsafe { gai_cancel(ptr::with_exposed_provenance_mut(self.address)) };
            }
        }
    }
}

/// A copy of what lies at `address`, if anything does.
///
/// To be used for types that any bytes are one of: the blocks of requests, which are plain C.
fn read<T>(memory: &File, address: usize) -> Option<T> {
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: as many bytes as there are, all of them written.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(copy.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
    memory.read_exact_at(bytes, address as u64).ok()?;
    // SAFETY: all bytes are written, and any are a `T`, says this function's contract.
    Some(unsafe { copy.assume_init() })
}

/// Notes that `owner` is to be told of the next message in `queue`, or no longer.
fn to_be_told(owner: AccountId, queue: c_int, told: bool) {
    let Some(object) = descriptors::identity(queue) else {
        return;
    };
    let mut books = books();
    books.notices.retain(|notice| notice.object != object);
    if told {
        books.notices.push(Notice {
            owner,
            queue,
            object,
        });
    }
}

/// Cancels what libc does for the library of `account`, which nothing calls any more, as far as it
/// can be.
pub(super) fn cancel(account: AccountId) {
    if !USED.load(Ordering::Acquire) {
        return;
    }
    let mut books = books();
    books.notices.retain(|notice| {
        let is_its = notice.owner == account;
        if is_its && descriptors::identity(notice.queue) == Some(notice.object) {
            untell(notice.queue);
        }
        !is_its
    });
    sweep(&mut books.requests);
    for request in &books.requests {
        if request.owner == account {
            request.cancel();
        }
    }
}

/// What libc still does for the library of `account`, for people.
pub(super) fn held(account: AccountId) -> Vec<String> {
    if !USED.load(Ordering::Acquire) {
        return Vec::new();
    }
    let mut books = books();
    sweep(&mut books.requests);
    let its = books
        .requests
        .iter()
        .filter(|request| request.owner == account);
    its.map(|request| match request.kind {
        Kind::File(fd) => {
            format!("libc reads or writes descriptor {fd} for it (aio), which cannot be cancelled")
        }
        Kind::Lookup => {
            "libc looks up a name for it (getaddrinfo_a), which cannot be cancelled".to_owned()
        }
    })
    .collect()
}

/// Strikes out what is left of `account`: its library is unmapped.
pub(super) fn forget(account: AccountId) {
    if USED.load(Ordering::Acquire) {
        let mut books = books();
        books.requests.retain(|request| request.owner != account);
        books.notices.retain(|notice| notice.owner != account);
    }
}
