//! Immutable copies of artifacts under their SHA-256.
//!
//! `<dir>/<sha256>.so` is an artifact, whole, synced and mode 0444; `<dir>/<sha256>.so.minisig` is
//! the signature that came with it, if one did. `<dir>/.incoming-<pid>-<n>` is one on its way,
//! locked by its writer; an unlocked one is what a crash left, and is swept when the store is
//! opened, as is a signature without its artifact. The hash is of the bytes copied, so a source
//! that changes meanwhile gives an artifact with the identity of what was really read.
//!
//! Bytes are written at once, so that a full disk is found before anything is done with them, and
//! synced and named by [`Store::keep`], which takes long and has to come before anything on disk
//! names them, not before they are checked.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::{
    Artifact, Sha256,
    declared::{self, DeclaredError},
    digest::{CHUNK, Hasher},
    elf::{self, ElfError},
    image::{Draft, Image, ImageError, Shelf},
    manifest::{Manifest, ManifestError},
    trust::{self, Signature},
};
use crate::shown;

const INCOMING: &str = ".incoming-";

/// The store: a folder in the state directory. Clones are the same store. All calls block on the
/// disk.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    /// Who holds what: `collect` spares it. Dead entries go at the next `collect`.
    leases: Mutex<HashMap<Sha256, Weak<()>>>,
}

/// A hold on a stored file: [`Store::collect`] spares it until the last clone is dropped.
///
/// Without it, one app's clean-up could delete what another app's deploy has just stored.
#[derive(Clone, Debug, Default)]
pub struct Lease(#[expect(dead_code, reason = "held for its count")] Option<Arc<()>>);

/// Why bytes did not become an artifact.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The bytes are not an acceptable artifact: exit code 4.
    #[error("{reason}")]
    Refused {
        /// What was wrong and what to do.
        reason: String,
        /// The identity of the refused bytes.
        sha256: Option<Sha256>,
        /// What they say of themselves, if they can be read that far.
        manifest: Option<Box<Manifest>>,
    },
    /// The file or the store could not be read or written: exit code 1.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Bytes on their way into the store. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct Writer {
    written: Written,
    hasher: Hasher,
    /// The same bytes in memory, where it was known from the start what they are.
    draft: Option<Draft>,
}

/// A file that is written, but neither synced nor under its name. Dropped, it leaves nothing.
#[derive(Debug)]
struct Written {
    store: Store,
    file: File,
    temp: Temp,
}

/// The file of an artifact until it is kept: see [`Store::keep`]. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Pending(Arc<Mutex<Option<Written>>>);

/// A temporary file that is deleted unless it was renamed away.
#[derive(Debug)]
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // gone already when it was renamed into place
    }
}

