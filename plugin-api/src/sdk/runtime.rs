//! The one tokio runtime of a generation, and how host threads take part in it.

use std::{
    cell::Cell,
    io,
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Handle, Runtime};

use super::context::Context;

/// How long tasks have to notice that their app is gone.
const GRACE: Duration = Duration::from_millis(200);

thread_local! {
    /// Whether this thread has entered the runtime of this copy of the SDK. There is one
    /// generation, so one runtime, in each copy.
    static ENTERED: Cell<bool> = const { Cell::new(false) };
}

/// The runtime: its timers, its sockets, its `spawn`.
#[derive(Debug)]
pub(super) struct AppRuntime(Runtime);

impl AppRuntime {
    /// Starts it with `threads` threads named after `app` and `generation`.
    pub(super) fn start(app: &str, generation: u64, threads: usize) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name(format!("{app}#{generation}"))
            .enable_all()
            .build()?;
        Ok(Self(runtime))
    }

    pub(super) fn handle(&self) -> &Handle {
        self.0.handle()
    }

    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.block_on(future)
    }

    /// Tells the host how many tasks still run that nobody counts, now that the app is dropped and
    /// nothing is in flight. Those that end because the app is gone (a pool's, a client's) have a
    /// moment for it.
    pub(super) fn tell_tasks_left(&self, context: &Context) {
        let alive = || self.0.metrics().num_alive_tasks() as u64;
        let began = Instant::now();
        while alive() > 0 && began.elapsed() < GRACE {
            std::thread::sleep(Duration::from_millis(1));
        }
        match alive() {
            0 => {}
            left => context.tell_tasks_left(left),
        }
    }

    /// Ends all tasks and joins the threads, waiting for at most `deadline`.
    pub(super) fn stop(self, deadline: Duration) {
        self.0.shutdown_timeout(deadline);
    }
}

/// Makes this thread one of the runtime's: `tokio::spawn`, timers and sockets work in what it polls
/// from now on.
///
/// A thread enters once and never leaves: leaving and entering again at each poll would cost two
/// updates of a count that all workers share. The thread-local context that stays behind is
/// released at retire, by the ledger of the host.
pub(super) fn enter(handle: &Handle) {
    if !ENTERED.get() {
        ENTERED.set(true);
        std::mem::forget(handle.enter());
    }
}
