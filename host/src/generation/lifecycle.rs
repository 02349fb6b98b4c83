//! The threads that constructors and destructors of apps run on.
//!
//! Both may block and both run code of the plugin that leaves thread-locals behind. So each has a thread of its own that ends, and is
//! joined, before the library may be unmapped.

use std::{io, time::Duration};

use tokio::sync::oneshot;

/// Why there is no outcome.
#[derive(Debug)]
pub(super) enum Unfinished {
    /// The thread could not be started.
    NoThread(io::Error),
    /// It did not end in time, and goes on.
    Late,
    /// It panicked, which the host's own code never should.
    Panicked,
}

/// Runs `work` on a thread called `name`, and waits until that thread has ended, at most for `deadline`.
pub(super) async fn run<T: Send + 'static>(
    name: &str,
    deadline: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let (done, ended) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(Unfinished::NoThread)?;
    // A second thread only joins the first: when it is through, the first has run its thread-local destructors as well.
    std::thread::Builder::new()
        .name("join".to_owned())
        .spawn(move || {
            // The receiver is gone when the deadline passed, and then nobody wants to know.
            let _ = done.send(thread.join());
        })
        .map_err(Unfinished::NoThread)?;
    match tokio::time::timeout(deadline, ended).await {
        Ok(Ok(Ok(outcome))) => Ok(outcome),
        Ok(_) => Err(Unfinished::Panicked),
        Err(_) => Err(Unfinished::Late),
    }
}
