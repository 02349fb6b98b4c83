//! The blocks that glibc's `malloc` has given out, found in memory that is only read.
//!
//! A heap of glibc's is a row of chunks without gaps. Each begins with a header of two words, the
//! second of which is its size, with three bits: the chunk before it is in use, it is a mapping of
//! its own, it is of another arena than the first. A row that is read from a right beginning
//! therefore ends where its heap ends, which no wrong beginning does but by chance.
//! (`malloc/malloc.c` of glibc, "Chunk representations".)

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

pub(super) const WORD: usize = size_of::<usize>();
/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// Where a row begins in its heap, at the latest: what glibc knows of the heap and its arena lies
/// before.
const LATEST_START: usize = 4096;
/// So many chunks one behind the other are no accident.
const CERTAIN: usize = 8;
/// The heaps of all arenas but the first begin at multiples of this.
const ARENA: usize = 64 << 20;
/// The smallest chunk.
const SMALLEST: usize = 4 * WORD;

const PREVIOUS_IN_USE: usize = 1;
const MAPPED: usize = 2;
const BITS: usize = 7;

/// The memory of this process, read in a way that fails where nothing is mapped.
pub(super) struct Memory(File);

impl Memory {
    pub(super) fn open() -> io::Result<Self> {
        File::open("/proc/self/mem").map(Self)
    }

    pub(super) fn word(&self, at: usize) -> io::Result<usize> {
        let mut word = [0; WORD];
        self.0.read_exact_at(&mut word, at as u64)?;
        Ok(usize::from_ne_bytes(word))
    }

    /// Reads the words of `range` until `look`, which is given the address and the word, says
    /// `false`, or they cannot be read.
    pub(super) fn words(&self, range: &Range<usize>, mut look: impl FnMut(usize, usize) -> bool) {
        let mut at = range.start.next_multiple_of(WORD);
        let mut buffer = vec![0; range.len().min(CHUNK)];
        while at < range.end {
            let most = (range.end - at).min(buffer.len());
            let read = self.0.read_at(&mut buffer[..most], at as u64);
            let words = buffer[..read.unwrap_or(0)].chunks_exact(WORD);
            if words.len() == 0 {
                return;
            }
            for word in words {
                if !look(
                    at,
                    usize::from_ne_bytes(word.try_into().unwrap_or_default()),
                ) {
                    return;
                }
                at += WORD;
            }
        }
    }
}

/// The chunks of one range of memory.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// What of the range is known to be chunks.
    row: Range<usize>,
    /// The blocks of it that are in use, sorted.
    in_use: Vec<Range<usize>>,
}

/// Whose an address is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In this block, which is in use.
    Block(Range<usize>),
    /// Free, or of `malloc` itself.
    Free,
    /// In memory that does not come from `malloc`.
    Elsewhere,
}

impl Blocks {
    /// Reads the chunks in `range`. `free` is the mark of free blocks that a thread keeps for
    /// itself ([`mark_of_free`]).
    pub(super) fn read(memory: &Memory, range: &Range<usize>, free: Option<usize>) -> Self {
        let starts = range
            .clone()
            .step_by(2 * WORD)
            .take(LATEST_START / (2 * WORD));
        let mut headers = Headers {
            memory,
            buffer: vec![0; CHUNK],
            read: 0..0,
        };
        starts
            .filter_map(|start| Self::row(&mut headers, start, range, free))
            .next()
            .unwrap_or_default()
    }

    /// The row that begins at `start`; none when none does.
    fn row(
        headers: &mut Headers<'_>,
        start: usize,
        range: &Range<usize>,
        free: Option<usize>,
    ) -> Option<Self> {
        let end = range.end;
        let mut in_use = Vec::new();
        let (mut at, mut chunks) = (start, 0);
        while at < end {
            // Mappings of their own may have others behind them, which are no row.
            let Some(header) = headers.at(at) else { break };
            let next = at.checked_add(header.size)?;
            if next > end {
                break; // the heap has grown since it was looked up
            }
            if header.is_mapped {
                in_use.push(at + 2 * WORD..next);
            } else {
                let is_in_use = next < end
                    && !(free.is_some() && headers.word(at + 3 * WORD) == free)
                    && headers.at(next).is_some_and(|next| next.previous_in_use);
                if is_in_use {
                    // The first word of the next header is this block's as well.
                    in_use.push(at + 2 * WORD..next + WORD);
                }
            }
            at = next;
            chunks += 1;
        }
        let certain = if range.start.is_multiple_of(ARENA) {
            2
        } else {
            CERTAIN
        };
        if at == end || chunks >= certain {
            // Before the row lies what glibc knows of the heap, after it what is not used or was
            // added meanwhile.
            return Some(Self {
                row: range.clone(),
                in_use,
            });
        }
        let is_mapped = headers.at(start).is_some_and(|header| header.is_mapped);
        (is_mapped && at > start).then_some(Self {
            row: start..at,
            in_use,
        })
    }

