//! An artifact's bytes in memory: verified, sealed, and what is checked and mapped.
//!
//! A file that is truncated while it is mapped kills the process. So what is mapped is a sealed
//! memfd: it cannot shrink, grow or be written, and it has an inode of its own, so that `dlopen`
//! never takes it for a library that it has. It is made where the bytes are hashed, and the same
//! one goes to the preflight child and to the loader: nobody reads them again.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create},
    io::Errno,
};

use super::{
    Artifact, Initialisers, Manifest, Sha256,
    digest::{CHUNK, Hasher},
};

/// What makes the bytes stay what they are.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE)
    .union(SealFlags::SEAL);

/// How often sealing is tried again. The kernel itself waits each time.
const BUSY_ATTEMPTS: usize = 20;

/// How long before each.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// A sealed copy of an artifact's bytes, in which its initialisers are hidden from the dynamic
/// linker. Must stay open as long as it is mapped: its number is the name under which the dynamic
/// linker knows the library, and must not be another's meanwhile.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    inode: u64,
    initialisers: Arc<Initialisers>,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The file could not be read.
    #[error("cannot read the artifact {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// It holds other bytes than it was stored with.
    #[error(
        "the artifact {path} is not what it was when it was stored (its SHA-256 is {found}): deploy the file again"
    )]
    Changed {
        /// The file.
        path: String,
        /// What it holds.
        found: Sha256,
    },
    /// No memory file can be made.
    #[error(
        "cannot make a memory file (memfd_create: {0}): allow memfd_create in the seccomp or SELinux policy of this service"
    )]
    NoMemfd(io::Error),
    /// It could not be written or sealed.
    #[error(
        "cannot copy the artifact into memory: {0}; is there memory left, and does the limit of the container allow it?"
    )]
    Memory(io::Error),
    /// What came as an image could still be changed.
    #[error("the memory file that came is not sealed")]
    Unsealed,
}

/// Makes a file in memory that is no image of anything, and seals it, to find out whether that can
/// be done here.
///
/// # Errors
/// What cannot be done, and what to do.
pub(crate) fn trial() -> Result<File, ImageError> {
    let mut file = memory_file("handover:trial")?;
    file.write_all(&[0; CHUNK]).map_err(ImageError::Memory)?;
    when_not_busy(|| fcntl_add_seals(&file, SEALS))
        .map_err(|error| ImageError::Memory(error.into()))?;
    Ok(file)
}

/// An empty file in memory that can be sealed.
fn memory_file(name: &str) -> Result<File, ImageError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Asking for the file not to be executable is what a hardened kernel (vm.memfd_noexec=2)
    // demands, and costs nothing: it is about execve, not about mapping. Kernels before 6.3 do
    // not know the flag.
    let made = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        answer => answer,
    };
    let fd = made.map_err(|error| ImageError::NoMemfd(error.into()))?;
    Ok(fd.into())
}

/// Bytes on their way into an image.
#[derive(Debug)]
pub(super) struct Draft {
    file: File,
}

impl Draft {
    /// An empty one for an artifact that says `manifest` of itself, which shows in
    /// `/proc/self/maps`.
    pub(super) fn new(manifest: &Manifest) -> Result<Self, ImageError> {
        let mut name = format!("handover:{}:{}", manifest.app, manifest.version);
        name.truncate(name.floor_char_boundary(249)); // the kernel's limit
        let file = memory_file(&name)?;
        Ok(Self { file })
    }

    /// Takes the next bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.file.write_all(bytes).map_err(ImageError::Memory)
    }

    /// Ends it.
    pub(super) fn seal(self) -> Result<Image, ImageError> {
        let Self { file } = self;
        let initialisers = Initialisers::read(&file).map_err(ImageError::Memory)?;
        initialisers.hide(&file).map_err(ImageError::Memory)?;
        when_not_busy(|| fcntl_add_seals(&file, SEALS))
            .map_err(|error| ImageError::Memory(error.into()))?;
        let inode = file.metadata().map_err(ImageError::Memory)?.ino();
        Ok(Image {
            file,
            inode,
            initialisers: Arc::new(initialisers),
        })
    }
}

