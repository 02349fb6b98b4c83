//! The bytes that are mapped: a copy of the artifact in memory that was verified and that nobody can change.
//!
//! A file that is truncated while it is mapped kills the process. So what is mapped is a sealed memfd: it cannot shrink,
//! grow or be written, and it has an inode of its own, so that `dlopen` never takes it for a library that it has.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
};
use sha2::Digest;

use super::LoadError;
use crate::artifact::Artifact;

/// A sealed copy of an artifact's bytes, verified against its identity. Must stay open as long as it is mapped: its number
/// is the name under which the dynamic linker knows the library, and must not be another's meanwhile.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    inode: u64,
}

impl Image {
    /// Copies the artifact's file in, hashing what is copied. Blocks.
    pub(super) fn copy(artifact: &Artifact) -> Result<Self, LoadError> {
        let path = artifact.path.display();
        let mut from = File::open(&artifact.path)
            .map_err(|error| LoadError(format!("cannot read the artifact {path}: {error}")))?;
        // Shows in /proc/self/maps; the kernel takes 249 bytes.
        let mut name = format!(
            "handover:{}:{}",
            artifact.manifest.app,
            artifact.sha256.short()
        );
        name.truncate(name.floor_char_boundary(249));
        let mut file = File::from(memfd(&name)?);

        let mut hasher = sha2::Sha256::new();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(LoadError(format!(
                        "cannot read the artifact {path}: {error}"
                    )));
                }
            };
            hasher.update(&buffer[..read]);
            file.write_all(&buffer[..read]).map_err(|error| {
                LoadError(format!(
                    "cannot copy the artifact {path} into memory: {error}; is there memory left, and does the limit of the container allow it?"
                ))
            })?;
        }
        if <[u8; 32]>::from(hasher.finalize()) != artifact.sha256.0 {
            return Err(LoadError(format!(
                "the artifact {path} is not what it was when it was stored (its SHA-256 is another): deploy the file again"
            )));
        }
        fcntl_add_seals(
            &file,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
        )
        .map_err(|error| LoadError(format!("cannot seal the copy of {path} in memory: {error}")))?;
        let inode = file
            .metadata()
            .map_err(|error| {
                LoadError(format!(
                    "cannot examine the copy of {path} in memory: {error}"
                ))
            })?
            .ino();
        Ok(Self { file, inode })
    }

    /// The name to open it by, which no other open image has.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// Its inode, which no other open image has.
    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    /// Its bytes. Blocks.
    pub(super) fn bytes(&self) -> std::io::Result<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; self.file.metadata()?.len() as usize];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

fn memfd(name: &str) -> Result<OwnedFd, LoadError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Asking for the file not to be executable is what a hardened kernel (vm.memfd_noexec=2) demands, and costs nothing: it
    // is about execve, not about mapping. Kernels before 6.3 do not know the flag.
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        answer => answer,
    }
    .map_err(|error| {
        LoadError(format!(
            "cannot make a memory file (memfd_create: {error}): allow memfd_create in the seccomp or SELinux policy of this service"
        ))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::artifact::{Store, testing::TestElf};

    #[test]
    fn a_file_that_was_replaced_after_it_was_verified_is_not_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("artifacts")).unwrap();
        let file = TestElf::new("shop", "1.0.0").write(dir.path().join("shop.so"));
        let artifact = store.add_file(&file).unwrap();
        let image = Image::copy(&artifact).unwrap();
        let good = image.bytes().unwrap();
        std::fs::remove_file(&artifact.path).unwrap();
        TestElf::new("shop", "6.6.6").write(&artifact.path);
        let error = Image::copy(&artifact).unwrap_err().to_string();
        assert!(error.contains("is not what it was"), "{error}");
        // What was copied before stays what it was, whatever is tried.
        assert!((&image.file).write_all(b"evil").is_err());
        assert!(image.file.set_len(0).is_err());
        assert_eq!(image.bytes().unwrap(), good);
    }
}
