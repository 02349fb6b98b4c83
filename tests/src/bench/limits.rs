//! `docs/benchmarks/limits.json`: what a request may cost, as far as it can be told apart from what
//! the machine makes it cost.
//!
//! Stored is what the host costs beside its twin, as a ratio and as a difference; compared is what
//! both cost in one and the same run. Another C library, processor or release of a common
//! dependency moves both, so the limit moves along; what only the host has to pay moves the host
//! alone.

use std::{fs, path::PathBuf};

use serde_json::{Map, Value, json};

use super::{callgrind::Cost, figures::rounded, report};

/// How far a figure may be above what is expected. Counting twice gives figures less than one per
/// cent apart.
const MARGIN: f64 = 0.02;

/// Two counts that are less apart are the same: what the runtime allocates now and then is counted
/// with one request or another.
const BLUR: f64 = 0.1;

/// What was counted in a run.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    /// Of the host.
    pub host: Cost,
    /// Of its twin.
    pub twin: Cost,
}

/// How a count stands to what is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// Nothing is stored for it.
    Unknown,
    /// It costs more than it may.
    Over,
    /// As expected.
    Within,
    /// It costs so much less that the limit would not notice if it went up again.
    Under,
}

impl Verdict {
    /// Whether the change that was counted cannot be taken.
    pub fn fails(self) -> bool {
        matches!(self, Self::Unknown | Self::Over)
    }
}

/// One figure of one case, judged.
#[derive(Debug, Clone, Copy)]
pub struct Judged {
    /// `instructions` or `allocations`.
    pub what: &'static str,
    /// What was counted of the host.
    pub counted: f64,
    /// What the twin of this run makes expect of it, as stored.
    pub expected: Option<f64>,
    /// What follows.
    pub verdict: Verdict,
}

/// The stored figures of all cases.
#[derive(Debug, Clone, Default)]
pub struct Limits(Map<String, Value>);

impl Limits {
    /// Reads them; none when there is no file.
    ///
    /// # Panics
    /// When the file is no JSON object.
    pub fn read() -> Self {
        fs::read_to_string(path()).map_or_else(
            |_| Self::default(),
            |text| Self(serde_json::from_str(&text).expect("limits.json is a JSON object")),
        )
    }

    /// Writes them, for good.
    ///
    /// # Panics
    /// When the workspace cannot be written.
    pub fn write(&self) {
        let text = serde_json::to_string_pretty(&self.0).expect("JSON can be written");
        fs::write(path(), text + "\n").expect("the workspace can be written");
    }

    /// From now on `case` costs what was counted.
    pub fn bless(&mut self, case: &str, counted: &Counted) {
        let figures = figures(counted).map(|(what, host, twin)| {
            let figure = json!({
                "handover": rounded(host),
                "twin": rounded(twin),
                "ratio": rounded(host / twin),
                "difference": rounded(host - twin),
            });
            (what.to_owned(), figure)
        });
        self.0.insert(
            case.to_owned(),
            Value::Object(figures.into_iter().collect()),
        );
    }

    /// Compares what was counted with what is stored.
    pub fn judge(&self, case: &str, counted: &Counted) -> [Judged; 2] {
        figures(counted).map(|(what, host, twin)| {
            let stored = |key: &str| self.0.get(case)?.get(what)?.get(key)?.as_f64();
            // When the twin costs more than it did, the host may too: by the same share, if the
            // whole machine makes it dearer, or by as much, if it is something that both do once.
            let expected = stored("ratio")
                .zip(stored("difference"))
                .map(|(ratio, difference)| (twin * ratio).max(twin + difference));
            let verdict = expected.map_or(Verdict::Unknown, |expected| {
                let margin = (expected * MARGIN).max(BLUR);
                match host - expected {
                    more if more > margin => Verdict::Over,
                    less if less < -margin => Verdict::Under,
                    _ => Verdict::Within,
                }
            });
            Judged {
                what,
                counted: host,
                expected,
                verdict,
            }
        })
    }
}

fn path() -> PathBuf {
    report::folder().join("limits.json")
}

fn figures(counted: &Counted) -> [(&'static str, f64, f64); 2] {
    let Counted { host, twin } = counted;
    [
        ("instructions", host.instructions, twin.instructions),
        ("allocations", host.allocations, twin.allocations),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: Counted = Counted {
        host: Cost {
            instructions: 20_000.0,
            allocations: 26.0,
        },
        twin: Cost {
            instructions: 15_000.0,
            allocations: 19.0,
        },
    };

    fn judged(host: (f64, f64), twin: (f64, f64)) -> [Verdict; 2] {
        let mut limits = Limits::default();
        limits.bless("hello", &STORED);
        let by = |cost: Cost, (instructions, allocations): (f64, f64)| Cost {
            instructions: cost.instructions * instructions,
            allocations: cost.allocations * allocations,
        };
        let counted = Counted {
            host: by(STORED.host, host),
            twin: by(STORED.twin, twin),
        };
        limits.judge("hello", &counted).map(|judged| judged.verdict)
    }

    #[test]
    fn a_request_that_costs_three_per_cent_more_is_over() {
        use Verdict::{Over, Within};
        let same = (1.0, 1.0);
        assert_eq!(judged(same, same), [Within, Within]);
        assert_eq!(judged((1.03, 1.0), same), [Over, Within]);
        assert_eq!(judged((1.0, 1.03), same), [Within, Over]);
        assert_eq!(judged((1.01, 1.01), (0.99, 1.0)), [Within, Within]);
    }

    #[test]
    fn what_makes_the_twin_dearer_as_well_is_the_machine() {
        use Verdict::{Over, Within};
        // Another C library: the same share more for both. Another hyper: as much more for both.
        let share = (1.07, 1.0);
        assert_eq!(judged(share, share), [Within, Within]);
        assert_eq!(judged((1.06, 1.0), (1.08, 1.0)), [Within, Within]);
        // And then three per cent of our own on top of it.
        assert_eq!(judged((1.07 * 1.03, 1.0), share), [Over, Within]);
    }

    #[test]
    fn a_cheaper_request_wants_to_be_stored_and_an_unknown_one_as_well() {
        let same = (1.0, 1.0);
        assert_eq!(judged((0.9, 0.9), same), [Verdict::Under; 2]);
        let unknown = Limits::default().judge("hello", &STORED);
        assert!(
            unknown
                .iter()
                .all(|judged| judged.verdict == Verdict::Unknown)
        );
    }
}
