//! Who holds a generation: requests that are not answered yet, answers that are streamed, upgraded
//! connections. Each can be listed, and ended by its number.
//!
//! A request is written down here when it is first found waiting, so what is answered at once never
//! pays for it. Each worker has a shelf of its own: what it writes down, no other worker waits for.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Waker},
    time::Instant,
};

use parking_lot::Mutex;
use slab::Slab;

use super::{close_handle::CloseHandle, worker};

/// What a holder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolderKind {
    /// A request that is not answered yet.
    Request,
    /// An answer that is streamed.
    Stream,
    /// An upgraded connection.
    Connection,
}

impl HolderKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Stream => "stream",
            Self::Connection => "connection",
        }
    }
}

/// What a holder is for, as people are told.
pub trait Describe: fmt::Debug + Send + Sync {
    /// Returns what was asked for, such as `GET /orders`.
    fn what(&self) -> String;
    /// Returns who asked; none over a unix socket.
    fn client(&self) -> Option<String>;
    /// Returns whose it is, where that is known.
    fn tenant(&self) -> Option<String>;
    /// Returns since when.
    fn since(&self) -> Instant;
}

/// One that holds a generation.
#[derive(Debug)]
struct Registered {
    kind: HolderKind,
    what: Arc<dyn Describe>,
    /// The switch of its connection, where that is streamed over.
    connection: Option<Arc<CloseHandle>>,
    cancelled: AtomicBool,
    /// Whom its end is told to; none before it was found waiting.
    waker: Mutex<Option<Waker>>,
}

