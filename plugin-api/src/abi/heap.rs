//! A heap that leaves with its plugin.
//!
//! What a plugin keeps in statics is never dropped: tokio's registry of signals, the client of a `LazyLock`, a leaked box. Its
//! statics go when it is unmapped, and with them every pointer to that memory; the memory itself stays with the process. So the
//! allocator of a plugin, where it has this one, enters each block in lists that belong to the host, and takes it out when it is
//! freed. What is left in them when the library is unmapped nobody can reach any more, and the host frees it.
//!
//! The plugin exports a [`HeapRoot`] as [`SYMBOL`], beside its tables and not in them: a plugin without one is as good, and on a host
//! that does not know it nothing is entered.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering},
};

/// The name of the static.
pub const SYMBOL: &str = "HANDOVER_HEAP";

/// The shape of [`HeapRoot`], [`Heap`] and [`Block`]; a host that knows another leaves the root alone.
const SHAPE: u32 = 1;

/// Threads that share a list may wait for each other for some instructions, so there are more than most hosts have workers.
const SHARDS: usize = 64;

/// Where a plugin finds the lists that it enters its blocks in.
#[repr(C)]
#[derive(Debug)]
pub struct HeapRoot {
    shape: AtomicU32,
    heap: AtomicPtr<Heap>,
}

/// The blocks that a plugin has allocated and not freed. It belongs to the host and outlives the library.
#[repr(C)]
#[derive(Debug)]
pub struct Heap {
    shards: [Shard; SHARDS],
}

/// The blocks that the threads of one shard allocated.
#[repr(C, align(64))]
#[derive(Debug)]
struct Shard {
    locked: AtomicBool,
    /// Changed under the lock only.
    bytes: AtomicUsize,
    /// The first block; under the lock.
    first: UnsafeCell<*mut Block>,
}

/// What lies before each block. Its links are under the lock of its shard.
#[repr(C)]
#[derive(Debug)]
struct Block {
    next: *mut Block,
    previous: *mut Block,
    /// The bytes that were asked for.
    size: usize,
    /// Its shard; [`NOWHERE`] when there was no heap yet.
    shard: u32,
    /// From the address that the system gave to the one that the plugin has.
    offset: u32,
}

const NOWHERE: u32 = u32::MAX;

// SAFETY: the list is only touched by who holds the lock of its shard.
unsafe impl Sync for Shard {}
// SAFETY: as above; the blocks belong to no thread.
unsafe impl Send for Shard {}

impl Shard {
    fn with<R>(&self, change: impl FnOnce(&mut *mut Block) -> R) -> R {
        let mut tries = 0u32;
        while self
            .locked
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            tries += 1;
            if tries.is_multiple_of(64) {
                std::thread::yield_now(); // its holder may have lost the processor
            } else {
                std::hint::spin_loop();
            }
        }
        // SAFETY: the lock is held, so this is the only reference; `change` neither panics nor comes back here.
        let answer = change(unsafe { &mut *self.first.get() });
        self.locked.store(false, Ordering::Release);
        answer
    }
}

