//! All that one library holds in the host, and the proof that nothing is left.

use std::{
    fmt::Display,
    io,
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::Notify};

use super::{
    AccountId, Call, Look, RetainReason, RetainReasons, callbacks, descriptors, environments,
    exits, interposed, interval_timers, keys,
    known::{self, Known},
    listeners,
    look::Owing,
    notes,
    owner::{self, Acting},
    process, ranges, record_locks,
    refused_locks::{self, RefusedLock},
    requests, signals,
    stack::Modules,
    strangers::{self, Stranger},
    surroundings, tasks, threads, timers, tls_destructors,
};
use handover_api::{AppName, GenerationId};

/// The next account. Never given out twice, so that nothing of an old library is ever taken for a
/// new one's.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The current thread is loading a library: what constructors register is the library's.
///
/// From before `dlopen` until [`Loading::attribute`]. The thread is one that ends before the
/// library is used: thread-locals that constructors touch are left to libc, which ends them with
/// the thread.
#[derive(Debug)]
pub(crate) struct Loading {
    account: AccountId,
    /// When it began, by [`tasks::now`].
    began: u64,
    _acting: Acting,
}

/// Begins to write down what the library that this thread is about to load registers.
///
/// `executable` is where this executable is mapped.
pub(crate) fn loading(executable: &Range<usize>) -> Loading {
    owner::note_host(executable);
    interposed::find_all();
    record_locks::prepare();
    surroundings::note_start();
    process::loads();
    let account = NEXT.fetch_add(1, Ordering::Relaxed);
    let acting = owner::act_for(account);
    Loading {
        account,
        began: tasks::now(),
        _acting: acting,
    }
}

impl Loading {
    /// The library is mapped at `ranges`: opens its account. None when the table of ranges is full;
    /// the library must then stay mapped for ever.
    pub(crate) fn attribute(self, ranges: Vec<Range<usize>>) -> Option<Account> {
        if !ranges
            .iter()
            .all(|range| ranges::claim(self.account, range))
        {
            ranges::give_back(self.account);
            return None;
        }
        keys::sort_out(self.account, &ranges);
        record_locks::attributed(self.account, &ranges);
        Some(Account(Arc::new(Inner {
            id: self.account,
            loaded: self.began,
            destructors: AtomicUsize::new(0),
            name: OnceLock::new(),
            stalls: Arc::default(),
            visited: Notify::new(),
        })))
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if ranges::is_known(self.account) {
            return;
        }
        interval_timers::disarm(self.account);
        signals::forget(self.account);
        notes::forget(self.account);
        // Nothing was loaded, or it cannot be followed: the keys stay, they are no one's.
        keys::sort_out(self.account, &[]);
    }
}

/// What one library holds. Open as long as the library is mapped: dropping it closes nothing,
/// [`Account::close`] does.
#[derive(Debug)]
pub struct Account(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: AccountId,
    /// When its load began, by [`tasks::now`].
    loaded: u64,
    /// How many destructors were run on visits.
    destructors: AtomicUsize,
    /// Whose its library is, for people.
    name: OnceLock<(AppName, GenerationId)>,
    /// How many calls into it did not come back in time.
    stalls: Arc<AtomicU64>,
    /// A visit has run something.
    visited: Notify,
}

/// What settling an account took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Destructors of thread-locals and of keys' values that were run on threads of the host.
    pub destructors: usize,
    /// Signals that it had a handler for, for people: `SIGUSR1 (10)`.
    pub signals: Vec<String>,
    /// POSIX timers that were deleted.
    pub timers: usize,
    /// How often the workers were asked to come by.
    pub rounds: usize,
}

/// What a library left behind that does not keep it from being unmapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Bytes of its heap that it never freed, and that were freed for it; none when it was built
    /// without a heap of its own.
    pub heap_bytes: Option<u64>,
    /// Where it had no heap of its own: the private memory of the process after it was unmapped,
    /// but for the heaps of others. Some of it is what it never freed.
    pub private_bytes: Option<u64>,
    /// Descriptors that it left open and that were closed for it, each for people: `descriptor 12
    /// (socket)`.
    pub closed: Vec<String>,
    /// Descriptors that it left open and that nobody but the library may have been the only user
    /// of, so that they stay.
    pub open: Vec<String>,
    /// Thread-specific keys that went back to the process.
    pub keys: usize,
}

