//! Where panics end: in the half that is called, as no panic crosses.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// What `f` gives; none when it panicked, which the panic hook has told.
#[inline]
pub(super) fn catch_panic<R>(f: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(value) => Some(value),
        Err(payload) => {
            drop_payload(payload);
            None
        }
    }
}

/// Drops what somebody panicked with: a destructor of theirs, which may panic as well, with
/// something that has another one. Who never ends with that is leaked in the end.
#[cold]
pub(crate) fn drop_payload(mut payload: Box<dyn Any + Send>) {
    for _ in 0..8 {
        match catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            Ok(()) => return,
            Err(again) => payload = again,
        }
    }
    std::mem::forget(payload);
}

/// Runs `f` on what `slot` points to, which the other side was lent and gives back; a panic ends
/// here.
///
/// # Safety
/// `slot` is an exclusive borrow of a `T`, whose owner waits below this call on the stack.
#[inline]
pub(super) unsafe fn with_slot<T>(slot: *mut (), f: impl FnOnce(&mut T)) {
    // SAFETY: by the contract of this function.
    let lent = unsafe { &mut *slot.cast::<T>() };
    catch_panic(|| f(lent));
}

/// Drops the box that the other side was given as `pointer`; a panic of its destructors
/// ends here, which the panic hook has told.
///
/// # Safety
/// `pointer` is a `Box<T>` that became one, given up by its only owner.
#[inline]
pub(super) unsafe fn drop_box<T>(pointer: *mut ()) {
    // SAFETY: by the contract of this function.
    let given = unsafe { Box::from_raw(pointer.cast::<T>()) };
    catch_panic(|| drop(given));
}
