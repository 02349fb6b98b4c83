//! What the last words of a host say about who is to blame for its end: what is live, or what was
//! replaced and left something behind.
//!
//! An address tells before a thread does: code that jumps into a library that is unmapped runs on
//! the thread of whoever called what that library had left. The libraries that were mapped are in
//! the journal, those that were unmapped too, as long as nothing else was mapped in their place.

use std::time::Duration;

use handover_api::AppName;

use crate::{
    human,
    ledger::{AccountId, End, LastWords},
    records::journal::{Lived, Written},
};

/// How long after its unload a generation is to blame for a fault that nothing else explains.
const JUST_UNLOADED: Duration = Duration::from_secs(5);

/// Who is to blame for the end of a host.
#[derive(Clone, Debug)]
pub(crate) enum Culprit {
    /// That is not known.
    Unknown,
    /// What was live of the app.
    Live(AppName),
    /// A generation that was replaced, but had not ended.
    Draining,
    /// Generations that had ended, or were about to: what they left behind, with the sentence.
    Left(Vec<(AppName, Lived, String)>),
}

/// A generation of the host before, and when it was unmapped, or began to be.
struct Known<'a> {
    app: &'a AppName,
    lived: &'a Lived,
    is_live: bool,
    left_at_ms: Option<u64>,
}

impl Known<'_> {
    fn name(&self) -> String {
        let Lived {
            generation,
            version,
            ..
        } = self.lived;
        format!("{} {generation} ({version})", self.app)
    }
}

/// Finds it, and says where it was: ` in /path of shop 7 (1.2.0)`. `now_ms` is about the time of
/// the crash.
pub(crate) fn find(before: &Written, words: &LastWords, now_ms: u64) -> (Culprit, String) {
    let live = before.live.iter().map(|(app, lived)| Known {
        app,
        lived,
        is_live: true,
        left_at_ms: None,
    });
    let replaced = before.replaced.iter().rev().map(|old| Known {
        app: &old.app,
        lived: &old.lived,
        is_live: false,
        left_at_ms: old.left_at_ms,
    });
    // What is mapped hides what was there before, be it known here or not: what is being tried is
    // not.
    let known: Vec<_> = live.chain(replaced).collect();
    let at = |address: u64, mapped: AccountId| {
        known.iter().find(|known| {
            let is_it = mapped == 0 || known.lived.account() == Some(mapped);
            address != 0 && is_it && known.lived.is_mapped_at(address)
        })
    };
    let code = at(words.instruction, words.code);
    let data = at(words.address, words.data).filter(|known| known.left_at_ms.is_some());
    let called = || {
        let by_account = known
            .iter()
            .find(|known| words.account != 0 && known.lived.account() == Some(words.account));
        by_account.or_else(|| {
            let (app, generation, _) = words.call.as_ref()?;
            let mut all = known.iter();
            all.find(|known| known.app == app && known.lived.generation == *generation)
        })
    };
    let by_address = code.filter(|code| !code.is_live).or(data).or(code);
    let path = match &words.call {
        Some((app, generation, path)) => format!(" in {path} of {app} {generation}"),
        None => String::new(),
    };
    let Some(found) = by_address.or_else(called) else {
        let just = || {
            let unloaded = known.iter().filter(|known| {
                known
                    .left_at_ms
                    .is_some_and(|at| u128::from(now_ms.abs_diff(at)) < JUST_UNLOADED.as_millis())
            });
            unloaded.collect::<Vec<_>>()
        };
        // It is nobody's that is known of.
        let is_nobodys = words.account == 0 && words.call.is_none();
        let unloaded = match words.end {
            End::Signal(_) if words.is_own && is_nobodys => just(),
            End::Signal(_) | End::Exit(_) => Vec::new(),
        };
        if unloaded.is_empty() {
            return (Culprit::Unknown, path);
        }
        let left = unloaded.into_iter().map(|known| {
            let since = ago(known, now_ms);
            let name = known.name();
            let sentence = format!("nothing but the unload of {name} {since} explains it");
            (known.app.clone(), known.lived.clone(), sentence)
        });
        let left: Vec<_> = left.collect();
        let place = format!(", and {}", left[0].2);
        return (Culprit::Left(left), place);
    };
    let name = found.name();
    if found.is_live {
        let place = match &words.call {
            Some((_, _, path)) => format!(" in {path} of {name}"),
            None => format!(" in {name}"),
        };
        return (Culprit::Live(found.app.clone()), place);
    }
    if found.left_at_ms.is_none() {
        return (
            Culprit::Draining,
            format!(" in {name}, which was draining{path}"),
        );
    }
    let since = ago(found, now_ms);
    let sentence = format!("something used what {name} had left behind, which ended {since}");
    let place = format!("{path}: {sentence}");
    let left = (found.app.clone(), found.lived.clone(), sentence);
    (Culprit::Left(vec![left]), place)
}

