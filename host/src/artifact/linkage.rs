//! What the dynamic linker will make of an artifact, read from its program headers without loading
//! it.
//!
//! What no host can live with is a refusal ([`Linkage::refusal`]), so that it is met before the
//! linker meets it in the middle of a deploy. What costs something and works all the same is a
//! remark ([`Linkage::remarks`]).

use object::{
    Endianness, elf,
    read::{
        ReadRef,
        elf::{Dyn, ProgramHeader},
    },
};

use super::remark::{Remark, Topic};

/// The longest string of the dynamic section that is read, in bytes.
const LONGEST: u64 = 4096;
/// How many entries of the dynamic section are read.
const ENTRIES: usize = 4096;

/// What the program headers and the dynamic section say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linkage {
    /// The libraries that it needs, by name (`DT_NEEDED`).
    pub needed: Vec<String>,
    /// The folders that it wants them looked for in (`DT_RUNPATH`, else `DT_RPATH`).
    pub search: Vec<String>,
    /// Its thread-locals must lie in the memory that is set aside for each thread before anything
    /// is loaded (`DF_STATIC_TLS`).
    pub static_tls: bool,
    /// It is marked to stay mapped for the life of the process (`DF_1_NODELETE`).
    pub never_unloads: bool,
    /// Its code is written to while it is loaded (`DT_TEXTREL`).
    pub text_relocations: bool,
    /// It makes the stacks of the whole process executable (`PT_GNU_STACK`).
    pub executable_stack: bool,
}

