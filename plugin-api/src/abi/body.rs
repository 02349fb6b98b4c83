//! Bodies across the boundary: streams of frames, pulled by the side that reads, so that
//! back-pressure is by nature.

#[cfg(any(test, fuzzing))]
pub mod forged;

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use abi_stable::{
    StableAbi,
    std_types::{RSlice, RStr},
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::{
    bytes::{Chunk, KeepAlive, OwnedBytes},
    headers::{self, Buffer, Field},
    lent::{Grows, Lent, Size},
    panics::{catch_panic, drop_box, with_slot},
    poll::{PollCode, PollState},
    waker::{WakerCache, WakerRef},
};

/// A body that the other side implements. Dropping it drops that body. It crosses by value; what
/// can grow is its table.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct BodyStream {
    pub(super) body: *mut (),
    pub(super) table: Lent<'static, BodyTable>,
    /// What is left at least, in bytes.
    pub(super) lower: u64,
    /// What is left at most, in bytes; `u64::MAX` is unknown.
    pub(super) upper: u64,
}

/// The functions of a body.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct BodyTable {
    pub(super) size: Size,
    pub(super) poll: unsafe extern "C" fn(*mut (), &WakerRef<'_>, &FrameSink<'_>) -> PollCode,
    pub(super) drop: unsafe extern "C" fn(*mut ()),
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for BodyTable {}

// SAFETY: `BodyStream::new` takes only bodies that are Send.
unsafe impl Send for BodyStream {}
// SAFETY: what is behind it is reached by `&mut` only.
unsafe impl Sync for BodyStream {}

/// Where a poll of a body puts its frame.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct FrameSink<'a> {
    pub(super) slot: *mut (),
    pub(super) table: Lent<'a, FrameTable>,
}

/// The kinds of frames, and the end by a failure. A kind that a later minor adds is a function at
/// the end; who has it and finds a sink without it gives the bytes as data.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct FrameTable {
    pub(super) size: Size,
    /// Bytes to be copied.
    pub(super) lent: unsafe extern "C" fn(*mut (), RSlice<'_, u8>),
    /// Bytes that are given away.
    pub(super) owned: unsafe extern "C" fn(*mut (), OwnedBytes),
    pub(super) trailers: unsafe extern "C" fn(*mut (), RSlice<'_, Field<'_>>),
    pub(super) failed: unsafe extern "C" fn(*mut (), RStr<'_>),
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for FrameTable {}

/// Why a body that the other side implements ended before its end.
#[derive(Clone, Debug)]
pub enum BodyError {
    /// It failed, with this message.
    Failed(String),
    /// It panicked there, which was caught there.
    Panicked,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(message) => f.write_str(message),
            Self::Panicked => f.write_str("the body panicked"),
        }
    }
}

impl std::error::Error for BodyError {}

impl BodyStream {
    /// Gives `body` to the other side.
    pub fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes, Error: fmt::Display> + Send + 'static,
    {
        let hint = body.size_hint();
        Self {
            body: Box::into_raw(Box::new(Exported {
                body,
                waker: WakerCache::default(),
            }))
            .cast(),
            table: Lent::of(Exported::<B>::TABLE),
            lower: hint.lower(),
            upper: hint.upper().unwrap_or(u64::MAX),
        }
    }

    /// Takes it in. `guard` is held as long as the body is; bytes that live on by themselves get a
    /// [`Guard::KeepAlive`].
    pub fn import<G: Guard>(self, guard: G) -> Imported<G> {
        Imported {
            stream: Some(self),
            guard,
        }
    }

    fn hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(self.lower);
        if self.upper != u64::MAX {
            // At most less than at least would be a panic.
            hint.set_upper(self.upper.max(self.lower));
        }
        hint
    }
}

impl Drop for BodyStream {
    fn drop(&mut self) {
        // SAFETY: this value owns the body, and its code is mapped: a guard of its generation is
        // dropped after it (see `Imported`).
        unsafe { (self.table.drop)(self.body) }
    }
}

struct Exported<B> {
    body: B,
    waker: WakerCache,
}

