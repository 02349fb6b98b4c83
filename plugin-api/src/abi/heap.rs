//! A heap that leaves with its plugin.
//!
//! What a plugin keeps in statics is never dropped: tokio's registry of signals, the client of a
//! `LazyLock`, a leaked box. Its statics go when it is unmapped, and with them every pointer to
//! that memory; the memory itself stays with the process. So a plugin's global allocator, where it
//! is [`OwnHeap`], takes every block from a heap that the host made for this one load of the
//! library. When the library is unmapped nobody can reach what is left in that heap, and the host
//! frees it whole.
//!
//! Two names cross, beside the tables and not in them: the plugin exports a [`HeapRoot`] as
//! [`SYMBOL`], which the host fills in as soon as the library is mapped; and the host exports the
//! function [`HOST_SYMBOL`], which the plugin asks when it allocates before that, in a constructor.
//! So all blocks of a library come from one allocator, and none has to say which. A plugin without
//! a root is as good; without a host, in its own tests, and on a host of another [`HeapRoot`]
//! shape, it uses the system's allocator.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ffi::{CStr, c_void},
    ptr,
    sync::atomic::{AtomicPtr, AtomicU32, Ordering},
};

/// The name of the plugin's static, a [`HeapRoot`].
pub const SYMBOL: &str = "HANDOVER_HEAP";

/// The name of the host's function, an [`Ask`].
pub const HOST_SYMBOL: &CStr = c"handover_heap";

/// The shape of [`HeapRoot`] and [`Heap`]; a host that knows another leaves the root alone.
const SHAPE: u32 = 2;

/// Every block that [`Heap::malloc`] gives for at least as many bytes is aligned to as many as
/// this.
const ALIGNED: usize = 16;

/// Returns the heap of the library that the calling thread loads, if `root` lies in it and is of a
/// shape that the host knows; else null.
pub type Ask = unsafe extern "C" fn(root: *const HeapRoot) -> *const Heap;

/// Where a plugin finds its heap.
#[repr(C)]
#[derive(Debug)]
pub struct HeapRoot {
    shape: AtomicU32,
    /// Null until the first allocation or until the host fills it in, whichever is earlier;
    /// [`system`] where there is none. Never changes after that, since a block is freed by who gave
    /// it.
    heap: AtomicPtr<Heap>,
}

/// The functions of a heap, as C has them: a failed allocation is null and leaves things as they
/// were. They may be called on any thread, and neither unwind nor call back. The table and its heap
/// outlive the library.
#[repr(C)]
#[derive(Debug)]
pub struct Heap {
    /// The first argument of the others.
    pub heap: *mut c_void,
    /// Gives that many bytes, aligned to the largest power of two that is no larger, and to 16 at
    /// the most.
    pub malloc: unsafe extern "C" fn(heap: *mut c_void, size: usize) -> *mut c_void,
    /// The same, zeroed.
    pub zalloc: unsafe extern "C" fn(heap: *mut c_void, size: usize) -> *mut c_void,
    /// Makes a block larger or smaller, and may move it. The alignment is that of `malloc`.
    pub realloc:
        unsafe extern "C" fn(heap: *mut c_void, block: *mut c_void, size: usize) -> *mut c_void,
    /// `malloc` with any alignment that is a power of two.
    pub malloc_aligned:
        unsafe extern "C" fn(heap: *mut c_void, size: usize, align: usize) -> *mut c_void,
    /// `zalloc` with any alignment that is a power of two.
    pub zalloc_aligned:
        unsafe extern "C" fn(heap: *mut c_void, size: usize, align: usize) -> *mut c_void,
    /// `realloc` with any alignment that is a power of two.
    pub realloc_aligned: unsafe extern "C" fn(
        heap: *mut c_void,
        block: *mut c_void,
        size: usize,
        align: usize,
    ) -> *mut c_void,
    /// Frees a block of this heap, whichever thread and whichever of the above gave it.
    pub free: unsafe extern "C" fn(block: *mut c_void),
}

// SAFETY: functions for any thread, and the argument that they want.
unsafe impl Sync for Heap {}
// SAFETY: as above.
unsafe impl Send for Heap {}

/// Stands in a root for the system's allocator. No heap lies there.
const fn system() -> *mut Heap {
    ptr::without_provenance_mut(1)
}

