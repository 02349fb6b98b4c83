//! Drop folders: events are a hint, the truth is a rescan.
//!
//! # What is looked at
//! `DIR/APP/*.so` is offered to the app that the folder names, whatever the manifest says;
//! `DIR/*.so` to the app of its manifest. Names that begin with a dot or do not end in `.so` are
//! nobody's: write under such a name and rename. Symlinks are followed, also those of folders, so a
//! swap of `..data` as Kubernetes does it is a new file.
//!
//! # When a file counts
//! - It was closed after writing, or renamed in, or came with a link or folder that was: at once.
//! - No such event was seen (it was missed, or the file system has none): when size, times and
//!   inode have not changed for the length of a rescan interval. A file that ends before its ELF
//!   headers say is given longer, since somebody may still be writing it.
//! - `handover reload` asks: at once, unless it is truncated.
//! - In no case while somebody has it open for writing. The kernel knows, see
//!   [`writers`](crate::writers); where it does not tell, what events tell counts: written to, and
//!   not closed since. A file is held while it is read, so nobody begins to write meanwhile.
//!
//! Any event leads to a rescan, and so does an overflow of the event queue, an error of the
//! watcher, and every two seconds without either. An event is never believed: it only says which
//! file is worth a look now.
//!
//! # What is new
//! Identity is the SHA-256 of the bytes at a path; times, size and inode only save hashing what
//! nobody touched. The same bytes at the same path are not offered twice, except by `handover
//! reload` when they failed, and when they are put there anew after something else was made live by
//! another way. A path whose answer file carries the hash of the present bytes counts as answered,
//! so a restarted host leaves to its own records what is live. Where the store is empty those
//! records are gone too, and `.deployed` files are no answer.
//!
//! `NAME.so.minisig` beside a file is its signature. When one comes or changes after the file was
//! refused, the file is tried again.
//!
//! `NAME.toml` beside `NAME.so` says how it is deployed: under a label, as a canary, with what
//! reason. Put it there first. What comes later counts when the file was refused.
//!
//! `APP.rollback` and its like are commands (see [`trigger`]), taken once and taken away.
//!
//! Of several new files for one app only the highest version (semver) is offered; among equals the
//! newest, then the last by name. Offers of one app follow each other, those of different apps do
//! not wait for each other.
//!
//! # The answer
//! Beside the file, written by rename: `NAME.so.deployed` or `NAME.so.failed`. The first line is
//! the sentence for a person, the second `sha256 HEX` of the bytes it is about; more of the message
//! follows. While an offer is under way there is neither. Deleting a file deletes its answer, and
//! undeploys nothing.
//!
//! # The parts
//! - [`events`]: the watched folders, and what their events hint at
//! - [`scan`]: the thread that looks, remembers and decides what is worth an offer
//! - [`batch`]: what arrived together for one app, from bytes to answer
//! - [`answer`]: the answer files
//! - [`sidecar`]: the file that says how an artifact is deployed
//! - [`trigger`]: files that are commands

mod answer;
mod batch;
mod events;
mod scan;
mod sidecar;
#[cfg(test)]
mod tests;
mod trigger;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::sync::oneshot;

use handover_api::{AppName, query};

use self::scan::{Message, Scanner};
pub(crate) use self::{
    events::try_to_watch,
    trigger::{Trigger, Verb},
};

use crate::artifact::{Artifact, Sha256, Store};

/// What was found in a drop folder.
#[derive(Clone, Debug)]
pub(crate) struct DroppedArtifact {
    /// The app: of the sub-folder, else of the manifest.
    pub app: AppName,
    /// The file in the drop folder.
    pub path: PathBuf,
    /// What the file beside it says of its deploy.
    pub asked: query::Deploy,
    /// Its bytes, written to the store and not yet kept there.
    pub artifact: Artifact,
    /// `handover reload` asks: bytes that failed before are tried again.
    pub again: bool,
    /// It lay there, as it is, when the host was started; else it was put there since.
    pub lay_there: bool,
    /// How long it took from the event that told of it until it was read.
    pub noticed_in: Duration,
    /// How long reading and storing it took.
    pub stored_in: Duration,
}

/// What became of an offer.
#[derive(Clone, Debug)]
pub(crate) enum DropOutcome {
    /// Live, staged, or live already. The text goes into `NAME.so.deployed`.
    Deployed(String),
    /// Not taken. The text goes into `NAME.so.failed`.
    Failed(String),
    /// Could not be tried now (another operation is under way); offer it again at the next scan.
    Later,
}

