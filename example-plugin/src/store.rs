//! The links, in the state that the host keeps for the app: they outlive generations, and all of
//! them see the same.
//!
//! | key | value |
//! | --- | --- |
//! | `link/SLUG` | where it leads, and its number |
//! | `hits/SLUG` | how often it was followed: a counter |
//! | `made` | how many links were ever made |
//! | `count` | how many there are |

use std::collections::HashMap;

use handover_plugin::{State, StateError, Transaction};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::link::{Slug, Target};

/// How many links are kept; more are refused, so that the page has a bound.
pub(crate) const MAX_LINKS: u64 = 1000;

const FIRST_LINKS: [(&str, &str); 2] = [
    ("rust", "https://www.rust-lang.org/learn"),
    (
        "relay",
        "https://en.wikipedia.org/wiki/Relay_race#Changeovers",
    ),
];

/// One link, as the API shows it.
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

/// One link, as it is kept. The version before and the one after read it as well: fields may be
/// added with a default.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    url: String,
    number: u64,
}

/// Why a link was not kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Another link has that slug.
    Taken,
    /// There are [`MAX_LINKS`] already.
    Full,
    /// The state cannot be read or written now.
    Unavailable(StateError),
}

impl From<StateError> for Refusal {
    fn from(error: StateError) -> Self {
        Self::Unavailable(error)
    }
}

/// All links.
pub(crate) struct Store {
    state: State,
    changed: watch::Sender<()>,
    /// Ends the task that watches, when it is dropped.
    _open: oneshot::Sender<()>,
}

impl Kept {
    /// The link; none when it is not one by the rules of this version.
    fn link(self, slug: &str, hits: u64) -> Option<Link> {
        Some(Link {
            slug: Slug::parse(slug).ok()?,
            url: Target::parse(&self.url).ok()?,
            hits,
            number: self.number,
        })
    }
}

fn link_key(slug: &Slug) -> String {
    format!("link/{slug}")
}

fn hits_key(slug: &Slug) -> String {
    format!("hits/{slug}")
}

/// Puts a link whose slug is free.
async fn insert(tx: &Transaction, slug: &Slug, url: &Target) -> Result<Link, Refusal> {
    if tx.get::<u64>("count").await?.unwrap_or(0) >= MAX_LINKS {
        return Err(Refusal::Full);
    }
    tx.add("count", 1).await?;
    let number = tx.add("made", 1).await?.unsigned_abs();
    let kept = Kept {
        url: url.to_string(),
        number,
    };
    tx.put(link_key(slug), &kept)?;
    Ok(Link {
        slug: slug.clone(),
        url: url.clone(),
        hits: 0,
        number,
    })
}

