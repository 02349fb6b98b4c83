//! Leases: what one holder of an app has at a time, whatever number of its generations run.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use handover_api::{AppName, LeaseInfo, LeaseWaiter};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use tokio::runtime::Handle;

use super::answer::Refused;
use crate::{
    clock::millis,
    state::{Commit, Mutation, Namespace, StateError, Store},
    wakers::{Parked, Promise, wake_all},
};

/// The longest name of a lease, in bytes.
const LONGEST_NAME: usize = 128;
/// How long is waited before the number of a holder is written again, or the file locked.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// What a holder is given: its fence.
pub(super) type Granted = Promise<Result<u64, Refused>>;

/// Somebody who has a lease, or waits for it.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    name: String,
    number: u64,
    generation: u64,
    since: Instant,
    /// Ends when it has the lease.
    pub(super) granted: Arc<Granted>,
    /// Ends when it is to give the lease back.
    pub(super) asked_back: Arc<Promise<()>>,
}

/// The leases of one app. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Leases(Arc<Inner>);

struct Inner {
    app: AppName,
    store: Arc<Store>,
    runtime: Handle,
    /// The files that are locked with leases, by their names.
    mirrors: Mutex<BTreeMap<String, PathBuf>>,
    next: AtomicU64,
    /// The generation that is live: its claims go first.
    live: AtomicU64,
    leases: Mutex<BTreeMap<String, Lease>>,
}

#[derive(Debug, Default)]
struct Lease {
    holder: Option<Holding>,
    waiting: VecDeque<Claim>,
}

#[derive(Debug)]
struct Holding {
    claim: Claim,
    /// None until its number is on the disk.
    fence: Option<u64>,
    /// The file that is locked as long, held for nothing else.
    mirror: Option<File>,
    is_asked_back: bool,
}

impl Holding {
    /// Asks for the lease; gives whom to wake.
    #[must_use]
    fn ask_back(&mut self) -> Option<Parked> {
        self.is_asked_back = true;
        self.claim.asked_back.end(())
    }
}

impl Leases {
    /// Locks these files with the leases that are given from now on.
    pub(super) fn retune(&self, mirrors: BTreeMap<String, PathBuf>) {
        *self.0.mirrors.lock() = mirrors;
    }

    pub(super) fn new(
        app: AppName,
        store: Arc<Store>,
        mirrors: BTreeMap<String, PathBuf>,
        runtime: Handle,
    ) -> Self {
        Self(Arc::new(Inner {
            app,
            store,
            runtime,
            mirrors: Mutex::new(mirrors),
            next: AtomicU64::new(1),
            live: AtomicU64::new(0),
            leases: Mutex::default(),
        }))
    }

    /// Waits for the lease `name` in the name of `generation`.
    ///
    /// # Errors
    /// When that is no name of a lease.
    pub(super) fn wait(&self, name: &str, generation: u64) -> Result<Claim, Refused> {
        let fits = |c: char| c.is_ascii_graphic();
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(fits) {
            let name: String = name.chars().take(80).collect();
            return Err(Refused::invalid(format!(
                "`{name}` is no name of a lease: use 1 to {LONGEST_NAME} characters of ASCII without spaces"
            )));
        }
        let claim = Claim {
            name: name.to_owned(),
            number: self.0.next.fetch_add(1, Ordering::Relaxed),
            generation,
            since: Instant::now(),
            granted: Arc::default(),
            asked_back: Arc::default(),
        };
        self.0
            .leases
            .lock()
            .entry(name.to_owned())
            .or_default()
            .waiting
            .push_back(claim.clone());
        self.grant(name);
        self.ask_for_live();
        Ok(claim)
    }

    /// `generation` is live from now on: whoever else has what it waits for is asked for it, also
    /// where that one is kept warm and does not drain.
    pub(super) fn set_live(&self, generation: u64) {
        self.0.live.store(generation, Ordering::Relaxed);
        self.ask_for_live();
    }

    fn ask_for_live(&self) {
        let live = self.0.live.load(Ordering::Relaxed);
        let mut parked = Vec::new();
        for lease in self.0.leases.lock().values_mut() {
            let is_wanted = lease.waiting.iter().any(|claim| claim.generation == live);
            if let Some(holder) = &mut lease.holder
                && is_wanted
                && holder.claim.generation != live
            {
                parked.extend(holder.ask_back());
            }
        }
        wake_all(parked, &self.0.runtime);
    }

    /// Gives the lease to who waits, if it is free.
    fn grant(&self, name: &str) {
        let claim = {
            let mut leases = self.0.leases.lock();
            let Some(lease) = leases.get_mut(name) else {
                return;
            };
            if lease.holder.is_some() {
                return;
            }
            let live = self.0.live.load(Ordering::Relaxed);
            let of_live = lease.waiting.iter().position(|one| one.generation == live);
            let Some(claim) = lease.waiting.remove(of_live.unwrap_or(0)) else {
                leases.remove(name);
                return;
            };
            lease.holder = Some(Holding {
                claim: claim.clone(),
                fence: None,
                mirror: None,
                is_asked_back: false,
            });
            claim
        };
        let leases = self.clone();
        self.0
            .runtime
            .spawn(async move { leases.number(claim).await });
    }

