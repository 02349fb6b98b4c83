//! The byte stream of an upgraded connection, as one side implements it and the other uses it.

use std::{
    io,
    task::{Context, Poll},
};

use abi_stable::StableAbi;

use super::{
    lent::{Grows, Lent, Size},
    panics::{catch_panic, drop_box},
    poll::{PollCode, PollState},
    waker::WakerRef,
};

/// Bytes both ways. Dropping it closes it. It crosses by value; what can grow is its table.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct IoStream {
    pub(super) io: *mut (),
    pub(super) table: Lent<'static, IoTable>,
}

/// The functions of a byte stream.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct IoTable {
    pub(super) size: Size,
    pub(super) read:
        unsafe extern "C" fn(*mut (), &WakerRef<'_>, *mut u8, usize, &mut usize) -> PollCode,
    pub(super) write:
        unsafe extern "C" fn(*mut (), &WakerRef<'_>, *const u8, usize, &mut usize) -> PollCode,
    pub(super) flush: unsafe extern "C" fn(*mut (), &WakerRef<'_>) -> PollCode,
    pub(super) shutdown: unsafe extern "C" fn(*mut (), &WakerRef<'_>) -> PollCode,
    pub(super) drop: unsafe extern "C" fn(*mut ()),
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for IoTable {}

// SAFETY: `IoStream::new` takes only streams that are Send.
unsafe impl Send for IoStream {}

/// What an [`IoStream`] is made of: the poll functions of a byte stream, without a dependency on
/// anybody's traits.
pub trait PollIo: Send + Unpin + 'static {
    /// Reads into `buffer`; 0 is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;
    /// Writes from `buffer`.
    fn poll_write(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>>;
    /// Sends on what was written.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ends the writing side.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

fn guarded<T>(poll: impl FnOnce() -> Poll<io::Result<T>>, done: impl FnOnce(T)) -> PollCode {
    let state = match catch_panic(poll) {
        Some(Poll::Pending) => PollState::Pending,
        Some(Poll::Ready(Ok(value))) => {
            done(value);
            PollState::Ready
        }
        Some(Poll::Ready(Err(_))) => PollState::Failed,
        None => PollState::Panicked,
    };
    state.into()
}

/// # Safety
/// `io` is the box of `IoStream::new::<T>`, used by its only owner.
unsafe fn io_of<'a, T>(io: *mut ()) -> &'a mut T {
    // SAFETY: by the contract of this function.
    unsafe { &mut *io.cast::<T>() }
}

impl IoStream {
    /// Gives `io` to the other side.
    pub fn new<T: PollIo>(io: T) -> Self {
        unsafe extern "C" fn read<T: PollIo>(
            io: *mut (),
            waker: &WakerRef<'_>,
            to: *mut u8,
            length: usize,
            done: &mut usize,
        ) -> PollCode {
            // SAFETY: the caller lends `length` initialised bytes at `to`, and owns `io`.
            let (io, buffer) =
                unsafe { (io_of::<T>(io), std::slice::from_raw_parts_mut(to, length)) };
            waker.with(|waker| {
                guarded(
                    || io.poll_read(&mut Context::from_waker(waker), buffer),
                    |n| *done = n,
                )
            })
        }
        unsafe extern "C" fn write<T: PollIo>(
            io: *mut (),
            waker: &WakerRef<'_>,
            from: *const u8,
            length: usize,
            done: &mut usize,
        ) -> PollCode {
            // SAFETY: the caller lends `length` bytes at `from`, and owns `io`.
            let (io, buffer) =
                unsafe { (io_of::<T>(io), std::slice::from_raw_parts(from, length)) };
            waker.with(|waker| {
                guarded(
                    || io.poll_write(&mut Context::from_waker(waker), buffer),
                    |n| *done = n,
                )
            })
        }
        unsafe extern "C" fn flush<T: PollIo>(io: *mut (), waker: &WakerRef<'_>) -> PollCode {
            // SAFETY: the caller owns `io`.
            let io = unsafe { io_of::<T>(io) };
            waker.with(|waker| guarded(|| io.poll_flush(&mut Context::from_waker(waker)), |()| ()))
        }
        unsafe extern "C" fn shutdown<T: PollIo>(io: *mut (), waker: &WakerRef<'_>) -> PollCode {
            // SAFETY: the caller owns `io`.
            let io = unsafe { io_of::<T>(io) };
            waker.with(|waker| {
                guarded(
                    || io.poll_shutdown(&mut Context::from_waker(waker)),
                    |()| (),
                )
            })
        }
        unsafe extern "C" fn free<T: PollIo>(io: *mut ()) {
            // SAFETY: the caller owned `io` and gives it up.
            unsafe { drop_box::<T>(io) }
        }
        Self {
            io: Box::into_raw(Box::new(io)).cast(),
            table: Lent::of(
                const {
                    &IoTable {
                        size: Size::of::<IoTable>(),
                        read: read::<T>,
                        write: write::<T>,
                        flush: flush::<T>,
                        shutdown: shutdown::<T>,
                        drop: free::<T>,
                    }
                },
            ),
        }
    }

    fn outcome<T>(state: PollCode, value: T) -> Poll<io::Result<T>> {
        match state.state() {
            PollState::Pending => Poll::Pending,
            PollState::Ready => Poll::Ready(Ok(value)),
            PollState::Ended | PollState::Failed | PollState::Panicked => {
                Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::BrokenPipe,
                    "the other side of the upgraded connection is gone",
                )))
            }
        }
    }
}

impl PollIo for IoStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut done = 0;
        // SAFETY: this value owns `io`; the buffer is lent for the call.
        let state = unsafe {
            (self.table.read)(
                self.io,
                &WakerRef::of(cx.waker()),
                buffer.as_mut_ptr(),
                buffer.len(),
                &mut done,
            )
        };
        Self::outcome(state, done.min(buffer.len()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let mut done = 0;
        // SAFETY: this value owns `io`; the buffer is lent for the call.
        let state = unsafe {
            (self.table.write)(
                self.io,
                &WakerRef::of(cx.waker()),
                buffer.as_ptr(),
                buffer.len(),
                &mut done,
            )
        };
        Self::outcome(state, done.min(buffer.len()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // SAFETY: this value owns `io`.
        Self::outcome(
            unsafe { (self.table.flush)(self.io, &WakerRef::of(cx.waker())) },
            (),
        )
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // SAFETY: this value owns `io`.
        Self::outcome(
            unsafe { (self.table.shutdown)(self.io, &WakerRef::of(cx.waker())) },
            (),
        )
    }
}

impl Drop for IoStream {
    fn drop(&mut self) {
        // SAFETY: this value owns `io`, and its code is mapped: a guard of its generation is
        // dropped after it by whoever holds both.
        unsafe { (self.table.drop)(self.io) }
    }
}
