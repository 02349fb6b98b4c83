//! Wakers across the boundary.
//!
//! A waker crosses as three words: the two of the waker itself, and a table of functions of the
//! side that made it. A waker that comes back to the side that made it is unwrapped, so that a
//! handler that polls its request body inline costs no wrapping.

use std::{
    mem::ManuallyDrop,
    ptr,
    sync::Arc,
    task::{RawWaker, RawWakerVTable, Waker},
};

use abi_stable::StableAbi;

use super::{lent::Size, panics::catch_panic};

/// The functions of the side that made a waker. Each takes the two words of that waker. It can grow
/// at its end.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct WakerOps {
    pub(super) size: Size,
    pub(super) clone: unsafe extern "C" fn(*const (), *const ()) -> WakerWords,
    pub(super) wake_by_ref: unsafe extern "C" fn(*const (), *const ()),
    pub(super) drop: unsafe extern "C" fn(*const (), *const ()),
}

/// The words of a waker. Whether they are borrowed or owned is said by who holds them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, StableAbi)]
pub struct WakerWords {
    pub(super) data: *const (),
    pub(super) vtable: *const (),
    pub(super) ops: *const WakerOps,
}

/// A waker that is lent for the length of a call.
#[repr(transparent)]
#[derive(Debug, StableAbi)]
pub struct WakerRef<'a> {
    words: WakerWords,
    _lent: std::marker::PhantomData<&'a ()>,
}

/// This side's functions. Every copy of this crate has its own, so the address tells sides apart.
static OPS: WakerOps = WakerOps {
    size: Size::of::<WakerOps>(),
    clone: clone_words,
    wake_by_ref: wake_words,
    drop: drop_words,
};

/// # Safety
/// The words are of a live waker of this side.
unsafe fn rebuild(data: *const (), vtable: *const ()) -> ManuallyDrop<Waker> {
    // SAFETY: both words came out of `Waker::data` and `Waker::vtable` on this very side
    // (`WakerRef::of`).
    ManuallyDrop::new(unsafe { Waker::new(data, &*vtable.cast::<RawWakerVTable>()) })
}

fn words_of(waker: &Waker) -> WakerWords {
    WakerWords {
        data: waker.data(),
        vtable: ptr::from_ref(waker.vtable()).cast(),
        ops: &raw const OPS,
    }
}

unsafe extern "C" fn clone_words(data: *const (), vtable: *const ()) -> WakerWords {
    // SAFETY: the caller lends words that this side gave.
    let waker = unsafe { rebuild(data, vtable) };
    let clone = catch_panic(|| Waker::clone(&waker)).unwrap_or_else(|| Waker::noop().clone());
    words_of(&ManuallyDrop::new(clone))
}

unsafe extern "C" fn wake_words(data: *const (), vtable: *const ()) {
    // SAFETY: the caller lends words that this side gave.
    let waker = unsafe { rebuild(data, vtable) };
    // A waker may be any that the executor, or a future between it and us, has made.
    catch_panic(|| waker.wake_by_ref());
}

unsafe extern "C" fn drop_words(data: *const (), vtable: *const ()) {
    // SAFETY: the caller owns words that `clone_words` gave, and gives them up.
    let waker = ManuallyDrop::into_inner(unsafe { rebuild(data, vtable) });
    catch_panic(|| drop(waker));
}

impl<'a> WakerRef<'a> {
    /// Lends `waker` to the other side. One that came from there goes back as it is.
    pub fn of(waker: &'a Waker) -> Self {
        let words = if ptr::eq(waker.vtable(), &LENT) {
            // SAFETY: data of a `LENT` waker points to the words in the frame of `with`, which is
            // below us on the stack.
            unsafe { *waker.data().cast::<WakerWords>() }
        } else if ptr::eq(waker.vtable(), &OWNED) {
            // SAFETY: data of an `OWNED` waker points into the `Arc<Foreign>` that `waker` holds.
            unsafe { &*waker.data().cast::<Foreign>() }.0
        } else {
            words_of(waker)
        };
        Self {
            words,
            _lent: std::marker::PhantomData,
        }
    }

    /// The words, to compare one waker with another.
    pub fn words(&self) -> WakerWords {
        self.words
    }

    /// Calls `f` with this waker as one of this side. Nothing is allocated unless `f` clones it.
    pub fn with<R>(&self, f: impl FnOnce(&Waker) -> R) -> R {
        if ptr::eq(self.words.ops, &OPS) {
            // SAFETY: the words are of this side, and lent to us during the call.
            let waker = unsafe { rebuild(self.words.data, self.words.vtable) };
            return f(&waker);
        }
        // SAFETY: `LENT` reads the words through this pointer, and they outlive `waker`, which is
        // not dropped by value.
        let waker =
            ManuallyDrop::new(unsafe { Waker::new(ptr::from_ref(&self.words).cast(), &LENT) });
        f(&waker)
    }

    /// A waker of this side that may be kept.
    pub fn to_owned(&self) -> Waker {
        self.with(Waker::clone)
    }
}

/// Whether `waker` is one of the other side, kept here.
///
/// Such a waker must not be left with anybody who keeps it for longer than the other side's code is
/// known to be mapped.
pub fn is_foreign(waker: &Waker) -> bool {
    ptr::eq(waker.vtable(), &OWNED) || ptr::eq(waker.vtable(), &LENT)
}

/// Owned words of the other side.
struct Foreign(WakerWords);

