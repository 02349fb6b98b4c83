//! redb as an engine: one file, opened by this process alone, or all of it in memory.
//!
//! Every commit is one with quick repair, so a file is open again at once after a crash, whatever
//! its size.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::{Bound, ControlFlow},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{
    Database, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition,
    WriteTransaction,
    backends::{FileBackend, InMemoryBackend},
};

use super::{
    engine::{
        Engine, EngineError, Record, Replaced, TakeEntry, Totals, Transaction, Verdict, View,
    },
    place::Bounds,
};

/// Places, each with its record: 8 bytes of version, 8 of expiry, both little-endian, then the
/// value.
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
/// When records expire: milliseconds, and the place.
const EXPIRIES: TableDefinition<'_, (u64, &[u8]), ()> = TableDefinition::new("expiries");
/// The totals by their names, and the format.
const TOTALS: TableDefinition<'_, &str, u64> = TableDefinition::new("totals");
/// The format of these tables.
const FORMAT: u64 = 1;
/// What lies before a value.
const HEADER: usize = 16;
/// Pages kept in memory.
const CACHE: usize = 64 << 20;

/// An open database.
pub(super) struct Redb {
    database: Database,
    /// None when all of it is in memory.
    file: Option<PathBuf>,
}

impl Redb {
    /// Opens or makes the file at `path`, and locks it. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be had: another process has it, it is damaged, or of a later format.
    pub(super) fn open(path: &Path) -> Result<Self, EngineError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io_error)?;
        let is_new = file.metadata().map_err(io_error)?.len() == 0;
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create_with_backend(FileBackend::new(file).map_err(error)?)
            .map_err(error)?;
        if is_new && let Some(folder) = path.parent() {
            // The file's name is as durable as what is in it.
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(io_error)?;
        }
        Ok(Self {
            database,
            file: Some(path.to_owned()),
        })
    }

    /// Makes one that is kept in memory.
    ///
    /// # Errors
    /// Never, but for a fault.
    pub(super) fn in_memory() -> Result<Self, EngineError> {
        let database = Database::builder()
            .set_cache_size(1 << 20)
            .create_with_backend(InMemoryBackend::new())
            .map_err(error)?;
        Ok(Self {
            database,
            file: None,
        })
    }
}

/// What the kernel says.
fn io_error(cause: io::Error) -> EngineError {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => EngineError::Full(cause),
        _ => EngineError::Io(cause),
    }
}

/// What redb says.
fn error(cause: impl Into<redb::Error>) -> EngineError {
    match cause.into() {
        redb::Error::Io(cause) => io_error(cause),
        redb::Error::DatabaseAlreadyOpen => EngineError::Locked,
        redb::Error::Corrupted(what) => EngineError::Corrupted(what),
        other => EngineError::Other(other.to_string()),
    }
}

/// Reads a record. One that is too short is damaged.
fn record(bytes: &[u8]) -> Result<Record<'_>, EngineError> {
    let short = || EngineError::Corrupted("a record is too short".to_owned());
    let (version, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
    let (expires, value) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    Ok(Record {
        version: u64::from_le_bytes(*version),
        expires_ms: u64::from_le_bytes(*expires),
        value,
    })
}

impl Engine for Redb {
    /// Makes the tables, and commits. After a commit whose sync failed this is what brings the file
    /// and what the kernel believes of it together again: the header is written anew before any
    /// page that an older header points to can be used again.
    fn prepare(&self) -> Result<(), EngineError> {
        self.write(&mut |transaction| {
            let totals = transaction.totals();
            transaction.set_totals(totals);
            Ok(Verdict::Commit)
        })
    }

    fn view(&self) -> Result<Arc<dyn View>, EngineError> {
        let transaction = self.database.begin_read().map_err(error)?;
        let totals = transaction.open_table(TOTALS).map_err(error)?;
        Ok(Arc::new(RedbView {
            totals: read_totals(&totals)?,
            records: transaction.open_table(RECORDS).map_err(error)?,
        }))
    }

