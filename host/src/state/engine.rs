//! What a storage engine does. The traits have nothing in them that only an embedded engine, or
//! only a server, can do.

use std::{io, ops::ControlFlow, sync::Arc};

use super::place::Bounds;

/// A value with what the host knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The version of the commit that wrote it.
    pub version: u64,
    /// When it expires, in milliseconds since 1970; 0 is never.
    pub expires_ms: u64,
    /// The bytes.
    pub value: &'a [u8],
}

impl Record<'_> {
    /// Whether it is there at `now_ms`.
    pub fn is_alive(&self, now_ms: u64) -> bool {
        self.expires_ms == 0 || self.expires_ms > now_ms
    }
}

/// What is known of all that an engine holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The version of the last commit.
    pub version: u64,
    /// Keys, those that have expired and are not swept yet included.
    pub keys: u64,
    /// Bytes of keys and values, with what is counted for each entry.
    pub bytes: u64,
}

/// What was replaced or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replaced {
    /// The length of its value.
    pub value_length: usize,
}

/// Whether what a transaction did is to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is committed; it is durable when `write` returns, where the engine keeps anything.
    Commit,
    /// It is as if nothing had been done.
    Abort,
}

/// Why an engine failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    /// There is no room on the disk.
    #[error("the disk is full: {0}")]
    Full(io::Error),
    /// The disk fails.
    #[error("the disk fails: {0}")]
    Io(io::Error),
    /// Another process has the file open.
    #[error("another process has it open")]
    Locked,
    /// What it reads is not what was written.
    #[error("its file is damaged: {0}")]
    Corrupted(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// What a reader is given of a range: each place with its record, until it has had enough.
pub(super) type TakeEntry<'a> = dyn FnMut(&[u8], Record<'_>) -> ControlFlow<()> + 'a;

/// A storage engine: ordered places with records, snapshots, and transactions that are durable when
/// they have returned.
pub(super) trait Engine: Send + Sync {
    /// Makes sure that what it takes for committed is on the disk. To be called after it was
    /// opened, before anything is written.
    ///
    /// # Errors
    /// When it cannot be written; it is to be opened again then.
    fn prepare(&self) -> Result<(), EngineError>;

    /// A snapshot of what was committed last.
    ///
    /// # Errors
    /// When it cannot be read.
    fn view(&self) -> Result<Arc<dyn View>, EngineError>;

    /// Runs `work` as a transaction, the only one at that time. Blocks until it is durable.
    ///
    /// # Errors
    /// Those of `work`, and those of the commit. Whether it took place is not known then, and the
    /// engine is to be opened again.
    fn write(
        &self,
        work: &mut dyn FnMut(&mut dyn Transaction) -> Result<Verdict, EngineError>,
    ) -> Result<(), EngineError>;

    /// Keeps what is committed now, to be returned to, over the end of the process as well. Blocks
    /// until that is durable. What was kept before is forgotten.
    ///
    /// # Errors
    /// As those of [`write`](Self::write).
    fn mark(&self) -> Result<(), EngineError>;

    /// Makes what was kept what is committed, under a version of its own, and forgets it. Blocks
    /// until that is durable. Returns whether anything was kept.
    ///
    /// # Errors
    /// As those of [`write`](Self::write).
    fn return_to_mark(&self) -> Result<bool, EngineError>;

    /// Forgets what was kept, if anything was. Blocks until that is durable.
    ///
    /// # Errors
    /// As those of [`write`](Self::write).
    fn forget_mark(&self) -> Result<(), EngineError>;
}

/// A snapshot.
pub(super) trait View: Send + Sync {
    /// What was known at that time.
    fn totals(&self) -> Totals;

    /// Gives the record at `place` to `take`, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get(&self, place: &[u8], take: &mut dyn FnMut(Record<'_>)) -> Result<(), EngineError>;

    /// Gives what lies in `bounds` to `take`, in order or in reverse order, until that breaks.
    ///
    /// # Errors
    /// When it cannot be read.
    fn scan(
        &self,
        bounds: &Bounds,
        reverse: bool,
        take: &mut TakeEntry<'_>,
    ) -> Result<(), EngineError>;
}

/// A transaction under way. It sees what it has done.
pub(super) trait Transaction {
    /// The totals, as they were set last.
    fn totals(&self) -> Totals;

    /// Sets the totals.
    fn set_totals(&mut self, totals: Totals);

    /// Gives the record at `place` to `take`, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get(&self, place: &[u8], take: &mut dyn FnMut(Record<'_>)) -> Result<(), EngineError>;

    /// Puts `record`, and gives what it replaced.
    ///
    /// # Errors
    /// When it cannot be written.
    fn put(&mut self, place: &[u8], record: Record<'_>) -> Result<Option<Replaced>, EngineError>;

    /// Removes what is at `place`, and gives what that was.
    ///
    /// # Errors
    /// When it cannot be written.
    fn delete(&mut self, place: &[u8]) -> Result<Option<Replaced>, EngineError>;

    /// The places of at most `limit` records that expired until `now_ms`, those first that expired
    /// first.
    ///
    /// # Errors
    /// When they cannot be read.
    fn expired(&self, now_ms: u64, limit: usize) -> Result<Vec<Vec<u8>>, EngineError>;

    /// When the next record expires; none when none does.
    ///
    /// # Errors
    /// When it cannot be read.
    fn next_expiry(&self) -> Result<Option<u64>, EngineError>;

    /// Removes everything but the totals.
    ///
    /// # Errors
    /// When it cannot be written.
    fn clear(&mut self) -> Result<(), EngineError>;
}
