//! How long the next start waits: not at all, unless hosts crash one after the other.

use std::time::Duration;

/// A host that lived this long made progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// The first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(10);

/// Counts the starts without progress.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    in_vain: u32,
}

impl Backoff {
    /// How long to wait after a host that lived for `lifetime`.
    pub(super) fn after(&mut self, lifetime: Duration) -> Duration {
        if lifetime >= PROGRESS {
            self.in_vain = 0;
            return Duration::ZERO;
        }
        self.next()
    }

    /// How long to wait after one more start in vain. The first one is forgiven, and the second is
    /// what a rollback may mend.
    pub(super) fn next(&mut self) -> Duration {
        self.in_vain = self.in_vain.saturating_add(1);
        match self.in_vain {
            0..=2 => Duration::ZERO,
            n => FIRST.saturating_mul(1 << (n - 3).min(10)).min(LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashes_in_a_row_wait_longer_and_longer_but_never_for_ever() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40)
            .map(|_| backoff.after(Duration::from_secs(1)))
            .collect();
        assert_eq!(waits[0], Duration::ZERO);
        assert_eq!(waits[2], FIRST);
        assert!(waits.is_sorted());
        assert_eq!(waits[39], LONGEST);
        assert_eq!(backoff.after(PROGRESS), Duration::ZERO);
        assert_eq!(backoff.after(Duration::ZERO), Duration::ZERO);
    }
}
