//! Where the initialisers and finalisers of a shared object are, and how they are hidden from the
//! dynamic linker.
//!
//! The dynamic linker finds them by entries of `.dynamic` (`DT_INIT_ARRAY` and its relatives). In
//! an image these entries keep their values and have tags that no dynamic linker knows, so that it
//! leaves them to the host, which runs them outside of the dynamic linker's lock. That is all that
//! an image differs in from the artifact's bytes, and whoever reads the image gets those.

use std::{fs::File, io, os::unix::fs::FileExt};

use object::elf;

/// The size of an ELF header, of a program header, and of an entry of `.dynamic`.
const HEADER: usize = 64;
const SEGMENT: usize = 56;
const ENTRY: usize = 16;

/// A longer `.dynamic`, or more program headers, are none of a linker's: such a file is left to the
/// dynamic linker as it is.
const MOST_BYTES: usize = 1 << 20;

/// What is added to a tag so that nobody knows it: the sum lies where a system may have tags of its
/// own, and none has.
const HIDE: u32 = 0x6048_0000;

/// Where the initialisers and finalisers of one file are, as addresses of that file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Initialisers {
    /// The first initialiser.
    pub(crate) init: Option<u64>,
    /// The address and the size in bytes of the array of the others.
    pub(crate) init_array: (u64, u64),
    /// The last finaliser.
    pub(crate) fini: Option<u64>,
    /// The address and the size in bytes of the array of the others, which run in reverse.
    pub(crate) fini_array: (u64, u64),
    /// The offsets in the file of the entries that name them, with their tags.
    entries: Vec<(u64, u32)>,
}

impl Initialisers {
    /// What `file` says, whether they are hidden or not. Nothing for one whose headers make no
    /// sense, which the dynamic linker refuses.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let Some(header) = read(file, 0, HEADER)? else {
            return Ok(Self::default());
        };
        let half = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        if header[..4] != elf::ELFMAG || header[4] != elf::ELFCLASS64 || half(54) != SEGMENT {
            return Ok(Self::default());
        }
        let Some(segments) = read(file, word(&header, 32), half(56) * SEGMENT)? else {
            return Ok(Self::default());
        };
        let segments = segments.as_chunks::<SEGMENT>().0;
        let kind = |segment: &[u8; SEGMENT]| {
            u32::from_ne_bytes([segment[0], segment[1], segment[2], segment[3]])
        };
        // The dynamic linker reads it where it is mapped, so its offset is that of the segment
        // which maps it.
        let dynamic = segments
            .iter()
            .find(|segment| kind(segment) == elf::PT_DYNAMIC);
        let found = dynamic.and_then(|dynamic| {
            let (address, length) = (word(dynamic, 16), word(dynamic, 40));
            segments
                .iter()
                .filter(|segment| kind(segment) == elf::PT_LOAD)
                .find_map(|segment| {
                    let into = address.checked_sub(word(segment, 16))?;
                    let is_inside = into.checked_add(length)? <= word(segment, 32);
                    Some((word(segment, 8).checked_add(into)?, length)).filter(|_| is_inside)
                })
        });
        let Some((offset, length)) = found else {
            return Ok(Self::default());
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(dynamic) = read(file, offset, length)? else {
            return Ok(Self::default());
        };
        let mut places = Self::default();
        for (number, entry) in dynamic.as_chunks::<ENTRY>().0.iter().enumerate() {
            let (tag, value) = (word(entry, 0), word(entry, 8));
            let tag = u32::try_from(tag).unwrap_or(u32::MAX);
            let tag = tag
                .checked_sub(HIDE)
                .filter(|tag| *tag <= elf::DT_FINI_ARRAYSZ)
                .unwrap_or(tag);
            match tag {
                elf::DT_NULL => break,
                elf::DT_INIT => places.init = Some(value),
                elf::DT_INIT_ARRAY => places.init_array.0 = value,
                elf::DT_INIT_ARRAYSZ => places.init_array.1 = value,
                elf::DT_FINI => places.fini = Some(value),
                elf::DT_FINI_ARRAY => places.fini_array.0 = value,
                elf::DT_FINI_ARRAYSZ => places.fini_array.1 = value,
                _ => continue,
            }
            places.entries.push((offset + (number * ENTRY) as u64, tag));
        }
        Ok(places)
    }

    /// Hides them in `file`, which is what they were read from.
    pub(super) fn hide(&self, file: &File) -> io::Result<()> {
        for (offset, tag) in &self.entries {
            file.write_all_at(&u64::from(tag + HIDE).to_ne_bytes(), *offset)?;
        }
        Ok(())
    }

    /// Makes `bytes`, which were read at `offset` of a file that they are hidden in, what they were
    /// before.
    pub(super) fn restore(&self, bytes: &mut [u8], offset: u64) {
        for (entry, tag) in &self.entries {
            for (number, byte) in u64::from(*tag).to_ne_bytes().into_iter().enumerate() {
                let at = (entry + number as u64).checked_sub(offset);
                let at = at.and_then(|at| usize::try_from(at).ok());
                if let Some(place) = at.and_then(|at| bytes.get_mut(at)) {
                    *place = byte;
                }
            }
        }
    }
}