fn ago(known: &Known<'_>, now_ms: u64) -> String {
    let passed = known.left_at_ms.map_or(0, |at| now_ms.saturating_sub(at));
    format!("{} before", human::duration(Duration::from_millis(passed)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use handover_api::GenerationId;

    use crate::records::journal::Replaced;

    const NOW: u64 = 1_000_000;

    /// `shop` 3 is live at 0x3000, 2 drains at 0x2000, 1 was unmapped from 0x1000 one second ago;
    /// `news` 1 is live at 0x9000.
    fn before() -> Written {
        let app = |name: &str| name.parse::<AppName>().unwrap();
        let old = |generation, left_at_ms| Replaced {
            app: app("shop"),
            lived: lived(generation, generation * 0x1000),
            left_at_ms,
        };
        Written {
            live: [
                (app("shop"), lived(3, 0x3000)),
                (app("news"), lived(1, 0x9000)),
            ]
            .into(),
            replaced: vec![old(1, Some(NOW - 1_000)), old(2, None)],
            ..Written::default()
        }
    }

    fn lived(generation: u64, start: u64) -> Lived {
        Lived::mapped_at(GenerationId(generation), start..start + 0x1000, start)
    }

    fn fault(instruction: u64, address: u64, account: u64) -> LastWords {
        LastWords {
            end: End::Signal(11),
            is_own: true,
            instruction,
            address,
            code: 0,
            data: 0,
            account,
            call: None,
        }
    }

    fn left(words: &LastWords) -> Option<u64> {
        match find(&before(), words, NOW).0 {
            Culprit::Left(left) => left.first().map(|(_, lived, _)| lived.generation.0),
            _ => None,
        }
    }

    #[test]
    fn an_address_where_something_else_is_mapped_now_says_nothing_of_what_was_there() {
        let words = LastWords {
            code: 77,
            account: 77,
            ..fault(0x1008, 0, 0)
        };
        assert!(matches!(find(&before(), &words, NOW).0, Culprit::Unknown));
    }

    #[test]
    fn an_address_of_what_is_unmapped_tells_before_the_thread_does() {
        assert_eq!(left(&fault(0x1008, 0x1008, 0x3000)), Some(1));
        assert_eq!(left(&fault(0x3008, 0x1008, 0x3000)), Some(1));
        let (culprit, _) = find(&before(), &fault(0x3008, 0x10, 0), NOW);
        assert!(matches!(culprit, Culprit::Live(app) if app.as_str() == "shop"));
        let (culprit, _) = find(&before(), &fault(0x2008, 0, 0), NOW);
        assert!(matches!(culprit, Culprit::Draining));
    }

    #[test]
    fn what_nothing_else_explains_is_of_what_was_just_unloaded() {
        assert_eq!(left(&fault(0xffff, 0x10, 0)), Some(1));
        // It was done for somebody.
        let (culprit, _) = find(&before(), &fault(0xffff, 0x10, 0x9000), NOW);
        assert!(matches!(culprit, Culprit::Live(app) if app.as_str() == "news"));
        assert_eq!(left(&fault(0xffff, 0x10, 77)), None);
        let sent = LastWords {
            is_own: false,
            ..fault(0, 0, 0)
        };
        assert_eq!(left(&sent), None);
        let (culprit, _) = find(&before(), &fault(0xffff, 0x10, 0), NOW + 60_000);
        assert!(matches!(culprit, Culprit::Unknown));
    }
}
