//! What counting in and out is made of.
//!
//! [`super::in_flight`] takes it from here and from nowhere else: the model in `tests/count_in_model.rs` compiles that very file with loom's in
//! its place.

pub(super) use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering, fence},
};
