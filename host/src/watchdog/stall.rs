//! The watchdog: finds calls into plugins that do not come back, and keeps the others served
//! meanwhile.
//!
//! A handler that spins or blocks holds its worker. What that does to the others, and what is done
//! about it:
//! - What waits in the worker's own queue is stolen by the other workers, but only by those that
//!   are awake; and when the worker that holds the I/O driver takes up exactly one task, nobody
//!   else looks after the driver until somebody wakes: measured with two workers, one request that
//!   spins for 3 s, and 200 others after it, none of the 200 was answered before it ended. So each
//!   tick that finds a thread inside of a call wakes a worker, by a task that does nothing: then
//!   all 200 were, the slowest after 0.1 s.
//! - One worker less is left. So there are spare ones ([`park_spares`]) which sleep, and cost
//!   nothing, until a call stalls or no worker is left; then one of them takes part for good. They
//!   are not sent back to sleep: by then they may owe plugins their destructors.
//! - Whatever runs code of a plugin on a worker is such a call: the polls of requests, bodies and
//!   upgraded connections, their drops, wakers that a plugin gave away, and the destructors of its
//!   thread-locals.
//! - A task in the worker's LIFO slot is out of everybody's reach. tokio took the stealing of it
//!   back (1.51), and switching the slot off is an unstable option. Only what the stalled call
//!   itself woke just before can lie there, or what had just come when one time in 61 the worker
//!   looked at the common queue first; that waits until the call comes back.

use std::{
    collections::HashMap,
    sync::{Weak, mpsc},
    thread,
    time::{Duration, Instant},
};

use handover_api::{AppName, EventKind, GenerationId};
use parking_lot::{Condvar, Mutex};
use tokio::runtime::{Handle, Runtime};

use crate::{apps::registry::Registry, human, ledger};

/// How often the watchdog looks.
const TICK: Duration = Duration::from_millis(100);

/// The spare workers of the host's runtime.
static SPARES: Spares = Spares {
    asleep: Mutex::new(Asleep { number: 0, wake: 0 }),
    woken: Condvar::new(),
};

struct Spares {
    asleep: Mutex<Asleep>,
    woken: Condvar,
}

struct Asleep {
    /// How many sleep.
    number: usize,
    /// How many of them were told to wake and have not yet.
    wake: usize,
}

impl Spares {
    fn sleep(&self) {
        let mut asleep = self.asleep.lock();
        while asleep.wake == 0 {
            self.woken.wait(&mut asleep);
        }
        asleep.wake -= 1;
    }

    /// Wakes so many of them, and gives how many that were.
    fn wake(&self, wanted: usize) -> usize {
        let mut asleep = self.asleep.lock();
        let woken = wanted.min(asleep.number);
        asleep.number -= woken;
        asleep.wake += woken;
        drop(asleep);
        self.woken.notify_all();
        woken
    }
}

/// Puts `number` workers of `runtime` to sleep, each by a task that blocks it. To be called when
/// there are no other tasks yet: what lay in the LIFO slot of such a worker would sleep with it.
pub(crate) fn park_spares(runtime: &Runtime, number: usize) {
    let (tell, asleep) = mpsc::channel();
    for _ in 0..number {
        let tell = tell.clone();
        runtime.spawn(async move {
            SPARES.asleep.lock().number += 1;
            // The receiver waits for all of them.
            let _ = tell.send(());
            SPARES.sleep();
        });
    }
    drop(tell);
    for _ in 0..number {
        // An error means that the runtime is gone.
        let _ = asleep.recv();
    }
}

/// Wakes all spare workers, so that the runtime can end.
pub(crate) fn wake_spares() {
    SPARES.wake(usize::MAX);
}

/// How many spare workers sleep.
pub(crate) fn sleeping_spares() -> usize {
    SPARES.asleep.lock().number
}

/// A call that goes on and on.
struct Long {
    call: u64,
    since: Instant,
    /// Told already, with what it is.
    told: Option<(AppName, GenerationId, String)>,
    /// A spare worker stands in for the one that is stuck, or none is needed: an app has its
    /// threads for itself.
    replaced: bool,
}

