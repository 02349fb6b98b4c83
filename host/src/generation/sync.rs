//! What counting in and out is made of.
//!
//! [`super::in_flight`] takes it from here and from nowhere else: the model in
//! `tests/count_in_model.rs` compiles that very file with loom's in its place.

pub(super) use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering, fence},
};

/// A sequentially consistent fence right after an atomic read-modify-write.
#[inline]
pub(super) fn fence_after_update() {
    // There the update is a locked instruction, which is such a fence to the processor already:
    // only the compiler is left to be told. crossbeam-epoch pins in the same way.
    if cfg!(target_arch = "x86_64") {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}
