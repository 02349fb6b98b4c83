//! Durations, sizes, times and counts as text for people. One unit system for each: memory counts
//! in powers of 1024, files in powers of 1000.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Formats a duration in at most two units: `4 ms`, `1.2 s`, `3m 5s`, `2d 4h`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.as_millis() < 1 => format!("{} µs", duration.as_micros()),
        0 => format!("{} ms", duration.as_millis()),
        1..=9 => format!("{:.1} s", duration.as_secs_f64()),
        10..=59 => format!("{seconds} s"),
        60..=3_599 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{}h {}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Formats an age or a wait in whole seconds: `0 s`, `9 s`, `3m 5s`.
pub(crate) fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        _ => duration(age),
    }
}

/// Formats the size of a file: `532 B`, `1.4 MB`.
pub(crate) fn file_size(bytes: u64) -> String {
    scaled(bytes, 1000.0, ["kB", "MB", "GB", "TB"])
}

/// Formats an amount of memory, in the units that the configuration takes: `532 B`, `1.4 MiB`,
/// `64 MiB`.
pub(crate) fn memory(bytes: u64) -> String {
    scaled(bytes, 1024.0, ["KiB", "MiB", "GiB", "TiB"]).replace(".0 ", " ")
}

fn scaled(bytes: u64, step: f64, units: [&str; 4]) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64;
    if value < step {
        return format!("{bytes} B");
    }
    value /= step;
    let mut unit = 0;
    while value >= step - 0.05 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// Formats milliseconds since 1970 as a time of UTC, to the second.
pub(crate) fn timestamp(at_ms: u64) -> String {
    let at = UNIX_EPOCH
        .checked_add(Duration::from_millis(at_ms))
        .unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Formats a count with its noun: `1 panic`, `2 panics`.
pub(crate) fn pluralize(number: u64, singular: &str) -> String {
    match number {
        1 => format!("1 {singular}"),
        _ => format!("{number} {singular}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_unit_that_people_would_choose() {
        for (micros, text) in [
            (0, "0 µs"),
            (950, "950 µs"),
            (4_200, "4 ms"),
            (999_900, "999 ms"),
            (1_240_000, "1.2 s"),
            (59_900_000, "59 s"),
            (125_000_000, "2m 5s"),
            (7_260_000_000, "2h 1m"),
            (180_000_000_000, "2d 2h"),
        ] {
            assert_eq!(duration(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn sizes_have_three_or_four_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_449_000, "1.4 MB"),
            (999_960_000, "1.0 GB"),
            (u64::MAX, "18446744.1 TB"),
        ] {
            assert_eq!(file_size(bytes), text);
        }
        for (bytes, text) in [(1_023, "1023 B"), (1_536, "1.5 KiB"), (64 << 20, "64 MiB")] {
            assert_eq!(memory(bytes), text);
        }
    }
}