impl Store {
    /// The links in `state`, with the first ones in it where there never was one.
    ///
    /// # Errors
    /// When the state cannot be read or written.
    pub(crate) async fn open(state: State) -> Result<Self, StateError> {
        let fill = |tx: Transaction| async move {
            if tx.get::<u64>("made").await?.is_some() {
                return Ok(());
            }
            for (slug, url) in FIRST_LINKS {
                let (Ok(slug), Ok(url)) = (Slug::parse(slug), Target::parse(url)) else {
                    debug_assert!(false, "the first link `{slug}` breaks the rules");
                    continue;
                };
                insert(&tx, &slug, &url).await?;
            }
            Ok::<_, Refusal>(())
        };
        match state.transaction(fill).await {
            Err(Refusal::Unavailable(error)) => return Err(error),
            Ok(()) | Err(Refusal::Taken | Refusal::Full) => {}
        }
        let changed = watch::Sender::new(());
        let (mut changes, tell) = (state.watch(""), changed.clone());
        let (open, mut dropped) = oneshot::channel::<()>();
        // It ends with the store, so with the generation.
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = &mut dropped => return,
                    next = changes.next() => match next {
                        Ok(_) => tell.send_replace(()),
                        Err(_) => return,
                    },
                }
            }
        });
        Ok(Self {
            state,
            changed,
            _open: open,
        })
    }

    /// Every link, the newest first.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub(crate) async fn list(&self) -> Result<Vec<Link>, StateError> {
        let read = |tx: Transaction| async move {
            let links = tx.scan::<Kept>("link/").await?;
            Ok::<_, StateError>((links, tx.scan::<u64>("hits/").await?))
        };
        let (links, hits) = self.state.transaction(read).await?;
        let hits: HashMap<_, _> = hits.into_iter().collect();
        let mut all: Vec<Link> = links
            .into_iter()
            .filter_map(|(key, kept)| {
                let slug = std::str::from_utf8(&key).ok()?.strip_prefix("link/")?;
                let hits = hits.get(format!("hits/{slug}").as_bytes());
                kept.link(slug, hits.copied().unwrap_or(0))
            })
            .collect();
        all.sort_unstable_by_key(|link| std::cmp::Reverse(link.number));
        Ok(all)
    }

    /// One link.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub(crate) async fn get(&self, slug: &Slug) -> Result<Option<Link>, StateError> {
        let Some(kept) = self.state.get::<Kept>(link_key(slug)).await? else {
            return Ok(None);
        };
        let hits = self.state.get(hits_key(slug)).await?;
        Ok(kept.link(slug.as_str(), hits.unwrap_or(0)))
    }

    /// Keeps a new link, under a random slug where none is given.
    ///
    /// # Errors
    /// The slug is taken, the store is full, or the state cannot be written.
    pub(crate) async fn add(&self, url: Target, slug: Option<Slug>) -> Result<Link, Refusal> {
        let (url, wanted) = (&url, &slug);
        let add = |tx: Transaction| async move {
            let slug = match wanted {
                Some(slug) if tx.get_bytes(link_key(slug)).await?.is_some() => {
                    return Err(Refusal::Taken);
                }
                Some(slug) => slug.clone(),
                // A thousand of a billion names are taken at most: the second try is a rarity.
                None => loop {
                    let slug = Slug::random();
                    if tx.get_bytes(link_key(&slug)).await?.is_none() {
                        break slug;
                    }
                },
            };
            // One of that name may have been followed while it was removed.
            tx.delete(hits_key(&slug));
            insert(&tx, &slug, url).await
        };
        self.state.transaction(add).await
    }

    /// Forgets a link; `false` when there was none.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub(crate) async fn remove(&self, slug: &Slug) -> Result<bool, StateError> {
        let remove = |tx: Transaction| async move {
            if tx.get_bytes(link_key(slug)).await?.is_none() {
                return Ok(false);
            }
            tx.delete(link_key(slug));
            tx.delete(hits_key(slug));
            tx.add("count", -1).await?;
            Ok(true)
        };
        self.state.transaction(remove).await
    }

    /// Counts one hit and says where the link leads. The answer waits until the hit is on the disk,
    /// so this does not.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub(crate) async fn follow(&self, slug: &Slug) -> Result<Option<Target>, StateError> {
        let Some(kept) = self.state.get::<Kept>(link_key(slug)).await? else {
            return Ok(None);
        };
        let _counted = self.state.add(hits_key(slug), 1);
        Ok(Target::parse(&kept.url).ok())
    }

    /// Wakes its holder after each change, whichever generation makes it. Many changes may be one
    /// wake: look at [`Store::list`] then.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use handover_plugin::testing::context;

    use super::*;

    #[tokio::test]
    async fn a_slug_is_taken_until_its_link_is_removed() -> Result<(), StateError> {
        let store = Store::open(context().state()).await?;
        assert_eq!(store.list().await?.len(), FIRST_LINKS.len());
        let (Ok(slug), Ok(url)) = (Slug::parse("mine"), Target::parse("https://example.org/"))
        else {
            panic!("both keep the rules");
        };
        let add = || store.add(url.clone(), Some(slug.clone()));
        assert!(add().await.is_ok());
        assert_eq!(add().await, Err(Refusal::Taken));
        assert_eq!(store.follow(&slug).await?.as_ref(), Some(&url));
        assert_eq!(store.list().await?[0].hits, 1);
        assert!(store.remove(&slug).await?);
        assert_eq!(add().await.map(|link| link.hits), Ok(0));
        Ok(())
    }
}
