//! Drop folders: events are a hint, the truth is a rescan.

use std::{path::PathBuf, sync::Arc};

use crate::{artifact::{Artifact, Sha256, Store}, names::AppName};

/// What was found in a drop folder.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The app: of the sub-folder, else of the manifest.
    pub app: AppName,
    /// The file in the drop folder.
    pub path: PathBuf,
    /// Its bytes, already in the store.
    pub artifact: Artifact,
    /// The bytes that this path held before, when the file was replaced.
    pub replaces: Option<Sha256>,
    /// `handover reload` asks: bytes that failed before are tried again.
    pub again: bool,
}

/// What became of an offer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Live, staged, or live already. The text goes into `NAME.so.deployed`.
    Deployed(String),
    /// Not taken. The text goes into `NAME.so.failed`.
    Failed(String),
    /// Could not be tried now (another operation is under way); offer it again at the next scan.
    Later,
}

/// Who takes what the watcher finds.
pub trait DropTarget: Send + Sync + 'static {
    /// Whether the drop folder of `app` is watched at all.
    fn watches(&self, app: &AppName) -> bool;
    /// Deploys or stages an offer. Called one after the other for each app, on a task that may wait.
    fn offer(&self, offer: Offer) -> impl Future<Output = Answer> + Send;
    /// Bytes that could not become an artifact, so nobody will be offered them. For the event log.
    fn refused(&self, app: Option<&AppName>, path: &std::path::Path, reason: &str);
}

/// The running watcher.
#[derive(Clone, Debug)]
pub struct WatcherHandle;

impl WatcherHandle {
    /// Scans now and waits until everything found was offered and answered. `again` retries what failed before.
    /// Returns how many offers were made.
    pub async fn rescan(&self, _app: Option<AppName>, _again: bool) -> usize { todo!() }
}

/// Watches `dir` for the life of the returned handle's runtime.
pub fn spawn<T: DropTarget>(_dir: PathBuf, _store: Store, _target: Arc<T>) -> WatcherHandle { todo!() }
