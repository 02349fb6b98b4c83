//! The links of this generation, in memory.
//!
//! For now each generation begins with the two links below and forgets the rest when it leaves. The
//! host's state store, which outlives generations, takes this module's place later: nothing outside
//! of this file knows how links are kept.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

use crate::link::{Slug, Target};

/// How many links are kept; more are refused, so that the memory of the app has a bound.
pub(crate) const MAX_LINKS: usize = 1000;

const FIRST_LINKS: [(&str, &str); 2] = [
    ("rust", "https://www.rust-lang.org/learn"),
    (
        "relay",
        "https://en.wikipedia.org/wiki/Relay_race#Changeovers",
    ),
];

/// One link, as it is kept and as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Link {
    /// Its short name, also its path.
    pub(crate) slug: Slug,
    /// Where it leads.
    pub(crate) url: Target,
    /// How often it was followed.
    pub(crate) hits: u64,
    /// Links made later have a greater number.
    #[serde(skip)]
    pub(crate) number: u64,
}

/// Why a link was not kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Another link has that slug.
    Taken,
    /// There are [`MAX_LINKS`] already.
    Full,
}

/// All links. Never blocks for longer than a look-up takes: no lock is held across an await.
pub(crate) struct Store {
    links: Mutex<Links>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Links {
    by_slug: HashMap<Slug, Link>,
    made: u64,
}

impl Store {
    /// A store with the first links in it.
    pub(crate) fn prefilled() -> Self {
        let mut links = Links::default();
        for (slug, url) in FIRST_LINKS {
            let (Ok(slug), Ok(url)) = (Slug::parse(slug), Target::parse(url)) else {
                debug_assert!(false, "the first link `{slug}` breaks the rules");
                continue;
            };
            links.insert(slug, url);
        }
        Self {
            links: Mutex::new(links),
            changed: watch::Sender::new(()),
        }
    }

    /// Every link, the newest first.
    pub(crate) fn list(&self) -> Vec<Link> {
        let mut all: Vec<Link> = self.lock().by_slug.values().cloned().collect();
        all.sort_unstable_by_key(|link| std::cmp::Reverse(link.number));
        all
    }

    /// One link.
    pub(crate) fn get(&self, slug: &Slug) -> Option<Link> {
        self.lock().by_slug.get(slug).cloned()
    }

    /// Keeps a new link, under a random slug where none is given.
    ///
    /// # Errors
    /// The slug is taken or the store is full.
    pub(crate) fn add(&self, url: Target, slug: Option<Slug>) -> Result<Link, Refusal> {
        let link = {
            let mut links = self.lock();
            if links.by_slug.len() >= MAX_LINKS {
                return Err(Refusal::Full);
            }
            let slug = match slug {
                Some(slug) if links.by_slug.contains_key(&slug) => return Err(Refusal::Taken),
                Some(slug) => slug,
                // A thousand of a billion names are taken at most: the second try is a rarity.
                None => loop {
                    let slug = Slug::random();
                    if !links.by_slug.contains_key(&slug) {
                        break slug;
                    }
                },
            };
            links.insert(slug, url)
        };
        self.changed.send_replace(());
        Ok(link)
    }

    /// Forgets a link; `false` when there was none.
    pub(crate) fn remove(&self, slug: &Slug) -> bool {
        let was_there = self.lock().by_slug.remove(slug).is_some();
        if was_there {
            self.changed.send_replace(());
        }
        was_there
    }

    /// Counts one hit and says where the link leads.
    pub(crate) fn follow(&self, slug: &Slug) -> Option<Target> {
        let target = {
            let mut links = self.lock();
            let link = links.by_slug.get_mut(slug)?;
            link.hits = link.hits.saturating_add(1);
            link.url.clone()
        };
        self.changed.send_replace(());
        Some(target)
    }

    /// Wakes its holder after each change. Many changes may be one wake: look at [`Store::list`]
    /// then.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Links> {
        // Each change is one insert, remove or addition: a panic elsewhere cannot leave it half
        // done.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Links {
    fn insert(&mut self, slug: Slug, url: Target) -> Link {
        self.made += 1;
        let link = Link {
            slug: slug.clone(),
            url,
            hits: 0,
            number: self.made,
        };
        self.by_slug.insert(slug, link.clone());
        link
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    fn target() -> Target {
        Target::parse("https://example.org/").unwrap()
    }

    #[test]
    fn a_store_begins_with_two_links_and_lists_the_newest_first() {
        let store = Store::prefilled();
        assert_eq!(store.list().len(), 2);
        let link = store.add(target(), None).unwrap();
        assert_eq!(store.list()[0], link);
    }

    #[test]
    fn a_taken_slug_keeps_its_link() {
        let store = Store::prefilled();
        let slug = Slug::parse("rust").unwrap();
        let before = store.get(&slug);
        assert_eq!(store.add(target(), Some(slug.clone())), Err(Refusal::Taken));
        assert_eq!(store.get(&slug), before);
    }

    #[test]
    fn a_full_store_refuses_until_one_is_removed() {
        let store = Store::prefilled();
        while store.list().len() < MAX_LINKS {
            store.add(target(), None).unwrap();
        }
        assert_eq!(store.add(target(), None), Err(Refusal::Full));
        assert!(store.remove(&Slug::parse("rust").unwrap()));
        assert!(store.add(target(), None).is_ok());
    }

    #[test]
    fn followers_hear_of_hits_and_not_of_misses() {
        let store = Store::prefilled();
        let changes = store.changes();
        assert_eq!(store.follow(&Slug::parse("nobody").unwrap()), None);
        assert!(!changes.has_changed().unwrap());
        let slug = Slug::parse("rust").unwrap();
        assert!(store.follow(&slug).is_some());
        assert!(changes.has_changed().unwrap());
        assert_eq!(store.get(&slug).unwrap().hits, 1);
    }
}
