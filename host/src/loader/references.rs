//! The pointers to a library that shared libraries which came along keep: callbacks, method tables,
//! names.
//!
//! Such a shared library (OpenSSL, GLib, ONNX Runtime, …) is mapped once for all generations. A
//! function that a generation gave it lies in the shared library's own memory, where nobody asks
//! libc, and is called when the generation may be gone. So its memory is followed as a conservative
//! garbage collector does: from its writable segments, through every word that may be a pointer,
//! into the blocks of `malloc` and of anonymous mappings. Memory that cannot be reached from there,
//! freed blocks above all, may point anywhere.
//!
//! Not followed: the libraries that the host itself is linked with, thread-locals and the stacks of
//! threads, the heaps of the host and of a generation, and what the dynamic linker knows of each
//! library.

mod blocks;

use std::{
    cell::OnceCell,
    collections::HashSet,
    ffi::c_void,
    ops::Range,
    ptr,
    sync::OnceLock,
    time::{Duration, Instant},
};

use self::blocks::{Blocks, Memory, Place, WORD};
use super::{
    heap,
    mapped::{self, Object},
};
use crate::ledger::{self, Mapping};

/// What a shared library keeps of a library.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    /// Where the pointer lies, and the pointer; none when there was too much to look for it.
    pointer: Option<(usize, usize)>,
    found: Instant,
    sentence: String,
}

/// More than this is not read, in bytes: the library stays mapped then.
const TOO_MUCH: usize = 1 << 30;
/// How much is read from a pointer on that points into memory of another allocator than libc's,
/// mostly of small objects.
const WINDOW: usize = 512;
/// A reference that is still where it was found is not looked for again for so long.
const LOOKED_FOR_EVERY: Duration = Duration::from_secs(60);
/// Of `dlfcn.h`: the record of the object that an address is in.
const RTLD_DL_LINKMAP: libc::c_int = 2;

/// Where the host and the libraries that it is linked with are mapped.
static HOSTS: OnceLock<Vec<usize>> = OnceLock::new();

/// Says that `objects` are all that is mapped before the first library is loaded. Later calls say
/// nothing.
pub(super) fn note_host(objects: &[Object]) {
    HOSTS.get_or_init(|| objects.iter().map(|object| object.base).collect());
}

/// A pointer into the library that the dynamic linker knows as `name` which a shared library that
/// came along can reach; none when there is no such pointer, and when the kernel does not show the
/// memory of this process.
pub(super) fn to(name: &str) -> Option<Reference> {
    let objects = mapped::objects();
    let hosts = HOSTS.get()?;
    let library = objects
        .iter()
        .find(|object| object.name == name.as_bytes())?;
    let shared: Vec<_> = objects
        .iter()
        .filter(|object| !hosts.contains(&object.base) && !ledger::is_library(object.base))
        .filter(|object| object.base != library.base)
        .collect();
    if shared.is_empty() {
        return None;
    }
    Following::begin(&objects)?.reference(library, &shared)
}

impl Reference {
    fn now(pointer: Option<(usize, usize)>, sentence: String) -> Self {
        Self {
            pointer,
            found: Instant::now(),
            sentence,
        }
    }

    /// Whether it is where it was found, and was looked for not long ago.
    pub(super) fn is_recent(&self) -> bool {
        let is_there = |(at, value)| {
            let word = Memory::open().and_then(|memory| memory.word(at));
            word.is_ok_and(|word| word == value)
        };
        self.found.elapsed() < LOOKED_FOR_EVERY && self.pointer.is_none_or(is_there)
    }

    /// The reference, for people.
    pub(super) fn sentence(&self) -> &str {
        &self.sentence
    }
}

/// What is followed.
struct Following {
    memory: Memory,
    /// Anonymous memory that may be written, sorted: heaps, for the most part.
    heaps: Vec<(Range<usize>, OnceCell<Blocks>)>,
    mark_of_free: Option<usize>,
    /// What the dynamic linker knows of each object: it points to all the others.
    link_maps: HashSet<usize>,
}

impl Following {
    fn begin(objects: &[Object]) -> Option<Self> {
        // Small blocks that were freed a moment ago are not told from others before that.
        heap::give_back_of_libc();
        let memory = Memory::open().ok()?;
        let threads = ledger::thread_records();
        let heaps = ledger::mappings()
            .ok()?
            .into_iter()
            .filter_map(anonymous)
            .map(|range| above_stack(range, &threads))
            .flat_map(|range| without(range, objects))
            .map(|range| (range, OnceCell::new()))
            .collect();
        Some(Self {
            heaps,
            mark_of_free: blocks::mark_of_free(&memory),
            memory,
            link_maps: objects.iter().filter_map(link_map).collect(),
        })
    }

