//! One request on its way in, and its answer on its way out.

use abi_stable::StableAbi;
use bytes::Bytes;
use http::response;

use super::{
    body::BodyStream, bytes::Chunk, head::ResponseHead, keep, poll::PollState, upgrade::IoStream,
};

/// What a call gave at its first poll, which is done inside the call.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Called {
    /// `Ready`, `Failed` and `Panicked` are the end of it; after `Pending` the future is polled.
    pub state: PollState,
    /// The future, where it is pending; else null. Owned by the host.
    pub future: *mut (),
}

/// Where the plugin puts its answer, or says why there is none.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Responder<'a> {
    slot: *mut (),
    respond: unsafe extern "C" fn(*mut (), &ResponseHead<'_>, AnswerBody<'_>),
    _lent: std::marker::PhantomData<&'a ()>,
}

/// The body of an answer as it crosses.
#[repr(C, u8)]
#[derive(Debug, StableAbi)]
pub enum AnswerBody<'a> {
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
pub enum Payload {
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
    /// Gives an answer to the host: the head `response`, with `body`.
    pub fn respond(&self, mut response: response::Parts, body: Payload) {
        let whole = match &body {
            Payload::Full(bytes) => Some(bytes.len()),
            _ => None,
        };
        ResponseHead::lend(&response, whole, |head| {
            let full;
            let body = match body {
                Payload::Empty => AnswerBody::Empty,
                Payload::Full(bytes) => {
                    full = bytes;
                    AnswerBody::Full(Chunk::of(&full))
                }
                Payload::Stream(stream) => AnswerBody::Stream(stream),
                Payload::Upgrade(io) => AnswerBody::Upgrade(io),
            };
            // SAFETY: the slot is live during the poll that lent this responder.
            unsafe { (self.respond)(self.slot, head, body) }
        });
        keep::keep_map(&mut response.headers);
    }
}

/// What the host makes of an answer.
pub trait TakeAnswer {
    /// Takes it.
    fn take(&mut self, head: &ResponseHead<'_>, body: AnswerBody<'_>);
}

/// Lends `slot` as a [`Responder`] during `f`.
pub(super) fn lend_responder<T: TakeAnswer, R>(
    slot: &mut T,
    f: impl FnOnce(&Responder<'_>) -> R,
) -> R {
    unsafe extern "C" fn respond<T: TakeAnswer>(
        slot: *mut (),
        head: &ResponseHead<'_>,
        body: AnswerBody<'_>,
    ) {
        // SAFETY: `slot` is the exclusive borrow of `lend_responder`, which waits below us on the stack.
        unsafe { &mut *slot.cast::<T>() }.take(head, body);
    }
    f(&Responder {
        slot: std::ptr::from_mut(slot).cast(),
        respond: respond::<T>,
        _lent: std::marker::PhantomData,
    })
}
