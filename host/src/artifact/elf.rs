//! The facts of an ELF file, read without loading it.

/// What matters of the ELF header and notes.
#[derive(Clone, Debug)]
pub struct ElfFacts {
    /// The GNU build id, where the linker wrote one.
    pub build_id: Option<Vec<u8>>,
    /// The machine, e.g. `x86_64`.
    pub machine: String,
}
