//! The orchestration: apps, their deploys, cutovers, drains and history.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{broadcast, mpsc};

use crate::{
    artifact::Artifact,
    control::api::{Event, HistoryEntry, OperationResult, Progress, Status},
    names::AppName,
};

/// Everything the host runs. Cheap to clone.
#[derive(Clone)]
#[derive(Debug)]
pub struct Apps;

/// Why an operation is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause { Deploy, Drop, Reload, Rollback, Start, Dev }

/// The ear at a running operation: every line from its beginning, ending after `Progress::Result`.
pub struct Operation { pub id: String, pub lines: mpsc::UnboundedReceiver<Progress> }

impl Apps {
    /// What `handover status` shows.
    pub fn status(&self) -> Status { todo!() }
    /// What was deployed, newest last.
    pub fn history(&self, _app: Option<&AppName>) -> Vec<HistoryEntry> { todo!() }
    /// The events so far, and those to come.
    pub fn events(&self) -> (Vec<Event>, broadcast::Receiver<Event>) { todo!() }
    /// Deploys a stored artifact to `app`, or to the app that its manifest names. Goes on when nobody listens.
    pub fn deploy(&self, _artifact: Artifact, _app: Option<AppName>, _cause: Cause, _timeout: Option<Duration>) -> Operation { todo!() }
    /// Activates what is staged and re-scans the drop folder, of one app or of all.
    pub fn reload(&self, _app: Option<AppName>) -> Operation { todo!() }
    /// Goes back to the previous artifact, or to the one that `to` names (a version or a generation's number).
    pub fn rollback(&self, _app: Option<AppName>, _to: Option<String>) -> Operation { todo!() }
    /// A running or recent operation by its id, from its beginning.
    pub fn operation(&self, _id: &str) -> Option<Operation> { todo!() }
}
