//! Memory that a thread keeps from one head to the next, so that a head in the usual size takes none of its own.
//!
//! Both sides have it, each its own, as each frees what it made. It is three things: a buffer that the text of heads is copied into,
//! a header map that the next head is filled into, and a block that the next call's future lies in.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    cell::RefCell,
    ptr::NonNull,
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

/// The size of the buffer. What is kept of one head keeps all of it, so it is small; hyper's own is four times as large.
const BUFFER: usize = 2 * 1024;

/// What is longer gets an allocation of its own.
const MOST_TEXT: usize = BUFFER / 4;

/// A map that grew beyond this many fields is not kept.
const MOST_FIELDS: usize = 64;

/// A future that is larger is not kept room for.
const MOST_ROOM: usize = 16 * 1024;

struct Kept {
    buffer: Option<BytesMut>,
    map: Option<HeaderMap>,
    block: Option<Block>,
}

thread_local! {
    static KEPT: RefCell<Kept> = const {
        RefCell::new(Kept {
            buffer: None,
            map: None,
            block: None,
        })
    };
}

/// Runs `f` on what this thread keeps; none when the thread is about to end.
#[inline]
fn kept<R>(f: impl FnOnce(&mut Kept) -> R) -> Option<R> {
    KEPT.try_with(|kept| f(&mut kept.borrow_mut())).ok()
}

/// One copy of `parts`, one after the other. `length` is what they have together.
#[inline]
pub(super) fn copy<'a>(length: usize, parts: impl Iterator<Item = &'a [u8]>) -> Bytes {
    if length == 0 {
        return Bytes::new();
    }
    let append = |mut to: BytesMut, parts: &mut dyn Iterator<Item = &'a [u8]>| {
        parts.for_each(|part| to.extend_from_slice(part));
        to
    };
    let mut parts = parts;
    if length > MOST_TEXT {
        return append(BytesMut::with_capacity(length), &mut parts).freeze();
    }
    let copied = kept(|kept| {
        let buffer = kept.buffer.get_or_insert_default();
        if buffer.capacity() < length {
            // Begins anew in the same memory, if nothing of it is in use any more.
            buffer.reserve(BUFFER);
        }
        for part in &mut parts {
            buffer.extend_from_slice(part);
        }
        buffer.split().freeze()
    });
    copied.unwrap_or_else(|| append(BytesMut::new(), &mut parts).freeze())
}

/// An empty map, with room for some fields if one is kept.
#[inline]
pub(super) fn map() -> HeaderMap {
    kept(|kept| kept.map.take()).flatten().unwrap_or_default()
}

/// Keeps `map` for the next head, without what is in it.
#[inline]
pub fn keep_map(mut map: HeaderMap) {
    if !(1..=MOST_FIELDS).contains(&map.capacity()) {
        return;
    }
    // Dropping values is no code of anybody else.
    map.clear();
    let left = kept(|kept| kept.map.replace(map));
    drop(left);
}

/// Memory of a layout.
struct Block {
    at: NonNull<u8>,
    layout: Layout,
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `at` came from `alloc` with this layout (`room`, or the box of `keep_room`), and this is its only owner.
        unsafe { dealloc(self.at.as_ptr(), self.layout) }
    }
}

/// Room for a `T`, uninitialized, as `Box` would allocate it.
#[inline]
pub(super) fn room<T>() -> NonNull<T> {
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        return NonNull::dangling();
    }
    let block = kept(|kept| kept.block.take_if(|block| block.layout == layout)).flatten();
    if let Some(block) = block {
        return std::mem::ManuallyDrop::new(block).at.cast();
    }
    // SAFETY: the size is not 0.
    let at = unsafe { alloc(layout) };
    NonNull::new(at.cast()).unwrap_or_else(|| handle_alloc_error(layout))
}

/// Keeps room for the next call.
///
/// # Safety
/// `room` is of [`room`], nobody else's any more, and what was in it is dropped.
#[inline]
pub(super) unsafe fn keep_room<T>(room: NonNull<T>) {
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        return;
    }
    let block = Block {
        at: room.cast(),
        layout,
    };
    if layout.size() <= MOST_ROOM {
        let left = kept(|kept| kept.block.replace(block));
        drop(left);
    }
}