/// `length` bytes at `offset` of the file; none when it ends before, or nobody needs so many.
fn read(file: &File, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
    if length > MOST_BYTES {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        // An offset that no file can have.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

/// The eight bytes at `at`, which are there.
fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::io::Write;

    use super::*;

    /// A shared object that is nothing but a segment with these entries of `.dynamic`.
    fn object(entries: &[(u64, u64)]) -> Vec<u8> {
        let length = (entries.len() * ENTRY) as u64;
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(HEADER, 0);
        bytes[32..40].copy_from_slice(&64_u64.to_ne_bytes());
        bytes[54..56].copy_from_slice(&(SEGMENT as u16).to_ne_bytes());
        bytes[56..58].copy_from_slice(&2_u16.to_ne_bytes());
        for kind in [elf::PT_LOAD, elf::PT_DYNAMIC] {
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(6_u32.to_ne_bytes());
            // Mapped a page after its offset in the file; the offset of the second one is not
            // asked.
            let offset = if kind == elf::PT_LOAD { 176 } else { 0 };
            for word in [offset, 0x1000 + 176, 0, length, length, 8] {
                bytes.extend(u64::to_ne_bytes(word));
            }
        }
        for (tag, value) in entries {
            bytes.extend(tag.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
        }
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn bytes_of(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn they_are_hidden_found_again_and_read_as_they_were() {
        let tags = [
            (elf::DT_NEEDED, 1),
            (elf::DT_INIT, 0x10),
            (elf::DT_FINI, 0x20),
            (elf::DT_INIT_ARRAY, 0x100),
            (elf::DT_INIT_ARRAYSZ, 16),
            (elf::DT_FINI_ARRAY, 0x200),
            (elf::DT_FINI_ARRAYSZ, 8),
            (elf::DT_NULL, 0),
            (elf::DT_INIT, 0x30), // behind the end
        ];
        let entries: Vec<_> = tags.map(|(tag, value)| (u64::from(tag), value)).to_vec();
        let before = object(&entries);
        let file = file(&before);
        let found = Initialisers::read(&file).unwrap();
        assert_eq!((found.init, found.fini), (Some(0x10), Some(0x20)));
        assert_eq!(
            (found.init_array, found.fini_array),
            ((0x100, 16), (0x200, 8))
        );
        found.hide(&file).unwrap();
        let hidden = bytes_of(&file);
        let differ = hidden
            .chunks(8)
            .zip(before.chunks(8))
            .filter(|(a, b)| a != b);
        assert_eq!(differ.count(), 6);
        assert_eq!(Initialisers::read(&file).unwrap(), found);
        for step in [1, 7, 64, before.len()] {
            let mut read = hidden.clone();
            for (number, part) in read.chunks_mut(step).enumerate() {
                found.restore(part, (number * step) as u64);
            }
            assert_eq!(read, before);
        }
    }

    #[test]
    fn no_damage_panics() {
        let good = object(&[(u64::from(elf::DT_INIT_ARRAY), 0x100), (0, 0)]);
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let _ = Initialisers::read(&file(&bytes)).unwrap();
            }
        }
    }
}
