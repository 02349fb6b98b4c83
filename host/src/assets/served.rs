//! The files of an app by path, as requests find them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{file::File, name};

/// What requests find.
#[derive(Debug)]
pub(crate) struct Served {
    /// What the paths begin with, each with a slash at its end.
    pub(super) prefixes: Vec<String>,
    pub(super) files: HashMap<String, Arc<File>>,
    pub(super) counters: Arc<Counters>,
}

/// What is counted of an app.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Requests that were answered with a file, or that it has not changed.
    pub(super) requests: AtomicU64,
    /// Requests for a file of a version that is not kept.
    pub(super) skewed: AtomicU64,
}

/// What the host answers a request with.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// This file.
    File(Arc<File>),
    /// That no version has it.
    Skewed,
}

impl Served {
    /// Returns what is at `path`, as the app sees paths, and counts it; none is the app's to
    /// answer.
    pub(crate) fn find(&self, path: &str) -> Option<Found> {
        let mut prefixes = self.prefixes.iter();
        if !prefixes.any(|prefix| path.starts_with(prefix.as_str())) {
            return None;
        }
        if let Some(file) = self.files.get(path) {
            self.counters.requests.fetch_add(1, Ordering::Relaxed);
            return Some(Found::File(Arc::clone(file)));
        }
        if !name::has_hash(path) {
            return None;
        }
        self.counters.skewed.fetch_add(1, Ordering::Relaxed);
        Some(Found::Skewed)
    }
}
