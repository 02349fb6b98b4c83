//! Bytes that cross the boundary: borrowed for the length of a call, or owned with the handle that
//! frees them.

use abi_stable::{StableAbi, std_types::RSlice};
use bytes::Bytes;

use super::{panics::drop_box, pool};

/// Up to here copying is cheaper than an owner that travels: an allocation for the handle, a call
/// back to free it.
pub const COPY_UP_TO: usize = 16 * 1024;

/// Bytes that are owned. It crosses by value, and so does not grow: whoever holds this value frees
/// them by dropping it.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct OwnedBytes {
    pub(super) pointer: *const u8,
    pub(super) length: usize,
    pub(super) owner: *mut (),
    pub(super) free: unsafe extern "C" fn(*mut ()),
}

// SAFETY: it is a boxed `Bytes`, which is Send and Sync, and `free` only drops that box.
unsafe impl Send for OwnedBytes {}
// SAFETY: as above; all access is by shared reference to immutable bytes.
unsafe impl Sync for OwnedBytes {}

impl From<Bytes> for OwnedBytes {
    fn from(bytes: Bytes) -> Self {
        unsafe extern "C" fn free(owner: *mut ()) {
            // SAFETY: `owner` is the box that `from` made, and `Drop` calls this once.
            unsafe { drop_box::<Bytes>(owner) }
        }
        let boxed = Box::new(bytes);
        Self {
            pointer: boxed.as_ptr(),
            length: boxed.len(),
            owner: Box::into_raw(boxed).cast(),
            free,
        }
    }
}

impl AsRef<[u8]> for OwnedBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `from` took both from a `Bytes` that lives until `free` is called, and bytes of a
        // `Bytes` never move.
        unsafe { std::slice::from_raw_parts(self.pointer, self.length) }
    }
}

impl Drop for OwnedBytes {
    fn drop(&mut self) {
        // SAFETY: this value is the only owner, and the code behind `free` is mapped: the holder
        // keeps a guard of the generation that it came from (see `Chunk::into_bytes`).
        unsafe { (self.free)(self.owner) }
    }
}

/// Bytes in one of the two ways in which they cross: each has a function of its own in the tables
/// that take bytes.
#[derive(Debug)]
pub enum Chunk<'a> {
    /// Valid during the call: the receiver copies.
    Borrowed(RSlice<'a, u8>),
    /// The receiver owns them now.
    Owned(OwnedBytes),
}

/// What keeps the code of the other side mapped while bytes of it live here.
pub trait KeepAlive: Send + 'static {
    /// Runs `drop`, which frees them there.
    #[inline]
    fn dropping(&self, drop: impl FnOnce()) {
        drop();
    }
}

/// Nothing to keep: a plugin is never there without its host.
impl KeepAlive for () {}

impl<'a> Chunk<'a> {
    /// Hands over `bytes`: small ones to be copied by the receiver, large ones with their owner.
    pub fn of(bytes: &'a Bytes) -> Self {
        if bytes.len() <= COPY_UP_TO {
            Self::Borrowed(bytes[..].into())
        } else {
            Self::Owned(bytes.clone().into())
        }
    }

    /// Takes the bytes in. `hold` is made only when they still belong to the other side, and is
    /// dropped after them.
    pub fn into_bytes<H: KeepAlive>(self, hold: impl FnOnce() -> H) -> Bytes {
        struct KeptBytes<H: KeepAlive> {
            /// None only while it is dropped, before the hold that keeps its code mapped.
            bytes: Option<OwnedBytes>,
            hold: H,
        }
        impl<H: KeepAlive> AsRef<[u8]> for KeptBytes<H> {
            fn as_ref(&self) -> &[u8] {
                self.bytes.as_ref().map_or(&[], OwnedBytes::as_ref)
            }
        }
        impl<H: KeepAlive> Drop for KeptBytes<H> {
            fn drop(&mut self) {
                let bytes = self.bytes.take();
                self.hold.dropping(|| drop(bytes));
            }
        }
        match self {
            Self::Borrowed(slice) => pool::text(slice.len(), |room| room.put(slice.as_slice())),
            Self::Owned(owned) => Bytes::from_owner(KeptBytes {
                bytes: Some(owned),
                hold: hold(),
            }),
        }
    }
}