    fn write(
        &self,
        work: &mut dyn FnMut(&mut dyn Transaction) -> Result<Verdict, EngineError>,
    ) -> Result<(), EngineError> {
        let transaction = self.begin()?;
        let verdict = {
            let totals = transaction.open_table(TOTALS).map_err(error)?;
            let format = totals.get("format").map_err(error)?.map(|it| it.value());
            if let Some(format) = format.filter(|format| *format > FORMAT) {
                return Err(EngineError::Other(format!(
                    "its file has format {format}, and this host knows {FORMAT}: run the newer host"
                )));
            }
            let now = read_totals(&totals)?;
            let mut open = RedbTransaction {
                records: transaction.open_table(RECORDS).map_err(error)?,
                expiries: transaction.open_table(EXPIRIES).map_err(error)?,
                table: totals,
                totals: now,
            };
            let verdict = work(&mut open)?;
            if verdict == Verdict::Commit {
                let Totals {
                    version,
                    keys,
                    bytes,
                } = open.totals;
                for (name, number) in [
                    ("format", FORMAT),
                    ("version", version),
                    ("keys", keys),
                    ("bytes", bytes),
                ] {
                    open.table.insert(name, number).map_err(error)?;
                }
            }
            verdict
        };
        match verdict {
            Verdict::Commit => transaction.commit().map_err(error),
            Verdict::Abort => transaction.abort().map_err(error),
        }
    }

    fn mark(&self) -> Result<(), EngineError> {
        self.forget_mark()?;
        let transaction = self.begin()?;
        transaction
            .persistent_savepoint()
            .map_err(|cause| savepoint_error(&cause))?;
        transaction.commit().map_err(error)
    }

    fn return_to_mark(&self) -> Result<bool, EngineError> {
        let mut transaction = self.begin()?;
        let kept = transaction
            .list_persistent_savepoints()
            .map_err(error)?
            .max();
        let Some(kept) = kept else {
            transaction.abort().map_err(error)?;
            return Ok(false);
        };
        let now = read_totals(&transaction.open_table(TOTALS).map_err(error)?)?;
        let kept = transaction
            .get_persistent_savepoint(kept)
            .map_err(|cause| savepoint_error(&cause))?;
        transaction
            .restore_savepoint(&kept)
            .map_err(|cause| savepoint_error(&cause))?;
        drop(kept);
        // Versions only grow, whatever becomes of what they were given to.
        transaction
            .open_table(TOTALS)
            .map_err(error)?
            .insert("version", now.version + 1)
            .map_err(error)?;
        Self::delete_marks(&transaction)?;
        transaction.commit().map_err(error)?;
        Ok(true)
    }

    fn forget_mark(&self) -> Result<(), EngineError> {
        let transaction = self.begin()?;
        Self::delete_marks(&transaction)?;
        transaction.commit().map_err(error)
    }
}

impl Redb {
    fn begin(&self) -> Result<WriteTransaction, EngineError> {
        let mut transaction = self.database.begin_write().map_err(error)?;
        transaction.set_quick_repair(self.file.is_some());
        Ok(transaction)
    }

    fn delete_marks(transaction: &WriteTransaction) -> Result<(), EngineError> {
        for kept in transaction.list_persistent_savepoints().map_err(error)? {
            transaction
                .delete_persistent_savepoint(kept)
                .map_err(|cause| EngineError::Other(cause.to_string()))?;
        }
        Ok(())
    }
}

/// What redb says of a savepoint.
fn savepoint_error(cause: &redb::SavepointError) -> EngineError {
    EngineError::Other(cause.to_string())
}

fn read_totals(table: &impl ReadableTable<&'static str, u64>) -> Result<Totals, EngineError> {
    let number = |name| {
        let found = table.get(name).map_err(error)?;
        Ok::<_, EngineError>(found.map_or(0, |it| it.value()))
    };
    Ok(Totals {
        version: number("version")?,
        keys: number("keys")?,
        bytes: number("bytes")?,
    })
}

