//! The threads that call plugins, in the host and in a preflight child: a runtime whose workers the
//! ledger knows.

use std::{io, num::NonZeroUsize};

use tokio::runtime::{Builder, Runtime};

use crate::ledger;

/// A runtime with so many workers, one for each core if it is left open.
///
/// # Errors
/// When the threads cannot be started.
pub(crate) fn runtime(number: Option<NonZeroUsize>) -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Some(number) = number {
        builder.worker_threads(number.get());
    }
    builder
        .thread_name(ledger::SHARED_WORKER)
        .on_thread_start(ledger::mark_worker)
        .enable_all()
        .build()
}