/// Starts the watchdog, which looks until nobody holds `alive` any more. `came_back` is called
/// whenever a call that stalled has ended.
pub(crate) fn watch(
    registry: &Registry,
    workers: usize,
    stall_after: Duration,
    alive: Weak<()>,
    came_back: impl Fn() + Send + 'static,
) {
    let (registry, runtime) = (registry.clone(), Handle::current());
    let started = thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            let mut watchdog = Watchdog {
                registry,
                came_back: Box::new(came_back),
                runtime,
                workers,
                stall_after,
                long: HashMap::new(),
            };
            while alive.strong_count() > 0 {
                watchdog.look();
                thread::sleep(TICK);
            }
        });
    if let Err(error) = started {
        tracing::error!("no thread can be started to find stalled requests: {error}");
    }
}

struct Watchdog {
    registry: Registry,
    came_back: Box<dyn Fn() + Send>,
    runtime: Handle,
    /// Workers that do not sleep.
    workers: usize,
    stall_after: Duration,
    /// By the number of the thread.
    long: HashMap<i32, Long>,
}

impl Watchdog {
    /// Looks once.
    fn look(&mut self) {
        let now = Instant::now();
        let (mut stuck, mut any) = (0, false);
        for slot in ledger::slots() {
            let call = slot.call();
            any |= call.is_some();
            let known = self.long.get_mut(&slot.tid());
            match (known, call) {
                (Some(long), Some(call)) if long.call == call => {
                    stuck += usize::from(slot.is_shared());
                    let took = now.saturating_duration_since(long.since);
                    if long.told.is_none() && took >= self.stall_after {
                        // It may have left in between, and then this is another call.
                        long.told = slot
                            .read(|at| {
                                at.stalls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                                (at.app.clone(), at.generation, at.place())
                            })
                            .filter(|_| slot.call() == Some(call));
                        if let Some((app, generation, path)) = &long.told {
                            let message = format!(
                                "{app} {generation} holds a worker (thread {}) for {} in {path}: it spins or blocks; the other \
                                 workers go on",
                                slot.tid(),
                                human::duration(took),
                            );
                            let events = self.registry.events();
                            events.record(
                                EventKind::Stalled,
                                Some(app),
                                Some(*generation),
                                message,
                            );
                        }
                    }
                }
                (_, call) => {
                    let begun = call.map(|call| Long {
                        call,
                        since: now,
                        told: None,
                        replaced: !slot.is_shared(),
                    });
                    let ended = match begun {
                        Some(begun) => self.long.insert(slot.tid(), begun),
                        None => self.long.remove(&slot.tid()),
                    };
                    if let Some(ended) = ended {
                        self.record_end(&ended, now);
                    }
                }
            }
        }
        if stuck > 0 {
            self.replace(stuck);
        }
        if any {
            // Wakes a worker, which takes the driver and what waits in the queues of those that are
            // stuck. Also when a call has only just begun: it costs nearly nothing, and nobody
            // waits for a second tick.
            self.runtime.spawn(async {});
            for runtime in ledger::others() {
                runtime.spawn(async {});
            }
        }
    }

    fn record_end(&self, ended: &Long, now: Instant) {
        if let Some((app, generation, path)) = &ended.told {
            let took = human::duration(now.saturating_duration_since(ended.since));
            let message = format!("{app} {generation} gave its worker back after {took} in {path}");
            let events = self.registry.events();
            events.record(EventKind::StallEnded, Some(app), Some(*generation), message);
            // The worker may owe something to a library that waits for that.
            (self.came_back)();
        }
    }

    /// Wakes spare workers for those that have stalled; for all, if nobody is left.
    fn replace(&mut self, stuck: usize) {
        let nobody_left = stuck >= self.workers;
        let stalled = self
            .long
            .values_mut()
            .filter(|long| !long.replaced && (nobody_left || long.told.is_some()));
        for long in stalled {
            if SPARES.wake(1) == 0 {
                return;
            }
            long.replaced = true;
            self.workers += 1;
        }
    }
}
