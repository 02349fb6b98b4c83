//! Memory that a thread keeps from one head to the next, so that a head in the usual size takes
//! none of its own.
//!
//! Both sides have it, each its own, as each frees what it made. It is four things: a buffer that
//! the text of heads is copied into, a header map that the next head is filled into, the names of
//! fields that `http` has no number for, and a block that the next call's future lies in.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    cell::RefCell,
    mem::MaybeUninit,
    ptr::NonNull,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName};

/// The size of the buffer. What is kept of one head keeps all of it, so it is small; hyper's own is
/// four times as large.
const BUFFER: usize = 2 * 1024;

/// What is longer gets an allocation of its own.
const MOST_TEXT: usize = BUFFER / 4;

/// The fields that most heads do with; also what fits in the smallest map but one.
const USUAL_FIELDS: usize = 6;

/// A map that grew beyond this many fields is not kept.
const MOST_FIELDS: usize = 64;

/// So many names are kept. Browsers and proxies have about a dozen of their own.
const NAMES: usize = 64;

/// A name that is longer is not kept.
const MOST_NAME: usize = 64;

/// A future that is larger is not kept room for.
const MOST_ROOM: usize = 16 * 1024;

struct Kept {
    buffer: Option<BytesMut>,
    map: Option<HeaderMap>,
    names: Option<Box<[Option<HeaderName>; NAMES]>>,
    block: Option<Block>,
}

thread_local! {
    static KEPT: RefCell<Kept> = const {
        RefCell::new(Kept {
            buffer: None,
            map: None,
            names: None,
            block: None,
        })
    };
}

/// Runs `f` on what this thread keeps; none when the thread is about to end.
#[inline]
fn kept<R>(f: impl FnOnce(&mut Kept) -> R) -> Option<R> {
    KEPT.try_with(|kept| f(&mut kept.borrow_mut())).ok()
}

/// Room for a text, filled from its begin.
pub(super) struct Room<'a>(&'a mut [MaybeUninit<u8>]);

impl Room<'_> {
    /// Puts `part` behind what is there.
    ///
    /// # Panics
    /// When there is no room for it.
    #[inline]
    pub(super) fn put(&mut self, part: &[u8]) {
        let (now, later) = std::mem::take(&mut self.0).split_at_mut(part.len());
        now.write_copy_of_slice(part);
        self.0 = later;
    }
}