    pub(super) fn place(&self, address: usize) -> Place {
        if !self.row.contains(&address) {
            return Place::Elsewhere;
        }
        let next = self.in_use.partition_point(|block| block.end <= address);
        match self
            .in_use
            .get(next)
            .filter(|block| block.contains(&address))
        {
            Some(block) => Place::Block(block.clone()),
            None => Place::Free,
        }
    }
}

/// The header of a chunk.
struct Header {
    size: usize,
    is_mapped: bool,
    previous_in_use: bool,
}

/// Reads headers one after another.
struct Headers<'a> {
    memory: &'a Memory,
    buffer: Vec<u8>,
    read: Range<usize>,
}

impl Headers<'_> {
    fn word(&mut self, at: usize) -> Option<usize> {
        if at < self.read.start || at + WORD > self.read.end {
            let read = self.memory.0.read_at(&mut self.buffer, at as u64).ok()?;
            self.read = at..at + read;
        }
        let from = at.checked_sub(self.read.start)?;
        let word = self.buffer.get(from..from + WORD)?;
        (at + WORD <= self.read.end)
            .then(|| usize::from_ne_bytes(word.try_into().unwrap_or_default()))
    }

    /// The header of the chunk at `at`; none where it cannot be one.
    fn at(&mut self, at: usize) -> Option<Header> {
        let word = self.word(at + WORD)?;
        let header = Header {
            size: word & !BITS,
            is_mapped: word & MAPPED != 0,
            previous_in_use: word & PREVIOUS_IN_USE != 0,
        };
        let is_one = header.size >= SMALLEST
            && header.size.is_multiple_of(2 * WORD)
            && (!header.is_mapped || header.size.is_multiple_of(4096));
        is_one.then_some(header)
    }
}

/// The second word of free blocks that glibc (2.34 and later) keeps for the thread that freed them;
/// none where that is not known.
pub(super) fn mark_of_free(memory: &Memory) -> Option<usize> {
    let mark = || {
        // SAFETY: a block is allocated and freed; what is left of it is read as memory of the
        // process, not through the pointer.
        let address = unsafe {
            let block = libc::malloc(3 * WORD);
            libc::free(block);
            block.addr()
        };
        (address != 0).then(|| memory.word(address + WORD).ok())?
    };
    mark().filter(|first| mark() == Some(*first) && *first != 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::{super::heap, *};

    /// The anonymous mapping that `address` is in.
    fn mapping(address: usize) -> Range<usize> {
        let mappings = crate::ledger::mappings().unwrap();
        mappings
            .into_iter()
            .filter_map(super::super::anonymous)
            .find(|range| range.contains(&address))
            .unwrap()
    }

    fn read(memory: &Memory, address: usize) -> Blocks {
        Blocks::read(memory, &mapping(address), mark_of_free(memory))
    }

    #[test]
    fn a_block_is_found_by_any_address_in_it_until_it_is_freed() {
        let memory = Memory::open().unwrap();
        for size in [24, 100, 5000, 300 << 10] {
            // SAFETY: freed below, once.
            let block = unsafe { libc::malloc(size) };
            let address = block.addr();
            for at in [address, address + size / 2, address + size - 1] {
                let Place::Block(found) = read(&memory, address).place(at) else {
                    panic!("{size} bytes at {address:#x}, looked for at {at:#x}");
                };
                assert_eq!(found.start, address);
                assert!((size..size + 4200).contains(&found.len()), "{found:x?}");
            }
            // Before it is freed: what is allocated meanwhile may take its place.
            let (range, mark) = (mapping(address), mark_of_free(&memory));
            // SAFETY: allocated above.
            unsafe { libc::free(block) };
            heap::give_back_of_libc();
            let blocks = Blocks::read(&memory, &range, mark);
            let still = Place::Block(address..address + size);
            assert_ne!(blocks.place(address), still, "{size} bytes");
        }
    }

    #[test]
    fn memory_of_no_malloc_has_no_blocks() {
        let memory = Memory::open().unwrap();
        let words: [usize; 64] = std::array::from_fn(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let start = words.as_ptr().addr();
        let blocks = Blocks::read(&memory, &(start..start + size_of_val(&words)), None);
        assert_eq!(blocks.place(start + 64), Place::Elsewhere);
    }
}
