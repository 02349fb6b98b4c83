//! The heap of one load of a library: made before its constructors run, freed whole after it is
//! unmapped.
//!
//! Each is a heap of mimalloc's: any thread allocates in it, any thread frees, a thread that ends
//! leaves its blocks in it, and `mi_heap_destroy` gives all of it back at once, whoever allocated
//! it. What the host itself allocates comes from another heap of the same mimalloc.
//!
//! mimalloc takes blocks from arenas, large parts of the address space that it keeps, and only what
//! lies in one is counted and freed with its heap. What does not: a single block of more than
//! [`IN_ARENAS`], and what is allocated while the system gives no address space for another arena.

use std::{
    ffi::c_void,
    mem::transmute,
    ptr::{self, NonNull},
    sync::{Mutex, MutexGuard, Once, PoisonError, RwLock, RwLockReadGuard},
};

use handover_plugin::abi::heap::{self, Heap, HeapRoot};
use libloading::os::unix as dl;
use libmimalloc_sys as mi;

use super::mapped::{self, Object};
use crate::process;

/// A heap, and the table by which a library uses it. Dropping it leaves both for the life of the
/// process.
#[derive(Debug)]
pub(super) struct OwnHeap(NonNull<Heap>);

// SAFETY: the table is only read, and its functions are for any thread.
unsafe impl Send for OwnHeap {}
// SAFETY: as above.
unsafe impl Sync for OwnHeap {}

/// The largest block that comes from an arena, in KiB. By itself mimalloc maps those of more than 2
/// GiB one by one; 15 GiB is what an arena can hold.
const IN_ARENAS: i64 = 15 << 20;

/// `mi_option_arena_max_object_size`, which the bindings do not name yet.
const MAX_OBJECT_SIZE: mi::mi_option_t = 45;
const _: () = assert!(
    mi::_mi_option_last == 47,
    "the options of this mimalloc are others: look at its mimalloc.h",
);

/// All heaps that there are. Held while they are looked at, so that none goes meanwhile;
/// by many at once, as workers are among them.
static HEAPS: RwLock<Vec<SharedHeap>> = RwLock::new(Vec::new());

/// A heap of mimalloc's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct SharedHeap(NonNull<mi::mi_heap_t>);

// SAFETY: any thread may use such a heap.
unsafe impl Send for SharedHeap {}
// SAFETY: several at a time, too: each allocates and collects in a part of its own, and looking at
// all parts only reads counts.
unsafe impl Sync for SharedHeap {}

/// The heap for the library that is being mapped. One is mapped at a time.
static GRANT: Mutex<Option<Granted>> = Mutex::new(None);

/// What is offered, and to whom.
#[derive(Debug)]
struct Granted {
    heap: OwnHeap,
    /// The name that the dynamic linker will know the library by.
    name: Vec<u8>,
    /// The library has been told where the heap is.
    is_told: bool,
}

/// The library that is mapped next gets a heap of its own, from now until this is taken or
/// withdrawn. Dropping it leaves the heap for the life of the process.
#[derive(Debug)]
pub(super) struct HeapGrant(());

impl HeapGrant {
    /// Makes the heap for the library that will be mapped as `name`. It gets none where there is no
    /// memory for that.
    pub(super) fn to(name: &str) -> Self {
        *grant() = OwnHeap::new().map(|heap| Granted {
            heap,
            name: name.as_bytes().to_vec(),
            is_told: false,
        });
        Self(())
    }

    /// Gives the heap to `library`, which is mapped as `object`, unless a constructor of it has
    /// asked for it before. None when it was built without a heap of its own.
    pub(super) fn take(self, library: &dl::Library, object: &Object) -> Option<OwnHeap> {
        let Granted { heap, is_told, .. } = grant().take()?;
        // SAFETY: asks for the address only.
        let root = unsafe { library.get::<*const HeapRoot>(heap::SYMBOL.as_bytes()) };
        let root = root.ok().and_then(|root| {
            // SAFETY: a static of the library under a name that only handover-plugin gives; the
            // library is mapped.
            unsafe { root_in(root.as_raw_ptr().cast(), object) }
        });
        // SAFETY: made by `new`; only `destroy` frees it, after the library is unmapped.
        let is_used = root.is_some_and(|root| root.adopt(unsafe { heap.0.as_ref() }));
        if is_used {
            return Some(heap);
        }
        if !is_told {
            // SAFETY: the library has not heard of it, and cannot any more.
            unsafe { heap.destroy() };
        }
        None
    }