impl Heap {
    /// Nothing.
    #[expect(
        clippy::new_without_default,
        reason = "there is one for each library, made on purpose"
    )]
    pub const fn new() -> Self {
        Self {
            shards: [const {
                Shard {
                    locked: AtomicBool::new(false),
                    bytes: AtomicUsize::new(0),
                    first: UnsafeCell::new(ptr::null_mut()),
                }
            }; SHARDS],
        }
    }

    /// The bytes that are allocated; exact while nothing allocates. Takes no lock.
    pub fn live(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| shard.bytes.load(Ordering::Relaxed) as u64)
            .sum()
    }

    /// Enters a block.
    ///
    /// # Safety
    /// The block is in no list, and stays where it is as long as it is in this one.
    unsafe fn enter(&self, block: *mut Block) {
        // The thread is told by where its stack is: a thread-local would cost a call in a library, and a destructor. Stacks of threads
        // are mapped side by side and are 2 MiB or more.
        let here = 0u8;
        let number = (ptr::from_ref(&here).addr() >> 21) % SHARDS;
        let shard = &self.shards[number];
        shard.with(|first| {
            // SAFETY: the block is the caller's; its successor is in this list, whose lock is held.
            unsafe {
                (*block).shard = number as u32;
                (*block).previous = ptr::null_mut();
                (*block).next = *first;
                // Only the link, here and below: the rest of a block may be read without the lock by who frees it.
                if !first.is_null() {
                    (**first).previous = block;
                }
                let bytes = shard.bytes.load(Ordering::Relaxed) + (*block).size;
                shard.bytes.store(bytes, Ordering::Relaxed);
            }
            *first = block;
        });
    }

    /// Takes a block out.
    ///
    /// # Safety
    /// The block is in a list of this heap.
    unsafe fn leave(&self, block: *mut Block) {
        // SAFETY: the caller's promise; nobody changes the shard of a block that is in a list.
        let shard = &self.shards[unsafe { (*block).shard } as usize];
        shard.with(|first| {
            // SAFETY: the block and its neighbours are in this list, whose lock is held.
            unsafe {
                let Block {
                    next,
                    previous,
                    size,
                    ..
                } = block.read();
                if previous.is_null() {
                    *first = next;
                } else {
                    (*previous).next = next;
                }
                if !next.is_null() {
                    (*next).previous = previous;
                }
                shard.bytes.store(
                    shard.bytes.load(Ordering::Relaxed) - size,
                    Ordering::Relaxed,
                );
            }
        });
    }

    /// Frees what is left; gives the bytes that it was.
    ///
    /// # Safety
    /// Nothing can reach the blocks any more: their plugin is unmapped.
    pub unsafe fn free_all(&self) -> u64 {
        let mut bytes = 0;
        for shard in &self.shards {
            let mut block = shard.with(|first| std::mem::replace(first, ptr::null_mut()));
            shard.bytes.store(0, Ordering::Relaxed);
            while !block.is_null() {
                // SAFETY: it was in the list, and nobody else reaches it. `System` of the plugin and `System` here are both the
                // C library's, which wants no alignment back.
                unsafe {
                    let Block {
                        next, size, offset, ..
                    } = block.read();
                    bytes += size as u64;
                    let raw = block
                        .cast::<u8>()
                        .add(size_of::<Block>())
                        .sub(offset as usize);
                    System.dealloc(
                        raw,
                        Layout::from_size_align_unchecked(size + offset as usize, 8),
                    );
                    block = next;
                }
            }
        }
        bytes
    }
}

