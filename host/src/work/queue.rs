//! Which job is next: what has to be known of the jobs of an app that have not ended, in memory.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry as Entries},
    hash::Hash,
    ops::Bound,
    sync::Arc,
};

use super::record::JobId;
use crate::artifact::declared::Declared;

/// Jobs of tenants that may not run more are passed over, at most so many at a time.
const MOST_PASSED: usize = 10_000;

/// A job that has not ended.
#[derive(Debug)]
pub(super) struct Entry<A> {
    pub(super) name: Arc<str>,
    pub(super) tenant: Arc<str>,
    pub(super) priority: i32,
    pub(super) due_ms: u64,
    /// What is known of its attempt; none while it waits.
    pub(super) attempt: Option<A>,
    /// It was claimed and never begun: the next claim counts as that attempt.
    pub(super) is_unstarted: bool,
    /// It is to be cancelled.
    pub(super) is_cancelled: bool,
}

/// The order in which jobs of a name are taken.
type Rank = (Reverse<i32>, u64, JobId);

/// The jobs of an app that have not ended.
#[derive(Debug)]
pub(super) struct Queue<A> {
    entries: HashMap<JobId, Entry<A>>,
    waiting: BTreeMap<Arc<str>, BTreeSet<Rank>>,
    running: HashMap<Arc<str>, usize>,
    running_of_tenants: HashMap<(Arc<str>, Arc<str>), usize>,
    /// Those that have an attempt.
    begun: BTreeSet<JobId>,
}

impl<A> Default for Queue<A> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            waiting: BTreeMap::new(),
            running: HashMap::new(),
            running_of_tenants: HashMap::new(),
            begun: BTreeSet::new(),
        }
    }
}

/// What may be taken next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This one.
    Job(JobId),
    /// None before this time; none at all before something changes, if there is none.
    At(Option<u64>),
}

impl<A> Queue<A> {
    /// Adds a job that waits.
    pub(super) fn add(&mut self, id: JobId, name: &str, tenant: &str, priority: i32, due_ms: u64) {
        let name: Arc<str> = match self.waiting.get_key_value(name) {
            Some((known, _)) => Arc::clone(known),
            None => name.into(),
        };
        let ranks = self.waiting.entry(Arc::clone(&name)).or_default();
        ranks.insert((Reverse(priority), due_ms, id));
        let entry = Entry {
            name,
            tenant: tenant.into(),
            priority,
            due_ms,
            attempt: None,
            is_unstarted: false,
            is_cancelled: false,
        };
        self.entries.insert(id, entry);
    }

    pub(super) fn get(&self, id: JobId) -> Option<&Entry<A>> {
        self.entries.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: JobId) -> Option<&mut Entry<A>> {
        self.entries.get_mut(&id)
    }

    pub(super) fn attempts(&self) -> impl Iterator<Item = (JobId, &Entry<A>)> {
        self.begun
            .iter()
            .filter_map(|id| Some((*id, self.entries.get(id)?)))
    }

