//! Which revision the database of an app is at, as the app says it.

use std::{any::Any, future::Future, pin::Pin};

use tokio::runtime::Handle;

use super::{context::Context, error::Error};
use crate::abi::declared::declared;

/// What a function that is declared runs as.
pub type RevisionFuture = Pin<Box<dyn Future<Output = Result<u64, Error>> + Send>>;

/// A function that is declared by `#[db_revision]`.
#[derive(Clone, Copy, Debug)]
pub struct DbRevision {
    /// Its name, for people.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(Context) -> RevisionFuture,
}

/// Runs a function of an author, whatever its number and its error are.
pub fn run_db_revision<N, E, F>(future: F) -> RevisionFuture
where
    N: TryInto<u64>,
    E: Into<Error>,
    F: Future<Output = Result<N, E>> + Send + 'static,
{
    Box::pin(async move {
        let revision = future.await.map_err(Into::into)?;
        revision
            .try_into()
            .map_err(|_| Error::msg("a revision is a number from 0 to 2^64 - 1"))
    })
}

/// Asks the one that this library declares; blocks as long as that takes. None where it declares
/// none.
///
/// # Errors
/// Why the revision is not known.
pub(super) fn ask(context: &Context, runtime: &Handle) -> Result<Option<u64>, String> {
    let mut all = declared()
        .iter()
        .filter_map(|entry| (entry.0 as &dyn Any).downcast_ref::<DbRevision>());
    let Some(one) = all.next() else {
        return Ok(None);
    };
    runtime
        .block_on((one.run)(context.clone()))
        .map(Some)
        .map_err(|error| format!("{}: {error}", one.name))
}
