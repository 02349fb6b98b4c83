//! The facts of an ELF file, read without loading it.
//!
//! Only headers, notes, the dynamic section and the manifest's section are read, and nothing of
//! what they say is believed: an offset beyond the end of the file is [`ElfError::Truncated`],
//! which is told apart from bytes that are no shared object at all, since a truncated file may be
//! one that somebody is still writing.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use object::{
    Endianness, elf,
    read::{
        ReadCache, ReadRef,
        elf::{FileHeader, ProgramHeader, SectionHeader},
    },
};

use super::linkage::Linkage;

/// What matters of the ELF header, segments and notes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElfFacts {
    /// The GNU build id, where the linker wrote one.
    pub build_id: Option<Vec<u8>>,
    /// The machine, e.g. `x86_64`.
    pub machine: String,
    /// What the dynamic linker will make of it.
    pub linkage: Linkage,
}

/// Why a file is not a shared object that could be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It ends before what its headers announce.
    #[error(
        "it is truncated: its headers announce {need} bytes, it has {have}: copy it again, best under another name and renamed when whole"
    )]
    Truncated {
        /// The bytes that are there.
        have: u64,
        /// The bytes that must be there, as far as can be read.
        need: u64,
    },
    /// Something else.
    #[error("it is not an ELF file: a plugin is a Rust `cdylib` built for Linux")]
    NotElf,
    /// ELF of 32 bits.
    #[error(
        "it is a 32-bit ELF file for {machine}: build it for {}",
        host_target()
    )]
    Bits32 {
        /// Its machine.
        machine: String,
    },
    /// An executable or object file.
    #[error("it is an ELF {0}, not a shared object: set `crate-type = [\"cdylib\"]` in its [lib]")]
    NotShared(&'static str),
    /// Headers that contradict each other.
    #[error("its ELF headers are damaged ({0}): build or copy it again")]
    Damaged(String),
    /// It could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What was read of an ELF file.
#[derive(Clone, Debug)]
pub struct Elf {
    /// The facts.
    pub facts: ElfFacts,
    /// The bytes of the manifest's section, if there is one.
    pub manifest: Option<Vec<u8>>,
    /// The bytes of the section of what it declares, if there is one.
    pub declared: Option<Vec<u8>>,
}

/// The machine that this host was built for, in the words of [`ElfFacts::machine`].
pub(crate) fn host_machine() -> &'static str {
    std::env::consts::ARCH
}

fn host_target() -> String {
    format!("64-bit {}", host_machine())
}

/// A manifest with its header and padding is never longer than this; what is longer is refused by
/// its length alone.
const SECTION_LIMIT: u64 = 128 * 1024;

/// Reads the facts of `file` from its beginning. Blocks.
///
/// # Errors
/// What is wrong with it. A machine that is not the host's is no error here.
pub fn read(file: &File) -> Result<Elf, ElfError> {
    let cache = open(file)?;
    let parts = Parts::parse(&cache)?;
    if let Some(need) = parts.missing() {
        return Err(ElfError::Truncated {
            have: parts.len,
            need,
        });
    }
    match parts.header.e_type.get(parts.endian) {
        elf::ET_DYN => {}
        elf::ET_EXEC => return Err(ElfError::NotShared("executable")),
        elf::ET_REL => return Err(ElfError::NotShared("object file")),
        elf::ET_CORE => return Err(ElfError::NotShared("core dump")),
        _ => return Err(ElfError::NotShared("file of an unknown kind")),
    }
    Ok(Elf {
        facts: ElfFacts {
            build_id: parts.build_id(),
            machine: machine_name(parts.header.e_machine.get(parts.endian)),
            linkage: Linkage::read(parts.endian, parts.data, parts.segments),
        },
        manifest: parts.section(super::manifest::SECTION)?,
        declared: parts.section(handover_plugin::abi::declared::SECTION)?,
    })
}