struct RedbView {
    totals: Totals,
    records: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl View for RedbView {
    fn totals(&self) -> Totals {
        self.totals
    }

    fn get(&self, place: &[u8], take: &mut dyn FnMut(Record<'_>)) -> Result<(), EngineError> {
        if let Some(found) = self.records.get(place).map_err(error)? {
            take(record(found.value())?);
        }
        Ok(())
    }

    fn scan(
        &self,
        bounds: &Bounds,
        reverse: bool,
        take: &mut TakeEntry<'_>,
    ) -> Result<(), EngineError> {
        if bounds.is_empty() {
            return Ok(());
        }
        let range = (
            Bound::Included(&bounds.from[..]),
            bounds
                .to
                .as_ref()
                .map_or(Bound::Unbounded, |to| Bound::Excluded(&to[..])),
        );
        let mut range = self.records.range::<&[u8]>(range).map_err(error)?;
        while let Some(found) = if reverse {
            range.next_back()
        } else {
            range.next()
        } {
            let (place, bytes) = found.map_err(error)?;
            if let ControlFlow::Break(()) = take(place.value(), record(bytes.value())?) {
                break;
            }
        }
        Ok(())
    }
}

struct RedbTransaction<'t> {
    records: Table<'t, &'static [u8], &'static [u8]>,
    expiries: Table<'t, (u64, &'static [u8]), ()>,
    table: Table<'t, &'static str, u64>,
    totals: Totals,
}

impl RedbTransaction<'_> {
    /// What is at `place`: when it expires, and the length of its value.
    fn replaced(&self, place: &[u8]) -> Result<Option<(u64, Replaced)>, EngineError> {
        let Some(found) = self.records.get(place).map_err(error)? else {
            return Ok(None);
        };
        let old = record(found.value())?;
        let value_length = old.value.len();
        Ok(Some((old.expires_ms, Replaced { value_length })))
    }

    fn forget_expiry(&mut self, expires_ms: u64, place: &[u8]) -> Result<(), EngineError> {
        if expires_ms != 0 {
            self.expiries.remove((expires_ms, place)).map_err(error)?;
        }
        Ok(())
    }
}

impl Transaction for RedbTransaction<'_> {
    fn totals(&self) -> Totals {
        self.totals
    }

    fn set_totals(&mut self, totals: Totals) {
        self.totals = totals;
    }

    fn get(&self, place: &[u8], take: &mut dyn FnMut(Record<'_>)) -> Result<(), EngineError> {
        if let Some(found) = self.records.get(place).map_err(error)? {
            take(record(found.value())?);
        }
        Ok(())
    }

    fn put(&mut self, place: &[u8], new: Record<'_>) -> Result<Option<Replaced>, EngineError> {
        let old = self.replaced(place)?;
        if let Some((expires_ms, _)) = old {
            self.forget_expiry(expires_ms, place)?;
        }
        let length = HEADER + new.value.len();
        {
            let mut room = self.records.insert_reserve(place, length).map_err(error)?;
            let bytes = room.as_mut();
            bytes[..8].copy_from_slice(&new.version.to_le_bytes());
            bytes[8..HEADER].copy_from_slice(&new.expires_ms.to_le_bytes());
            bytes[HEADER..].copy_from_slice(new.value);
        }
        if new.expires_ms != 0 {
            self.expiries
                .insert((new.expires_ms, place), ())
                .map_err(error)?;
        }
        Ok(old.map(|(_, replaced)| replaced))
    }

    fn delete(&mut self, place: &[u8]) -> Result<Option<Replaced>, EngineError> {
        let Some((expires_ms, replaced)) = self.replaced(place)? else {
            return Ok(None);
        };
        self.forget_expiry(expires_ms, place)?;
        self.records.remove(place).map_err(error)?;
        Ok(Some(replaced))
    }

    fn expired(&self, now_ms: u64, limit: usize) -> Result<Vec<Vec<u8>>, EngineError> {
        let until = (now_ms.saturating_add(1), &[][..]);
        let mut places = Vec::new();
        for found in self.expiries.range(..until).map_err(error)?.take(limit) {
            let (key, _) = found.map_err(error)?;
            places.push(key.value().1.to_vec());
        }
        Ok(places)
    }

    fn next_expiry(&self) -> Result<Option<u64>, EngineError> {
        let first = self.expiries.first().map_err(error)?;
        Ok(first.map(|(key, _)| key.value().0))
    }

    fn clear(&mut self) -> Result<(), EngineError> {
        self.records.retain(|_, _| false).map_err(error)?;
        self.expiries.retain(|_, ()| false).map_err(error)
    }
}