    /// Gives the holder its number, once that is on the disk.
    async fn number(&self, claim: Claim) {
        let mut told = false;
        loop {
            if !self.is_holder(&claim) {
                return;
            }
            match self.next_fence(&claim.name).await {
                Ok((fence, mirror)) => {
                    let parked = {
                        let mut leases = self.0.leases.lock();
                        let holder = leases
                            .get_mut(&claim.name)
                            .and_then(|lease| lease.holder.as_mut())
                            .filter(|holder| holder.claim.number == claim.number);
                        let Some(holder) = holder else { return };
                        holder.fence = Some(fence);
                        holder.mirror = mirror;
                        claim.granted.end(Ok(fence))
                    };
                    return wake_all(parked.into_iter().collect(), &self.0.runtime);
                }
                Err(why) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(app = %self.0.app, lease = claim.name, "the lease waits: {why}");
                    }
                }
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    fn is_holder(&self, claim: &Claim) -> bool {
        let leases = self.0.leases.lock();
        let holder = leases
            .get(&claim.name)
            .and_then(|lease| lease.holder.as_ref());
        holder.is_some_and(|holder| holder.claim.number == claim.number)
    }

    /// The number of the next holder, on the disk, and the file that is locked.
    async fn next_fence(&self, name: &str) -> Result<(u64, Option<File>), String> {
        let mirror = self.0.mirrors.lock().get(name).cloned();
        let mirror = match mirror {
            Some(path) => Some(
                lock(&path)
                    .map_err(|cause| format!("{} cannot be locked: {cause}", path.display()))?,
            ),
            None => None,
        };
        let place = Namespace::own("lease")
            .place(name.as_bytes())
            .map_err(|error| error.to_string())?;
        let add = Mutation::Add {
            place,
            delta: 1,
            ttl_ms: None,
        };
        // Who holds it is no state of the app.
        let commit = Commit {
            is_own: true,
            ..Commit::of(add)
        };
        let committed = self.0.store.commit(false, commit).await;
        let committed = committed.map_err(|error: StateError| error.to_string())?;
        let fence = committed.sums.first().copied().unwrap_or_default();
        Ok((u64::try_from(fence).unwrap_or_default(), mirror))
    }

    /// A claim is given up, or back.
    pub(super) fn give_back(&self, claim: &Claim) {
        {
            let mut leases = self.0.leases.lock();
            let Some(lease) = leases.get_mut(&claim.name) else {
                return;
            };
            lease.waiting.retain(|one| one.number != claim.number);
            let holder = lease.holder.as_ref();
            if holder.is_some_and(|holder| holder.claim.number == claim.number) {
                lease.holder = None;
            }
        }
        self.grant(&claim.name);
    }

    /// A generation begins to drain: it is asked for what it has, and gets nothing more.
    pub(super) fn ask_back(&self, generation: u64) {
        let mut parked = Vec::new();
        for lease in self.0.leases.lock().values_mut() {
            lease.waiting.retain(|claim| {
                let stays = claim.generation != generation;
                if !stays {
                    parked.extend(claim.granted.end(Err(StateError::Ended.into())));
                }
                stays
            });
            if let Some(holder) = &mut lease.holder
                && holder.claim.generation == generation
            {
                parked.extend(holder.ask_back());
            }
        }
        wake_all(parked, &self.0.runtime);
    }

    /// A generation has ended: what it has is free.
    pub(super) fn end(&self, generation: u64) {
        let claims: Vec<_> = {
            let leases = self.0.leases.lock();
            let holders = leases.values().filter_map(|lease| lease.holder.as_ref());
            holders
                .filter(|holder| holder.claim.generation == generation)
                .map(|holder| holder.claim.clone())
                .collect()
        };
        for claim in claims {
            self.give_back(&claim);
        }
    }

    /// Takes a lease away from its holder, which is told. Whether it had one.
    pub(crate) fn take_away(&self, name: &str) -> bool {
        let claim = {
            let leases = self.0.leases.lock();
            let holder = leases.get(name).and_then(|lease| lease.holder.as_ref());
            holder.map(|holder| holder.claim.clone())
        };
        let Some(claim) = claim else { return false };
        let parked = claim.asked_back.end(()).into_iter().collect();
        wake_all(parked, &self.0.runtime);
        self.give_back(&claim);
        true
    }

    /// Who has what, and who waits.
    pub(crate) fn list(&self) -> Vec<LeaseInfo> {
        let leases = self.0.leases.lock();
        let info = leases.iter().map(|(name, lease)| LeaseInfo {
            id: format!("lease:{}:{name}", self.0.app),
            app: self.0.app.clone(),
            name: name.clone(),
            generation: lease.holder.as_ref().map(|it| it.claim.generation),
            fence: lease.holder.as_ref().and_then(|it| it.fence),
            held_ms: lease
                .holder
                .as_ref()
                .map(|it| millis(it.claim.since.elapsed())),
            asked_back: lease.holder.as_ref().is_some_and(|it| it.is_asked_back),
            waiting: lease
                .waiting
                .iter()
                .map(|claim| LeaseWaiter {
                    generation: claim.generation,
                    age_ms: millis(claim.since.elapsed()),
                })
                .collect(),
        });
        info.collect()
    }
}

/// Locks the file at `path`, which is made where there is none.
fn lock(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}
