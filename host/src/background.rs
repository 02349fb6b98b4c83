//! Work that gives way to serving: on threads of their own that get less of the processor than
//! those that answer.
//!
//! A swap is work for the processor (hashing, copying, a child process) in the same moment in which
//! requests want it. On a busy machine it takes longer so, and the requests do not wait for it. It
//! must never be work that somebody who serves waits for, e.g. under the dynamic linker's lock.

use std::{io, thread};

use tokio::sync::oneshot;

/// How much less, in the kernel's steps: where both want the processor, a thread that serves gets
/// three times as much.
const NICE: i32 = 5;

/// Starts `work` on a thread called `name`. Processes that it starts give way as well.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let give_way = move || {
        // Where it is not allowed it serves as well, only less politely. On Linux it is the
        // thread's own.
        let _ = rustix::process::nice(NICE);
        work();
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(give_way)
        .map(drop)
}

/// Runs `work` like [`start`], and gives its outcome.
///
/// # Errors
/// When no thread can be started, or the work panicked.
pub(crate) async fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, outcome) = oneshot::channel();
    start(name, move || {
        let _ = done.send(work()); // nobody wants to know any more
    })?;
    outcome
        .await
        .map_err(|_| io::Error::other(format!("the thread {name} panicked")))
}