impl HeapRoot {
    /// Without a heap.
    #[expect(clippy::new_without_default, reason = "only ever a static")]
    pub const fn new() -> Self {
        Self {
            shape: AtomicU32::new(SHAPE),
            heap: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Gives the plugin the heap that it enters its blocks in from now on. `false` when it is of another shape and has none.
    pub fn adopt(&self, heap: &'static Heap) -> bool {
        let fits = self.shape.load(Ordering::Relaxed) == SHAPE;
        if fits {
            self.heap
                .store(ptr::from_ref(heap).cast_mut(), Ordering::Release);
        }
        fits
    }

    fn heap(&self) -> Option<&'static Heap> {
        // SAFETY: null, or what `adopt` was given.
        unsafe { self.heap.load(Ordering::Acquire).as_ref() }
    }
}

/// The system's allocator, entering each block in the heap of a [`HeapRoot`].
#[derive(Debug)]
pub struct OwnHeap(pub &'static HeapRoot);

/// Room for the block's header before `layout`, at an offset that keeps the alignment. None when that is too large.
fn with_header(layout: Layout) -> Option<(Layout, usize)> {
    let offset = size_of::<Block>().max(layout.align());
    u32::try_from(offset).ok()?;
    let size = layout.size().checked_add(offset)?;
    let align = layout.align().max(align_of::<Block>());
    Some((Layout::from_size_align(size, align).ok()?, offset))
}

impl OwnHeap {
    /// Writes the header of a block that the system gave, and enters it. Gives the address for the plugin.
    ///
    /// # Safety
    /// `raw` is null or allocated with `offset` and `size` bytes.
    unsafe fn given(&self, raw: *mut u8, offset: usize, size: usize) -> *mut u8 {
        if raw.is_null() {
            return raw;
        }
        // SAFETY: the header lies before `offset` in the allocation, aligned since offset and size of the header are multiples of 8.
        unsafe {
            let given = raw.add(offset);
            let block = header(given);
            block.write(Block {
                next: ptr::null_mut(),
                previous: ptr::null_mut(),
                size,
                shard: NOWHERE,
                offset: offset as u32,
            });
            if let Some(heap) = self.0.heap() {
                heap.enter(block);
            }
            given
        }
    }

    /// Takes the block out of its list.
    ///
    /// # Safety
    /// `block` was written by `given`.
    unsafe fn taken(&self, block: *mut Block) {
        // SAFETY: the caller's promise.
        unsafe {
            if (*block).shard != NOWHERE
                && let Some(heap) = self.0.heap()
            {
                heap.leave(block);
            }
        }
    }
}

/// # Safety
/// `given` came from [`OwnHeap::given`], or is about to.
unsafe fn header(given: *mut u8) -> *mut Block {
    // SAFETY: the header lies before it.
    unsafe { given.cast::<Block>().sub(1) }
}

// SAFETY: every block comes from `System`, with room before it for a header; size and alignment of what the caller sees are as asked.
unsafe impl GlobalAlloc for OwnHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((whole, offset)) = with_header(layout) else {
            return ptr::null_mut();
        };
        // SAFETY: the layout has a size; the block is what was allocated.
        unsafe { self.given(System.alloc(whole), offset, layout.size()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some((whole, offset)) = with_header(layout) else {
            return ptr::null_mut();
        };
        // SAFETY: as above.
        unsafe { self.given(System.alloc_zeroed(whole), offset, layout.size()) }
    }

    unsafe fn dealloc(&self, given: *mut u8, layout: Layout) {
        let Some((whole, offset)) = with_header(layout) else {
            return;
        };
        // SAFETY: allocated by `alloc` with the same layout.
        unsafe {
            self.taken(header(given));
            System.dealloc(given.sub(offset), whole);
        }
    }

    unsafe fn realloc(&self, given: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (Some((whole, offset)), Some(new)) = (
            with_header(layout),
            size.checked_add(size_of::<Block>().max(layout.align())),
        ) else {
            return ptr::null_mut();
        };
        // SAFETY: allocated by `alloc` with the same layout; out of the list while it may move. When the system fails, the old block
        // is as it was and goes back into the list.
        unsafe {
            self.taken(header(given));
            let raw = System.realloc(given.sub(offset), whole, new);
            if raw.is_null() {
                self.given(given.sub(offset), offset, layout.size());
                return ptr::null_mut();
            }
            self.given(raw, offset, size)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).expect("it is one")
    }

    #[test]
    fn what_is_not_freed_is_left_and_can_be_freed_by_the_host() {
        static ROOT: HeapRoot = HeapRoot::new();
        let heap: &'static Heap = Box::leak(Box::new(Heap::new()));
        let own = OwnHeap(&ROOT);
        // SAFETY: sizes are not zero, blocks are freed once with their layouts, and those left are not used again.
        unsafe {
            let early = own.alloc(layout(10, 1));
            assert!(ROOT.adopt(heap));
            let [a, b, c] = [1, 16, 4096].map(|align| {
                let block = own.alloc_zeroed(layout(100, align));
                assert_eq!(block.addr() % align, 0);
                assert_eq!(block.read(), 0);
                block.write_bytes(7, 100);
                block
            });
            assert_eq!(heap.live(), 300);
            own.dealloc(early, layout(10, 1));
            let b = own.realloc(b, layout(100, 16), 100_000);
            assert_eq!(b.add(99).read(), 7);
            assert_eq!(heap.live(), 100_200);
            own.dealloc(a, layout(100, 1));
            assert_eq!(c.read(), 7);
            assert_eq!(heap.live(), 100_100);
            assert_eq!(heap.free_all(), 100_100);
            assert_eq!(heap.live(), 0);
        }
    }

    #[test]
    fn blocks_are_freed_by_other_threads() {
        static ROOT: HeapRoot = HeapRoot::new();
        let heap: &'static Heap = Box::leak(Box::new(Heap::new()));
        assert!(ROOT.adopt(heap));
        let rounds = if cfg!(miri) { 50 } else { 20_000 };
        let (give, take) = std::sync::mpsc::channel::<usize>();
        let giver = std::thread::spawn(move || {
            for n in 0..rounds {
                // SAFETY: the size is not zero.
                let block = unsafe { OwnHeap(&ROOT).alloc(layout(n % 100 + 1, 8)) };
                give.send(block.expose_provenance())
                    .expect("the other thread listens");
            }
        });
        for (n, block) in take.iter().enumerate() {
            // SAFETY: allocated by the other thread with this layout.
            unsafe {
                OwnHeap(&ROOT).dealloc(
                    ptr::with_exposed_provenance_mut(block),
                    layout(n % 100 + 1, 8),
                )
            };
        }
        giver.join().expect("it does not panic");
        assert_eq!(heap.live(), 0);
    }
}
