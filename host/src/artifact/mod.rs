//! Artifacts at rest: what their bytes say, and the store that keeps them. Knows nothing of running
//! code.
//!
//! - [`digest`]: the identity of bytes
//! - [`manifest`]: what an artifact says of itself, read from its own ELF section without loading
//!   it
//! - [`elf`]: the facts of the file (architecture, completeness, build id)
//! - [`linkage`]: what the dynamic linker will make of it
//! - [`bundled`]: the libraries that it has linked into itself and that matter here
//! - [`remark`]: what people should know of it
//! - [`image`]: their bytes in memory, sealed, which are what is mapped
//! - [`initialisers`]: what runs before and after everything else of them, hidden from the dynamic
//!   linker in an image
//! - [`store`]: immutable copies under their SHA-256
//! - [`trust`]: who must have signed them

mod bundled;
pub(crate) mod declared;
pub(crate) mod digest;
pub(crate) mod elf;
pub(crate) mod image;
mod initialisers;
pub(crate) mod linkage;
pub(crate) mod manifest;
pub(crate) mod remark;
mod report;
pub(crate) mod store;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod trust;

use std::path::PathBuf;

pub(crate) use self::initialisers::Initialisers;
pub(crate) use self::{
    bundled::{Bundled, bundled},
    digest::Hasher,
    image::{Image, Shelf},
    linkage::Linkage,
    remark::{Remark, Topic},
    store::{Lease, Pending},
    trust::Keys,
};
pub use self::{
    declared::{DbRevisions, Declared, JobHandler, MigrationPath, Migrations, Missed},
    digest::Sha256,
    elf::ElfFacts,
    manifest::{AbiVersion, BuildFacts, Manifest},
    store::{Store, StoreError, inspect},
    trust::{Key, Signature},
};

/// One immutable plugin file in the store, with what its bytes say.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Its identity.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
    /// Where it lies in the store, once [`Store::keep`] has put it there.
    pub path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// What its functions declare.
    pub declared: Declared,
    /// The database revisions that it runs with, where it says so.
    pub db: Option<DbRevisions>,
    /// The migrations of its state.
    pub migrations: Migrations,
    /// What its ELF header says.
    pub elf: ElfFacts,
    /// What came with it as its signature: verified by [`Keys::verify`] only.
    pub signature: Option<Signature>,
    /// Keeps its file in the store for as long as anybody holds this value.
    pub lease: Lease,
    /// Its bytes in memory, until they are mapped.
    pub image: Shelf,
    /// Its file, while it is not kept.
    pub pending: Pending,
}

impl Artifact {
    /// Whether this host takes it, as far as its bytes say: what [`Artifact::runnable`] asks, and
    /// that it can be loaded any number of times without harm to others.
    ///
    /// # Errors
    /// The sentence for a person: what is wrong and what to do.
    pub fn acceptable(&self) -> Result<(), String> {
        self.runnable()?;
        self.elf.linkage.refusal().map_or(Ok(()), Err)
    }

    /// Whether this host can run it at all, as far as its bytes say: machine, panic strategy, ABI.
    ///
    /// # Errors
    /// The sentence for a person: what is wrong and what to do.
    pub fn runnable(&self) -> Result<(), String> {
        let host = elf::host_machine();
        if self.elf.machine != host {
            return Err(format!(
                "it is built for {}, this host runs on {host}: build it for {host}",
                self.elf.machine
            ));
        }
        if self.manifest.build.panic == "abort" {
            return Err(
                "it is built with panic = \"abort\", so one panic would end the whole host: take `panic` out of its Cargo profile"
                    .to_owned(),
            );
        }
        self.manifest.runs_here()
    }
}
