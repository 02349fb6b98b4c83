//! What could not be written to the disk, in memory that outlives this process.
//!
//! A disk is full or read-only for longer than a host that crashes on it lives. Its supervisor has
//! a file in memory, which the kernel keeps when the host ends, whatever ended it: so the next host
//! knows what crashed and what was done, and writes it when there is room.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, memfd_create};

/// The bytes before the texts: where those are, and how many.
const HEAD: u64 = 16;

/// The file of a supervisor.
#[derive(Debug)]
pub(crate) struct SpillFile(OwnedFd);

/// The texts in it, as a host sees them: one for each file that is behind.
#[derive(Debug)]
pub struct Spill {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    texts: BTreeMap<String, String>,
    /// Where they are in the file, and how many bytes.
    place: (u64, u64),
}

impl SpillFile {
    /// An empty one. No process that is started inherits it.
    ///
    /// # Errors
    /// When the system has no files in memory.
    pub(crate) fn create() -> io::Result<Self> {
        Ok(Self(memfd_create("handover-spill", MemfdFlags::CLOEXEC)?))
    }

    /// The number by which a host finds it.
    pub(crate) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Spill {
    /// The one with this number in the process `supervisor`.
    ///
    /// # Errors
    /// When this process may not open what that one has, e.g. since there is no `/proc`.
    pub fn of(supervisor: u32, number: RawFd) -> io::Result<Self> {
        let path = format!("/proc/{supervisor}/fd/{number}");
        let file = File::options().read(true).write(true).open(path)?;
        let state = read(&file).unwrap_or_default(); // it is new, or was cut off before its first head
        Ok(Self {
            file,
            state: Mutex::new(state),
        })
    }

    /// What the file at `path` would hold, if it is behind.
    pub fn text(&self, path: &Path) -> Option<String> {
        self.state.lock().texts.get(path.to_str()?).cloned()
    }

    /// Keeps what the file at `path` would hold, or forgets it. Without success where there is no
    /// memory for it either.
    pub fn keep(&self, path: &Path, text: Option<&[u8]>) {
        let Some(path) = path.to_str() else { return };
        let text = text.and_then(|text| std::str::from_utf8(text).ok());
        let mut state = self.state.lock();
        match text {
            None if state.texts.remove(path).is_none() => return,
            None => {}
            Some(text) => {
                state.texts.insert(path.to_owned(), text.to_owned());
            }
        }
        if let Err(error) = write(&self.file, &mut state) {
            tracing::warn!(%error, "what could not be written is not kept for the next host either");
        }
    }
}

fn read(file: &File) -> io::Result<State> {
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at)?;
        Ok::<_, io::Error>(u64::from_le_bytes(bytes))
    };
    let place = (number(0)?, number(8)?);
    let length = usize::try_from(place.1).map_err(io::Error::other)?;
    let mut text = vec![0; length];
    file.read_exact_at(&mut text, place.0)?;
    let texts = serde_json::from_slice(&text)?;
    Ok(State { texts, place })
}

/// Writes the texts beside those that are there, and then the head that leads to them: whenever the
/// process ends, one of both is whole.
fn write(file: &File, state: &mut State) -> io::Result<()> {
    let text = serde_json::to_vec(&state.texts)?;
    let length = text.len() as u64;
    let (offset, taken) = state.place;
    let place = if taken == 0 || HEAD + length <= offset {
        HEAD
    } else {
        offset + taken
    };
    file.write_all_at(&text, place)?;
    let mut head = [0; HEAD as usize];
    head[..8].copy_from_slice(&place.to_le_bytes());
    head[8..].copy_from_slice(&length.to_le_bytes());
    file.write_all_at(&head, 0)?;
    state.place = (place, length);
    // Nothing is behind it.
    file.set_len(place + length)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn the_next_host_finds_what_the_one_before_kept() {
        let file = SpillFile::create().unwrap();
        let open = || Spill::of(std::process::id(), file.number()).unwrap();
        let (one, other) = (Path::new("/state/one"), Path::new("/state/other"));
        assert_eq!(open().text(one), None);
        for round in 0..20 {
            let text = "x".repeat(round * round);
            let spill = open();
            spill.keep(one, Some(text.as_bytes()));
            spill.keep(other, Some(b"other"));
            assert_eq!(open().text(one).as_deref(), Some(&*text));
            assert_eq!(open().text(other).as_deref(), Some("other"));
        }
        let spill = open();
        spill.keep(one, None);
        assert_eq!((open().text(one), spill.text(one)), (None, None));
        assert_eq!(open().text(other).as_deref(), Some("other"));
        // It does not grow with each change.
        assert!(spill.file.metadata().unwrap().len() < 2000);
    }

    #[test]
    fn what_was_cut_off_leaves_what_was_there_before() {
        let file = SpillFile::create().unwrap();
        let open = || Spill::of(std::process::id(), file.number()).unwrap();
        let path = Path::new("/state/one");
        open().keep(path, Some(b"whole"));
        let (offset, length) = open().state.lock().place;
        // The texts of the next change, without their head.
        let spill = open();
        spill
            .file
            .write_all_at(b"{\"half", offset + length)
            .unwrap();
        assert_eq!(open().text(path).as_deref(), Some("whole"));
    }
}
