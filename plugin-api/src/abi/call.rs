//! One request on its way in, and its answer on its way out.

use abi_stable::{StableAbi, std_types::RSlice};
use bytes::Bytes;
use http::{StatusCode, response};

use super::{
    body::BodyStream,
    bytes::{Chunk, OwnedBytes},
    head::ResponseHead,
    lent::{Grows, Lent, Size},
    panics::catch_panic,
    poll::PollCode,
    pool,
    upgrade::IoStream,
};

/// The client asks for an upgrade of the connection: a bit of the flags of a call. Bits that are
/// not known are ignored.
pub const UPGRADE: u32 = 1;

/// What a call gave at its first poll, which is done inside the call. It is given by value in two
/// registers, and so does not grow: what else a call may give goes through the responder.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Called {
    /// `Ready`, `Failed` and `Panicked` are the end of it; after `Pending` the future is polled.
    pub state: PollCode,
    /// Zeros.
    pub reserved: [u8; 7],
    /// The future, where it is pending; else null. Owned by the host.
    pub future: *mut (),
}

/// Where the plugin puts its answer, or says why there is none.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Responder<'a> {
    pub(super) slot: *mut (),
    pub(super) table: Lent<'a, Respond>,
}

/// The ways to answer, one for each kind of body. A kind that a later minor adds is a function at
/// the end.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Respond {
    pub(super) size: Size,
    /// Without a body.
    pub(super) empty: unsafe extern "C" fn(*mut (), Lent<'_, ResponseHead<'_>>),
    /// With all of it, to be copied.
    pub(super) lent: unsafe extern "C" fn(*mut (), Lent<'_, ResponseHead<'_>>, RSlice<'_, u8>),
    /// With all of it, given away.
    pub(super) owned: unsafe extern "C" fn(*mut (), Lent<'_, ResponseHead<'_>>, OwnedBytes),
    /// With a stream of frames.
    pub(super) stream: unsafe extern "C" fn(*mut (), Lent<'_, ResponseHead<'_>>, BodyStream),
    /// With the bytes of the upgraded connection.
    pub(super) upgrade: unsafe extern "C" fn(*mut (), Lent<'_, ResponseHead<'_>>, IoStream),
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for Respond {}

/// The body of an answer as it comes in.
#[derive(Debug)]
pub enum ReceivedBody<'a> {
    /// No body.
    Empty,
    /// All of it.
    Full(Chunk<'a>),
    /// A stream of frames.
    Stream(BodyStream),
    /// The connection is upgraded, and these are its bytes.
    Upgrade(IoStream),
}

/// The body of an answer, owned.
#[derive(Debug)]
pub enum OwnedBody {
    /// No body.
    Empty,
    /// All of it.
    Full(Bytes),
    /// A stream of frames.
    Stream(BodyStream),
    /// The connection is upgraded, and these are its bytes.
    Upgrade(IoStream),
}

impl Responder<'_> {
    /// Gives an answer to the host: the head `response`, with `body`, and `reason`, a reason phrase
    /// of its own or empty.
    pub fn respond(&self, mut response: response::Parts, reason: &[u8], body: OwnedBody) {
        // Of these nobody says the length but the app: their bodies are not sent.
        let is_sent = !matches!(
            response.status,
            StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT
        );
        let whole = match &body {
            OwnedBody::Full(bytes) if is_sent => Some(bytes.len()),
            _ => None,
        };
        let (slot, table) = (self.slot, &*self.table);
        ResponseHead::lend(&response, whole, reason, |head| {
            // SAFETY: the slot is live during the poll that lent this responder.
            unsafe {
                match body {
                    OwnedBody::Empty => (table.empty)(slot, head),
                    OwnedBody::Full(bytes) => match Chunk::of(&bytes) {
                        Chunk::Borrowed(bytes) => (table.lent)(slot, head, bytes),
                        Chunk::Owned(bytes) => (table.owned)(slot, head, bytes),
                    },
                    OwnedBody::Stream(stream) => (table.stream)(slot, head, stream),
                    OwnedBody::Upgrade(io) => (table.upgrade)(slot, head, io),
                }
            }
        });
        pool::return_map(&mut response.headers);
    }
}

/// What the host makes of an answer.
pub trait ReceiveResponse {
    /// Takes it.
    fn take(&mut self, head: Lent<'_, ResponseHead<'_>>, body: ReceivedBody<'_>);
}

struct Table<T>(T);

impl<T: ReceiveResponse> Table<T> {
    const RESPOND: &'static Respond = &Respond {
        size: Size::of::<Respond>(),
        empty: Self::empty,
        lent: Self::lent,
        owned: Self::owned,
        stream: Self::stream,
        upgrade: Self::upgrade,
    };

    /// A panic of the host ends here, and the request is as one that was not answered.
    ///
    /// # Safety
    /// `slot` is that of `lend_responder`.
    #[inline(always)] // into five functions, each of which knows the kind
    unsafe fn take(slot: *mut (), head: Lent<'_, ResponseHead<'_>>, body: ReceivedBody<'_>) {
        // SAFETY: `slot` is the exclusive borrow of `lend_responder`, which waits below us on the
        // stack.
        let slot = unsafe { &mut *slot.cast::<T>() };
        catch_panic(|| slot.take(head, body));
    }

    unsafe extern "C" fn empty(slot: *mut (), head: Lent<'_, ResponseHead<'_>>) {
        // SAFETY: the plugin gives back the slot that it was lent.
        unsafe { Self::take(slot, head, ReceivedBody::Empty) }
    }

    unsafe extern "C" fn lent(
        slot: *mut (),
        head: Lent<'_, ResponseHead<'_>>,
        bytes: RSlice<'_, u8>,
    ) {
        // SAFETY: as above.
        unsafe { Self::take(slot, head, ReceivedBody::Full(Chunk::Borrowed(bytes))) }
    }

    unsafe extern "C" fn owned(slot: *mut (), head: Lent<'_, ResponseHead<'_>>, bytes: OwnedBytes) {
        // SAFETY: as above.
        unsafe { Self::take(slot, head, ReceivedBody::Full(Chunk::Owned(bytes))) }
    }

    unsafe extern "C" fn stream(
        slot: *mut (),
        head: Lent<'_, ResponseHead<'_>>,
        stream: BodyStream,
    ) {
        // SAFETY: as above.
        unsafe { Self::take(slot, head, ReceivedBody::Stream(stream)) }
    }

    unsafe extern "C" fn upgrade(slot: *mut (), head: Lent<'_, ResponseHead<'_>>, io: IoStream) {
        // SAFETY: as above.
        unsafe { Self::take(slot, head, ReceivedBody::Upgrade(io)) }
    }
}

/// Lends `slot` as a [`Responder`] during `f`.
pub(super) fn lend_responder<T: ReceiveResponse, R>(
    slot: &mut T,
    f: impl FnOnce(&Responder<'_>) -> R,
) -> R {
    f(&Responder {
        slot: std::ptr::from_mut(slot).cast(),
        table: Lent::of(Table::<T>::RESPOND),
    })
}