/// Who takes what the watcher finds.
pub(crate) trait DropTarget: Send + Sync + 'static {
    /// Whether the drop folder of `app` is watched at all.
    fn watches(&self, app: &AppName) -> bool;
    /// Whether what lies at `path` may become code at all, as far as who may write there goes.
    /// Blocks.
    ///
    /// # Errors
    /// The sentence for a person: why not, and what to do.
    fn admits(&self, path: &Path) -> Result<(), String>;
    /// Whether these bytes are what `app` serves or what waits for `handover reload`: putting them
    /// there once more changes nothing.
    fn has(&self, app: &AppName, sha256: Sha256) -> bool;
    /// Deploys or stages an offer. Called one after the other for each app, on a task that may
    /// wait.
    fn deploy_dropped(&self, dropped: DroppedArtifact) -> impl Future<Output = DropOutcome> + Send;
    /// Returns whether there is an app of that name.
    fn knows(&self, app: &AppName) -> bool;
    /// Does what somebody commanded by a file, and returns when it has ended, with the sentence for
    /// a person: an error is one about what was not done. `watcher` is the one that found it.
    fn triggered(
        &self,
        trigger: Trigger,
        watcher: WatcherHandle,
    ) -> impl Future<Output = Result<String, String>> + Send;
    /// Somebody still has the file at `path` open for writing, so it waits; `asked`: `handover
    /// reload` wanted it. For the event log.
    fn waits(&self, app: Option<&AppName>, path: &Path, asked: bool);
    /// Bytes that could not become an artifact, so nobody will be offered them. For the event log.
    fn refused(&self, app: Option<&AppName>, path: &Path, reason: &str);
}

/// The running watcher.
#[derive(Clone, Debug)]
pub struct WatcherHandle {
    messages: mpsc::Sender<Message>,
}

impl WatcherHandle {
    /// Scans now and waits until everything found was offered and answered. `again` retries what
    /// failed before, and takes files that no event told of without waiting for them to be quiet.
    /// Returns how many offers were made; 0 when the watcher has ended.
    pub async fn rescan(&self, app: Option<AppName>, again: bool) -> usize {
        let (reply, answered) = oneshot::channel();
        let asked = self.messages.send(Message::Rescan { app, again, reply });
        match asked {
            Ok(()) => answered.await.unwrap_or(0),
            Err(_) => 0,
        }
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// Between two looks at everything, event or not.
    rescan: Duration,
    /// How long a file that no event told of must be unchanged.
    settle: Duration,
    /// How long a truncated one must be.
    stale: Duration,
    /// How long a file waits for others that arrive with it.
    quiet: Duration,
    /// The same while another one is being written in its folder.
    gather: Duration,
    /// Two writes within one tick of the kernel's clock leave the same times, so bytes hashed this
    /// soon after a change are hashed again.
    tick: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            rescan: Duration::from_secs(2),
            settle: Duration::from_secs(2),
            stale: Duration::from_secs(10),
            quiet: Duration::from_micros(500),
            gather: Duration::from_millis(250),
            tick: Duration::from_millis(50),
        }
    }
}

/// Watches `dir` for the life of the returned handle's runtime, which is the one that this is
/// called in. The folder is made if missing.
///
/// # Panics
/// Outside of a tokio runtime, and when no thread can be started.
pub(crate) fn spawn<T: DropTarget>(dir: PathBuf, store: Store, target: Arc<T>) -> WatcherHandle {
    spawn_with(dir, store, target, Timing::default(), true)
}

fn spawn_with<T: DropTarget>(
    dir: PathBuf,
    store: Store,
    target: Arc<T>,
    timing: Timing,
    events: bool,
) -> WatcherHandle {
    /// Ends the thread together with the runtime: tasks are dropped then.
    struct Stop(mpsc::Sender<Message>);
    impl Drop for Stop {
        fn drop(&mut self) {
            let _ = self.0.send(Message::Stop); // ended already
        }
    }

    let (messages, inbox) = mpsc::channel();
    let runtime = tokio::runtime::Handle::current();
    let stop = Stop(messages.clone());
    runtime.spawn(async move {
        let _stop = stop;
        std::future::pending::<()>().await;
    });
    let sender = messages.clone();
    std::thread::Builder::new()
        .name("handover-watch".to_owned())
        .spawn(move || {
            Scanner::new(dir, store, target, timing, events, runtime, sender).run(&inbox);
        })
        .expect("a thread for the drop folders");
    WatcherHandle { messages }
}