impl Linkage {
    /// Reads it. What is damaged is left out: the dynamic linker looks at it too, in the preflight
    /// child.
    pub(super) fn read<'d, R: ReadRef<'d>>(
        endian: Endianness,
        data: R,
        segments: &[elf::ProgramHeader64<Endianness>],
    ) -> Self {
        let stack = segments
            .iter()
            .find(|segment| segment.p_type(endian) == elf::PT_GNU_STACK);
        let mut linkage = Self {
            // Without the header the C library assumes the worst.
            executable_stack: stack.is_none_or(|stack| stack.p_flags(endian) & elf::PF_X != 0),
            ..Self::default()
        };
        let dynamic: Vec<(u32, u64)> = segments
            .iter()
            .find_map(|segment| segment.dynamic(endian, data).ok().flatten())
            .unwrap_or_default()
            .iter()
            .take(ENTRIES)
            .map_while(|entry| match entry.tag32(endian) {
                Some(elf::DT_NULL) => None,
                tag => Some((tag.unwrap_or(elf::DT_NULL), entry.d_val(endian))),
            })
            .collect();
        let value = |tag| {
            dynamic
                .iter()
                .find(|(known, _)| *known == tag)
                .map(|(_, value)| *value)
        };
        let strings = value(elf::DT_STRTAB).and_then(|address| {
            segments.iter().find_map(|segment| {
                let start = segment.p_vaddr(endian);
                let loaded = segment.p_type(endian) == elf::PT_LOAD
                    && (start..start.saturating_add(segment.p_filesz(endian))).contains(&address);
                loaded.then(|| segment.p_offset(endian).saturating_add(address - start))
            })
        });
        let text = |at: u64| {
            let start = strings?.checked_add(at)?;
            let end = start.checked_add(LONGEST)?.min(data.len().ok()?);
            let bytes = data.read_bytes_at_until(start..end, 0).ok()?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        linkage.needed = dynamic
            .iter()
            .filter(|(tag, _)| *tag == elf::DT_NEEDED)
            .filter_map(|(_, at)| text(*at))
            .collect();
        linkage.search = value(elf::DT_RUNPATH)
            .or_else(|| value(elf::DT_RPATH))
            .and_then(text)
            .map(|folders| folders.split(':').map(str::to_owned).collect())
            .unwrap_or_default();
        let flags = value(elf::DT_FLAGS).unwrap_or_default();
        let flags_1 = value(elf::DT_FLAGS_1).unwrap_or_default();
        linkage.static_tls = flags & u64::from(elf::DF_STATIC_TLS) != 0;
        linkage.text_relocations =
            flags & u64::from(elf::DF_TEXTREL) != 0 || value(elf::DT_TEXTREL).is_some();
        linkage.never_unloads = flags_1 & u64::from(elf::DF_1_NODELETE) != 0;
        linkage
    }

    /// The folders that it names relative to itself. A library is mapped from memory, so there are
    /// none.
    pub fn beside_itself(&self) -> Vec<&str> {
        self.search
            .iter()
            .map(String::as_str)
            .filter(|folder| folder.contains("$ORIGIN") || folder.contains("${ORIGIN}"))
            .collect()
    }

    /// Why no host takes it, and what to do.
    pub fn refusal(&self) -> Option<String> {
        if self.static_tls {
            return Some(
                "its thread-locals need static TLS (DF_STATIC_TLS), of which a process has room for two or three loads: after those no \
                 deploy and no rollback works until the host is restarted. C code in it is compiled with -ftls-model=initial-exec, \
                 mostly an allocator: build mimalloc with its features `v2` and `local_dynamic_tls`, tikv-jemallocator with its feature \
                 `disable_initial_exec_tls`, other code with -ftls-model=global-dynamic; or leave the allocator out, the feature \
                 `own-heap` of handover-plugin gives each load a heap"
                    .to_owned(),
            );
        }
        if self.executable_stack {
            return Some(
                "it asks for an executable stack (PT_GNU_STACK), and would make those of the whole host executable: link it with \
                 -Wl,-z,noexecstack; it comes from an assembler file without `.section .note.GNU-stack,\"\",@progbits`, or from C \
                 functions within functions"
                    .to_owned(),
            );
        }
        None
    }

    /// What an operator should know of it all the same.
    pub fn remarks(&self) -> Vec<Remark> {
        let mut remarks = Vec::new();
        if self.never_unloads {
            remarks.push(Remark::warning(
                Topic::NeverUnloads,
                "it is linked to stay in the process (DF_1_NODELETE), so each deploy leaves the replaced one mapped for ever: take \
                 -Wl,-z,nodelete out of its link arguments",
            ));
        }
        if self.text_relocations {
            remarks.push(Remark::warning(
                Topic::TextRelocations,
                "its code is written to while it is loaded (DT_TEXTREL), so no page of it is shared and SELinux may refuse it: \
                 compile the C or assembler code in it with -fPIC",
            ));
        }
        let folders = self.beside_itself();
        if !folders.is_empty() {
            remarks.push(Remark::note(
                Topic::OriginPath,
                format!(
                    "it looks for libraries in {}, which does not exist for it, because it is mapped from memory: {}",
                    folders.join(", "),
                    Self::ORIGIN_ADVICE
                ),
            ));
        }
        remarks
    }

    /// What to do instead of `$ORIGIN`.
    pub(crate) const ORIGIN_ADVICE: &str = "link with the whole path (-Wl,-rpath,/opt/shop/lib), install the libraries where the \
         system looks (ldconfig), set LD_LIBRARY_PATH for the host, or link them statically";
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::fs::File;

    use super::super::elf::read;
    use super::*;

    #[test]
    fn the_linkage_of_a_real_executable_is_read() {
        let own = File::open(std::env::current_exe().unwrap()).unwrap();
        let linkage = read(&own).unwrap().facts.linkage;
        assert!(
            linkage
                .needed
                .iter()
                .any(|name| name.starts_with("libc.so")),
            "{linkage:?}"
        );
        assert!(!linkage.executable_stack && !linkage.text_relocations && !linkage.never_unloads);
        assert_eq!(linkage.refusal(), None);
        assert!(linkage.remarks().is_empty());
    }

    #[test]
    fn a_path_beside_itself_is_told_from_a_whole_one() {
        let linkage = Linkage {
            search: ["/opt/lib", "$ORIGIN", "${ORIGIN}/../lib"]
                .map(str::to_owned)
                .to_vec(),
            ..Linkage::default()
        };
        assert_eq!(linkage.beside_itself(), ["$ORIGIN", "${ORIGIN}/../lib"]);
    }
}