impl HeapRoot {
    /// A root that nothing was decided for.
    #[expect(clippy::new_without_default, reason = "only ever a static")]
    pub const fn new() -> Self {
        Self {
            shape: AtomicU32::new(SHAPE),
            heap: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Whether both sides know the same [`Heap`].
    pub fn fits(&self) -> bool {
        self.shape.load(Ordering::Relaxed) == SHAPE
    }

    /// Gives the plugin the heap that all its blocks come from. `false` when it has another one, or
    /// has begun to use the system's allocator, or its root is of another shape: it will never use
    /// `heap` then.
    pub fn adopt(&self, heap: &'static Heap) -> bool {
        let heap = ptr::from_ref(heap).cast_mut();
        self.fits() && self.decide(heap) == heap
    }

    /// Makes `heap` what is used if that is still open. Returns what is used.
    fn decide(&self, heap: *mut Heap) -> *mut Heap {
        let null = ptr::null_mut();
        match self
            .heap
            .compare_exchange(null, heap, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => heap,
            Err(other) => other,
        }
    }

    /// The heap; none where the system's allocator is used.
    #[inline]
    fn heap(&self) -> Option<&'static Heap> {
        let mut heap = self.heap.load(Ordering::Acquire);
        if heap.is_null() {
            heap = self.ask();
        }
        // SAFETY: what is not the system's mark is what `adopt` or the host gave, and lives for as
        // long as this library.
        (heap != system()).then(|| unsafe { &*heap })
    }

    /// The first allocation comes before the host has filled the root in: a constructor runs, or
    /// there is no host.
    #[cold]
    #[inline(never)]
    fn ask(&self) -> *mut Heap {
        let heap = match host() {
            // SAFETY: the host's function of that name is one; the root is this static.
            Some(ask) => unsafe { ask(self) }.cast_mut(),
            None => ptr::null_mut(),
        };
        self.decide(if heap.is_null() { system() } else { heap })
    }
}

/// The host's function, where there is a host.
#[cfg(all(target_os = "linux", not(miri)))]
fn host() -> Option<Ask> {
    unsafe extern "C" {
        fn dlsym(library: *mut c_void, name: *const std::ffi::c_char) -> *mut c_void;
    }
    // SAFETY: the name is a C string; null asks what the executable and what it was linked with
    // define. Nothing on the way allocates by way of Rust.
    let found = unsafe { dlsym(ptr::null_mut(), HOST_SYMBOL.as_ptr()) };
    // SAFETY: null is none, and everything else that is called so is the host's function of that
    // type.
    unsafe { std::mem::transmute::<*mut c_void, Option<Ask>>(found) }
}

/// There is none.
#[cfg(not(all(target_os = "linux", not(miri))))]
fn host() -> Option<Ask> {
    None
}

/// The allocator of a plugin: the heap of a [`HeapRoot`], or the system's.
#[derive(Debug)]
pub struct OwnHeap(pub &'static HeapRoot);

/// Whether such a block is aligned well enough by itself.
#[inline]
fn is_plain(size: usize, align: usize) -> bool {
    align <= ALIGNED && align <= size
}

// SAFETY: a block is given, changed and freed by the same heap, or by `System`, since a root
// decides once. The layout's alignment is a power of two, and `is_plain` is what `Heap::malloc`
// promises.
unsafe impl GlobalAlloc for OwnHeap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: the caller's promise, handed on.
        unsafe {
            match self.0.heap() {
                Some(heap) if is_plain(size, align) => (heap.malloc)(heap.heap, size).cast(),
                Some(heap) => (heap.malloc_aligned)(heap.heap, size, align).cast(),
                None => System.alloc(layout),
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: as above.
        unsafe {
            match self.0.heap() {
                Some(heap) if is_plain(size, align) => (heap.zalloc)(heap.heap, size).cast(),
                Some(heap) => (heap.zalloc_aligned)(heap.heap, size, align).cast(),
                None => System.alloc_zeroed(layout),
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above; the block came from the same one.
        unsafe {
            match self.0.heap() {
                Some(heap) => (heap.free)(block.cast()),
                None => System.dealloc(block, layout),
            }
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (align, own) = (layout.align(), block.cast());
        // SAFETY: as above.
        unsafe {
            match self.0.heap() {
                Some(heap) if is_plain(size, align) => (heap.realloc)(heap.heap, own, size).cast(),
                Some(heap) => (heap.realloc_aligned)(heap.heap, own, size, align).cast(),
                None => System.realloc(block, layout, size),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).expect("it is one")
    }

    /// A heap that writes the layout of each block before it, and counts what is not freed in
    /// `heap`.
    mod counting {
        use super::*;

        const BEFORE: usize = 4096;

        fn whole(size: usize, align: usize) -> Layout {
            layout(size + BEFORE, align.max(16))
        }

        unsafe fn give(heap: *mut c_void, size: usize, align: usize, zeroed: bool) -> *mut c_void {
            assert!(align <= BEFORE);
            // SAFETY: a test's; the header lies in the room before the block, and the counter lives
            // for ever.
            unsafe {
                let raw = if zeroed {
                    System.alloc_zeroed(whole(size, align))
                } else {
                    System.alloc(whole(size, align))
                };
                let block = raw.add(BEFORE);
                block
                    .cast::<(usize, usize, *mut c_void)>()
                    .sub(1)
                    .write((size, align, heap));
                (*heap.cast::<AtomicUsize>()).fetch_add(size, Ordering::Relaxed);
                block.cast()
            }
        }

        unsafe extern "C" fn malloc(heap: *mut c_void, size: usize) -> *mut c_void {
            // SAFETY: as the caller's.
            unsafe { give(heap, size, 1 << size.ilog2().min(4), false) }
        }
        unsafe extern "C" fn zalloc(heap: *mut c_void, size: usize) -> *mut c_void {
            // SAFETY: as the caller's.
            unsafe { give(heap, size, 1 << size.ilog2().min(4), true) }
        }
        unsafe extern "C" fn malloc_aligned(h: *mut c_void, size: usize, a: usize) -> *mut c_void {
            // SAFETY: as the caller's.
            unsafe { give(h, size, a, false) }
        }
        unsafe extern "C" fn zalloc_aligned(h: *mut c_void, size: usize, a: usize) -> *mut c_void {
            // SAFETY: as the caller's.
            unsafe { give(h, size, a, true) }
        }
        unsafe extern "C" fn realloc(h: *mut c_void, b: *mut c_void, size: usize) -> *mut c_void {
            // SAFETY: as the caller's.
            unsafe { realloc_aligned(h, b, size, 1 << size.ilog2().min(4)) }
        }
        unsafe extern "C" fn realloc_aligned(
            heap: *mut c_void,
            block: *mut c_void,
            size: usize,
            align: usize,
        ) -> *mut c_void {
            // SAFETY: as the caller's; the header is what `give` wrote.
            unsafe {
                let (old, ..) = block.cast::<(usize, usize, *mut c_void)>().sub(1).read();
                let new = give(heap, size, align, false);
                ptr::copy_nonoverlapping(block.cast::<u8>(), new.cast(), old.min(size));
                free(block);
                new
            }
        }
        unsafe extern "C" fn free(block: *mut c_void) {
            // SAFETY: the header is what `give` wrote.
            unsafe {
                let (size, align, heap) = block.cast::<(usize, usize, *mut c_void)>().sub(1).read();
                (*heap.cast::<AtomicUsize>()).fetch_sub(size, Ordering::Relaxed);
                System.dealloc(block.cast::<u8>().sub(BEFORE), whole(size, align));
            }
        }

        pub(super) fn heap() -> (&'static Heap, &'static AtomicUsize) {
            let live: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
            let heap = Box::leak(Box::new(Heap {
                heap: ptr::from_ref(live).cast_mut().cast(),
                malloc,
                zalloc,
                realloc,
                malloc_aligned,
                zalloc_aligned,
                realloc_aligned,
                free,
            }));
            (heap, live)
        }
    }

    #[test]
    fn every_block_comes_from_the_heap_and_goes_back_to_it() {
        static ROOT: HeapRoot = HeapRoot::new();
        let (heap, live) = counting::heap();
        let own = OwnHeap(&ROOT);
        assert!(ROOT.adopt(heap));
        assert!(ROOT.adopt(heap), "the same one again");
        // SAFETY: sizes are not zero, and blocks are freed once with their layouts.
        unsafe {
            for (size, align) in [(1, 1), (3, 8), (8, 8), (10, 16), (100, 1), (100, 4096)] {
                let block = own.alloc_zeroed(layout(size, align));
                assert_eq!(block.addr() % align, 0);
                assert_eq!(block.read(), 0);
                block.write_bytes(7, size);
                assert_eq!(live.load(Ordering::Relaxed), size);
                let block = own.realloc(block, layout(size, align), 50_000);
                assert_eq!(block.addr() % align, 0);
                assert_eq!(block.add(size - 1).read(), 7);
                let block = own.realloc(block, layout(50_000, align), 1);
                assert_eq!((block.addr() % align, block.read()), (0, 7));
                own.dealloc(block, layout(1, align));
                let block = own.alloc(layout(size, align));
                assert_eq!(block.addr() % align, 0);
                own.dealloc(block, layout(size, align));
            }
        }
        assert_eq!(live.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn without_a_host_it_is_the_systems_allocator_and_stays_so() {
        static ROOT: HeapRoot = HeapRoot::new();
        let (heap, live) = counting::heap();
        let own = OwnHeap(&ROOT);
        // SAFETY: as above.
        unsafe {
            let early = own.alloc(layout(10, 1));
            assert!(
                !ROOT.adopt(heap),
                "its early blocks would be freed by another"
            );
            let late = own.alloc_zeroed(layout(10, 64));
            assert_eq!(live.load(Ordering::Relaxed), 0);
            let late = own.realloc(late, layout(10, 64), 20);
            own.dealloc(early, layout(10, 1));
            own.dealloc(late, layout(20, 64));
        }
    }

    #[test]
    fn a_root_of_another_shape_is_left_alone() {
        let root = HeapRoot {
            shape: AtomicU32::new(SHAPE + 1),
            ..HeapRoot::new()
        };
        assert!(!root.adopt(counting::heap().0));
        assert!(root.heap.load(Ordering::Relaxed).is_null());
    }

    #[test]
    fn threads_that_allocate_first_at_once_agree_on_one_heap() {
        static ROOT: HeapRoot = HeapRoot::new();
        let (heap, live) = counting::heap();
        let adopted = std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 1..50 {
                        // SAFETY: the size is not zero, and the block is freed once.
                        unsafe {
                            let block = OwnHeap(&ROOT).alloc(layout(n, 8));
                            OwnHeap(&ROOT).dealloc(block, layout(n, 8));
                        }
                    }
                });
            }
            ROOT.adopt(heap)
        });
        assert_eq!(ROOT.heap().is_some(), adopted);
        assert_eq!(live.load(Ordering::Relaxed), 0);
    }
}
