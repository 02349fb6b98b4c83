//! The threads that code of a plugin outside of requests runs on: its constructors and destructors,
//! its hooks.
//!
//! All of it may block and leaves thread-locals behind. So each has a thread of its own that is
//! waited for with a deadline, and has ended, and is joined, before the library may be unmapped.

use std::{io, time::Duration};

use tokio::sync::oneshot;

/// Why there is no outcome.
#[derive(Debug)]
pub(super) enum Unfinished<T> {
    /// The thread could not be started.
    NoThread(io::Error),
    /// It did not end in time, and goes on.
    Late(Late<T>),
    /// It panicked, which the host's own code never should.
    Panicked,
}

/// A thread that may go on past its deadline.
#[derive(Debug)]
pub(super) struct Late<T>(oneshot::Receiver<io::Result<std::thread::Result<T>>>);

impl<T> Late<T> {
    /// What it came to, if it has ended by now; else it is given back.
    pub(super) fn ended(mut self) -> Result<Result<T, Unfinished<T>>, Self> {
        match self.0.try_recv() {
            Ok(Ok(Ok(outcome))) => Ok(Ok(outcome)),
            Ok(Err(error)) => Ok(Err(Unfinished::NoThread(error))),
            Err(oneshot::error::TryRecvError::Empty) => Err(self),
            Ok(Ok(Err(_))) | Err(oneshot::error::TryRecvError::Closed) => {
                Ok(Err(Unfinished::Panicked))
            }
        }
    }
}

impl<T> Late<T> {
    /// Waits until the thread has ended, at most for `deadline`.
    pub(super) async fn within(mut self, deadline: Duration) -> Result<T, Unfinished<T>> {
        match tokio::time::timeout(deadline, &mut self.0).await {
            Ok(Ok(Ok(Ok(outcome)))) => Ok(outcome),
            Ok(Ok(Err(error))) => Err(Unfinished::NoThread(error)),
            Ok(_) => Err(Unfinished::Panicked),
            Err(_) => Err(Unfinished::Late(self)),
        }
    }
}

/// Begins `work` on a thread called `name`. Dropping what this returns leaves it running.
///
/// # Errors
/// When no thread can be started.
pub(super) fn begin<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Late<T>> {
    let (done, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned());
    // Another thread starts it and only joins it: when that is through, it has run its thread-local
    // destructors as well. In this order, so that a thread that cannot be started leaves none
    // behind that nobody joins.
    std::thread::Builder::new()
        .name("join".to_owned())
        .spawn(move || {
            let outcome = thread.spawn(work).map(std::thread::JoinHandle::join);
            // The receiver is gone when nobody wants to know any more.
            let _ = done.send(outcome);
        })?;
    Ok(Late(ended))
}

/// Runs `work` on a thread called `name`, and waits until that thread has ended, at most for
/// `deadline`.
pub(super) async fn run<T: Send + 'static>(
    name: &str,
    deadline: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished<T>> {
    match begin(name, work) {
        Ok(thread) => thread.within(deadline).await,
        Err(error) => Err(Unfinished::NoThread(error)),
    }
}