    /// Takes it back: nothing was mapped.
    pub(super) fn withdraw(self) {
        let granted = grant().take();
        if let Some(Granted {
            heap,
            is_told: false,
            ..
        }) = granted
        {
            // SAFETY: nobody has heard of it.
            unsafe { heap.destroy() };
        }
    }
}

impl Drop for HeapGrant {
    fn drop(&mut self) {
        grant().take();
    }
}

fn grant() -> MutexGuard<'static, Option<Granted>> {
    GRANT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The root at `address`, if it lies in `object`.
///
/// # Safety
/// Whatever lies there in the object is a root, and is mapped for as long as the answer is used.
unsafe fn root_in<'a>(address: *const HeapRoot, object: &Object) -> Option<&'a HeapRoot> {
    let is_inside = address.is_aligned()
        && object.range.contains(&address.addr())
        && object.range.end - address.addr() >= size_of::<HeapRoot>();
    // SAFETY: any bytes are a root, since it consists of atomic values; the rest is the caller's
    // promise.
    is_inside.then(|| unsafe { &*address })
}

/// What a plugin asks when it allocates in a constructor: `heap::Ask`.
///
/// # Safety
/// `root` is a root that is mapped, or null.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn handover_heap(root: *const HeapRoot) -> *const Heap {
    let mut grant = grant();
    let Some(granted) = grant.as_mut() else {
        return ptr::null();
    };
    // Only the library that it was made for: one that a constructor opens may stay when that is
    // unmapped.
    let objects = mapped::objects();
    let asks = objects
        .iter()
        .filter(|object| object.name == granted.name)
        // SAFETY: the caller's promise.
        .find_map(|object| unsafe { root_in(root, object) });
    if !asks.is_some_and(HeapRoot::fits) {
        return ptr::null();
    }
    granted.is_told = true;
    granted.heap.0.as_ptr()
}

/// Whether `address` lies in memory of mimalloc's: of the host, or of the heap of a library.
pub(super) fn is_ours(address: usize) -> bool {
    // SAFETY: looks the address up, without reading what is there.
    unsafe { mi::mi_is_in_heap_region(address as *const c_void) }
}

impl OwnHeap {
    /// An empty heap. None when there is no memory for it.
    fn new() -> Option<Self> {
        static SET_UP: Once = Once::new();
        // SAFETY: may be called at any time, on any thread.
        SET_UP.call_once(|| unsafe { mi::mi_option_set(MAX_OBJECT_SIZE, IN_ARENAS) });
        // SAFETY: as above.
        let heap = NonNull::new(unsafe { mi::mi_heap_new() })?;
        change_heaps(|heaps| heaps.push(SharedHeap(heap)));
        Some(Self(NonNull::from(Box::leak(Box::new(table(heap))))))
    }

    fn heap(&self) -> *mut mi::mi_heap_t {
        // SAFETY: made by `new`, and freed by `destroy`, which takes `self`.
        unsafe { self.0.as_ref() }.heap.cast()
    }

    /// The bytes that are allocated in it, rounded up to the sizes that it gives blocks in. While
    /// threads allocate in it, it is what each part of it had at some moment.
    pub(super) fn live(&self) -> u64 {
        // SAFETY: it is there.
        unsafe { live(self.heap()) }
    }

    /// Frees all that is left in it. Returns what that was, in bytes.
    ///
    /// # Safety
    /// Nobody uses a block of it, or the table, any more: the library is unmapped.
    pub(super) unsafe fn destroy(self) -> u64 {
        // What other threads freed last is still counted until its page is looked at, so each block
        // is asked for.
        let mut bytes = 0u64;
        change_heaps(|heaps| heaps.retain(|heap| heap.0.as_ptr() != self.heap()));
        // SAFETY: the heap is there, and nobody else uses it; the table was boxed by `new`.
        unsafe {
            mi::mi_heap_visit_blocks(self.heap(), true, Some(add_block), (&raw mut bytes).cast());
            mi::mi_heap_destroy(self.heap());
            drop(Box::from_raw(self.0.as_ptr()));
            // Back to the system now, not when somebody allocates next.
            mi::mi_collect(true);
        }
        bytes
    }
}

fn heaps() -> RwLockReadGuard<'static, Vec<SharedHeap>> {
    HEAPS.read().unwrap_or_else(PoisonError::into_inner)
}

fn change_heaps(change: impl FnOnce(&mut Vec<SharedHeap>)) {
    change(&mut HEAPS.write().unwrap_or_else(PoisonError::into_inner));
}