/// The library is not quiet: it must stay mapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{held}")]
pub struct Unsettled {
    /// What holds it. Never empty.
    pub held: RetainReasons,
}

/// For so many rounds what settling waits for is looked at after each pause.
const SOON: usize = 30;
const PAUSE: Duration = Duration::from_millis(1);

/// Runtimes whose workers call plugins too.
static OTHERS: Mutex<Vec<Handle>> = Mutex::new(Vec::new());

/// Says that the workers of `runtime` call plugins, besides those of the runtime that
/// [`Account::settle`] is awaited on. For good.
pub(crate) fn visit_as_well(runtime: Handle) {
    OTHERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(runtime);
}

/// The runtimes of [`visit_as_well`].
pub(crate) fn others() -> Vec<Handle> {
    OTHERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// Says that the current thread, one of the host, runs code of the library of `account` outside of
/// a request, until what this returns is dropped.
pub(crate) fn act_for(account: AccountId) -> Acting {
    owner::act_for(account)
}

impl Account {
    /// Ends what the library holds in the host: disarms and deletes its timers, cancels what libc
    /// does for it, takes its signal handlers away, runs its destructors on the threads that owe
    /// them, and waits for its threads to end, for `deadline` at the longest. On `Ok` nothing is
    /// left.
    ///
    /// Nothing may call into the library any more when this is called, but the destructors that
    /// this runs. It cannot contain a destructor that aborts. One that blocks holds its worker,
    /// where the watchdog finds it, and the library; it does not hold this for longer than
    /// `deadline` while there is another worker.
    ///
    /// To be awaited on the runtime whose workers called the library, with its timer enabled:
    /// workers can only be reached by tasks. A worker that is kept busy by something else holds the
    /// library. So does any other thread that called it, until it ends: the main thread in
    /// `block_on`, a thread of `spawn_blocking`, or a worker that became one by `block_in_place`.
    /// Call plugins on workers, or on threads that end. Safe to cancel, and to call again after an
    /// error.
    ///
    /// # Errors
    /// Says what still held it at the deadline, when the last thing that it asked of anybody has
    /// not happened.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn settle(&self, deadline: Duration) -> Result<Report, Unsettled> {
        let runtime = Handle::current();
        let mut runtimes = others();
        runtimes.push(runtime);
        let begin = Instant::now();
        let before = self.0.destructors.load(Ordering::Relaxed);
        let mut report = Report::default();
        loop {
            // Before the handlers: what a timer of the library sends is not to find another's.
            report.timers += timers::disarm(self.0.id);
            requests::cancel(self.0.id);
            interval_timers::disarm(self.0.id);
            let mut signals = signals::leave(self.0.id, false);
            if !tls_destructors::on_worker() {
                self.0.visit();
            }
            if self.runs_nowhere() {
                signals.extend(signals::leave(self.0.id, true));
            }
            report
                .signals
                .extend(signals.into_iter().map(signals::name));
            if self.is_quiet() {
                report.destructors = self.0.destructors.load(Ordering::Relaxed) - before;
                return Ok(report);
            }
            if begin.elapsed() >= deadline {
                let library = self.0.look();
                let strangers = tokio::task::spawn_blocking(move || strangers::lasting(library));
                let strangers = strangers.await.map_err(io::Error::other).flatten();
                let held = self.held_for(Some(begin.elapsed()), strangers);
                if held.is_empty() {
                    continue; // the last of it went just now
                }
                return Err(Unsettled { held });
            }
            let owing = tls_destructors::held(self.0.id);
            if owing
                .iter()
                .map(Owing::of)
                .any(|owing| owing.can_be_visited())
            {
                self.call_workers(&runtimes, report.rounds);
            }
            let pause = match report.rounds {
                0..SOON => PAUSE,
                // What is not done by then waits for something else, and is not worth asking for
                // all the time.
                late => PAUSE * (late - SOON + 2).min(20) as u32,
            };
            // Not by yielding: that would have this thread come back here, where a destructor may
            // block.
            let _ = tokio::time::timeout(pause, self.0.visited.notified()).await;
            report.rounds += 1;
        }
    }

    /// Asks the workers of `runtimes` to come by.
    fn call_workers(&self, runtimes: &[Handle], round: usize) {
        // A worker that finds nothing to do takes tasks from the others. Each visit keeps its
        // worker for a moment, longer each round, so that the tasks behind it are taken by the
        // workers that have not been visited.
        let stay = Duration::from_micros(10 * round.min(20) as u64);
        for runtime in runtimes {
            for _ in 0..2 * runtime.metrics().num_workers() {
                let account = Arc::clone(&self.0);
                runtime.spawn(async move {
                    if !account.visit() {
                        std::thread::sleep(stay);
                    }
                });
            }
        }
    }

    /// What holds the library, without asking anybody to do anything.
    pub fn look(&self) -> Look {
        let signals = signals::held(self.0.id);
        let signals = signals
            .into_iter()
            .map(|holding| (holding.signal, holding.running));
        let alive = threads::alive(self.0.id);
        let strangers = strangers::of(self.0.look()).unwrap_or_default();
        Look {
            threads: alive.iter().map(|thread| thread.tid).collect(),
            owing: tls_destructors::held(self.0.id)
                .iter()
                .map(Owing::of)
                .collect(),
            signals: signals.collect(),
            requests: requests::held(self.0.id),
            strangers: strangers.iter().map(|stranger| stranger.tid).collect(),
        }
    }

    /// Whether nothing of the library is left in the host, now.
    fn is_quiet(&self) -> bool {
        // Threads of the host first: what runs on them may start threads of the library. Then the
        // threads of the library: what they run may be registered on threads of the host no more
        // than by a wrong plugin; looked at again anyway. The tasks come last, since looking at
        // them costs the most, and the threads again after them: one that was nobody's when the
        // threads were looked at may be known as the library's when the tasks are.
        self.runs_nowhere()
            && requests::held(self.0.id).is_empty()
            && signals::held(self.0.id).is_empty()
            && strangers::of(self.0.look()).is_ok_and(|strangers| strangers.is_empty())
            && threads::alive(self.0.id).is_empty()
            && tls_destructors::held(self.0.id).is_empty()
    }

    /// Whether no thread runs code of the library, or will, but for a signal.
    fn runs_nowhere(&self) -> bool {
        tls_destructors::held(self.0.id).is_empty() && threads::alive(self.0.id).is_empty()
    }

    /// What holds the library now. Empty when it is quiet.
    ///
    /// Blocks for some milliseconds while there are threads that nobody can account for, which may
    /// be about to end, and for a second at the most while one of them has had no processor yet.
    pub fn retain_reasons(&self) -> RetainReasons {
        let strangers = strangers::lasting(self.0.look());
        self.held_for(None, strangers)
    }

    fn held_for(
        &self,
        waited: Option<Duration>,
        strangers: io::Result<Vec<Stranger>>,
    ) -> RetainReasons {
        let mut held = RetainReasons::default();
        let alive = threads::alive(self.0.id);
        if !alive.is_empty() {
            let modules = Modules::read();
            let names: Vec<_> = alive
                .iter()
                .map(|thread| thread.describe(&modules))
                .collect();
            let threads = if alive.len() == 1 {
                "thread"
            } else {
                "threads"
            };
            held.add(
                RetainReason::Threads,
                format!(
                    "{} {threads} that it started still live: {}",
                    alive.len(),
                    names.join(", ")
                ),
            );
        }
        match strangers {
            Ok(strangers) => {
                for sentence in strangers::sentences(&strangers) {
                    held.add(RetainReason::Threads, sentence);
                }
            }
            Err(error) => held.add(
                RetainReason::Host,
                format!("the threads of the process cannot be listed: {error}"),
            ),
        }
        for sentence in requests::held(self.0.id) {
            held.add(RetainReason::Requests, sentence);
        }
        for holder in tls_destructors::held(self.0.id) {
            let thread = threads::describe(holder.tid);
            let (who, busy) = match holder.worker {
                Some(number) => (
                    format!("worker {number} ({thread})"),
                    "has been running something else",
                ),
                None => (
                    format!("thread {thread}, which is no worker of the host,"),
                    "has not ended",
                ),
            };
            let waited = waited
                .map(|waited| format!(" and {busy} for {} ms", waited.as_millis()))
                .unwrap_or_default();
            let sentence = if holder.running {
                format!("{who} is running a thread-local destructor of it")
            } else if holder.waiting > 0 {
                let many = holder.waiting;
                format!("{who} has {many} thread-local destructors of it to run{waited}")
            } else {
                format!("{who} ran code of it and is ending")
            };
            held.add(RetainReason::ThreadLocals, sentence);
        }
        for signals::Holding { signal, running } in signals::held(self.0.id) {
            let signal = signals::name(signal);
            let sentence = if running {
                format!("a handler of it for {signal} has not returned")
            } else {
                format!("it handles {signal}")
            };
            held.add(RetainReason::Signals, sentence);
        }
        held
    }

    /// Says whose the library is, for people. Once.
    pub fn name(&self, app: &AppName, generation: GenerationId, version: impl Display) {
        let known = Known {
            app: app.clone(),
            generation,
            version: version.to_string(),
        };
        known::add(self.0.id, known);
        // A second name would be the same one.
        let _ = self.0.name.set((app.clone(), generation));
    }

    /// Counts the calls into the library that did not come back in time.
    pub fn stalls(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.stalls)
    }

    /// Its name in the tables of the ledger.
    pub fn id(&self) -> AccountId {
        self.0.id
    }

    /// Says that the current thread, one of the host, runs code of the library outside of a
    /// request, until what this returns is dropped.
    pub fn act(&self) -> Acting {
        act_for(self.0.id)
    }

    /// How many descriptors it has open, as far as they can be followed.
    pub fn descriptors(&self) -> usize {
        descriptors::count(self.0.id)
    }

    /// The locks on files that others had when code of the library wanted them, and did not wait.
    pub fn refused_locks(&self) -> Vec<RefusedLock> {
        refused_locks::of(self.0.id)
    }

    /// Closes the account: the library is unmapped. Gives what it left behind.
    ///
    /// To be called on the thread that unmapped it, before that thread ends.
    pub(crate) fn close(self) -> Leftovers {
        tls_destructors::forget(self.0.id);
        interval_timers::disarm(self.0.id);
        timers::disarm(self.0.id); // what finalizers made
        requests::forget(self.0.id);
        callbacks::forget(self.0.id);
        signals::forget(self.0.id);
        exits::forget(self.0.id);
        listeners::forget(self.0.id);
        environments::forget(self.0.id);
        notes::forget(self.0.id);
        let keys = keys::delete_all(self.0.id);
        record_locks::end(self.0.id);
        refused_locks::forget(self.0.id);
        known::forget(self.0.id);
        let descriptors::Leftovers { closed, open } = descriptors::settle(self.0.id);
        ranges::give_back(self.0.id);
        Leftovers {
            heap_bytes: None,
            private_bytes: None,
            closed,
            open,
            keys,
        }
    }
}

impl Inner {
    fn look(&self) -> strangers::Library {
        strangers::Library {
            account: self.id,
            loaded: self.loaded,
            is_called_back: callbacks::has(self.id),
        }
    }

    /// Runs on the current thread what it owes the library. Whether there was anything.
    fn visit(&self) -> bool {
        let call = self.name.get().map(|(app, generation)| Call {
            app,
            generation: *generation,
            account: self.id,
            target: "the destructor of a thread-local",
            dropped: false,
            stalls: &self.stalls,
        });
        let ran = tls_destructors::here(self.id, call.as_ref());
        if ran > 0 {
            self.destructors.fetch_add(ran, Ordering::Relaxed);
            self.visited.notify_one();
        }
        ran > 0
    }
}