    /// How many wait and how many run.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.entries.len() - self.begun.len(), self.begun.len())
    }

    /// The names of jobs that have not ended, each with how many there are.
    pub(super) fn names(&self) -> BTreeMap<Arc<str>, usize> {
        let mut names = BTreeMap::new();
        for entry in self.entries.values() {
            *names.entry(Arc::clone(&entry.name)).or_default() += 1;
        }
        names
    }

    /// Which job is to be begun next by a version with these handlers.
    pub(super) fn next(&self, now_ms: u64, handlers: &Declared, most: usize) -> Next {
        if self.begun.len() >= most {
            return Next::At(None);
        }
        let mut best: Option<Rank> = None;
        let mut earliest: Option<u64> = None;
        for (name, ranks) in &self.waiting {
            let Some(handler) = handlers.get(&**name) else {
                continue;
            };
            if self.running.get(name).copied().unwrap_or(0) >= handler.concurrency() {
                continue;
            }
            let mut from = Bound::Unbounded;
            let mut passed = 0;
            while let Some(rank) = ranks.range((from, Bound::Unbounded)).next() {
                let (Reverse(priority), due_ms, id) = *rank;
                if best.is_some_and(|best| best <= *rank) {
                    break;
                }
                if due_ms > now_ms {
                    earliest = Some(earliest.map_or(due_ms, |earliest| earliest.min(due_ms)));
                    // Behind all others of this priority, which are due later.
                    let Some(lower) = priority.checked_sub(1) else {
                        break;
                    };
                    from = Bound::Included((Reverse(lower), 0, JobId(0)));
                    continue;
                }
                if self.tenant_is_full(name, id, handler.tenant_concurrency) && passed < MOST_PASSED
                {
                    passed += 1;
                    from = Bound::Excluded(*rank);
                    continue;
                }
                best = Some(*rank);
                break;
            }
        }
        match best {
            Some((_, _, id)) => Next::Job(id),
            None => Next::At(earliest),
        }
    }

    fn tenant_is_full(&self, name: &Arc<str>, id: JobId, most: Option<usize>) -> bool {
        let (Some(most), Some(entry)) = (most, self.entries.get(&id)) else {
            return false;
        };
        let of_tenant = (Arc::clone(name), Arc::clone(&entry.tenant));
        self.running_of_tenants
            .get(&of_tenant)
            .copied()
            .unwrap_or(0)
            >= most.max(1)
    }

    /// A job is begun: it runs as `attempt` from now on.
    pub(super) fn begin(&mut self, id: JobId, attempt: A) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if entry.attempt.replace(attempt).is_some() {
            return;
        }
        let rank = (Reverse(entry.priority), entry.due_ms, id);
        let (name, tenant) = (Arc::clone(&entry.name), Arc::clone(&entry.tenant));
        self.unrank(&name, rank);
        *self.running.entry(Arc::clone(&name)).or_default() += 1;
        *self.running_of_tenants.entry((name, tenant)).or_default() += 1;
        self.begun.insert(id);
    }

    /// The attempt of a job has ended, and the job waits again.
    pub(super) fn wait_again(&mut self, id: JobId, due_ms: u64) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let was_running = entry.attempt.take().is_some();
        let before = (Reverse(entry.priority), entry.due_ms, id);
        entry.due_ms = due_ms;
        let rank = (Reverse(entry.priority), due_ms, id);
        let (name, tenant) = (Arc::clone(&entry.name), Arc::clone(&entry.tenant));
        self.unrank(&name, before);
        self.waiting
            .entry(Arc::clone(&name))
            .or_default()
            .insert(rank);
        if was_running {
            self.ended(id, name, tenant);
        }
    }

    /// A job has ended.
    pub(super) fn remove(&mut self, id: JobId) {
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        self.unrank(&entry.name, (Reverse(entry.priority), entry.due_ms, id));
        if entry.attempt.is_some() {
            self.ended(id, entry.name, entry.tenant);
        }
    }

    fn unrank(&mut self, name: &Arc<str>, rank: Rank) {
        if let Some(ranks) = self.waiting.get_mut(name) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.waiting.remove(name);
            }
        }
    }

    fn ended(&mut self, id: JobId, name: Arc<str>, tenant: Arc<str>) {
        self.begun.remove(&id);
        count_down(&mut self.running, name.clone());
        count_down(&mut self.running_of_tenants, (name, tenant));
    }
}

/// Counts one fewer at `key`, which is not there when it is none.
fn count_down<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entries::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::artifact::declared;

    fn handlers(lines: &str) -> Declared {
        declared::from_section(lines.as_bytes()).unwrap().handlers
    }

    fn take(queue: &mut Queue<()>, now_ms: u64, handlers: &Declared) -> Option<u64> {
        match queue.next(now_ms, handlers, 100) {
            Next::Job(id) => {
                queue.begin(id, ());
                Some(id.0)
            }
            Next::At(_) => None,
        }
    }

    #[test]
    fn the_highest_priority_that_is_due_goes_first() {
        let handlers = handlers(r#"{"job":"a"}"#);
        let mut queue = Queue::default();
        queue.add(JobId(1), "a", "", 0, 10);
        queue.add(JobId(2), "a", "", 5, 50);
        queue.add(JobId(3), "a", "", 5, 20);
        queue.add(JobId(4), "b", "", 9, 0);
        assert_eq!(queue.next(5, &handlers, 100), Next::At(Some(10)));
        assert_eq!(take(&mut queue, 15, &handlers), Some(1));
        assert_eq!(take(&mut queue, 25, &handlers), Some(3));
        assert_eq!(queue.next(25, &handlers, 100), Next::At(Some(50)));
        assert_eq!(take(&mut queue, 60, &handlers), Some(2));
        // Nobody handles it: it waits.
        assert_eq!(queue.next(60, &handlers, 100), Next::At(None));
        assert_eq!(queue.counts(), (1, 3));
        queue.wait_again(JobId(2), 70);
        assert_eq!(take(&mut queue, 70, &handlers), Some(2));
    }

    #[test]
    fn limits_of_a_name_and_of_a_tenant_hold_and_others_pass() {
        let handlers = handlers(r#"{"job":"a","concurrency":2,"tenant_concurrency":1}"#);
        let mut queue = Queue::default();
        for (id, tenant) in [(1, "x"), (2, "x"), (3, "y"), (4, "z")] {
            queue.add(JobId(id), "a", tenant, 0, 0);
        }
        assert_eq!(take(&mut queue, 1, &handlers), Some(1));
        assert_eq!(take(&mut queue, 1, &handlers), Some(3));
        assert_eq!(take(&mut queue, 1, &handlers), None);
        queue.remove(JobId(1));
        assert_eq!(take(&mut queue, 1, &handlers), Some(2));
        queue.remove(JobId(3));
        assert_eq!(take(&mut queue, 1, &handlers), Some(4));
        assert_eq!(queue.next(1, &handlers, 2), Next::At(None));
        queue.remove(JobId(2));
        queue.remove(JobId(4));
        assert_eq!(queue.counts(), (0, 0));
        assert!(queue.names().is_empty() && queue.running_of_tenants.is_empty());
    }
}
