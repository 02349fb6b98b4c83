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
pub(super) fn drop_payload(mut payload: Box<dyn Any + Send>) {
    for _ in 0..8 {
        match catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            Ok(()) => return,
            Err(again) => payload = again,
        }
    }
    std::mem::forget(payload);
}
