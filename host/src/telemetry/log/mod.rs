//! The log: which lines there are, how they look, and where they go.
//!
//! A line may be lost, a request may not. So nothing here waits for whoever reads the log, and
//! nothing panics: a line is formatted on the thread that logs, without a thread-local that may be
//! gone when a destructor logs, and put into a bounded queue; one thread writes. The formatter of
//! `tracing-subscriber` does neither: it keeps its buffer in a thread-local, writes on the thread
//! that logs, and panics where that fails.
//!
//! - [`subscriber`]: from an event of `tracing` to a line
//! - [`line`]: how a line looks, as text, JSON, or a journal entry
//! - [`access`]: the log of requests, by the same means
//! - [`recent`]: the last records, kept in memory for who asks
//! - [`writer`]: the queue and the thread that writes
//! - [`destination`]: standard error, a file that is rotated, or the journal

mod access;
mod destination;
mod line;
mod recent;
mod subscriber;
mod writer;

use std::{
    panic::{self, PanicHookInfo},
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use tracing_subscriber::{filter::Targets, util::SubscriberInitExt};

pub(crate) use self::{
    access::{AccessEntry, AccessLog},
    destination::{rotate, rotated},
    recent::{Kept, Recent},
};
use self::{
    destination::Destination,
    line::Style,
    subscriber::LogSubscriber,
    writer::{Losses, Writer},
};
use crate::config::{Log, LogFormat};

/// How long a thread that panics waits for its message to be written: it may be the last one of the
/// process.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The log of this process.
static LOG: OnceLock<ProcessLog> = OnceLock::new();

/// What is done with a log that is set up.
#[derive(Debug)]
struct ProcessLog {
    writer: Writer,
    filter: Arc<ArcSwap<Targets>>,
    /// None in a supervisor, which nobody asks.
    recent: Option<Recent>,
}

/// A log that could not be set up, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The level is not a filter.
    #[error(
        "log level `{level}` is not understood: {source}; write e.g. `info` or `info,handover=debug`"
    )]
    Level {
        /// What was written.
        level: String,
        /// What is wrong in it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Two logs in one process.
    #[error("this process has a log already")]
    Twice,
    /// No thread to write it.
    #[error("the log has no thread to write it: {0}")]
    Thread(#[source] std::io::Error),
}

/// Which of two processes that write one log this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The host, which rotates the file.
    Host,
    /// Its parent, which follows.
    Supervisor,
}

/// Sends the log of this process where `log` says. `colour` is for text on standard error only.
///
/// Called once, before anything is logged and before other threads are started.
///
/// # Errors
/// When the level is no filter, or the process has a log already. A file that cannot be opened is
/// no error: lines go to standard error meanwhile, and it is tried again.
pub(crate) fn init(log: &Log, colour: bool, role: Role) -> Result<(), LogError> {
    let filter = Arc::new(ArcSwap::from_pointee(read(&log.level)?));
    let destination = Destination::new(log, role);
    let style = match log.format {
        LogFormat::Json => Style::Json,
        LogFormat::Text if destination.is_journal() => Style::Journal,
        LogFormat::Text => Style::Text {
            colour: colour && log.file.is_none(),
        },
    };
    let losses = Losses::InLine(style);
    let writer = Writer::start("log", destination, losses).map_err(LogError::Thread)?;
    let log = ProcessLog {
        writer: writer.clone(),
        filter: Arc::clone(&filter),
        recent: (role == Role::Host).then(Recent::new),
    };
    let recent = log.recent.clone();
    if LOG.set(log).is_err() {
        return Err(LogError::Twice);
    }
    LogSubscriber::new(filter, style, writer, recent)
        .try_init()
        .map_err(|_| LogError::Twice)?;
    panic::set_hook(Box::new(panicked));
    Ok(())
}

fn read(level: &str) -> Result<Targets, LogError> {
    level.parse().map_err(|source| LogError::Level {
        level: level.to_owned(),
        source,
    })
}

/// Logs by `level` from now on.
///
/// # Errors
/// When it is no filter. Nothing has changed then.
pub(crate) fn set_level(level: &str) -> Result<(), LogError> {
    let filter = read(level)?;
    if let Some(log) = LOG.get() {
        log.filter.store(Arc::new(filter));
        tracing::callsite::rebuild_interest_cache();
    }
    Ok(())
}

/// The hook that std comes with writes to standard error on the thread that panics, which may never
/// return from that.
fn panicked(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("no message");
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    match info.location() {
        Some(place) => tracing::error!(thread, "panicked at {place}: {message}"),
        None => tracing::error!(thread, "panicked: {message}"),
    }
    flush(LAST_WORDS);
}

/// Waits until what has been logged so far is written, for `deadline` at the longest. Blocks.
pub(crate) fn flush(deadline: Duration) {
    if let Some(log) = LOG.get() {
        log.writer.flush(deadline);
    }
}

/// Opens the file of the log again: it was renamed, and lines are to go to a new one.
pub(crate) fn reopen() {
    if let Some(log) = LOG.get() {
        log.writer.reopen();
    }
}

/// The last records of this host's log; none where that goes to a subscriber of somebody else's, as
/// in a program that has a host within.
pub(crate) fn recent() -> Option<Recent> {
    LOG.get()?.recent.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_named() {
        let log = Log {
            level: "loud=very".to_owned(),
            ..Log::default()
        };
        let error = init(&log, false, Role::Host).map_err(|error| error.to_string());
        assert!(
            error.is_err_and(|error| error.starts_with("log level `loud=very` is not understood"))
        );
    }
}
