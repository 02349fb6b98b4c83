//! The time that records expire by: it goes on evenly, whatever is done to the clock of the
//! machine.
//!
//! The clock is read once a boot of the machine, when the first store is opened, and kept beside
//! the stores as the time of that boot. From then on the time since the boot, which nobody can set,
//! is added to it, by this host and by those after it. After a boot it is read again.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};

use crate::{
    clock::{self, since_boot_ms},
    replace::replace,
};

/// The name of the file beside the stores.
const FILE: &str = "clock.json";

/// When the machine was booted, in milliseconds since 1970, as this process has it.
static BOOTED: OnceLock<u64> = OnceLock::new();

/// What is kept of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Which boot of the machine it was.
    boot: String,
    /// When that was, in milliseconds since 1970.
    booted_ms: u64,
    /// The time when this was written: none that comes is before it.
    seen_ms: u64,
}

/// Milliseconds since 1970 by the clock of this boot.
pub(super) fn now_ms() -> u64 {
    let booted = *BOOTED.get_or_init(|| clock::now_ms().saturating_sub(since_boot_ms()));
    booted.saturating_add(since_boot_ms())
}

/// Takes the time from what is kept in `folder`, unless this process has a time. What cannot be
/// kept there is not known to the next host, which reads the clock. Blocks.
pub(super) fn begin(folder: &Path) {
    BOOTED.get_or_init(|| {
        let path = folder.join(FILE);
        let known = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
        let kept = of_boot(
            &clock::boot(),
            known.as_ref(),
            clock::now_ms(),
            since_boot_ms(),
        );
        if known.as_ref() != Some(&kept)
            && let Err(cause) = keep(&path, &kept)
        {
            tracing::debug!(file = %path.display(), "the time of this boot is not kept: {cause}");
        }
        kept.booted_ms
    });
}

/// What holds in `boot`, after what is `known` of an earlier time.
fn of_boot(boot: &str, known: Option<&Kept>, wall_ms: u64, since_boot_ms: u64) -> Kept {
    match known {
        Some(known) if known.boot == boot && !boot.is_empty() => known.clone(),
        known => {
            // A machine without a battery begins in 1970.
            let now_ms = wall_ms.max(known.map_or(0, |known| known.seen_ms));
            Kept {
                boot: boot.to_owned(),
                booted_ms: now_ms.saturating_sub(since_boot_ms),
                seen_ms: now_ms,
            }
        }
    }
}

fn keep(path: &Path, kept: &Kept) -> io::Result<()> {
    replace(
        path,
        &serde_json::to_vec(kept)?,
        Permissions::from_mode(0o600),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_has_one_time_whatever_the_clock_says_later() {
        let first = of_boot("one", None, 5_000_000, 1_000);
        assert_eq!((first.booted_ms, first.seen_ms), (4_999_000, 5_000_000));
        for wall in [0, 5_000_000, u64::MAX] {
            assert_eq!(of_boot("one", Some(&first), wall, 70_000), first);
        }
        // The next boot reads the clock, which may have gone back to its beginning.
        let later = of_boot("two", Some(&first), 9_000_000, 2_000);
        assert_eq!(later.booted_ms, 8_998_000);
        let reset = of_boot("two", Some(&first), 7, 2_000);
        assert_eq!(reset.booted_ms, 4_998_000);
        // Where the kernel does not name its boots, each start is one.
        let unnamed = of_boot("", None, 5_000_000, 1_000);
        assert_eq!(
            of_boot("", Some(&unnamed), 6_000_000, 1_000).booted_ms,
            5_999_000
        );
    }

    #[test]
    fn the_time_goes_on() {
        let before = now_ms();
        assert!(before > 0 && now_ms() >= before);
    }
}