/// Whether `file` is the beginning of an ELF file whose rest is missing. Reads headers only.
/// Blocks.
///
/// # Errors
/// When it could not be read.
pub fn is_truncated(file: &File) -> io::Result<bool> {
    let truncated = match open(file).and_then(|cache| Ok(Parts::parse(&cache)?.missing())) {
        Ok(missing) => missing.is_some(),
        Err(ElfError::Truncated { .. }) => true,
        Err(ElfError::Io(error)) => return Err(error),
        Err(_) => false,
    };
    Ok(truncated)
}

/// Checks the first bytes, which tell an ELF file from anything else, before more of it is read.
fn open(mut file: &File) -> Result<ReadCache<&File>, ElfError> {
    let have = file.metadata()?.len();
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    Read::by_ref(&mut file).take(20).read_to_end(&mut start)?;
    let magic = start.len().min(4);
    if start[..magic] != elf::ELFMAG[..magic] {
        return Err(ElfError::NotElf);
    }
    if start.len() < 20 {
        return Err(ElfError::Truncated { have, need: 64 });
    }
    if start[4] == elf::ELFCLASS32 {
        let machine = match start[5] {
            elf::ELFDATA2MSB => u16::from_be_bytes([start[18], start[19]]),
            _ => u16::from_le_bytes([start[18], start[19]]),
        };
        return Err(ElfError::Bits32 {
            machine: machine_name(machine),
        });
    }
    if start[4] != elf::ELFCLASS64 {
        return Err(ElfError::Damaged("unknown class".to_owned()));
    }
    if have < 64 {
        return Err(ElfError::Truncated { have, need: 64 });
    }
    Ok(ReadCache::new(file))
}

type Cache<'c, 'f> = &'c ReadCache<&'f File>;

/// The parsed tables of one file.
struct Parts<'c, 'f> {
    data: Cache<'c, 'f>,
    len: u64,
    endian: Endianness,
    header: &'c elf::FileHeader64<Endianness>,
    segments: &'c [elf::ProgramHeader64<Endianness>],
    sections: &'c [elf::SectionHeader64<Endianness>],
}

impl<'c, 'f> Parts<'c, 'f> {
    fn parse(data: Cache<'c, 'f>) -> Result<Self, ElfError> {
        let damaged = |error: object::read::Error| ElfError::Damaged(error.to_string());
        let len = data
            .len()
            .map_err(|()| io::Error::other("its length is unknown"))?;
        let header = elf::FileHeader64::<Endianness>::parse(data).map_err(damaged)?;
        let endian = header.endian().map_err(damaged)?;
        // The tables first: the section header table is the last thing a linker writes.
        let within = |offset: u64, size: u64| match offset.saturating_add(size) {
            end if end > len => Err(ElfError::Truncated {
                have: len,
                need: end,
            }),
            _ => Ok(()),
        };
        let (phoff, shoff) = (header.e_phoff.get(endian), header.e_shoff.get(endian));
        if phoff != 0 {
            let (size, count) = (
                header.e_phentsize.get(endian),
                header.e_phnum.get(endian).min(elf::PN_XNUM - 1),
            );
            within(phoff, u64::from(size) * u64::from(count))?;
        }
        if shoff != 0 {
            let (size, count) = (
                header.e_shentsize.get(endian),
                header.e_shnum.get(endian).max(1),
            );
            within(shoff, u64::from(size) * u64::from(count))?;
        }
        Ok(Self {
            data,
            len,
            endian,
            header,
            segments: header.program_headers(endian, data).map_err(damaged)?,
            sections: header.section_headers(endian, data).map_err(damaged)?,
        })
    }

    /// Where the file must reach, if it does not.
    fn missing(&self) -> Option<u64> {
        let segments = self.segments.iter().map(|segment| {
            segment
                .p_offset(self.endian)
                .saturating_add(segment.p_filesz(self.endian))
        });
        let sections = self.sections.iter().map(|section| {
            section
                .file_range(self.endian)
                .map_or(0, |(offset, size)| offset.saturating_add(size))
        });
        segments
            .chain(sections)
            .max()
            .filter(|need| *need > self.len)
    }

    fn build_id(&self) -> Option<Vec<u8>> {
        for segment in self.segments {
            let Ok(Some(mut notes)) = segment.notes(self.endian, self.data) else {
                continue;
            };
            while let Ok(Some(note)) = notes.next() {
                if note.name() == elf::ELF_NOTE_GNU
                    && note.n_type(self.endian) == elf::NT_GNU_BUILD_ID
                {
                    return Some(note.desc().to_vec());
                }
            }
        }
        None
    }