impl<B> Exported<B>
where
    B: Body<Data = Bytes, Error: fmt::Display>,
{
    const TABLE: &'static BodyTable = &BodyTable {
        size: Size::of::<BodyTable>(),
        poll: poll_exported::<B>,
        drop: drop_exported::<B>,
    };
}

unsafe extern "C" fn poll_exported<B>(
    body: *mut (),
    waker: &WakerRef<'_>,
    sink: &FrameSink<'_>,
) -> PollCode
where
    B: Body<Data = Bytes, Error: fmt::Display>,
{
    // SAFETY: `body` is the box of `BodyStream::new`; the other side polls it from one place at a
    // time, as it owns it exclusively.
    let exported = unsafe { &mut *body.cast::<Exported<B>>() };
    catch_panic(|| {
        // SAFETY: the box never moves until `drop_exported`.
        let body = unsafe { Pin::new_unchecked(&mut exported.body) };
        match body.poll_frame(&mut Context::from_waker(exported.waker.get(waker))) {
            Poll::Pending => PollState::Pending,
            Poll::Ready(None) => PollState::Ended,
            Poll::Ready(Some(Err(error))) => {
                sink.failed(&error.to_string());
                PollState::Failed
            }
            Poll::Ready(Some(Ok(frame))) => {
                sink.frame(frame);
                PollState::Ready
            }
        }
    })
    .unwrap_or(PollState::Panicked)
    .into()
}

unsafe extern "C" fn drop_exported<B>(body: *mut ()) {
    // SAFETY: `body` is the box of `BodyStream::new`, given up by its only owner.
    unsafe { drop_box::<Exported<B>>(body) }
}

impl FrameSink<'_> {
    fn frame(&self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => self.data(&data),
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    headers::lend(&trailers, None, |fields| {
                        // SAFETY: the slot is live during the poll that lent this sink.
                        unsafe { (self.table.trailers)(self.slot, fields.into()) }
                    });
                }
            }
        }
    }

    fn data(&self, data: &Bytes) {
        // SAFETY: the slot is live during the poll that lent this sink.
        unsafe {
            match Chunk::of(data) {
                Chunk::Borrowed(bytes) => (self.table.lent)(self.slot, bytes),
                Chunk::Owned(bytes) => (self.table.owned)(self.slot, bytes),
            }
        }
    }

    fn failed(&self, message: &str) {
        // SAFETY: the slot is live during the poll that lent this sink.
        unsafe { (self.table.failed)(self.slot, message.into()) }
    }
}

/// A body of the other side as an [`http_body::Body`] of this one.
#[derive(Debug)]
pub struct Imported<G: Guard> {
    /// None after its end. Dropped before the guard.
    stream: Option<BodyStream>,
    guard: G,
}

/// What keeps the code of the other side mapped while something of it lives here.
pub trait Guard: Send + Unpin + 'static {
    /// The same for bytes of a body, which belong to it and are nothing in flight of their own.
    type KeepAlive: KeepAlive;

    /// A hold for some bytes.
    fn keep_alive(&self) -> Self::KeepAlive;

    /// Runs `call`, which is one into the other side.
    #[inline]
    fn inside<R>(&self, call: impl FnOnce() -> R) -> R {
        call()
    }

    /// Runs `drop`, which frees the body there.
    #[inline]
    fn dropping(&self, drop: impl FnOnce()) {
        drop();
    }
}

/// Nothing to keep: a plugin is never there without its host.
impl Guard for () {
    type KeepAlive = ();

    fn keep_alive(&self) {}
}

/// What one poll put into the sink.
struct Slot<'a, G> {
    guard: &'a G,
    frame: Option<Frame<Bytes>>,
    failure: Option<String>,
}

impl<G: Guard> Imported<G> {
    /// The guard.
    pub fn guard(&self) -> &G {
        &self.guard
    }
}

impl<G: Guard> Drop for Imported<G> {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.guard.dropping(|| drop(stream));
        }
    }
}

