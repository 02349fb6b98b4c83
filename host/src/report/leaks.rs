//! What generations leave behind, and the budget for it.

use std::collections::BTreeMap;

use handover_api::{AppName, EventKind, GenerationId, LeakStatus};
use parking_lot::Mutex;

use crate::{
    config::LeakBudget,
    human,
    ledger::Leftovers,
    records::events::Events,
    report::residue::{Lost, Residue},
};

/// What all generations of this run of the host have left behind.
#[derive(Debug, Default)]
pub(crate) struct Leaks(Mutex<Sums>);

#[derive(Debug, Default)]
struct Sums {
    /// Descriptors that unloaded generations left open.
    gone: u64,
    /// Bytes of heap and descriptors of each generation that is retained.
    retained: BTreeMap<(AppName, GenerationId), (u64, u64)>,
    /// What unloaded generations without a heap of their own left in memory.
    residue: Residue,
    /// The parts of the budget that are overdrawn, which has been told.
    told: Vec<&'static str>,
}

impl Leaks {
    /// What there is now.
    pub(crate) fn status(&self) -> LeakStatus {
        self.0.lock().status()
    }

    /// A generation is unloaded and left that behind. Returns what all without a heap of their own
    /// have lost, if it had none.
    pub(crate) fn unloaded(
        &self,
        app: &AppName,
        id: GenerationId,
        left: &Leftovers,
    ) -> Option<Lost> {
        let mut sums = self.0.lock();
        sums.retained.remove(&(app.clone(), id));
        sums.gone += left.open.len() as u64;
        sums.residue.unloaded(left.private_bytes?);
        Some(sums.residue.lost())
    }

    /// A generation is retained and holds that.
    pub(crate) fn retained(&self, app: &AppName, id: GenerationId, holds: (Option<u64>, usize)) {
        let holds = (holds.0.unwrap_or(0), holds.1 as u64);
        self.0.lock().retained.insert((app.clone(), id), holds);
    }

    /// Records an event for each part of `budget` that is overdrawn since the last time.
    pub(crate) fn record_overdrawn(&self, budget: &LeakBudget, events: &Events) {
        for sentence in self.0.lock().overdrawn(budget) {
            events.record(EventKind::LeakBudget, None, None, sentence);
        }
    }
}

impl Sums {
    fn status(&self) -> LeakStatus {
        let estimated = self.residue.lost().bytes;
        LeakStatus {
            bytes: estimated + self.retained.values().map(|held| held.0).sum::<u64>(),
            estimated,
            descriptors: self.gone + self.retained.values().map(|held| held.1).sum::<u64>(),
            retained: self.retained.len() as u64,
        }
    }

    /// What has been overdrawn since the last look, a sentence each.
    fn overdrawn(&mut self, budget: &LeakBudget) -> Vec<String> {
        let LeakStatus {
            bytes,
            descriptors,
            retained,
            ..
        } = self.status();
        let mut sentences = Vec::new();
        let mut look = |key: &'static str, is: u64, may: u64, what: &dyn Fn(u64) -> String| {
            self.told.retain(|told| *told != key || is > may);
            if is > may && !self.told.contains(&key) {
                self.told.push(key);
                sentences.push(format!(
                    "generations that were replaced hold {}, more than the {} of leak_budget.{key}: see `handover events` for whose they are, and restart the host when it suits",
                    what(is),
                    what(may)
                ));
            }
        };
        look("bytes", bytes, budget.bytes, &|bytes| {
            format!("{} of heap", human::memory(bytes))
        });
        look("descriptors", descriptors, budget.descriptors, &|number| {
            human::pluralize(number, "descriptor")
        });
        look(
            "retained",
            retained,
            budget.retained,
            &|number| match number {
                1 => "1 library".to_owned(),
                _ => format!("{number} libraries"),
            },
        );
        sentences
    }
}

