//! The log: where its lines go, and which of them.

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{Log, LogFormat};

/// A log that could not be set up, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
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
    #[error("this process has a log already: {0}")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sends the log of this process to its standard error, as `log` says. `colour` is for text only.
///
/// Called once, before anything is told.
pub fn init(log: &Log, colour: bool) -> Result<(), LogError> {
    let filter: Targets = log.level.parse().map_err(|source| LogError::Level {
        level: log.level.clone(),
        source,
    })?;
    let lines = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(io::stderr);
    match log.format {
        LogFormat::Text => {
            let lines = lines.with_ansi(colour).with_target(false).finish();
            lines.with(filter).try_init()
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).finish();
            lines.with(filter).try_init()
        }
    }
    .map_err(|error| LogError::Twice(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_named() {
        let log = Log {
            level: "loud=very".to_owned(),
            format: LogFormat::Text,
        };
        let error = init(&log, false).map_err(|error| error.to_string());
        assert!(
            error.is_err_and(|error| error.starts_with("log level `loud=very` is not understood"))
        );
    }
}
