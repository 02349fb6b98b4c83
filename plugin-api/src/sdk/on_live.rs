//! What an app does once, when a version of it has passed all checks and before its first request.

use std::{any::Any, future::Future, pin::Pin};

use tokio::runtime::Handle;

use super::{context::Context, error::Error};
use crate::abi::declared::declared;

/// What a function that is declared runs as.
pub type LiveFuture = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// A function that is declared by `#[on_live]`.
#[derive(Clone, Copy, Debug)]
pub struct OnLive {
    /// Its name, for people.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(Context) -> LiveFuture,
}

/// Runs a function of an author, whatever its error is.
pub fn run_on_live<E, F>(future: F) -> LiveFuture
where
    E: Into<Error>,
    F: Future<Output = Result<(), E>> + Send + 'static,
{
    Box::pin(async move { future.await.map_err(Into::into) })
}

/// Runs those that this library declares, one after the other; blocks as long as that takes.
/// Returns whether there is any.
///
/// # Errors
/// The first that failed, and why.
pub(super) fn run_all(context: &Context, runtime: &Handle) -> Result<bool, String> {
    let mut any = false;
    let all = declared()
        .iter()
        .filter_map(|entry| (entry.0 as &dyn Any).downcast_ref::<OnLive>());
    for one in all {
        any = true;
        runtime
            .block_on((one.run)(context.clone()))
            .map_err(|error| format!("{}: {error}", one.name))?;
    }
    Ok(any)
}
