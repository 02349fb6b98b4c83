//! Structs and tables that can grow at their end: how they are lent, and how a field that an older
//! side does not know is read.
//!
//! Each begins with a [`Size`], the bytes that its maker filled in. Those of the major's first
//! minor are always there; a later field is there if the size says so. It crosses as a pointer
//! ([`Lent`]), never by value, so that its length is no part of a signature. A longer struct begins
//! with the shorter one, and a reader of either minor reads what both have.

use std::{marker::PhantomData, ops::Deref};

use abi_stable::StableAbi;

/// How many bytes of a struct its maker filled in.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, StableAbi)]
pub struct Size(u32);

impl Size {
    /// The size of a whole `T`.
    pub const fn of<T>() -> Self {
        assert!(size_of::<T>() <= u32::MAX as usize);
        Self(size_of::<T>() as u32)
    }

    /// A size that no honest maker says.
    #[cfg(any(test, fuzzing))]
    pub const fn forged(bytes: u32) -> Self {
        Self(bytes)
    }
}

/// A struct that begins with its [`Size`], and may be followed by fields of a later minor.
///
/// # Safety
/// It is `repr(C)`, and its first field is a `Size`.
pub unsafe trait Grows {}

/// A struct that is lent for the length of a call, and may be longer than this side knows.
#[repr(transparent)]
#[derive(Debug, StableAbi)]
pub struct Lent<'a, T> {
    pointer: *const T,
    _lent: PhantomData<&'a ()>,
}

impl<T> Clone for Lent<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Lent<'_, T> {}

// SAFETY: it is a shared reference to a `T`.
unsafe impl<T: Sync> Send for Lent<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Lent<'_, T> {}

impl<'a, T: Grows> Lent<'a, T> {
    /// Lends `value`, whose size is that of `T`.
    #[inline]
    pub const fn of(value: &'a T) -> Self {
        Self {
            pointer: std::ptr::from_ref(value),
            _lent: PhantomData,
        }
    }

    /// Lends `longer`, which goes on after the end of `T`.
    ///
    /// # Safety
    /// `L` is `repr(C)`, its first field is a `T`, and the size in it is at most that of `L`.
    #[inline]
    pub const unsafe fn longer<L>(longer: &'a L) -> Self {
        Self {
            pointer: std::ptr::from_ref(longer).cast(),
            _lent: PhantomData,
        }
    }

    /// The bytes that its maker filled in.
    #[inline]
    pub fn size(self) -> usize {
        // SAFETY: a `Grows` begins with a `Size`, and is live as long as this is.
        unsafe { self.pointer.cast::<Size>().read() }.0 as usize
    }

    /// The field `F` at `offset`, which is beyond the end of `T`; none when its maker does not know
    /// it.
    ///
    /// # Safety
    /// In the minor that added it, an `F` is at `offset`, and every value that a maker of that
    /// minor fills in is one of `F`.
    #[inline]
    pub unsafe fn later<F: Copy>(self, offset: usize) -> Option<F> {
        let end = offset.checked_add(size_of::<F>())?;
        // SAFETY: its maker filled in so many bytes, among them these, and they are live as long as
        // this is.
        (offset >= size_of::<T>() && end <= self.size())
            .then(|| unsafe { self.pointer.byte_add(offset).cast::<F>().read() })
    }
}

impl<T> Deref for Lent<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: made from a reference that lives as long as this does, or by the other side,
        // whose `T` is no shorter: a major's first fields never change.
        unsafe { &*self.pointer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    struct First {
        size: Size,
        one: u32,
    }

    // SAFETY: `repr(C)`, and the size is first.
    unsafe impl Grows for First {}

    #[repr(C)]
    struct Second {
        first: First,
        two: u64,
        three: u16,
    }

    const TWO: usize = std::mem::offset_of!(Second, two);
    const THREE: usize = std::mem::offset_of!(Second, three);

    /// What a reader of the later minor finds.
    fn read(lent: Lent<'_, First>) -> (u32, Option<u64>, Option<u16>) {
        // SAFETY: these are the fields of `Second`, which are integers.
        unsafe { (lent.one, lent.later(TWO), lent.later(THREE)) }
    }

    fn second(size: Size) -> Second {
        let first = First { size, one: 1 };
        Second {
            first,
            two: 2,
            three: 3,
        }
    }

    #[test]
    fn a_later_field_is_there_if_its_maker_knows_it() {
        let older = First {
            size: Size::of::<First>(),
            one: 1,
        };
        assert_eq!(read(Lent::of(&older)), (1, None, None));
        let newer = second(Size::of::<Second>());
        // SAFETY: it begins with a `First`, and its size is its own.
        let lent = unsafe { Lent::<First>::longer(&newer) };
        assert_eq!(read(lent), (1, Some(2), Some(3)));
        // A reader of the first minor.
        assert_eq!(lent.one, 1);
    }

    /// Under Miri this also says that nothing beyond the end is read.
    #[test]
    fn a_size_that_is_none_reads_no_part_of_a_field() {
        for bytes in 0..=size_of::<Second>() as u32 {
            let cut = second(Size::forged(bytes));
            // SAFETY: as above.
            let lent = unsafe { Lent::<First>::longer(&cut) };
            let (one, two, three) = read(lent);
            assert_eq!(one, 1);
            assert_eq!(two.is_some(), bytes as usize >= TWO + 8, "{bytes}");
            assert_eq!(three.is_some(), bytes as usize >= THREE + 2, "{bytes}");
        }
        for bytes in 0..=size_of::<First>() as u32 {
            let alone = First {
                size: Size::forged(bytes),
                one: 1,
            };
            assert_eq!(read(Lent::of(&alone)), (1, None, None));
        }
        let all = second(Size::forged(u32::MAX));
        // SAFETY: fields of a `Second` only are read.
        let lent = unsafe { Lent::<First>::longer(&all) };
        assert_eq!(read(lent), (1, Some(2), Some(3)));
        // SAFETY: such an offset is refused.
        assert_eq!(unsafe { lent.later::<u64>(usize::MAX - 3) }, None);
        // SAFETY: so is one inside `First`.
        assert_eq!(unsafe { lent.later::<u32>(0) }, None);
    }
}