/// Tries `seal` again while the kernel is busy with the file. Blocks.
///
/// It seals no file of which it holds a page itself, which it does for a moment when it moves or
/// watches memory. It waits for that, gives up after a tenth of a second, and says that the file is
/// busy: one deploy in ten thousand on a machine under load.
fn when_not_busy(mut seal: impl FnMut() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    for _ in 0..BUSY_ATTEMPTS {
        match seal() {
            Err(Errno::BUSY) => thread::sleep(BUSY_PAUSE),
            answer => return answer,
        }
    }
    seal()
}

impl Image {
    /// Copies all of `from`, which lies at `path`, hashing what is copied. Blocks.
    ///
    /// # Errors
    /// When it cannot be read, holds other bytes than `sha256`, or does not fit into memory.
    pub(super) fn copy(
        mut from: &File,
        path: &std::path::Path,
        sha256: Sha256,
        manifest: &Manifest,
    ) -> Result<Self, ImageError> {
        let unreadable = |source| ImageError::Read {
            path: path.display().to_string(),
            source,
        };
        from.rewind().map_err(unreadable)?;
        let mut draft = Draft::new(manifest)?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    draft.write(&buffer[..n])?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(unreadable(source)),
            }
        }
        let (found, _) = hasher.finish();
        if found != sha256 {
            let path = path.display().to_string();
            return Err(ImageError::Changed { path, found });
        }
        draft.seal()
    }

    /// One that another process made and verified.
    ///
    /// # Errors
    /// When it could still be changed.
    pub(crate) fn received(fd: OwnedFd) -> Result<Self, ImageError> {
        match fcntl_get_seals(&fd) {
            Ok(seals) if seals.contains(SEALS) => {}
            _ => return Err(ImageError::Unsealed),
        }
        let file = File::from(fd);
        let inode = file.metadata().map_err(ImageError::Memory)?.ino();
        let initialisers = Initialisers::read(&file).map_err(ImageError::Memory)?;
        Ok(Self {
            file,
            inode,
            initialisers: Arc::new(initialisers),
        })
    }

    /// The file, whose offset is anywhere. Its initialisers are hidden.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The name to open it by, which no other open image has.
    pub(crate) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// Its inode, which no other open image has.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// How many bytes it has.
    pub(super) fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Its initialisers and finalisers, which the dynamic linker does not find.
    pub(crate) fn initialisers(&self) -> &Arc<Initialisers> {
        &self.initialisers
    }

    /// The artifact's bytes. Blocks.
    pub(crate) fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.file.metadata()?.len() as usize];
        self.file.read_exact_at(&mut bytes, 0)?;
        self.initialisers.restore(&mut bytes, 0);
        Ok(bytes)
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Reads the artifact's bytes from an image, from its beginning, without moving the offset that all
/// who have it share.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    at: u64,
    initialisers: Arc<Initialisers>,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.initialisers.restore(&mut buffer[..read], self.at);
        self.at += read as u64;
        Ok(read)
    }
}

/// The place of an artifact's image, until somebody maps it: an image is mapped once, because
/// `dlopen` takes a second time for the library that it has. Clones are the same place.
#[derive(Clone, Debug, Default)]
pub struct Shelf(Arc<Mutex<Option<Image>>>);

impl Shelf {
    /// With an image in it.
    pub(super) fn with(image: Image) -> Self {
        Self(Arc::new(Mutex::new(Some(image))))
    }

    /// Puts one there.
    pub(crate) fn put(&self, image: Image) {
        *self.0.lock() = Some(image);
    }

    /// A reader of the image, if there is one.
    pub(super) fn reader(&self) -> io::Result<Option<Reader>> {
        let image = self.0.lock();
        image
            .as_ref()
            .map(|image| {
                Ok(Reader {
                    file: image.file.try_clone()?,
                    at: 0,
                    initialisers: Arc::clone(&image.initialisers),
                })
            })
            .transpose()
    }
}