impl Store {
    /// Opens the store in `dir`, making it, and sweeping what a crash left half-written.
    ///
    /// # Errors
    /// When the folder cannot be made, read or written.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let dir = std::path::absolute(dir).map_err(at(dir, "cannot find the artifact store"))?;
        fs::create_dir_all(&dir).map_err(at(&dir, "cannot make the artifact store"))?;
        for entry in fs::read_dir(&dir).map_err(at(&dir, "cannot read the artifact store"))? {
            let entry = entry.map_err(at(&dir, "cannot read the artifact store"))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(INCOMING) {
                sweep(&entry.path());
            } else if let Some(artifact) = name.strip_suffix(trust::SUFFIX)
                && identity(artifact).is_some()
                && !dir.join(artifact).exists()
            {
                discard(&entry.path());
            }
        }
        Ok(Self(Arc::new(Inner {
            dir,
            leases: Mutex::default(),
        })))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Copies the file at `path` in, to the disk and into memory, hashed while copying. Symlinks
    /// are followed. It is in the store when [`Store::keep`] has been called.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when it is no artifact that this host could run, else what could not
    /// be read or written.
    pub fn add_file(&self, path: &Path) -> Result<Artifact, StoreError> {
        let mut source = open_source(path)?;
        let mut writer = self.writer()?;
        if let Some(manifest) = manifest_of(&source) {
            writer.draft = Some(Draft::new(&manifest).map_err(without_image(path))?);
        }
        source.rewind().map_err(at(path, "cannot read it"))?;
        let mut buffer = vec![0; CHUNK];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return writer.finish(),
                Ok(n) => writer.write(&buffer[..n])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(at(path, "cannot read it")(error)),
            }
        }
    }

    /// A writer for bytes that come in pieces.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn writer(&self) -> Result<Writer, StoreError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = self
                .0
                .dir
                .join(format!("{INCOMING}{}-{number}", std::process::id()));
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            match opened {
                Ok(file) => return self.writer_on(file, path),
                // Left by a crashed process that had our number, and not swept yet.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.unwritable(error)),
            }
        }
    }

    fn writer_on(&self, file: File, path: PathBuf) -> Result<Writer, StoreError> {
        let temp = Temp(path);
        file.lock().map_err(|error| self.unwritable(error))?; // says that it is no leftover
        Ok(Writer {
            written: Written {
                store: self.clone(),
                file,
                temp,
            },
            hasher: Hasher::default(),
            draft: None,
        })
    }

    /// Keeps an artifact for good: its file is synced, read-only, and under its name when this
    /// returns. To be called before anything on disk names it. Nothing to do when it is in the
    /// store already.
    ///
    /// # Errors
    /// When the store cannot be written. It can be called again then.
    pub fn keep(&self, artifact: &Artifact) -> Result<(), StoreError> {
        let mut pending = artifact.pending.0.lock();
        if let Some(written) = &*pending {
            written.place(&artifact.path)?;
            *pending = None;
        }
        Ok(())
    }

    /// The artifact with this identity, its bytes verified and in memory.
    ///
    /// # Errors
    /// When it is not there (`NotFound`), or is not what it was (`InvalidData`).
    pub fn get(&self, sha256: Sha256) -> Result<Artifact, StoreError> {
        let lease = self.lease(sha256); // before looking: what is found stays
        let path = self.path(sha256);
        let file = File::open(&path).map_err(at(&path, "not in the artifact store"))?;
        let damaged = |what: String| StoreError::Io {
            path: path.clone(),
            source: io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the stored copy is damaged ({what}): deploy it again"),
            ),
        };
        let undescribed = |undescribed| match undescribed {
            Undescribed::Reason(reason) => damaged(reason),
            Undescribed::Io(source) => at(&path, "cannot read it")(source),
        };
        let mut artifact = describe(&file, sha256, 0, path.clone()).map_err(undescribed)?;
        let image =
            Image::copy(&file, &path, sha256, &artifact.manifest).map_err(|error| match error {
                ImageError::Changed { found, .. } => damaged(format!("its SHA-256 is {found}")),
                error => without_image(&path)(error),
            })?;
        artifact.size = image.size().map_err(at(&path, "cannot read it back"))?;
        artifact.image = Shelf::with(image);
        artifact.lease = lease;
        let signature = Signature::beside(&path);
        // Without one it is unsigned, which matters only where keys are set.
        artifact.signature = Signature::read(&signature).unwrap_or_else(|error| {
            tracing::warn!(file = %signature.display(), %error, "cannot read a stored signature");
            None
        });
        Ok(artifact)
    }

    /// Keeps the signature that came with `artifact`, for when its bytes are verified again.
    /// Replaces one that is there.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn keep_signature(&self, artifact: &Artifact) -> Result<(), StoreError> {
        let Some(signature) = &artifact.signature else {
            return Ok(());
        };
        let path = Signature::beside(&self.path(artifact.sha256));
        if fs::read(&path).is_ok_and(|kept| kept == signature.as_str().as_bytes()) {
            return Ok(());
        }
        let mut writer = self.writer()?;
        writer.write(signature.as_str().as_bytes())?;
        writer.written.place(&path)
    }

    /// Whether an artifact with this identity is there. Its bytes are not looked at.
    pub fn contains(&self, sha256: Sha256) -> bool {
        self.path(sha256).is_file()
    }

    /// Whether no artifact is there.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.stored()?.is_empty())
    }

    /// Deletes all artifacts but those in `keep`, and those that somebody holds as an [`Artifact`]
    /// got from this store.
    ///
    /// # Errors
    /// When the folder cannot be read or written. Everything that can be deleted is.
    pub fn collect(&self, keep: &[Sha256]) -> Result<(), StoreError> {
        let mut result = Ok(());
        let mut leases = self.0.leases.lock();
        leases.retain(|_, lease| lease.strong_count() > 0);
        for (sha256, path) in self.stored()? {
            if keep.contains(&sha256) || leases.contains_key(&sha256) {
                continue;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    result = Err(at(&path, "cannot delete it")(error));
                }
                // A signature without its artifact: gone now or when the store is opened next.
                _ => discard(&Signature::beside(&path)),
            }
        }
        result
    }

    fn stored(&self) -> Result<Vec<(Sha256, PathBuf)>, StoreError> {
        let failed = || at(&self.0.dir, "cannot read the artifact store");
        let mut stored = Vec::new();
        for entry in fs::read_dir(&self.0.dir).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name();
            let sha256 = name.to_str().and_then(identity);
            stored.extend(sha256.map(|sha256| (sha256, entry.path())));
        }
        Ok(stored)
    }

    fn path(&self, sha256: Sha256) -> PathBuf {
        self.0.dir.join(format!("{sha256}.so"))
    }

    fn lease(&self, sha256: Sha256) -> Lease {
        let mut leases = self.0.leases.lock();
        if let Some(held) = leases.get(&sha256).and_then(Weak::upgrade) {
            return Lease(Some(held));
        }
        let lease = Arc::new(());
        leases.insert(sha256, Arc::downgrade(&lease));
        Lease(Some(lease))
    }

    fn unwritable(&self, error: io::Error) -> StoreError {
        let what = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "no room for another artifact: free some space, or give the host another --state"
            }
            io::ErrorKind::FileTooLarge => {
                "the artifact is larger than the files of this process may be: raise the limit (`ulimit -f`, LimitFSIZE=)"
            }
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                "the artifact store cannot be written: make it writable, or give the host another --state"
            }
            _ => "cannot write the artifact store",
        };
        at(&self.0.dir, what)(error)
    }
}

