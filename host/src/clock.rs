//! The clocks of the machine: the one on the wall, which can be set, and the one since the boot,
//! which nobody can set.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, millis)
}

/// Milliseconds since the machine was booted, time asleep included. Means something beside the same
/// [`boot`] only.
pub(crate) fn since_boot_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| millis(now.into()))
}

/// Which boot of the machine this is; empty where the kernel does not say.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Returns a duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_since_boot_goes_on() {
        let before = since_boot_ms();
        assert!(before > 0 && since_boot_ms() >= before);
        assert_eq!(boot(), boot());
    }
}
