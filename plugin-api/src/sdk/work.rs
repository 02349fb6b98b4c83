//! Tasks and jobs: work that outlives its request, and that the host counts as in flight.

use std::{collections::HashMap, future::Future, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    task::{AbortHandle, JoinHandle},
};

use crate::abi::{export::HostHandle, host, lent::Size};

/// What runs, by the host's number for it.
#[derive(Debug)]
pub(super) struct Works {
    host: HostHandle,
    running: Mutex<HashMap<u64, Running>>,
}

#[derive(Debug)]
struct Running {
    kind: Kind,
    /// None in the instant between being counted and being spawned.
    abort: Option<AbortHandle>,
}

/// What a deploy does with work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Waits for it until the drain deadline.
    Task,
    /// Waits for it.
    Job,
    /// Tells it to stop, and waits for it until the drain deadline.
    Worker,
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::Task => host::TASK,
            Self::Job => host::JOB,
            Self::Worker => host::WORKER,
        }
    }
}

impl Works {
    pub(super) fn new(host: HostHandle) -> Self {
        Self {
            host,
            running: Mutex::default(),
        }
    }

    pub(super) fn host(&self) -> HostHandle {
        self.host
    }

    pub(super) fn spawn<F>(
        self: &Arc<Self>,
        runtime: &Handle,
        name: &str,
        tenant: &str,
        kind: Kind,
        future: F,
    ) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let number = self.host.work_began(&host::Work {
            size: Size::of::<host::Work<'_>>(),
            kind: kind.number(),
            name: name.into(),
            tenant: tenant.into(),
        });
        self.running
            .lock()
            .insert(number, Running { kind, abort: None });
        let counted = Counted {
            works: Arc::clone(self),
            number,
        };
        let handle = runtime.spawn(async move {
            let _counted = counted;
            future.await
        });
        if let Some(running) = self.running.lock().get_mut(&number) {
            running.abort = Some(handle.abort_handle());
        }
        handle
    }

    /// Cancels the work of this number. Returns whether it ran.
    pub(super) fn cancel_one(&self, number: u64) -> bool {
        let running = self.running.lock();
        let abort = running
            .get(&number)
            .and_then(|running| running.abort.clone());
        drop(running);
        abort.map(|abort| abort.abort()).is_some()
    }

    /// Cancels what runs, jobs only if `jobs`; gives how much that was.
    pub(super) fn cancel(&self, jobs: bool) -> u64 {
        let cancelled: Vec<_> = self
            .running
            .lock()
            .values()
            .filter(|running| jobs || running.kind != Kind::Job)
            .filter_map(|running| running.abort.clone())
            .collect();
        cancelled.iter().for_each(AbortHandle::abort);
        cancelled.len() as u64
    }
}

/// Counts out when the work ends, in whatever way: done, panicked, aborted, or dropped with its
/// runtime.
struct Counted {
    works: Arc<Works>,
    number: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.works.running.lock().remove(&self.number);
        self.works.host.work_ended(self.number);
    }
}