impl Writer {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        let Written { store, file, .. } = &mut self.written;
        io::Write::write_all(file, bytes).map_err(|error| store.unwritable(error))?;
        match &mut self.draft {
            None => Ok(()),
            Some(draft) => draft.write(bytes).map_err(without_image(&store.0.dir)),
        }
    }

    /// Ends the file and checks what it is. Bytes that are in the store already are verified and
    /// used.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when it is no artifact that this host could run, else what could not
    /// be written.
    pub fn finish(self) -> Result<Artifact, StoreError> {
        let Self {
            written,
            hasher,
            draft,
        } = self;
        let (sha256, size) = hasher.finish();
        let path = written.store.path(sha256);
        let refused = |reason, manifest| StoreError::Refused {
            reason,
            sha256: Some(sha256),
            manifest,
        };
        let Written { store, file, temp } = &written;
        let mut artifact = describe(file, sha256, size, path.clone()).map_err(|e| match e {
            Undescribed::Reason(reason) => refused(reason, None),
            Undescribed::Io(source) => at(&temp.0, "cannot read it back")(source),
        })?;
        artifact
            .acceptable()
            .map_err(|reason| refused(reason, Some(Box::new(artifact.manifest.clone()))))?;
        // What came in pieces from somebody is in memory only when it is known to be worth it.
        let image = match draft {
            Some(draft) => draft.seal(),
            None => Image::copy(file, &temp.0, sha256, &artifact.manifest),
        };
        artifact.image = Shelf::with(image.map_err(without_image(&store.0.dir))?);
        artifact.lease = store.lease(sha256); // before it can be seen, so that nobody collects it
        if !holds(&path, sha256) {
            artifact.pending = Pending(Arc::new(Mutex::new(Some(written))));
        }
        Ok(artifact)
    }
}

impl Written {
    /// Read-only, synced, and under its name in one step.
    fn place(&self, path: &Path) -> Result<(), StoreError> {
        let Self { store, file, temp } = self;
        let unwritable = |error| store.unwritable(error);
        file.set_permissions(fs::Permissions::from_mode(0o444))
            .map_err(unwritable)?;
        file.sync_all().map_err(unwritable)?;
        fs::rename(&temp.0, path).map_err(unwritable)?;
        File::open(&store.0.dir)
            .and_then(|folder| folder.sync_all())
            .map_err(unwritable)
    }
}