// SAFETY: the words are of a std `Waker`, which is Send and Sync.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: the words were cloned for us and are given up here once. The other side's code is
        // mapped: the host always is, and wakers of a plugin are kept by the host only while that
        // plugin has something in flight.
        unsafe { ((*self.0.ops).drop)(self.0.data, self.0.vtable) }
    }
}

/// Data: `*const WakerWords`, lent.
static LENT: RawWakerVTable = RawWakerVTable::new(clone_lent, wake_lent, wake_lent, |_| {});
/// Data: `Arc<Foreign>`.
static OWNED: RawWakerVTable =
    RawWakerVTable::new(clone_owned, wake_owned, wake_owned_by_ref, drop_owned);

unsafe fn clone_lent(data: *const ()) -> RawWaker {
    // SAFETY: data of a `LENT` waker is a live `WakerWords` (see `with`).
    let words = unsafe { *data.cast::<WakerWords>() };
    // SAFETY: the words are live, as they are lent to us.
    let cloned = unsafe { ((*words.ops).clone)(words.data, words.vtable) };
    RawWaker::new(Arc::into_raw(Arc::new(Foreign(cloned))).cast(), &OWNED)
}

unsafe fn wake_lent(data: *const ()) {
    // SAFETY: data of a `LENT` waker is a live `WakerWords` (see `with`).
    let words = unsafe { *data.cast::<WakerWords>() };
    // SAFETY: the words are live, as they are lent to us.
    unsafe { ((*words.ops).wake_by_ref)(words.data, words.vtable) }
}

unsafe fn clone_owned(data: *const ()) -> RawWaker {
    // SAFETY: data came from `Arc::into_raw`, and the waker that is cloned holds a count.
    unsafe { Arc::increment_strong_count(data.cast::<Foreign>()) };
    RawWaker::new(data, &OWNED)
}

unsafe fn wake_owned(data: *const ()) {
    // SAFETY: data came from `Arc::into_raw`, and waking by value gives its count up.
    let foreign = unsafe { Arc::from_raw(data.cast::<Foreign>()) };
    // SAFETY: the words are live while `foreign` is.
    unsafe { ((*foreign.0.ops).wake_by_ref)(foreign.0.data, foreign.0.vtable) }
}

unsafe fn wake_owned_by_ref(data: *const ()) {
    // SAFETY: data points into an `Arc<Foreign>` that the waker holds.
    let foreign = unsafe { &*data.cast::<Foreign>() };
    // SAFETY: the words are live while `foreign` is.
    unsafe { ((*foreign.0.ops).wake_by_ref)(foreign.0.data, foreign.0.vtable) }
}

unsafe fn drop_owned(data: *const ()) {
    // SAFETY: data came from `Arc::into_raw`, and dropping the waker gives its count up.
    drop(unsafe { Arc::from_raw(data.cast::<Foreign>()) });
}

/// Keeps an owned waker between polls, so that polling again with the same waker clones nothing.
#[derive(Debug, Default)]
pub struct WakerCache(Option<(WakerWords, Waker)>);

// SAFETY: the words are only compared; the waker itself is Send.
unsafe impl Send for WakerCache {}
// SAFETY: as above.
unsafe impl Sync for WakerCache {}

impl WakerCache {
    /// An owned waker of this side for `lent`.
    pub fn get(&mut self, lent: &WakerRef<'_>) -> &Waker {
        let words = lent.words();
        self.0.take_if(|(known, _)| *known != words);
        &self.0.get_or_insert_with(|| (words, lent.to_owned())).1
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    use super::*;

    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The functions of another side, by their address.
    static OTHER: WakerOps = WakerOps {
        size: Size::of::<WakerOps>(),
        clone: clone_other,
        wake_by_ref: wake_words,
        drop: drop_words,
    };

    fn of_other(words: WakerWords) -> WakerWords {
        WakerWords {
            ops: &raw const OTHER,
            ..words
        }
    }

    unsafe extern "C" fn clone_other(data: *const (), vtable: *const ()) -> WakerWords {
        // SAFETY: the caller's promise.
        of_other(unsafe { clone_words(data, vtable) })
    }

    #[test]
    fn a_waker_of_the_other_side_can_be_kept_woken_anywhere_and_sent_back() {
        let bell = Arc::new(Bell(AtomicUsize::new(0)));
        let rings = || bell.0.load(Ordering::Relaxed);
        let theirs = Waker::from(Arc::clone(&bell));
        let lent = WakerRef {
            words: of_other(words_of(&theirs)),
            _lent: std::marker::PhantomData,
        };
        lent.with(|waker| {
            assert!(is_foreign(waker));
            waker.wake_by_ref();
            assert_eq!(WakerRef::of(waker).words(), lent.words());
        });
        assert_eq!((rings(), Arc::strong_count(&bell)), (1, 2));

        let mut cache = WakerCache::default();
        let kept = cache.get(&lent).clone();
        assert!(kept.will_wake(cache.get(&lent)));
        assert!(is_foreign(&kept));
        assert_eq!(WakerRef::of(&kept).words().ops, &raw const OTHER);
        assert_eq!(
            Arc::strong_count(&bell),
            3,
            "cloned once for all who keep it"
        );
        let again = kept.clone();
        let elsewhere = std::thread::spawn(move || again.wake());
        elsewhere.join().expect("it does not panic");
        kept.wake_by_ref();
        kept.wake();
        assert_eq!(rings(), 4);
        drop(cache);
        assert_eq!(Arc::strong_count(&bell), 2);
        drop(theirs);
        assert_eq!(Arc::strong_count(&bell), 1);
        assert!(!is_foreign(Waker::noop()));
    }
}