impl Registered {
    fn wake(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Those that hold a generation.
#[derive(Debug)]
pub(super) struct Holders(Box<[Arc<Shelf>]>);

/// One worker's share of them.
#[derive(Debug)]
#[repr(align(128))]
struct Shelf {
    number: usize,
    holders: Mutex<Shelved>,
}

#[derive(Debug, Default)]
struct Shelved {
    /// How many there were.
    last: u64,
    /// Each with its place among those that there were, which names it.
    all: Slab<(u64, Arc<Registered>)>,
}

/// A holder as it is written down. Dropping it strikes it out.
#[derive(Debug)]
pub struct Registration {
    shelf: Arc<Shelf>,
    key: usize,
    holder: Arc<Registered>,
}

/// A holder, for people.
#[derive(Clone, Debug)]
pub struct HolderInfo {
    /// Its number in its generation.
    pub number: u64,
    /// What it is.
    pub kind: HolderKind,
    /// What was asked for.
    pub what: String,
    /// Who asked.
    pub client: Option<String>,
    /// Whose it is, where that is known.
    pub tenant: Option<String>,
    /// Since when.
    pub since: Instant,
}

impl Holders {
    pub(super) fn new() -> Self {
        let shelves = (0..worker::shards()).map(|number| {
            Arc::new(Shelf {
                number,
                holders: Mutex::default(),
            })
        });
        Self(shelves.collect())
    }

    /// Writes one down.
    pub(super) fn register(
        &self,
        kind: HolderKind,
        what: Arc<dyn Describe>,
        connection: Option<Arc<CloseHandle>>,
    ) -> Registration {
        let shelf = &self.0[worker::number() & (self.0.len() - 1)];
        let holder = Arc::new(Registered {
            kind,
            what,
            connection,
            cancelled: AtomicBool::new(false),
            waker: Mutex::default(),
        });
        let mut shelved = shelf.holders.lock();
        shelved.last += 1;
        let place = shelved.last;
        let key = shelved.all.insert((place, Arc::clone(&holder)));
        drop(shelved);
        Registration {
            shelf: Arc::clone(shelf),
            key,
            holder,
        }
    }

    fn all(&self) -> Vec<(u64, Arc<Registered>)> {
        let shelves = self.0.len() as u64;
        let mut all = Vec::new();
        for shelf in &self.0 {
            let shelved = shelf.holders.lock();
            let holders = shelved.all.iter();
            all.extend(holders.map(|(_, (place, holder))| {
                let number = (place - 1) * shelves + shelf.number as u64 + 1;
                (number, Arc::clone(holder))
            }));
        }
        all
    }

    /// Tells all of them to look whether they have to end.
    pub(super) fn wake(&self) {
        for (_, holder) in self.all() {
            holder.wake();
        }
    }

    /// Cuts the connections that something is streamed over. Returns how many there are.
    pub(super) fn close_connections(&self) -> usize {
        let all = self.all();
        let connections = all.iter().filter_map(|(_, holder)| {
            let is_stream = holder.kind == HolderKind::Stream;
            holder.connection.as_ref().filter(|_| is_stream)
        });
        connections.map(|connection| connection.close_now()).count()
    }

    /// Tells one of them to end. Returns what it is, and the switch of its connection; none when
    /// there is no such holder any more.
    pub(super) fn cancel(&self, number: u64) -> Option<(HolderKind, Option<Arc<CloseHandle>>)> {
        let all = self.all();
        let (_, holder) = all.into_iter().find(|(known, _)| *known == number)?;
        holder.cancelled.store(true, Ordering::SeqCst);
        holder.wake();
        Some((holder.kind, holder.connection.clone()))
    }

    /// Returns whether one of them is there still.
    pub(super) fn has(&self, number: u64) -> bool {
        self.all().iter().any(|(known, _)| *known == number)
    }

    /// Returns what each of them is, of which there may be very many.
    pub(super) fn kinds(&self) -> Vec<HolderKind> {
        self.all().iter().map(|(_, holder)| holder.kind).collect()
    }

    /// Lists them, the oldest first, `most` at the most.
    pub(super) fn list(&self, most: usize) -> Vec<HolderInfo> {
        let mut all = self.all();
        all.sort_by_cached_key(|(_, holder)| holder.what.since());
        all.truncate(most);
        let all = all.into_iter();
        all.map(|(number, holder)| HolderInfo {
            number,
            kind: holder.kind,
            what: holder.what.what(),
            client: holder.what.client(),
            tenant: holder.what.tenant(),
            since: holder.what.since(),
        })
        .collect()
    }
}

impl Registration {
    /// Has the task of `cx` woken when the holder may have to end.
    pub fn wakes(&self, cx: &Context<'_>) {
        let mut waker = self.holder.waker.lock();
        match &mut *waker {
            Some(known) if known.will_wake(cx.waker()) => {}
            known => *known = Some(cx.waker().clone()),
        }
    }

    /// Whether `waker` is that of the task that is woken.
    pub fn is_known(&self, waker: &Waker) -> bool {
        let known = self.holder.waker.lock();
        known.as_ref().is_some_and(|known| known.will_wake(waker))
    }

    /// Whether somebody has cancelled this one.
    #[inline]
    pub fn is_cancelled(&self) -> bool {
        self.holder.cancelled.load(Ordering::SeqCst)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shelf.holders.lock().all.remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::{
        sync::atomic::AtomicUsize,
        task::{Wake, Waker},
        thread,
    };

    use super::*;

    #[derive(Debug)]
    struct Named(&'static str, Instant);

    impl Describe for Named {
        fn what(&self) -> String {
            self.0.to_owned()
        }

        fn client(&self) -> Option<String> {
            None
        }

        fn tenant(&self) -> Option<String> {
            None
        }

        fn since(&self) -> Instant {
            self.1
        }
    }

    #[derive(Debug, Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn each_is_listed_and_ended_by_its_number() {
        let holders = Holders::new();
        let add = |name| {
            let what = Arc::new(Named(name, Instant::now()));
            holders.register(HolderKind::Request, what, None)
        };
        let first = add("first");
        let second = thread::scope(|scope| scope.spawn(|| add("second")).join().unwrap());
        let third = add("third");
        let names = |list: &[HolderInfo]| -> Vec<String> {
            list.iter().map(|holder| holder.what.clone()).collect()
        };
        let list = holders.list(usize::MAX);
        assert_eq!(names(&list), ["first", "second", "third"]);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        third.wakes(&Context::from_waker(&waker));
        assert_eq!(
            holders.cancel(list[2].number).map(|(kind, _)| kind),
            Some(HolderKind::Request)
        );
        assert!(third.is_cancelled() && !first.is_cancelled() && !second.is_cancelled());
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        drop(second);
        assert_eq!(names(&holders.list(usize::MAX)), ["first", "third"]);
        assert!(holders.cancel(list[1].number).is_none());
        assert!(!holders.has(list[1].number) && holders.has(list[2].number));
        // A number is never another one's.
        let fourth = add("fourth");
        let numbers: Vec<_> = holders
            .list(usize::MAX)
            .iter()
            .map(|holder| holder.number)
            .collect();
        assert!(!numbers[2..].contains(&list[0].number), "{numbers:?}");
        drop((first, third, fourth));
        assert!(holders.list(usize::MAX).is_empty());
    }
}