/// Reads what the file at `path` says of itself, without loading or storing it. A plugin for
/// another machine or ABI can be inspected, see [`Artifact::acceptable`]. Blocks.
///
/// # Errors
/// [`StoreError::Refused`] when it is no plugin, else what could not be read.
pub fn inspect(path: &Path) -> Result<Artifact, StoreError> {
    let file = open_source(path)?;
    let (sha256, size) = Sha256::of_reader(&file).map_err(at(path, "cannot read it"))?;
    describe(&file, sha256, size, path.to_owned()).map_err(|e| match e {
        Undescribed::Reason(reason) => StoreError::Refused {
            reason,
            sha256: Some(sha256),
            manifest: None,
        },
        Undescribed::Io(source) => at(path, "cannot read it")(source),
    })
}

enum Undescribed {
    Reason(String),
    Io(io::Error),
}

impl From<ElfError> for Undescribed {
    fn from(error: ElfError) -> Self {
        match error {
            ElfError::Io(source) => Self::Io(source),
            error => Self::Reason(error.to_string()),
        }
    }
}

impl From<DeclaredError> for Undescribed {
    fn from(error: DeclaredError) -> Self {
        Self::Reason(error.to_string())
    }
}

impl From<ManifestError> for Undescribed {
    fn from(error: ManifestError) -> Self {
        Self::Reason(error.to_string())
    }
}

fn describe(
    file: &File,
    sha256: Sha256,
    size: u64,
    path: PathBuf,
) -> Result<Artifact, Undescribed> {
    let elf = elf::read(file)?;
    let section = elf.manifest.ok_or(ManifestError::Missing)?;
    let declarations = declared::from_section(&elf.declared.unwrap_or_default())?;
    Ok(Artifact {
        sha256,
        size,
        path,
        manifest: Manifest::from_section(&section)?,
        declared: declarations.handlers,
        db: declarations.db,
        migrations: declarations.migrations,
        elf: elf.facts,
        signature: None,
        lease: Lease::default(),
        image: Shelf::default(),
        pending: Pending::default(),
    })
}

/// What an image says of itself that was verified as `sha256` by another process, and whose file
/// lies at `path`.
///
/// # Errors
/// The sentence for a person.
pub(crate) fn describe_image(
    image: Image,
    sha256: Sha256,
    path: PathBuf,
) -> Result<Artifact, String> {
    let described = image
        .size()
        .map_err(Undescribed::Io)
        .and_then(|size| describe(image.file(), sha256, size, path));
    let artifact = described.map_err(|undescribed| match undescribed {
        Undescribed::Reason(reason) => reason,
        Undescribed::Io(error) => format!("its copy in memory cannot be read: {error}"),
    })?;
    artifact.image.put(image);
    Ok(artifact)
}

/// Reads only the manifest of the file at `path`: no hash, some few reads. Blocks.
pub(crate) fn peek(path: &Path) -> Option<Manifest> {
    manifest_of(&open_source(path).ok()?)
}

fn manifest_of(file: &File) -> Option<Manifest> {
    Manifest::from_section(&elf::read(file).ok()?.manifest?).ok()
}

fn open_source(path: &Path) -> Result<File, StoreError> {
    let no_file = || StoreError::Refused {
        reason: format!(
            "{} is not a file: name the plugin's .so itself",
            shown::path(path)
        ),
        sha256: None,
        manifest: None,
    };
    // Looked at before it is opened, since opening a device may do something, and after that, since
    // it may be another one now. Opening a pipe would wait for its writer.
    let facts = fs::metadata(path).map_err(at(path, "cannot read it"))?;
    if !facts.is_file() {
        return Err(no_file());
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(at(path, "cannot read it"))?;
    let facts = file.metadata().map_err(at(path, "cannot read it"))?;
    if facts.is_file() {
        Ok(file)
    } else {
        Err(no_file())
    }
}

/// Whether the file at `path` ends before its headers say, as far as it can be read. Only those are
/// read. Blocks.
pub(crate) fn is_truncated(path: &Path) -> bool {
    open_source(path).is_ok_and(|file| elf::is_truncated(&file).unwrap_or(false))
}

/// Whether the file at `path` has these bytes.
fn holds(path: &Path, sha256: Sha256) -> bool {
    File::open(path)
        .and_then(Sha256::of_reader)
        .is_ok_and(|(found, _)| found == sha256)
}

/// The identity that a file of the store is named by.
fn identity(name: &str) -> Option<Sha256> {
    name.strip_suffix(".so")?.parse().ok()
}

/// Deletes what belongs to nothing.
fn discard(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "cannot delete a signature from the artifact store");
        }
        _ => {}
    }
}

