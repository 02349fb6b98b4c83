//! Times that outlive the process and that nobody can set: the clock since boot, and the order of
//! what happened.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Milliseconds since the machine was booted, time asleep included. Means something beside the same
/// [`boot`] only.
pub(crate) fn since_boot_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    let millis = now.unwrap_or_default().as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX)
}

/// Which boot of the machine this is; empty where the kernel does not say.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// The place of an entry in the history of all apps. What an older host wrote has none, and comes
/// first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Order(u64);

/// The last that was given or seen.
static LAST: AtomicU64 = AtomicU64::new(0);

impl Order {
    /// A place after all others.
    pub(crate) fn next() -> Self {
        Self(LAST.fetch_add(1, Relaxed).saturating_add(1))
    }

    /// Takes note of one that was read: those to come are after it.
    pub(crate) fn seen(self) {
        LAST.fetch_max(self.0, Relaxed);
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// Returns a duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_after_what_was_read() {
        let first = Order::next();
        Order(first.0 + 1000).seen();
        assert!(Order::next() > Order(first.0 + 1000));
        assert!(Order::default() < first);
    }

    #[test]
    fn the_clock_since_boot_goes_on() {
        let before = since_boot_ms();
        assert!(before > 0 && since_boot_ms() >= before);
        assert_eq!(boot(), boot());
    }
}
