//! Artifacts for tests, written by hand: small ELF files with a manifest that no compiler was
//! needed for.

use std::path::{Path, PathBuf};

use object::elf;

use super::{AbiVersion, BuildFacts, Manifest, manifest::SECTION};

/// A shared object of nothing but headers, a build id and a manifest.
#[derive(Clone, Debug)]
pub(crate) struct TestElf {
    /// What it says of itself; none for an ELF file that is no plugin.
    pub(crate) manifest: Option<Manifest>,
    /// `e_machine`.
    pub(crate) machine: u16,
    /// Anything, to make equal versions differ in their bytes.
    pub(crate) salt: u64,
}

impl TestElf {
    /// A plugin for this host.
    pub(crate) fn new(app: &str, version: &str) -> Self {
        Self {
            manifest: Some(Manifest {
                app: app.parse().expect("an app name"),
                version: version.parse().expect("a version"),
                abi: AbiVersion(1, 0),
                layout: super::manifest::FORMAT,
                schema: 1,
                build: BuildFacts {
                    panic: "unwind".to_owned(),
                    ..BuildFacts::default()
                },
            }),
            machine: if cfg!(target_arch = "aarch64") {
                elf::EM_AARCH64
            } else {
                elf::EM_X86_64
            },
            salt: 0,
        }
    }

    /// Other bytes that say the same.
    pub(crate) fn salted(mut self, salt: u64) -> Self {
        self.salt = salt;
        self
    }

    /// The file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        const NOTE: usize = 36;
        let mut names = b"\0.shstrtab\0".to_vec();
        let manifest_name = names.len() as u32;
        names.extend(SECTION.as_bytes());
        names.push(0);
        let section = self
            .manifest
            .as_ref()
            .map(Manifest::to_section)
            .unwrap_or_default();
        let note_at = 64 + 2 * 56;
        let manifest_at = note_at + NOTE;
        let names_at = manifest_at + section.len();
        let table_at = (names_at + names.len()).next_multiple_of(8);
        let sections: u16 = if self.manifest.is_some() { 3 } else { 2 };

        let mut file = Vec::new();
        file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend(elf::ET_DYN.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend(0_u64.to_le_bytes()); // entry
        file.extend(64_u64.to_le_bytes()); // program headers
        file.extend((table_at as u64).to_le_bytes()); // section headers
        file.extend(0_u32.to_le_bytes());
        for half in [64_u16, 56, 2, 64, sections, 1] {
            file.extend(half.to_le_bytes());
        }
        file.extend(elf::PT_NOTE.to_le_bytes());
        file.extend(4_u32.to_le_bytes());
        for word in [note_at as u64, 0, 0, NOTE as u64, NOTE as u64, 4] {
            file.extend(word.to_le_bytes());
        }
        file.extend(elf::PT_GNU_STACK.to_le_bytes());
        file.extend((elf::PF_R | elf::PF_W).to_le_bytes());
        for word in [0_u64, 0, 0, 0, 0, 16] {
            file.extend(word.to_le_bytes());
        }
        for word in [4_u32, 20, elf::NT_GNU_BUILD_ID] {
            file.extend(word.to_le_bytes());
        }
        file.extend(b"GNU\0");
        file.extend(self.salt.to_le_bytes());
        file.extend([0xab; 12]);
        file.extend(&section);
        file.extend(&names);
        file.resize(table_at, 0);
        let mut header = |name: u32, kind: u32, at: usize, size: usize| {
            file.extend(name.to_le_bytes());
            file.extend(kind.to_le_bytes());
            for word in [0, 0, at as u64, size as u64, 0, 1, 0] {
                file.extend(word.to_le_bytes());
            }
        };
        header(0, elf::SHT_NULL, 0, 0);
        header(1, elf::SHT_STRTAB, names_at, names.len());
        if self.manifest.is_some() {
            header(manifest_name, elf::SHT_PROGBITS, manifest_at, section.len());
        }
        file
    }

    /// Writes the file to `path`, making its folder.
    pub(crate) fn write(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        std::fs::write(path, self.bytes()).expect("a file");
        path.to_owned()
    }
}