/// Deletes a half-written file unless its writer is alive.
fn sweep(path: &Path) {
    let leftover = File::open(path).is_ok_and(|file| file.try_lock().is_ok());
    if leftover && let Err(error) = fs::remove_file(path) {
        tracing::warn!(file = %path.display(), %error, "cannot delete what a crash left in the artifact store");
    }
}

/// Adds the file to what is wrong with its copy in memory.
fn without_image(path: &Path) -> impl FnOnce(ImageError) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Io {
        path,
        source: io::Error::other(error),
    }
}

/// Adds the file and what was tried to an error, keeping its kind.
fn at(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Io {
        path,
        source: io::Error::new(error.kind(), format!("{what}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::io::Write;

    use super::*;
    use crate::artifact::{AbiVersion, testing::TestElf};

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("artifacts")).unwrap();
        (dir, store)
    }

    fn names(store: &Store) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(store.dir())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn add(store: &Store, bytes: &[u8]) -> Result<Artifact, StoreError> {
        let mut writer = store.writer().unwrap();
        for piece in bytes.chunks(100) {
            writer.write(piece).unwrap();
        }
        let artifact = writer.finish()?;
        store.keep(&artifact)?;
        Ok(artifact)
    }

    fn reason(store: &Store, bytes: &[u8]) -> String {
        match add(store, bytes) {
            Err(StoreError::Refused { reason, sha256, .. }) => {
                assert_eq!(sha256, Some(Sha256::of(bytes)));
                reason
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_kept_read_only_under_its_hash() {
        let (dir, store) = store();
        let elf = TestElf::new("shop", "1.2.0");
        let source = elf.write(dir.path().join("libshop.so"));
        let link = dir.path().join("link.so");
        std::os::unix::fs::symlink(&source, &link).unwrap();
        let artifact = store.add_file(&link).unwrap();
        store.keep(&artifact).unwrap();
        assert_eq!(artifact.sha256, Sha256::of(&elf.bytes()));
        assert_eq!(artifact.size, elf.bytes().len() as u64);
        assert_eq!(artifact.manifest, elf.manifest.unwrap());
        assert_eq!(names(&store), [format!("{}.so", artifact.sha256)]);
        let mode = fs::metadata(&artifact.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
        fs::write(&source, b"overwritten").unwrap();
        let found = store.get(artifact.sha256).unwrap();
        assert_eq!(
            (found.path, found.manifest),
            (artifact.path, artifact.manifest)
        );
    }

    #[test]
    fn the_same_bytes_are_stored_once_and_a_damaged_copy_is_replaced() {
        let (_dir, store) = store();
        let bytes = TestElf::new("shop", "1.0.0").bytes();
        let first = add(&store, &bytes).unwrap();
        let before = fs::metadata(&first.path).unwrap();
        add(&store, &bytes).unwrap();
        assert_eq!(
            fs::metadata(&first.path).unwrap().modified().unwrap(),
            before.modified().unwrap()
        );
        fs::remove_file(&first.path).unwrap();
        fs::write(&first.path, b"rot").unwrap();
        assert!(
            matches!(store.get(first.sha256), Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidData)
        );
        add(&store, &bytes).unwrap();
        assert_eq!(fs::read(&first.path).unwrap(), bytes);
        assert_eq!(names(&store).len(), 1);
    }

    #[test]
    fn what_cannot_run_here_is_refused_with_its_reason_and_leaves_nothing() {
        let (dir, store) = store();
        let good = TestElf::new("shop", "1.0.0");
        let bytes = good.bytes();
        assert!(reason(&store, b"").contains("truncated"));
        assert!(reason(&store, b"not a plugin at all").contains("not an ELF"));
        assert!(reason(&store, &bytes[..bytes.len() - 1]).contains("truncated"));
        let mut plain = good.clone();
        plain.manifest = None;
        assert!(reason(&store, &plain.bytes()).contains("#[handover_plugin::app]"));
        let mut foreign = good.clone();
        foreign.machine = object::elf::EM_S390;
        let text = reason(&store, &foreign.bytes());
        assert!(
            text.contains("s390x") && text.contains(elf::host_machine()),
            "{text}"
        );
        let mut aborts = good.clone();
        aborts.manifest.as_mut().unwrap().build.panic = "abort".to_owned();
        assert!(reason(&store, &aborts.bytes()).contains("panic = \"abort\""));
        let mut newer = good.clone();
        newer.manifest.as_mut().unwrap().abi = AbiVersion(1, 99);
        let text = reason(&store, &newer.bytes());
        let ours = handover_plugin::abi::version::ABI;
        let ours = format!("offers {}.{}", ours.major, ours.minor);
        assert!(text.contains("ABI 1.99") && text.contains(&ours), "{text}");
        assert!(matches!(
            store.add_file(dir.path()),
            Err(StoreError::Refused { .. })
        ));
        assert_eq!(names(&store), [""; 0]);
    }

    #[test]
    fn what_is_not_kept_is_not_in_the_store_and_leaves_nothing() {
        let (dir, store) = store();
        let file = TestElf::new("shop", "1.0.0").write(dir.path().join("shop.so"));
        let artifact = store.add_file(&file).unwrap();
        assert!(!store.contains(artifact.sha256) && names(&store).len() == 1);
        store.collect(&[]).unwrap();
        store.keep(&artifact.clone()).unwrap();
        store.keep(&artifact).unwrap();
        assert!(store.contains(artifact.sha256));
        drop(artifact);
        fs::write(&file, TestElf::new("shop", "2.0.0").bytes()).unwrap();
        drop(store.add_file(&file).unwrap());
        assert_eq!(names(&store).len(), 1);
    }

    #[test]
    fn a_plugin_for_another_host_can_be_inspected() {
        let dir = tempfile::tempdir().unwrap();
        let mut elf = TestElf::new("shop", "1.0.0");
        elf.machine = object::elf::EM_RISCV;
        let artifact = inspect(&elf.write(dir.path().join("x.so"))).unwrap();
        assert_eq!(artifact.elf.machine, "riscv64");
        assert!(artifact.acceptable().is_err());
    }

    #[test]
    fn an_upload_that_is_given_up_leaves_nothing() {
        let (_dir, store) = store();
        let mut writer = store.writer().unwrap();
        writer.write(b"\x7fELF").unwrap();
        assert_eq!(names(&store).len(), 1);
        drop(writer);
        assert_eq!(names(&store), [""; 0]);
    }

    #[test]
    fn what_a_crash_left_is_swept_and_what_is_being_written_is_not() {
        let (_dir, store) = store();
        let mut leftover = File::create(store.dir().join(".incoming-1-0")).unwrap();
        leftover.write_all(b"half").unwrap();
        let mut writer = store.writer().unwrap();
        let again = Store::open(store.dir()).unwrap();
        assert_eq!(names(&again).len(), 1);
        writer
            .write(&TestElf::new("shop", "1.0.0").bytes())
            .unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn collecting_spares_what_is_kept_and_what_is_held() {
        let (_dir, store) = store();
        let add = |version| add(&store, &TestElf::new("shop", version).bytes()).unwrap();
        let (kept, held, gone) = (add("1.0.0").sha256, add("2.0.0"), add("3.0.0").sha256);
        fs::write(store.dir().join("README"), b"not ours").unwrap();
        store.collect(&[kept]).unwrap();
        assert!(store.contains(kept) && store.contains(held.sha256));
        assert!(
            matches!(store.get(gone), Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound)
        );
        let sha256 = held.sha256;
        drop(held);
        store.collect(&[]).unwrap();
        assert!(!store.contains(sha256));
        assert_eq!(names(&store), ["README"]);
        assert!(store.is_empty().unwrap());
    }

    #[test]
    fn a_full_disk_names_the_folder_and_the_way_out() {
        let (_dir, store) = store();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut writer = store
            .writer_on(full, store.dir().join(".incoming-full"))
            .unwrap();
        let error = writer.write(&[1; 100]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(store.dir().to_str().unwrap()) && text.contains("free some space"),
            "{text}"
        );
        drop(writer);
        assert_eq!(names(&store), [""; 0]);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let error = Store::open(Path::new("/proc/handover-artifacts")).unwrap_err();
        assert!(
            error.to_string().contains("/proc/handover-artifacts"),
            "{error}"
        );
        let (_dir, store) = store();
        fs::remove_dir(store.dir()).unwrap();
        let error = store.writer().unwrap_err().to_string();
        assert!(error.contains(store.dir().to_str().unwrap()), "{error}");
    }
}
