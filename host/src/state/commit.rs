//! The atomic commit: checks and mutations, applied in a transaction of any engine, all or nothing.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    engine::{EngineError, Record, Totals, Transaction},
    place::{Bounds, InvalidPlace, Place},
};

/// The longest value.
pub(super) const MAX_VALUE: usize = 16 << 20;
/// The bytes of all keys and values of a commit.
const MAX_COMMIT: usize = 64 << 20;
/// Checks and mutations of a commit.
const MAX_PARTS: usize = 100_000;
/// What an entry counts for beyond its key and value, in bytes.
pub(super) const ENTRY_OVERHEAD: u64 = 32;

/// Why something of the state was not done. Nothing is half done then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A check did not hold: somebody else committed in between.
    #[error("somebody else changed what this commit was based on")]
    Conflict,
    /// A namespace or a key is none.
    #[error(transparent)]
    Place(#[from] InvalidPlace),
    /// The value is too long.
    #[error("the value has {0} bytes, and at most {MAX_VALUE} are allowed: split it")]
    LongValue(usize),
    /// The commit is too large.
    #[error(
        "the commit is too large: at most {MAX_PARTS} checks and mutations and {MAX_COMMIT} bytes are taken at once"
    )]
    LargeCommit,
    /// It names places that are kept in memory and others that are kept on the disk.
    #[error("one commit cannot change both what is kept in memory and what is kept on the disk")]
    MixedCommit,
    /// The app would hold more than it may.
    #[error(
        "the app would hold {wanted} bytes of state, and {quota} are allowed: delete some of it, or raise max_size in [app.NAME.state]"
    )]
    Quota {
        /// What it would hold.
        wanted: u64,
        /// What it may hold.
        quota: u64,
    },
    /// What is to be added to is no whole number, or the sum is none that fits.
    #[error("the value is no counter: it is no whole number of 64 bits, or the sum is none")]
    NoCounter,
    /// The store cannot be read or written now.
    #[error("the state of the app is not available: {0}")]
    Unavailable(String),
    /// More is written than the disk takes.
    #[error("more is being written than the disk takes: try again")]
    Busy,
    /// The generation has ended.
    #[error("this generation has ended: it can neither read nor write any more")]
    Ended,
}

/// A check: the commit is made only if it holds.
#[derive(Clone, Debug)]
pub struct Check {
    /// The place.
    pub place: Place,
    /// The version that must be there; 0: nothing must be there.
    pub version: u64,
}

/// A check of a range.
#[derive(Clone, Debug)]
pub struct RangeCheck {
    /// The places.
    pub bounds: Bounds,
    /// Nothing in there may have changed since this version.
    pub version: u64,
}

/// A change of one place.
#[derive(Clone, Debug)]
pub enum Mutation {
    /// Puts a value.
    Put {
        /// The place.
        place: Place,
        /// The value.
        value: Bytes,
        /// How long it stays, in milliseconds; none is for ever.
        ttl_ms: Option<u64>,
    },
    /// Removes what is there, if anything is.
    Delete {
        /// The place.
        place: Place,
    },
    /// Adds to the number that is there; nothing is 0. Gives the sum.
    Add {
        /// The place.
        place: Place,
        /// What is added.
        delta: i64,
        /// How long it stays, if it was not there before; what was keeps its end.
        ttl_ms: Option<u64>,
    },
}

impl Mutation {
    /// Where.
    pub fn place(&self) -> &Place {
        match self {
            Self::Put { place, .. } | Self::Delete { place } | Self::Add { place, .. } => place,
        }
    }

    fn bytes(&self) -> usize {
        let value = match self {
            Self::Put { value, .. } => value.len(),
            Self::Delete { .. } | Self::Add { .. } => 0,
        };
        self.place().as_bytes().len() + value
    }
}

/// Checks and mutations that happen at once, or not at all.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// What must hold.
    pub checks: Vec<Check>,
    /// What must not have changed.
    pub ranges: Vec<RangeCheck>,
    /// What is done, in order.
    pub mutations: Vec<Mutation>,
    /// Whether it is the host's own bookkeeping, which is made though the app holds all that it
    /// may.
    pub is_own: bool,
}

impl Commit {
    /// A commit of one mutation.
    pub fn of(mutation: Mutation) -> Self {
        Self {
            mutations: vec![mutation],
            ..Self::default()
        }
    }

    /// How much memory it takes, about.
    pub(super) fn bytes(&self) -> usize {
        let parts = self.checks.len() + self.ranges.len() + self.mutations.len();
        let bytes: usize = self.mutations.iter().map(Mutation::bytes).sum();
        bytes + parts * 64
    }

    /// Looks whether it keeps the limits of every store.
    ///
    /// # Errors
    /// The limit that it does not keep.
    pub(super) fn check_limits(&self) -> Result<(), StateError> {
        if self.checks.len() + self.ranges.len() + self.mutations.len() > MAX_PARTS
            || self.bytes() > MAX_COMMIT + MAX_PARTS * 64
        {
            return Err(StateError::LargeCommit);
        }
        for mutation in &self.mutations {
            if let Mutation::Put { value, .. } = mutation
                && value.len() > MAX_VALUE
            {
                return Err(StateError::LongValue(value.len()));
            }
        }
        Ok(())
    }
}

/// What came of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Its version. That of the last commit before it where it changes nothing.
    pub version: u64,
    /// The sums of its additions, in order.
    pub sums: Vec<i64>,
}

/// A commit as it was applied.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) committed: Committed,
    /// The places that it changed, and whether something is there now.
    pub(super) changed: Vec<(Vec<u8>, bool)>,
}