/// The bytes that are allocated in `heap`.
///
/// # Safety
/// The heap is there.
unsafe fn live(heap: *mut mi::mi_heap_t) -> u64 {
    let mut bytes = 0u64;
    // SAFETY: the caller's promise, and the visitor takes the number as what it is. Only counts are
    // read, of pages in arenas, which stay mapped whatever other threads free meanwhile.
    unsafe { mi::mi_heap_visit_blocks(heap, false, Some(add), (&raw mut bytes).cast()) };
    bytes
}

/// The private memory of the process outside of all heaps of libraries, after what is free has gone
/// back to the system.
///
/// Threads that allocate from the C library may wait meanwhile: giving back takes some 0.2 ms for
/// each MiB that is free in pieces.
pub(super) fn private_bytes_outside() -> u64 {
    give_back();
    // SAFETY: who destroys one takes it out first.
    let counted = |heap: &SharedHeap| unsafe { live(heap.0.as_ptr()) };
    let inside: u64 = heaps().iter().map(counted).sum();
    process::private_bytes().saturating_sub(inside)
}

/// Gives what is free back to the system. Threads that allocate from the C library may wait
/// meanwhile.
pub(crate) fn give_back() {
    give_back_of_libc();
    give_back_of_heaps();
}

/// Gives back what is free in the heaps of the C library, and makes whole what lies in pieces
/// there. Threads that allocate from it may wait meanwhile.
pub(super) fn give_back_of_libc() {
    // SAFETY: may be called at any time, on any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Makes free what others freed of what this thread has allocated, from heaps of libraries and from
/// the host's own.
pub(crate) fn collect_here() {
    // SAFETY: it looks at what is this thread's own.
    unsafe { mi::mi_collect(false) };
    // Held, so that none goes meanwhile.
    for heap in heaps().iter() {
        // SAFETY: who destroys one takes it out first; it looks at what is this thread's own.
        unsafe { mi::mi_heap_collect(heap.0.as_ptr(), true) };
    }
}

/// Gives back what is free in the heaps of libraries. Nobody waits for that.
pub(crate) fn give_back_of_heaps() {
    // SAFETY: as above.
    unsafe { mi::mi_collect(true) };
}

/// The bytes that the C library has and nobody has of it, those included that were given back and
/// whose addresses it has still.
pub(crate) fn free_bytes() -> u64 {
    // SAFETY: as above.
    unsafe { libc::mallinfo2() }.fordblks as u64
}

/// The functions of `heap`: mimalloc's own, without one of ours between.
fn table(heap: NonNull<mi::mi_heap_t>) -> Heap {
    type Sized<T> = unsafe extern "C" fn(*mut T, usize) -> *mut c_void;
    type Changed<T> = unsafe extern "C" fn(*mut T, *mut c_void, usize) -> *mut c_void;
    type Aligned<T> = unsafe extern "C" fn(*mut T, usize, usize) -> *mut c_void;
    type Both<T> = unsafe extern "C" fn(*mut T, *mut c_void, usize, usize) -> *mut c_void;
    type Its = mi::mi_heap_t;
    // SAFETY: in all of them only what the first argument points to has another name; it is handed
    // on as it is.
    unsafe {
        Heap {
            heap: heap.as_ptr().cast(),
            malloc: transmute::<Sized<Its>, Sized<c_void>>(mi::mi_heap_malloc),
            zalloc: transmute::<Sized<Its>, Sized<c_void>>(mi::mi_heap_zalloc),
            realloc: transmute::<Changed<Its>, Changed<c_void>>(mi::mi_heap_realloc),
            malloc_aligned: transmute::<Aligned<Its>, Aligned<c_void>>(mi::mi_heap_malloc_aligned),
            zalloc_aligned: transmute::<Aligned<Its>, Aligned<c_void>>(mi::mi_heap_zalloc_aligned),
            realloc_aligned: transmute::<Both<Its>, Both<c_void>>(mi::mi_heap_realloc_aligned),
            free: mi::mi_free,
        }
    }
}

/// Adds the blocks of an area that are in use.
///
/// # Safety
/// `bytes` points to a number.
unsafe extern "C" fn add(
    _: *const mi::mi_heap_t,
    area: *const mi::mi_heap_area_t,
    _: *mut c_void,
    size: usize,
    bytes: *mut c_void,
) -> bool {
    // SAFETY: the area is mimalloc's, valid during the call; the rest is the caller's promise. In
    // mimalloc 3 `used` counts blocks.
    unsafe { *bytes.cast::<u64>() += ((*area).used * size) as u64 };
    true
}

/// Adds one block.
///
/// # Safety
/// `bytes` points to a number.
unsafe extern "C" fn add_block(
    _: *const mi::mi_heap_t,
    _: *const mi::mi_heap_area_t,
    block: *mut c_void,
    size: usize,
    bytes: *mut c_void,
) -> bool {
    if !block.is_null() {
        // SAFETY: the caller's promise.
        unsafe { *bytes.cast::<u64>() += size as u64 };
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{sync::mpsc, thread};

    use super::*;

    const MIB: usize = 1 << 20;

    /// Held by who takes much memory, and by who looks how much the process has.
    static MEMORY: Mutex<()> = Mutex::new(());

    fn heap() -> (OwnHeap, &'static Heap) {
        let heap = OwnHeap::new().unwrap();
        // SAFETY: made just now; the tests use it until they destroy the heap.
        let table = unsafe { heap.0.as_ref() };
        (heap, table)
    }

    /// A block, and what it must hold.
    struct Block {
        address: usize,
        size: usize,
        align: usize,
        byte: u8,
    }

    impl Block {
        fn pointer(&self) -> *mut u8 {
            ptr::with_exposed_provenance_mut(self.address)
        }

        fn fill(self) -> Self {
            assert_eq!(self.address % self.align, 0, "{} bytes", self.size);
            // SAFETY: it is that large.
            unsafe { self.pointer().write_bytes(self.byte, self.size) };
            self
        }

        fn check(&self, size: usize) {
            // SAFETY: it is that large, and was filled.
            let bytes = unsafe { std::slice::from_raw_parts(self.pointer(), size) };
            assert!(bytes.iter().all(|byte| *byte == self.byte));
        }
    }

    /// Numbers that look random, the same each time.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % end as u64) as usize
        }

        /// Mostly small ones, as programs have them.
        fn size(&mut self) -> usize {
            let most = [16, 64, 200, 1000, 9000, 100_000, 2 * MIB];
            let class = self.below(most.len());
            1 + self.below(most[class])
        }
    }

    fn allocate(table: &Heap, dice: &mut Dice) -> Block {
        let (size, byte) = (dice.size(), dice.below(255) as u8);
        let align = 1 << dice.below(14);
        let is_plain = align <= 16 && align <= size;
        // SAFETY: the functions of a heap that is there.
        let (address, is_zeroed) = unsafe {
            match (is_plain, dice.below(2)) {
                (true, 0) => ((table.malloc)(table.heap, size), false),
                (true, _) => ((table.zalloc)(table.heap, size), true),
                (false, 0) => ((table.malloc_aligned)(table.heap, size, align), false),
                (false, _) => ((table.zalloc_aligned)(table.heap, size, align), true),
            }
        };
        let mut block = Block {
            address: address.expose_provenance(),
            size,
            align,
            byte: 0,
        };
        if is_zeroed {
            block.check(size);
        }
        block.byte = byte;
        block.fill()
    }

    fn change(table: &Heap, block: Block, dice: &mut Dice) -> Block {
        let (size, old) = (dice.size(), block.pointer().cast());
        let address = if block.align <= 16 && block.align <= size {
            // SAFETY: the block is of this heap, and is not used by its old address any more.
            unsafe { (table.realloc)(table.heap, old, size) }
        } else {
            // SAFETY: as above.
            unsafe { (table.realloc_aligned)(table.heap, old, size, block.align) }
        };
        let kept = block.size.min(size);
        let block = Block {
            address: address.expose_provenance(),
            size,
            ..block
        };
        block.check(kept);
        block.fill()
    }

    fn free(table: &Heap, block: &Block) {
        block.check(block.size);
        // SAFETY: the block is of some heap, and freed once.
        unsafe { (table.free)(block.pointer().cast()) };
    }

    /// Threads allocate, change and free blocks of several heaps, their own and each other's, and
    /// end; what they keep at the end is whole until its heap is destroyed, and is what that says
    /// was left.
    #[test]
    fn blocks_of_many_heaps_go_from_thread_to_thread_and_are_freed_whole() {
        let _memory = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
        let heaps: Vec<_> = (0..3).map(|_| heap()).collect();
        let tables: Vec<_> = heaps.iter().map(|(_, table)| *table).collect();
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..4).map(|_| mpsc::channel::<(usize, Block)>()).unzip();
        let threads: Vec<_> = receivers
            .into_iter()
            .enumerate()
            .map(|(number, receiver)| {
                let (senders, tables) = (senders.clone(), tables.clone());
                thread::spawn(move || {
                    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 + number as u64);
                    let mut blocks = Vec::new();
                    for _ in 0..1000 {
                        let which = dice.below(tables.len());
                        blocks.extend(receiver.try_iter());
                        match dice.below(8) {
                            0..4 => blocks.push((which, allocate(tables[which], &mut dice))),
                            _ if blocks.is_empty() => {}
                            4 => {
                                let at = dice.below(blocks.len());
                                let (which, block) = blocks.swap_remove(at);
                                blocks.push((which, change(tables[which], block, &mut dice)));
                            }
                            5 => {
                                let (which, block) = blocks.pop().unwrap();
                                let to = dice.below(senders.len());
                                if let Err(returned) = senders[to].send((which, block)) {
                                    blocks.push(returned.0); // that thread has ended
                                }
                            }
                            _ => {
                                let at = dice.below(blocks.len());
                                let (which, block) = blocks.swap_remove(at);
                                free(tables[which], &block);
                            }
                        }
                    }
                    drop(senders);
                    (blocks, receiver)
                })
            })
            .collect();
        drop(senders);
        let mut left = Vec::new();
        for thread in threads {
            let (blocks, receiver) = thread.join().unwrap();
            left.extend(blocks);
            left.extend(receiver.iter());
        }
        assert!(left.len() > 100);
        for (number, (heap, _)) in heaps.into_iter().enumerate() {
            let own = left.iter().filter(|(which, _)| *which == number);
            let own: Vec<_> = own.map(|(_, block)| block).collect();
            own.iter().for_each(|block| block.check(block.size));
            let bytes: usize = own.iter().map(|block| block.size).sum();
            let live = heap.live();
            // SAFETY: nobody uses its blocks any more; those of the others stay.
            let freed = unsafe { heap.destroy() };
            // Blocks come in sizes, the distance between two of which is an eighth.
            let most = bytes + bytes / 4 + own.len() * 8192;
            assert!(
                (bytes..most).contains(&(freed as usize)),
                "{bytes} {freed} {most}"
            );
            assert!(live >= freed, "{live} {freed}");
        }
    }

    #[test]
    fn a_thread_that_is_in_no_heap_any_more_goes_on_in_the_next() {
        let (sender, receiver) = mpsc::channel::<&'static Heap>();
        let (done, is_done) = mpsc::channel();
        let worker = thread::spawn(move || {
            for table in receiver {
                // SAFETY: the heap is there until this answers.
                unsafe { (table.malloc)(table.heap, 100) };
                done.send(()).unwrap();
            }
        });
        for _ in 0..200 {
            let (heap, table) = heap();
            sender.send(table).unwrap();
            is_done.recv().unwrap();
            assert_eq!(heap.live(), 112);
            // SAFETY: the worker has let go of it.
            assert_eq!(unsafe { heap.destroy() }, 112);
        }
        drop(sender);
        worker.join().unwrap();
    }

    #[test]
    fn a_block_of_gigabytes_is_counted_and_freed() {
        let (heap, table) = heap();
        // SAFETY: the functions of a heap that is there; nothing is written.
        let block = unsafe { (table.malloc)(table.heap, 3 << 30) };
        assert!(!block.is_null());
        assert!(heap.live() >= 3 << 30);
        // SAFETY: nobody uses it.
        assert!(unsafe { heap.destroy() } >= 3 << 30);
    }

    #[test]
    fn what_is_left_goes_back_to_the_system() {
        let _memory = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("Anonymous:"))
                .unwrap();
            let number = line.trim().strip_suffix(" kB").unwrap();
            number.parse::<usize>().unwrap() * 1024
        };
        let (heap, table) = heap();
        let begin = resident();
        for n in 0..64 * MIB / 4096 {
            // SAFETY: the functions of a heap that is there.
            unsafe {
                (table.malloc)(table.heap, 4096)
                    .cast::<u8>()
                    .write_bytes(n as u8, 4096)
            };
        }
        let most = resident();
        assert!(most > begin + 32 * MIB, "{begin} {most}");
        // SAFETY: nobody uses it.
        unsafe { heap.destroy() };
        // The other tests of this process have some, too.
        assert!(resident() + 32 * MIB < most, "{most} {}", resident());
    }

    #[test]
    fn only_the_library_that_it_was_made_for_gets_an_offer() {
        let root = HeapRoot::new();
        // SAFETY: the root is there.
        assert!(unsafe { handover_heap(&root) }.is_null());
    }
}