/// What a generation that is unloaded left behind, for its event, with what all without a heap of
/// their own have lost: begins with `; `, or is empty.
pub(crate) fn sentence(left: &Leftovers, lost: Option<Lost>) -> String {
    let mut text = String::new();
    if let Some(bytes @ 1..) = left.heap_bytes {
        text.push_str(&format!("; {} of heap freed for it", human::memory(bytes)));
    }
    if let Some(Lost {
        bytes: bytes @ 1..,
        each,
    }) = lost
    {
        text.push_str(&format!(
            "; it had no heap of its own, and such generations have left about {} of memory in all, {} a reload",
            human::memory(bytes),
            human::memory(each)
        ));
    }
    for (what, which) in [("closed for it", &left.closed), ("left open", &left.open)] {
        match which.len() {
            0 => {}
            number @ 1..=4 => text.push_str(&format!("; {what}: {}", which[..number].join(", "))),
            number => text.push_str(&format!(
                "; {what}: {} and {} more",
                which[..4].join(", "),
                number - 4
            )),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    const BUDGET: LeakBudget = LeakBudget {
        bytes: 1000,
        descriptors: 2,
        retained: 1,
    };

    fn left(bytes: u64, open: usize) -> Leftovers {
        Leftovers {
            heap_bytes: Some(bytes),
            open: vec!["descriptor 9 (/x)".to_owned(); open],
            ..Leftovers::default()
        }
    }

    #[test]
    fn a_crossing_is_told_once_until_it_is_crossed_back() {
        let leaks = Leaks::default();
        let app: AppName = "shop".parse().unwrap();
        leaks.unloaded(&app, GenerationId(1), &left(600_000, 2));
        assert!(leaks.0.lock().overdrawn(&BUDGET).is_empty());
        leaks.retained(&app, GenerationId(2), (Some(1200), 0));
        let told = leaks.0.lock().overdrawn(&BUDGET);
        assert_eq!(told.len(), 1);
        assert!(
            told[0].contains("1.2 KiB of heap, more than the 1000 B of heap of leak_budget.bytes"),
            "{told:?}"
        );
        assert!(leaks.0.lock().overdrawn(&BUDGET).is_empty());
        leaks.retained(&app, GenerationId(3), (None, 0));
        assert_eq!(leaks.0.lock().overdrawn(&BUDGET).len(), 1);
        leaks.unloaded(&app, GenerationId(3), &left(0, 0));
        assert!(leaks.0.lock().overdrawn(&BUDGET).is_empty());
        leaks.retained(&app, GenerationId(4), (None, 0));
        assert_eq!(leaks.0.lock().overdrawn(&BUDGET).len(), 1);
    }

    #[test]
    fn what_is_lost_without_a_heap_counts_as_bytes() {
        let leaks = Leaks::default();
        let app: AppName = "shop".parse().unwrap();
        for n in 1..=10 {
            let left = Leftovers {
                private_bytes: Some(n * 600),
                ..Leftovers::default()
            };
            leaks.unloaded(&app, GenerationId(n), &left);
        }
        let status = leaks.status();
        assert_eq!((status.bytes, status.estimated), (3600, 3600));
        assert_eq!(leaks.0.lock().overdrawn(&BUDGET).len(), 1);
    }

    #[test]
    fn what_was_left_is_told_with_its_names() {
        assert_eq!(sentence(&Leftovers::default(), Some(Lost::default())), "");
        assert_eq!(
            sentence(&left(2048, 1), None),
            "; 2 KiB of heap freed for it; left open: descriptor 9 (/x)"
        );
        assert!(sentence(&left(0, 6), None).ends_with(" and 2 more"));
        let lost = Lost {
            bytes: 5 << 20,
            each: 26 << 10,
        };
        assert!(
            sentence(&Leftovers::default(), Some(lost))
                .ends_with("5 MiB of memory in all, 26 KiB a reload")
        );
    }
}