/// What a commit is applied with.
pub(super) struct Rules<'a> {
    /// The time, in milliseconds since 1970.
    pub(super) now_ms: u64,
    /// How many bytes the app may hold.
    pub(super) quota: u64,
    /// Whether anything in these bounds changed after that version, as far as is known: if it is
    /// not known, it did.
    pub(super) has_changed: &'a dyn Fn(&Bounds, u64) -> bool,
}

/// What is at a place while a commit is applied.
struct Planned {
    /// The length of the value that was there; none when there was none, or an expired one that
    /// still takes room.
    before: Option<usize>,
    /// What will be there.
    after: Option<(Bytes, u64)>,
}

/// Applies `commit`. The inner error says why it was refused: nothing was changed then.
pub(super) fn apply(
    commit: &Commit,
    transaction: &mut dyn Transaction,
    rules: &Rules<'_>,
) -> Result<Result<Applied, StateError>, EngineError> {
    for Check { place, version } in &commit.checks {
        let mut found = 0;
        transaction.get(place.as_bytes(), &mut |record| {
            if record.is_alive(rules.now_ms) {
                found = record.version;
            }
        })?;
        if found != *version {
            return Ok(Err(StateError::Conflict));
        }
    }
    for RangeCheck { bounds, version } in &commit.ranges {
        if (rules.has_changed)(bounds, *version) {
            return Ok(Err(StateError::Conflict));
        }
    }
    let mut totals = transaction.totals();
    let mut planned: BTreeMap<&[u8], Planned> = BTreeMap::new();
    let mut sums = Vec::new();
    for mutation in &commit.mutations {
        let place = mutation.place().as_bytes();
        let plan = match planned.entry(place) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                let mut plan = Planned {
                    before: None,
                    after: None,
                };
                let counts = matches!(mutation, Mutation::Add { .. });
                transaction.get(place, &mut |record| {
                    plan.before = Some(record.value.len());
                    if counts && record.is_alive(rules.now_ms) {
                        let value = Bytes::copy_from_slice(record.value);
                        plan.after = Some((value, record.expires_ms));
                    }
                })?;
                new.insert(plan)
            }
        };
        let ends = |ttl_ms: &Option<u64>| match ttl_ms {
            None => 0,
            Some(ttl_ms) => rules.now_ms.saturating_add(*ttl_ms).max(1),
        };
        match mutation {
            Mutation::Put { value, ttl_ms, .. } => {
                plan.after = Some((value.clone(), ends(ttl_ms)));
            }
            Mutation::Delete { .. } => plan.after = None,
            Mutation::Add { delta, ttl_ms, .. } => {
                let (sum, expires_ms) = match &plan.after {
                    None => (Some(*delta), ends(ttl_ms)),
                    Some((value, expires_ms)) => {
                        let before = number(value);
                        (before.and_then(|it| it.checked_add(*delta)), *expires_ms)
                    }
                };
                let Some(sum) = sum else {
                    return Ok(Err(StateError::NoCounter));
                };
                sums.push(sum);
                plan.after = Some((sum.to_string().into(), expires_ms));
            }
        }
    }
    // A delete after a put of the same commit, of what was not there before, changes nothing.
    planned.retain(|_, plan| plan.before.is_some() || plan.after.is_some());
    let before = totals.bytes;
    for (place, plan) in &planned {
        count(&mut totals, place, plan.before, plan.after.as_ref());
    }
    if totals.bytes > rules.quota && totals.bytes > before && !commit.is_own {
        return Ok(Err(StateError::Quota {
            wanted: totals.bytes,
            quota: rules.quota,
        }));
    }
    if planned.is_empty() {
        let version = totals.version;
        return Ok(Ok(Applied {
            committed: Committed { version, sums },
            changed: Vec::new(),
        }));
    }
    totals.version += 1;
    let version = totals.version;
    let mut changed = Vec::with_capacity(planned.len());
    for (place, plan) in planned {
        match &plan.after {
            Some((value, expires_ms)) => {
                let record = Record {
                    version,
                    expires_ms: *expires_ms,
                    value,
                };
                transaction.put(place, record)?;
            }
            None => {
                transaction.delete(place)?;
            }
        }
        changed.push((place.to_vec(), plan.after.is_some()));
    }
    transaction.set_totals(totals);
    Ok(Ok(Applied {
        committed: Committed { version, sums },
        changed,
    }))
}

/// The whole number that a counter's value is.
fn number(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// What an entry counts for.
pub(super) fn weight(place: &[u8], value_length: usize) -> u64 {
    (place.len() + value_length) as u64 + ENTRY_OVERHEAD
}

fn count(totals: &mut Totals, place: &[u8], before: Option<usize>, after: Option<&(Bytes, u64)>) {
    if let Some(length) = before {
        totals.keys = totals.keys.saturating_sub(1);
        totals.bytes = totals.bytes.saturating_sub(weight(place, length));
    }
    if let Some((value, _)) = after {
        totals.keys += 1;
        totals.bytes += weight(place, value.len());
    }
}

/// Removes at most `limit` records that expired until `now_ms`, as a commit of its own; gives what
/// was removed.
pub(super) fn sweep(
    transaction: &mut dyn Transaction,
    now_ms: u64,
    limit: usize,
) -> Result<Applied, EngineError> {
    let places = transaction.expired(now_ms, limit)?;
    if places.is_empty() {
        return Ok(Applied::default());
    }
    let mut totals = transaction.totals();
    totals.version += 1;
    let mut changed = Vec::with_capacity(places.len());
    for place in places {
        if let Some(old) = transaction.delete(&place)? {
            count(&mut totals, &place, Some(old.value_length), None);
        }
        changed.push((place, false));
    }
    let version = totals.version;
    transaction.set_totals(totals);
    Ok(Applied {
        committed: Committed {
            version,
            sums: Vec::new(),
        },
        changed,
    })
}