impl Artifact {
    /// Its image, for one who maps it: what was made when its bytes were hashed, else one made from
    /// its file in the store. Blocks then.
    ///
    /// # Errors
    /// When its file cannot be read, or is not what it was.
    pub(crate) fn take_image(&self) -> Result<Image, ImageError> {
        let kept = self.image.0.lock().take();
        kept.map_or_else(|| self.make_image(), Ok)
    }

    /// A descriptor of its image, for another process. Blocks like [`Artifact::take_image`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn lend_image(&self) -> Result<OwnedFd, ImageError> {
        let mut place = self.image.0.lock();
        let image = match place.take() {
            Some(image) => image,
            None => self.make_image()?,
        };
        let image = place.insert(image);
        image
            .as_fd()
            .try_clone_to_owned()
            .map_err(ImageError::Memory)
    }

    /// The same artifact with an image of its own, so that it can be mapped beside this one.
    /// Blocks.
    ///
    /// # Errors
    /// As for [`Artifact::take_image`].
    pub(crate) fn duplicate(&self) -> Result<Self, ImageError> {
        let image = match self.image.reader().map_err(ImageError::Memory)? {
            Some(mut reader) => {
                let mut draft = Draft::new(&self.manifest)?;
                io::copy(&mut reader, &mut draft.file).map_err(ImageError::Memory)?;
                draft.seal()?
            }
            None => self.make_image()?,
        };
        Ok(Self {
            image: Shelf::with(image),
            ..self.clone()
        })
    }

    fn make_image(&self) -> Result<Image, ImageError> {
        let file = File::open(&self.path).map_err(|source| ImageError::Read {
            path: self.path.display().to_string(),
            source,
        })?;
        Image::copy(&file, &self.path, self.sha256, &self.manifest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::artifact::{Store, testing::TestElf};

    #[test]
    fn a_file_that_the_kernel_is_busy_with_is_sealed_when_it_is_not() {
        let answers = |busy: usize, last: rustix::io::Result<()>| {
            let mut asked = 0;
            let sealed = when_not_busy(|| {
                asked += 1;
                if asked <= busy {
                    Err(Errno::BUSY)
                } else {
                    last
                }
            });
            (sealed, asked)
        };
        assert_eq!(answers(3, Ok(())), (Ok(()), 4));
        assert_eq!(answers(0, Err(Errno::PERM)), (Err(Errno::PERM), 1));
        assert_eq!(
            answers(usize::MAX, Ok(())),
            (Err(Errno::BUSY), BUSY_ATTEMPTS + 1)
        );
    }

    #[test]
    fn a_file_that_was_replaced_after_it_was_verified_is_not_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("artifacts")).unwrap();
        let elf = TestElf::new("shop", "1.0.0");
        let artifact = store
            .add_file(&elf.write(dir.path().join("shop.so")))
            .unwrap();
        store.keep(&artifact).unwrap();
        std::fs::remove_file(&artifact.path).unwrap();
        TestElf::new("shop", "6.6.6").write(&artifact.path);
        // What was read once is what is mapped, and stays what it was, whatever is tried.
        let image = artifact.take_image().unwrap();
        assert_eq!(image.bytes().unwrap(), elf.bytes());
        assert!((&image.file).write_all(b"evil").is_err());
        assert!(image.file.set_len(0).is_err());
        assert_eq!(image.bytes().unwrap(), elf.bytes());
        // A second one is made from the file, which is verified.
        let error = artifact.take_image().unwrap_err().to_string();
        assert!(error.contains("is not what it was"), "{error}");
    }

    #[test]
    fn an_image_that_is_lent_stays_and_one_that_is_taken_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("artifacts")).unwrap();
        let file = TestElf::new("shop", "1.0.0").write(dir.path().join("shop.so"));
        let artifact = store.add_file(&file).unwrap();
        store.keep(&artifact).unwrap();
        let lent = Image::received(artifact.lend_image().unwrap()).unwrap();
        let first = artifact.take_image().unwrap();
        assert_eq!(lent.inode(), first.inode());
        let second = artifact.take_image().unwrap();
        assert_ne!(first.inode(), second.inode());
        let unsealed = memfd_create("unsealed", MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(Image::received(unsealed).is_err());
    }
}