    fn reference(&self, library: &Object, shared: &[&Object]) -> Option<Reference> {
        let mut seen = HashSet::new();
        let mut read = 0;
        for holder in shared {
            let mut waiting = holder.writable.clone();
            while let Some(block) = waiting.pop() {
                read += block.len();
                if read > TOO_MUCH {
                    let sentence = format!(
                        "{} has more than {} GiB that would have to be searched for pointers to it",
                        holder.short_name(),
                        TOO_MUCH >> 30
                    );
                    return Some(Reference::now(None, sentence));
                }
                let mut found = None;
                self.memory.words(&block, |at, word| {
                    if library.range.contains(&word) {
                        found = Some((at, word));
                    } else if !self.link_maps.contains(&word)
                        && let Some(block) = self.block(word)
                        && seen.insert(block.start)
                    {
                        waiting.push(block);
                    }
                    found.is_none()
                });
                if let Some((_, value)) = found {
                    let sentence = format!(
                        "{holder} keeps a pointer to it (to {:#x} of its file) and may call it: take the callback back, or shut {holder} \
                         down, when the app is dropped",
                        value - library.base,
                        holder = holder.short_name(),
                    );
                    return Some(Reference::now(found, sentence));
                }
            }
        }
        None
    }

    /// The block that `pointer` points into; none where that is no memory to be followed.
    fn block(&self, pointer: usize) -> Option<Range<usize>> {
        let next = self.heaps.partition_point(|(heap, _)| heap.end <= pointer);
        let (heap, blocks) = self
            .heaps
            .get(next)
            .filter(|(heap, _)| heap.contains(&pointer))?;
        if heap::is_ours(pointer) {
            return None;
        }
        let blocks = blocks.get_or_init(|| Blocks::read(&self.memory, heap, self.mark_of_free));
        match blocks.place(pointer) {
            Place::Block(block) if self.link_maps.contains(&block.start) => None,
            Place::Block(block) => Some(block),
            Place::Free => None,
            Place::Elsewhere => {
                let end = heap.end.min(pointer.saturating_add(WINDOW));
                Some(pointer & !(WORD - 1)..end)
            }
        }
    }
}

/// The range of `mapping` if it is private memory of no file that may be written.
fn anonymous(mapping: Mapping) -> Option<Range<usize>> {
    let is_heap = ["", "[heap]"].contains(&&*mapping.name) || mapping.name.starts_with("[anon");
    let is_data = mapping.is_writable && !mapping.is_code && mapping.is_private;
    (is_data && mapping.inode == 0 && is_heap).then_some(mapping.range)
}

/// The part of `range` above the stacks in it, which end with the `threads` of glibc.
fn above_stack(range: Range<usize>, threads: &[Range<usize>]) -> Range<usize> {
    let stacks = threads
        .iter()
        .filter(|record| range.contains(&record.start));
    let start = stacks.map(|record| record.end).max().unwrap_or(range.start);
    start.min(range.end)..range.end
}

/// `range` without what is mapped of `objects`.
fn without(range: Range<usize>, objects: &[Object]) -> Vec<Range<usize>> {
    let mut rest = vec![range];
    for Object { range: taken, .. } in objects {
        rest = rest
            .into_iter()
            .flat_map(|range| {
                [
                    range.start..range.end.min(taken.start),
                    range.start.max(taken.end)..range.end,
                ]
            })
            .filter(|range| !range.is_empty())
            .collect();
    }
    rest
}

/// The dynamic linker's record of `object`.
fn link_map(object: &Object) -> Option<usize> {
    let mut info = libc::Dl_info {
        dli_fname: ptr::null(),
        dli_fbase: ptr::null_mut(),
        dli_sname: ptr::null(),
        dli_saddr: ptr::null_mut(),
    };
    let mut record = ptr::null_mut::<c_void>();
    // SAFETY: asks whose an address is, mapped or not; there is room for both answers.
    let answer = unsafe {
        libc::dladdr1(
            object.range.start as *const c_void,
            &raw mut info,
            &raw mut record,
            RTLD_DL_LINKMAP,
        )
    };
    (answer != 0).then(|| record.addr())
}