    fn section(&self, name: &str) -> Result<Option<Vec<u8>>, ElfError> {
        let damaged = |error: object::read::Error| ElfError::Damaged(error.to_string());
        if self.sections.is_empty() {
            return Ok(None);
        }
        let table = self
            .header
            .sections(self.endian, self.data)
            .map_err(damaged)?;
        let Some((_, section)) = table.section_by_name(self.endian, name.as_bytes()) else {
            return Ok(None);
        };
        if section.sh_size(self.endian) > SECTION_LIMIT {
            return Err(ElfError::Damaged(format!(
                "section `{name}` has {} bytes",
                section.sh_size(self.endian)
            )));
        }
        let bytes = section.data(self.endian, self.data).map_err(damaged)?;
        Ok(Some(bytes.to_vec()))
    }
}

/// The name of an ELF machine as Rust's targets call it.
fn machine_name(machine: u16) -> String {
    let name = match machine {
        elf::EM_X86_64 => "x86_64",
        elf::EM_AARCH64 => "aarch64",
        elf::EM_386 => "x86",
        elf::EM_ARM => "arm",
        elf::EM_RISCV => "riscv64",
        elf::EM_PPC64 => "powerpc64",
        elf::EM_S390 => "s390x",
        elf::EM_LOONGARCH => "loongarch64",
        elf::EM_MIPS => "mips",
        other => return format!("machine {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::io::Write;

    use super::*;
    use crate::artifact::testing::TestElf;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn the_facts_of_a_shared_object_are_read() {
        let elf = read(&file(&TestElf::new("shop", "1.0.0").bytes())).unwrap();
        assert_eq!(elf.facts.machine, host_machine());
        assert_eq!(elf.facts.build_id.unwrap().len(), 20);
        assert!(elf.manifest.unwrap().starts_with(b"HANDOVER"));
    }

    #[test]
    fn the_facts_of_a_real_executable_are_read_before_it_is_refused() {
        let own = File::open(std::env::current_exe().unwrap()).unwrap();
        let elf = read(&own).unwrap(); // position independent, so it looks like a shared object
        assert_eq!(elf.facts.machine, host_machine());
        assert!(elf.manifest.is_none());
        assert!(!is_truncated(&own).unwrap());
    }

    #[test]
    fn every_beginning_of_a_file_is_truncated_and_the_whole_is_not() {
        let bytes = TestElf::new("shop", "1.0.0").bytes();
        for end in 0..bytes.len() {
            let part = file(&bytes[..end]);
            assert!(is_truncated(&part).unwrap(), "{end} of {}", bytes.len());
            assert!(matches!(
                read(&part).unwrap_err(),
                ElfError::Truncated { .. }
            ));
        }
        assert!(!is_truncated(&file(&bytes)).unwrap());
    }

    #[test]
    fn garbage_is_told_apart_from_truncation() {
        for garbage in [&b"hello"[..], b"\x7fELX", &[0; 4096]] {
            assert!(matches!(
                read(&file(garbage)).unwrap_err(),
                ElfError::NotElf
            ));
            assert!(!is_truncated(&file(garbage)).unwrap());
        }
    }

    #[test]
    fn other_kinds_of_elf_are_named() {
        let mut bytes = TestElf::new("shop", "1.0.0").bytes();
        bytes[16] = elf::ET_EXEC as u8;
        let error = read(&file(&bytes)).unwrap_err().to_string();
        assert!(
            error.contains("executable") && error.contains("cdylib"),
            "{error}"
        );
        bytes[4] = elf::ELFCLASS32;
        let error = read(&file(&bytes)).unwrap_err().to_string();
        assert!(
            error.contains("32-bit") && error.contains(host_machine()),
            "{error}"
        );
    }

    #[test]
    fn no_damage_panics() {
        let good = TestElf::new("shop", "1.0.0").bytes();
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let file = file(&bytes);
                let _ = (read(&file), is_truncated(&file));
            }
        }
    }
}
