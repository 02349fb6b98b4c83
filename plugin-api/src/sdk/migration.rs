//! Migrations of the state: from one version of its schema to another, without the app.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    time::Duration,
};

use super::{
    app::{Only, prepare},
    context,
    error::Error,
    log,
    state::{Batch, Snapshot, State},
};
use crate::abi::{
    declared::declared,
    export::{HostHandle, Plugin, panic_message},
    lent::Lent,
    panics::drop_payload,
    root::Settings,
};

/// What a function that is declared runs as.
pub type MigrationFuture<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

/// A function that is declared by `#[migration]`.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Its name, for people.
    pub name: &'static str,
    /// The schema that it begins with.
    pub from: u32,
    /// The schema that it ends with.
    pub to: u32,
    /// Runs it.
    pub run: for<'a> fn(Snapshot, &'a mut Batch) -> MigrationFuture<'a>,
}

/// Runs a function of an author, whatever its error is.
pub fn run_migration<'a, E, F>(future: F) -> MigrationFuture<'a>
where
    E: Into<Error>,
    F: Future<Output = Result<(), E>> + Send + 'a,
{
    Box::pin(async move { future.await.map_err(Into::into) })
}

/// Runs the migration that the host asks for in `settings`, in place of the constructor; none when
/// it asks for none. What it gives answers nobody.
///
/// # Errors
/// Why it failed.
pub(super) fn asked_for(
    host: HostHandle,
    settings: Lent<'_, Settings<'_>>,
) -> Option<Result<Box<dyn Plugin>, String>> {
    let (from, to) = settings.migration()?;
    Some(run(host, settings, from, to))
}

fn run(
    host: HostHandle,
    settings: Lent<'_, Settings<'_>>,
    from: u32,
    to: u32,
) -> Result<Box<dyn Plugin>, String> {
    let mut all = declared()
        .iter()
        .filter_map(|entry| (entry.0 as &dyn Any).downcast_ref::<Migration>());
    let Some(one) = all.find(|one| (one.from, one.to) == (from, to)) else {
        return Err(format!("it has no migration from schema {from} to {to}"));
    };
    let (runtime, context) = prepare(host, settings)?;
    let done = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(log::constructing(async {
            let state: State = context.state();
            let mut new = Batch::of(&state);
            (one.run)(Snapshot::of(&state), &mut new).await?;
            new.write().await.map_err(Error::from)
        }))
    }));
    log::settle();
    let reason = match done {
        Ok(Ok(())) => return Ok(Box::new(Only { context, runtime })),
        Ok(Err(error)) => format!("{}: {error}", one.name),
        Err(payload) => {
            let reason = format!("{} panicked: {}", one.name, panic_message(&*payload));
            drop_payload(payload);
            reason
        }
    };
    runtime.stop(Duration::from_secs(1));
    context::forget_current();
    Err(reason)
}
