//! What unloaded generations without a heap of their own left in memory: an estimate, since nobody
//! knows their blocks.
//!
//! After each such unload the loader says how much private memory the process has outside of the
//! heaps that are counted. That is the host's own, that of the other generations without a heap,
//! and what those that are gone never freed. Traffic moves the first two up and down; what is lost
//! never goes down. So the least of the last few is taken, and what that has grown by since the
//! first few is counted: at least so much has come to stay, though another generation without a
//! heap may be using it.

use std::collections::VecDeque;

/// Of so many unloads the least memory counts: what was only busy during some of them does not.
const WINDOW: usize = 4;

/// The memory after each unload, and what has come to stay of it.
#[derive(Debug, Default)]
pub(crate) struct Residue {
    /// Bytes after the last unloads, newest last; [`WINDOW`] at the most.
    recent: VecDeque<u64>,
    /// The least that a full window had, and how many unloads ago that was.
    base: Option<(u64, u64)>,
}

/// What has come to stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Bytes for each unload.
    pub(crate) each: u64,
}

impl Residue {
    /// A generation without a heap of its own is unloaded, and the process has so many bytes of
    /// private memory.
    pub(crate) fn unloaded(&mut self, private: u64) {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(private);
        if let Some(floor) = self.floor() {
            self.base = match self.base {
                Some((base, unloads)) if base <= floor => Some((base, unloads + 1)),
                _ => Some((floor, 0)),
            };
        }
    }

    /// The least of the last unloads; none while they are too few.
    fn floor(&self) -> Option<u64> {
        (self.recent.len() == WINDOW).then(|| self.recent.iter().copied().min().unwrap_or(0))
    }

    /// What has come to stay since the first unloads.
    pub(crate) fn lost(&self) -> Lost {
        let (Some(floor), Some((base, unloads))) = (self.floor(), self.base) else {
            return Lost::default();
        };
        let bytes = floor.saturating_sub(base);
        Lost {
            bytes,
            each: bytes / unloads.max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn after(memory: impl IntoIterator<Item = u64>) -> Lost {
        let mut residue = Residue::default();
        memory
            .into_iter()
            .for_each(|bytes| residue.unloaded(bytes * MIB));
        residue.lost()
    }

    #[test]
    fn what_grows_with_each_unload_is_counted() {
        let lost = after((0..30).map(|n| 20 + 8 * n));
        assert_eq!((lost.bytes, lost.each), (26 * 8 * MIB, 8 * MIB));
    }

    #[test]
    fn what_is_only_busy_for_a_while_is_not() {
        assert_eq!(
            after([20, 300, 20, 21, 500, 400, 20, 700, 600, 650]),
            Lost::default()
        );
        let busy = after((0..40).map(|n| 20 + n + if n % 3 == 0 { 0 } else { 100 }));
        assert!((30 * MIB..40 * MIB).contains(&busy.bytes), "{busy:?}");
    }

    #[test]
    fn the_first_unloads_and_a_process_that_shrinks_count_nothing() {
        assert_eq!(after([]), Lost::default());
        assert_eq!(after([10, 20, 30, 40]), Lost::default());
        assert_eq!(after([50, 40, 30, 20, 10, 9, 8]), Lost::default());
    }
}
