//! The libraries that are known to matter here and that an artifact has linked into itself, known
//! by their texts.
//!
//! A stripped plugin has no symbols, but the messages of an allocator and the words of an SQL
//! engine are in its read-only data. What was built without them is not found.

use std::{fs::File, io, path::Path};

use memchr::memmem;
use object::{
    Object, ObjectSection, SectionKind,
    read::{ReadCache, ReadRef},
};

use super::{
    Image,
    remark::{Remark, Topic},
};

/// Allocators, each with texts of which one shows it.
const ALLOCATORS: &[(&str, &[&[u8]])] = &[
    ("mimalloc", MIMALLOC),
    (
        "jemalloc",
        &[b"<jemalloc>: ", b"\0_rjem_malloc\0", b"\0je_malloc\0"],
    ),
    (
        "tcmalloc",
        &[b"tcmalloc.max_total_thread_cache_bytes", b"\0tc_malloc\0"],
    ),
    ("snmalloc", &[b"\0sn_rust_alloc\0", b"\0sn_malloc\0"]),
    ("rpmalloc", &[b"\0rpmalloc\0"]),
];

/// One of them is in a mimalloc.
const MIMALLOC: &[&[u8]] = &[b"mimalloc: warning: ", b"\0mi_malloc_aligned\0"];

/// One of them is in a mimalloc of the third series.
const MIMALLOC_3: &[&[u8]] = &[
    b"unable to allocate theap meta-data",
    b"no thread-local reserved for heap",
];

/// All of them are in an SQLite, whatever is left out of it.
const SQLITE: &[&[u8]] = &[b"SQLite format 3\0", b"sqlite_autoindex_"];

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bundled {
    /// Why no host takes it, and what to do.
    pub refusal: Option<String>,
    /// What people should know of it.
    pub remarks: Vec<Remark>,
}

impl Image {
    /// Looks for them. Reads the data and the names of the image. Blocks.
    pub(crate) fn bundled(&self) -> Bundled {
        find(&ReadCache::new(self.file()))
    }
}

/// Looks for them in the file at `path`. Blocks.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn bundled(path: &Path) -> io::Result<Bundled> {
    Ok(find(&ReadCache::new(&File::open(path)?)))
}

/// Looks for them in an ELF file. What cannot be read is left out.
fn find<'d>(data: impl ReadRef<'d>) -> Bundled {
    let Ok(file) = object::File::parse(data) else {
        return Bundled::default();
    };
    let sections: Vec<&[u8]> = file
        .sections()
        .filter(|section| {
            matches!(
                section.kind(),
                SectionKind::ReadOnlyData
                    | SectionKind::ReadOnlyString
                    | SectionKind::ReadOnlyDataWithRel
            ) || matches!(section.name(), Ok(".strtab" | ".dynstr"))
        })
        .filter_map(|section| section.data().ok())
        .collect();
    let has = |text: &&[u8]| {
        let finder = memmem::Finder::new(*text);
        sections
            .iter()
            .any(|section| finder.find(section).is_some())
    };
    let any = |texts: &[&[u8]]| texts.iter().any(has);
    // Met with mimalloc 3.1 (the crate 0.1.52): between the second and the twentieth deploy under
    // load.
    let refusal = (any(MIMALLOC) && any(MIMALLOC_3)).then(|| {
        "it brings mimalloc 3, which takes the thread that loads it for the main thread of the process and crashes the host some time after \
         that thread has ended: build the crate mimalloc with its features `v2` and `local_dynamic_tls`, or leave it out, the feature \
         `own-heap` of handover-plugin gives each load a heap"
            .to_owned()
    });
    let mut remarks: Vec<Remark> = ALLOCATORS
        .iter()
        .filter(|(_, texts)| any(texts))
        .map(|(name, _)| {
            Remark::note(
                Topic::BundledAllocator,
                format!(
                    "it brings an allocator of its own ({name}): what that holds when the generation ends is lost with each deploy, \
                     and is counted nowhere; leave it out, or take the feature `own-heap` of handover-plugin instead"
                ),
            )
        })
        .collect();
    if SQLITE.iter().all(has) {
        remarks.push(Remark::note(
            Topic::BundledSqlite,
            "it brings an SQLite of its own: during a drain the old and the new one have the database open, as two processes would, \
             so set a busy_timeout on each connection",
        ));
    }
    Bundled { refusal, remarks }
}