impl<G: Guard> Imported<G> {
    const FRAMES: &'static FrameTable = &FrameTable {
        size: Size::of::<FrameTable>(),
        lent: Self::lent,
        owned: Self::owned,
        trailers: Self::trailers,
        failed: Self::failed,
    };

    const fn sink(slot: *mut Slot<'_, G>) -> FrameSink<'static> {
        FrameSink {
            slot: slot.cast(),
            table: Lent::of(Self::FRAMES),
        }
    }

    /// Runs `put` on the slot. A panic ends here, and nothing was put.
    ///
    /// # Safety
    /// `slot` is that of `sink`.
    unsafe fn put(slot: *mut (), put: impl FnOnce(&mut Slot<'_, G>)) {
        // SAFETY: the slot is the one on the stack of `poll_frame`, which lent it for this poll.
        unsafe { with_slot(slot, put) }
    }

    unsafe extern "C" fn lent(slot: *mut (), bytes: RSlice<'_, u8>) {
        let bytes = Chunk::Borrowed(bytes);
        // SAFETY: the other side gives back the slot that it was lent.
        unsafe { Self::put(slot, |slot| slot.data(bytes)) }
    }

    unsafe extern "C" fn owned(slot: *mut (), bytes: OwnedBytes) {
        let bytes = Chunk::Owned(bytes);
        // SAFETY: as above.
        unsafe { Self::put(slot, |slot| slot.data(bytes)) }
    }

    unsafe extern "C" fn trailers(slot: *mut (), fields: RSlice<'_, Field<'_>>) {
        let put = |slot: &mut Slot<'_, G>| {
            let fields = fields.as_slice();
            let mut trailers = HeaderMap::new();
            Buffer::copy(&[], fields, &mut trailers).fields(fields, &mut trailers);
            slot.frame = Some(Frame::trailers(trailers));
        };
        // SAFETY: as above.
        unsafe { Self::put(slot, put) }
    }

    unsafe extern "C" fn failed(slot: *mut (), message: RStr<'_>) {
        // SAFETY: as above.
        unsafe { Self::put(slot, |slot| slot.failure = Some(message.into())) }
    }
}

impl<G: Guard> Slot<'_, G> {
    fn data(&mut self, bytes: Chunk<'_>) {
        self.frame = Some(Frame::data(bytes.into_bytes(|| self.guard.keep_alive())));
    }
}

impl<G: Guard> Body for Imported<G> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { stream, guard } = self.get_mut();
        if stream.is_none() {
            return Poll::Ready(None);
        }
        let mut slot = Slot {
            guard: &*guard,
            frame: None,
            failure: None,
        };
        let sink = Self::sink(&raw mut slot);
        let waker = WakerRef::of(cx.waker());
        let state = guard.inside(|| {
            let Some(body) = stream.as_ref() else {
                return PollState::Ended;
            };
            // SAFETY: the stream is owned and polled here only; sink and waker are lent for the
            // call.
            let state = unsafe { (body.table.poll)(body.body, &waker, &sink) }.state();
            if !matches!(state, PollState::Pending | PollState::Ready) {
                // Within the same call: its drop may block as well.
                *stream = None;
            }
            state
        });
        let error = match state {
            PollState::Pending => return Poll::Pending,
            PollState::Ready => {
                if let (Some(frame), Some(stream)) = (slot.frame, stream.as_mut()) {
                    if let Some(data) = frame.data_ref() {
                        let length = data.len() as u64;
                        stream.lower = stream.lower.saturating_sub(length);
                        if stream.upper != u64::MAX {
                            stream.upper = stream.upper.saturating_sub(length);
                        }
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                if let Some(body) = stream.take() {
                    guard.dropping(|| drop(body));
                }
                BodyError::Failed("the body said that it had a frame and gave none".to_owned())
            }
            PollState::Ended => return Poll::Ready(None),
            PollState::Failed => BodyError::Failed(slot.failure.unwrap_or_default()),
            PollState::Panicked => BodyError::Panicked,
        };
        Poll::Ready(Some(Err(error)))
    }

    fn size_hint(&self) -> SizeHint {
        self.stream
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), BodyStream::hint)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none()
    }
}