/// A text of `length` bytes, which `fill` puts into its room.
///
/// # Panics
/// When those are fewer or more.
#[inline]
pub(super) fn text(length: usize, fill: impl Fn(&mut Room<'_>)) -> Bytes {
    let text = kept(|kept| kept.text(length, &fill)).flatten();
    text.unwrap_or_else(|| own_text(length, fill))
}

/// The same for the text of a head of so many `fields`, which `map`, which is new, gets room for.
///
/// # Panics
/// As [`text`] does.
#[inline]
pub(super) fn head(
    length: usize,
    fields: usize,
    map: &mut HeaderMap,
    fill: impl Fn(&mut Room<'_>),
) -> Bytes {
    let text = kept(|kept| {
        if let Some(kept) = &mut kept.map {
            std::mem::swap(kept, map);
        }
        kept.text(length, &fill)
    });
    if map.capacity() < fields {
        // One that fits the usual head fits all of those. An error means more fields than a map can
        // have names: they are values of fewer names then.
        let _ = map.try_reserve(fields.max(USUAL_FIELDS));
    }
    text.flatten().unwrap_or_else(|| own_text(length, fill))
}

impl Kept {
    /// A text in the buffer, if it is none that needs memory of its own.
    #[inline]
    fn text(&mut self, length: usize, fill: impl Fn(&mut Room<'_>)) -> Option<Bytes> {
        if length > MOST_TEXT {
            return None;
        }
        if length == 0 {
            return Some(Bytes::new());
        }
        let buffer = self.buffer.get_or_insert_with(BytesMut::new);
        if buffer.capacity() < length {
            // Begins anew in the same memory, if nothing of it is in use any more.
            buffer.reserve(BUFFER);
        }
        write(buffer, length, fill);
        Some(buffer.split().freeze())
    }
}

/// A text in memory of its own.
#[cold]
fn own_text(length: usize, fill: impl Fn(&mut Room<'_>)) -> Bytes {
    let mut buffer = BytesMut::with_capacity(length);
    write(&mut buffer, length, fill);
    buffer.freeze()
}

#[inline]
fn write(buffer: &mut BytesMut, length: usize, fill: impl Fn(&mut Room<'_>)) {
    let mut room = Room(&mut buffer.spare_capacity_mut()[..length]);
    fill(&mut room);
    assert!(room.0.is_empty(), "a text has the length that was said");
    // SAFETY: all of it was written, as nothing is left of the room.
    unsafe { buffer.set_len(length) };
}

/// Keeps `map` for the next head, without what is in it.
#[inline]
pub fn return_map(map: &mut HeaderMap) {
    let capacity = map.capacity();
    // Without any room, it wraps.
    if capacity.wrapping_sub(1) >= MOST_FIELDS {
        return;
    }
    map.clear();
    kept(|kept| match &mut kept.map {
        Some(kept) if kept.capacity() >= capacity => {}
        Some(kept) => std::mem::swap(kept, map),
        none => *none = Some(std::mem::take(map)),
    });
}

/// The name of this text; none if HTTP does not allow it.
///
/// The same few come with every request, and each would be an allocation and a look at every byte.
#[inline]
pub(super) fn name(text: &[u8]) -> Option<HeaderName> {
    let new = || HeaderName::from_bytes(text).ok();
    if text.len() > MOST_NAME {
        return new();
    }
    kept(|kept| {
        let names = kept
            .names
            .get_or_insert_with(|| Box::new([const { None }; NAMES]));
        let place = &mut names[place(text)];
        match place {
            Some(name) if name.as_str().as_bytes() == text => Some(name.clone()),
            _ => {
                let name = new()?;
                *place = Some(name.clone());
                Some(name)
            }
        }
    })
    .unwrap_or_else(new)
}

/// Where a name is kept: its length and its last bytes tell names apart that begin alike.
#[inline]
fn place(text: &[u8]) -> usize {
    let mut last = [0; 8];
    let tail = &text[text.len().saturating_sub(8)..];
    last[..tail.len()].copy_from_slice(tail);
    // Fibonacci hashing: the high bits of the product are well mixed.
    let mixed = (u64::from_le_bytes(last) ^ text.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> (u64::BITS - NAMES.ilog2())) as usize
}

/// Memory of a layout.
struct Block {
    at: NonNull<u8>,
    layout: Layout,
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `at` came from `alloc` with this layout (`room`, or the box of `keep_room`), and
        // this is its only owner.
        unsafe { dealloc(self.at.as_ptr(), self.layout) }
    }
}

/// Room for a `T`, uninitialized, as `Box` would allocate it.
#[inline]
pub(super) fn spare_slot<T>() -> NonNull<T> {
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
pub(super) unsafe fn return_slot<T>(room: NonNull<T>) {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use http::{HeaderValue, header};

    use super::*;

    fn text_of(part: &'static [u8]) -> Bytes {
        text(part.len(), |room| room.put(part))
    }

    #[test]
    fn texts_of_several_heads_share_a_buffer_and_none_is_overwritten() {
        let kept: Vec<Bytes> = (0..200).map(|_| text_of(b"a text that stays")).collect();
        let others: Vec<Bytes> = (0..200)
            .map(|_| text_of(b"another, that follows"))
            .collect();
        assert!(kept.iter().all(|text| text == "a text that stays"));
        drop(kept);
        let third: Vec<Bytes> = (0..200).map(|_| text_of(b"and the third")).collect();
        assert!(others.iter().all(|text| text == "another, that follows"));
        assert!(third.iter().all(|text| text == "and the third"));
        assert_eq!(text_of(&[b'.'; 4 * BUFFER]).len(), 4 * BUFFER);
    }

    #[test]
    #[should_panic(expected = "the length that was said")]
    fn a_text_that_is_shorter_than_said_is_none() {
        text(2, |room| room.put(b"1"));
    }

    #[test]
    fn a_map_comes_back_empty() {
        let mut map = HeaderMap::new();
        map.insert(header::COOKIE, HeaderValue::from_static("secret"));
        let room = map.capacity();
        return_map(&mut map);
        let mut next = HeaderMap::new();
        head(0, 1, &mut next, |_| {});
        assert!(next.is_empty());
        assert_eq!(next.capacity(), room);
    }

    #[test]
    fn a_name_is_what_its_text_says_also_where_another_was_kept() {
        for _ in 0..2 {
            for number in 0..4 * NAMES {
                let text = format!("x-name-{number}");
                assert_eq!(name(text.as_bytes()).unwrap().as_str(), text);
            }
        }
        assert_eq!(name(b"X-Upper").unwrap().as_str(), "x-upper");
        assert_eq!(name(b"accept").unwrap(), header::ACCEPT);
        let long = "x".repeat(MOST_NAME + 1);
        assert_eq!(name(long.as_bytes()).unwrap().as_str(), long);
        assert!(name(b"").is_none());
        assert!(name(b"no name").is_none());
    }

    #[test]
    fn room_that_is_kept_is_given_to_the_same_size_only() {
        let first = spare_slot::<[u64; 8]>();
        // SAFETY: it is of `room`, and empty.
        unsafe { return_slot(first) };
        let other = spare_slot::<[u64; 9]>();
        let again = spare_slot::<[u64; 8]>();
        assert_ne!(first.cast::<u8>(), other.cast::<u8>());
        assert_eq!(first, again);
        // SAFETY: both are of `room`, and empty.
        unsafe {
            return_slot(other);
            return_slot(again);
            return_slot(spare_slot::<()>());
        }
    }
}
