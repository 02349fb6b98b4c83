//! The state of an app in memory, with the rules of a host's.

use std::{collections::BTreeMap, sync::Arc, task::Waker, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::abi::{
    lent::Lent,
    poll::PollState,
    state::{
        self as abi, ADD, DELETE, HAS_AFTER, HAS_TO, IS_THERE, PREFIX, PUT, REVERSE, Snapshot,
        StateFuture, StateService, StateSink, codes,
    },
};

/// The longest name of a namespace, key and value, as a host has them.
const LONGEST: (usize, usize, usize) = (64, 2048, 16 << 20);
/// What begins the name of a namespace that is kept in memory only.
const MEMORY: &str = "memory:";

/// Why something is refused: a code of [`codes`], and a sentence.
#[derive(Clone, Debug)]
pub(super) struct Refused(pub(super) u32, pub(super) String);

impl Refused {
    pub(super) fn invalid(why: impl Into<String>) -> Self {
        Self(codes::INVALID, why.into())
    }

    fn conflict() -> Self {
        Self(codes::CONFLICT, String::new())
    }
}

/// A namespace and a key.
type Place = (String, Vec<u8>);
type Entries = BTreeMap<Place, Entry>;

#[derive(Clone, Debug)]
struct Entry {
    value: Bytes,
    version: u64,
    /// When it is gone; tokio's clock, which a test may move.
    ends: Option<Instant>,
}

impl Entry {
    fn is_alive(&self) -> bool {
        self.ends.is_none_or(|ends| ends > Instant::now())
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Copied when it changes while a snapshot has it.
    entries: Arc<Entries>,
    version: u64,
    /// Every change there was.
    changes: Vec<Changed>,
    /// Who waits for changes.
    parked: Vec<Waker>,
}

#[derive(Debug)]
struct Changed {
    place: Place,
    version: u64,
    is_there: bool,
}

/// The keys of a range in one namespace.
#[derive(Debug)]
struct Range {
    namespace: String,
    flags: u32,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Range {
    fn new(namespace: &str, flags: u32, from: &[u8], to: &[u8]) -> Result<Self, Refused> {
        check_namespace(namespace)?;
        Ok(Self {
            namespace: namespace.to_owned(),
            flags,
            from: from.to_vec(),
            to: to.to_vec(),
        })
    }

    fn contains(&self, (namespace, key): &Place) -> bool {
        *namespace == self.namespace
            && if self.flags & PREFIX != 0 {
                key.starts_with(&self.from)
            } else {
                *key >= self.from && (self.flags & HAS_TO == 0 || *key < self.to)
            }
    }
}

/// The state of an app. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryState(Arc<Mutex<Inner>>);

impl MemoryState {
    /// Makes `commit`, or changes nothing; gives its version and the sums of its additions.
    pub(super) fn apply(&self, commit: &abi::Commit<'_>) -> Result<(u64, Vec<i64>), Refused> {
        check(commit)?;
        let mut inner = self.0.lock();
        inner.check_based(commit)?;
        let mut entries = Arc::clone(&inner.entries);
        let changing = Arc::make_mut(&mut entries);
        let version = inner.version + 1;
        let (mut sums, mut changed) = (Vec::new(), BTreeMap::new());
        for mutation in commit.mutations.iter() {
            let place = place(&mutation.namespace, &mutation.key);
            let before = changing.get(&place).filter(|entry| entry.is_alive());
            let ends = (mutation.ttl_ms > 0)
                .then(|| Instant::now() + Duration::from_millis(mutation.ttl_ms));
            let after = match mutation.kind {
                PUT => Some((Bytes::copy_from_slice(&mutation.value), ends)),
                DELETE => None,
                _ => {
                    let no_counter = || Refused(codes::NO_COUNTER, String::new());
                    let number = before.map_or(Some(0), |entry| number(&entry.value));
                    let sum = number
                        .and_then(|number| number.checked_add(mutation.delta))
                        .ok_or_else(no_counter)?;
                    sums.push(sum);
                    Some((sum.to_string().into(), before.map_or(ends, |it| it.ends)))
                }
            };
            changed.insert(place.clone(), after.is_some());
            match after {
                Some((value, ends)) => changing.insert(
                    place,
                    Entry {
                        value,
                        version,
                        ends,
                    },
                ),
                None => changing.remove(&place),
            };
        }
        // What was not there and is not there has not changed.
        changed.retain(|place, is_there| *is_there || inner.entries.contains_key(place));
        if changed.is_empty() {
            return Ok((inner.version, sums));
        }
        (inner.entries, inner.version) = (entries, version);
        let changes = changed.into_iter().map(|(place, is_there)| Changed {
            place,
            version,
            is_there,
        });
        inner.changes.extend(changes);
        let parked = std::mem::take(&mut inner.parked);
        drop(inner);
        parked.into_iter().for_each(Waker::wake);
        Ok((version, sums))
    }

    fn now(&self) -> Taken {
        let inner = self.0.lock();
        Taken {
            entries: Arc::clone(&inner.entries),
            version: inner.version,
        }
    }

    /// What is read: `snapshot`, or what is there now.
    fn of(&self, snapshot: Option<&Snapshot>) -> Taken {
        let taken = snapshot.and_then(|snapshot| snapshot.downcast_ref::<Taken>());
        taken.cloned().unwrap_or_else(|| self.now())
    }
}

impl Inner {
    fn check_based(&self, commit: &abi::Commit<'_>) -> Result<(), Refused> {
        for check in commit.checks.iter() {
            let found = self.entries.get(&place(&check.namespace, &check.key));
            let version = found
                .filter(|entry| entry.is_alive())
                .map_or(0, |entry| entry.version);
            if version != check.version {
                return Err(Refused::conflict());
            }
        }
        for range in commit.ranges.iter() {
            let bounds = Range::new(&range.namespace, range.flags, &range.from, &range.to)?;
            let newer = |change: &&Changed| change.version > range.version;
            let mut newer = self.changes.iter().rev().take_while(newer);
            if newer.any(|change| bounds.contains(&change.place)) {
                return Err(Refused::conflict());
            }
        }
        Ok(())
    }
}

/// What was there at one time.
#[derive(Clone, Debug)]
struct Taken {
    entries: Arc<Entries>,
    version: u64,
}

fn place(namespace: &str, key: &[u8]) -> Place {
    (namespace.to_owned(), key.to_vec())
}

fn number(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

fn check_namespace(text: &str) -> Result<(), Refused> {
    let name = text.strip_prefix(MEMORY).unwrap_or(text);
    let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    if !(1..=LONGEST.0).contains(&name.len()) || !name.bytes().all(fits) {
        return Err(Refused::invalid(format!(
            "`{text}` is no namespace: use 1 to {} of a-z, 0-9, `.`, `_` and `-`",
            LONGEST.0
        )));
    }
    Ok(())
}

fn check_place(namespace: &str, key: &[u8]) -> Result<(), Refused> {
    check_namespace(namespace)?;
    match key.len() {
        0 => Err(Refused::invalid("the key is empty")),
        length if length > LONGEST.1 => Err(Refused::invalid(format!(
            "the key has {length} bytes, and at most {} are allowed",
            LONGEST.1
        ))),
        _ => Ok(()),
    }
}

/// Looks whether a host would take `commit`.
fn check(commit: &abi::Commit<'_>) -> Result<(), Refused> {
    let checks = commit.checks.iter().map(|it| (it.namespace, it.key));
    let mutations = commit.mutations.iter().map(|it| (it.namespace, it.key));
    let mut in_memory = None;
    for (namespace, key) in checks.chain(mutations) {
        check_place(&namespace, &key)?;
        let is_memory = namespace.starts_with(MEMORY);
        if in_memory
            .replace(is_memory)
            .is_some_and(|it| it != is_memory)
        {
            return Err(Refused::invalid(
                "one commit cannot change both what is kept in memory and what is kept on the disk",
            ));
        }
    }
    for mutation in commit.mutations.iter() {
        let length = mutation.value.len();
        if length > LONGEST.2 {
            let most = LONGEST.2;
            let why = format!("the value has {length} bytes, and at most {most} are allowed");
            return Err(Refused(codes::TOO_LARGE, why));
        }
        if !matches!(mutation.kind, PUT | DELETE | ADD) {
            let why = format!("there is no mutation of kind {}", mutation.kind);
            return Err(Refused(codes::UNAVAILABLE, why));
        }
    }
    Ok(())
}

impl StateService for MemoryState {
    fn settings(&self) -> u64 {
        // A commit is made when it is taken: there is nothing for an answer to wait for.
        0
    }

    fn get(&self, get: Lent<'_, abi::Get<'_>>, snapshot: Option<&Snapshot>, sink: &StateSink<'_>) {
        if let Err(Refused(code, why)) = check_place(&get.namespace, &get.key) {
            return sink.failed(code, &why);
        }
        let taken = self.of(snapshot);
        let found = taken.entries.get(&place(&get.namespace, &get.key));
        if let Some(entry) = found.filter(|entry| entry.is_alive()) {
            sink.entry(&get.key, &entry.value, entry.version);
        }
    }

    fn scan(
        &self,
        scan: Lent<'_, abi::Scan<'_>>,
        snapshot: Option<&Snapshot>,
        sink: &StateSink<'_>,
    ) {
        let range = match Range::new(&scan.namespace, scan.flags, &scan.from, &scan.to) {
            Ok(range) => range,
            Err(Refused(code, why)) => return sink.failed(code, &why),
        };
        let reverse = scan.flags & REVERSE != 0;
        let is_behind = |key: &[u8]| {
            let after = scan.after.as_slice();
            scan.flags & HAS_AFTER == 0 || if reverse { key < after } else { key > after }
        };
        let taken = self.of(snapshot);
        let mut found: Vec<_> = taken
            .entries
            .iter()
            .filter(|(place, entry)| {
                range.contains(place) && is_behind(&place.1) && entry.is_alive()
            })
            .collect();
        if reverse {
            found.reverse();
        }
        let limit = usize::try_from(scan.limit).unwrap_or(usize::MAX);
        for ((_, key), entry) in found.iter().take(limit) {
            sink.entry(key, &entry.value, entry.version);
        }
        sink.page(taken.version, found.len() > limit);
    }

    fn snapshot(&self) -> Snapshot {
        Box::new(self.now())
    }

    fn commit(&self, commit: Lent<'_, abi::Commit<'_>>) -> Box<dyn StateFuture> {
        Box::new(Made(self.apply(&commit)))
    }

    fn watch(&self, watch: Lent<'_, abi::Watch<'_>>) -> Box<dyn StateFuture> {
        match Range::new(&watch.namespace, PREFIX, &watch.prefix, &[]) {
            Ok(range) => {
                let from_token = watch.flags & HAS_TO != 0;
                let now = self.0.lock().version;
                Box::new(Watching {
                    state: self.clone(),
                    range,
                    seen: if from_token { watch.token } else { now },
                })
            }
            Err(refused) => Box::new(Made(Err(refused))),
        }
    }
}

/// A commit, which was made or refused at once.
struct Made(Result<(u64, Vec<i64>), Refused>);

impl StateFuture for Made {
    fn poll(&mut self, _waker: &Waker, sink: &StateSink<'_>) -> PollState {
        match &self.0 {
            Ok((version, sums)) => {
                sink.committed(*version, sums);
                PollState::Ready
            }
            Err(Refused(code, why)) => {
                sink.failed(*code, why);
                PollState::Failed
            }
        }
    }
}

struct Watching {
    state: MemoryState,
    range: Range,
    /// The version up to which it knows everything.
    seen: u64,
}

impl StateFuture for Watching {
    fn poll(&mut self, waker: &Waker, sink: &StateSink<'_>) -> PollState {
        let mut inner = self.state.0.lock();
        let unseen: Vec<_> = inner
            .changes
            .iter()
            .filter(|change| change.version > self.seen && self.range.contains(&change.place))
            .map(|change| abi::Change {
                key: change.place.1.as_slice().into(),
                version: change.version,
                flags: if change.is_there { IS_THERE } else { 0 },
            })
            .collect();
        if unseen.is_empty() {
            inner.parked.push(waker.clone());
            return PollState::Pending;
        }
        self.seen = inner.version;
        sink.changed(&unseen, self.seen, false);
        PollState::Ready
    }
}
