//! How a function of the host stands before one of libc: libc's own address, and who called.
//!
//! The executable exports the functions (`build.rs`), so the dynamic linker binds every library
//! that is loaded to them, and so does the static linker everything inside the host. They run
//! before `main`, on every thread, inside allocators, in signal handlers, and in forked children:
//! what is not of a plugin goes on to libc without a lock and without an allocation. Each behaves
//! for its caller exactly as libc's.

use std::{
    ffi::CStr,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// libc's own function of a name that the executable defines.
pub(super) struct Real {
    name: &'static CStr,
    address: AtomicUsize,
}

impl Real {
    pub(super) const fn new(name: &'static CStr) -> Self {
        Self {
            name,
            address: AtomicUsize::new(0),
        }
    }

    /// libc's function of the name that `name`, with its terminating zero, spells.
    pub(super) const fn named(name: &'static str) -> Self {
        match CStr::from_bytes_with_nul(name.as_bytes()) {
            Ok(name) => Self::new(name),
            Err(_) => panic!("a name ends with a zero byte"),
        }
    }

    pub(super) fn address(&self) -> usize {
        match self.address.load(Ordering::Relaxed) {
            0 => self.find(),
            address => address,
        }
    }

    #[cold]
    fn find(&self) -> usize {
        // SAFETY: the name is a C string; the next object after the executable that defines it is
        // libc.
        let address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) } as usize;
        if address == 0 {
            // A panic would come back here for its thread-locals.
            const TEXT: &[u8] =
                b"handover: the C library lacks a function that the ledger stands before\n";
            // SAFETY: writes a constant to standard error and ends the process.
            unsafe {
                libc::write(2, TEXT.as_ptr().cast(), TEXT.len());
                libc::abort()
            }
        }
        self.address.store(address, Ordering::Relaxed);
        address
    }

    /// Whether a library that is loaded now is bound to `own` for this name.
    fn is_bound_to(&self, own: usize) -> bool {
        // SAFETY: the name is a C string; looks up its address only.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, self.name.as_ptr()) };
        found as usize == own
    }
}

/// A function of the host, and libc's of the same name.
pub(super) type Symbol = (&'static Real, usize);

/// Every function that the ledger defines. `build.rs` exports the same ones.
fn symbols() -> impl Iterator<Item = Symbol> {
    super::interpose::symbols()
        .into_iter()
        .chain(super::threads::symbols())
        .chain(super::timers::symbols())
        .chain(super::requests::symbols())
        .chain(super::fd_interposers::symbols())
        .chain(super::closers::symbols())
        .chain(super::signals::symbols())
        .chain(super::masks::symbols())
        .chain(super::interval_timers::symbols())
        .chain(super::surroundings::symbols())
        .chain(super::environments::symbols())
        .chain(super::listeners::symbols())
        .chain(super::exits::symbols())
}

/// Whether libraries that are loaded are bound to the functions of the ledger. They are not in an
/// executable that links this crate without the link arguments of its `build.rs`. Looked up once:
/// that does not change, and takes the lock of the dynamic linker for each name.
pub(crate) fn armed() -> bool {
    static ARMED: OnceLock<bool> = OnceLock::new();
    *ARMED.get_or_init(|| symbols().all(|(real, own)| real.is_bound_to(own)))
}

/// Finds libc's own functions: later it may be in a forked child, where looking for them can wait
/// for ever.
pub(super) fn find_all() {
    for (real, _) in symbols() {
        real.address();
    }
}

/// Defines functions that stand before libc's and know who called them. Nothing in the arguments
/// tells that, but the address that they return to does: each begins with two instructions that
/// hand it on as one argument more.
///
/// `NAME / INNER / REAL (ARGUMENTS) -> ANSWER as TYPE OF LIBC'S, REGISTERS, |libc's, the caller's
/// address| BODY;`, where the registers are those of the argument after the last on x86-64 and on
/// AArch64. The body runs where a cancellation may unwind through it: nothing in it may wait to be
/// dropped while libc's function runs.
macro_rules! interposed {
    ($($name:ident / $inner:ident / $real:ident ($($argument:ident: $type:ty),*) -> $answer:ty as $signature:ty,
        $x86_64:literal, $aarch64:literal, |$libc:ident, $caller:ident| $body:expr;)*) => {
        $(
            static $real: $crate::ledger::interposed::Real =
                $crate::ledger::interposed::Real::named(concat!(stringify!($name), "\0"));

            /// Stands before libc's function of this name.
            ///
            /// # Safety
            /// As libc's.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            pub unsafe extern "C-unwind" fn $name($($argument: $type),*) -> $answer {
                // The arguments stay where they are; the address to return to becomes the one after
                // them.
                #[cfg(target_arch = "x86_64")]
                std::arch::naked_asm!(concat!("mov ", $x86_64, ", [rsp]"), "jmp {inner}", inner = sym $inner);
                #[cfg(target_arch = "aarch64")]
                std::arch::naked_asm!(concat!("mov ", $aarch64, ", x30"), "b {inner}", inner = sym $inner);
            }

            unsafe extern "C-unwind" fn $inner($($argument: $type,)* $caller: usize) -> $answer {
                // SAFETY: the address is libc's function of that name, and the type is its
                // signature.
                let $libc = unsafe { std::mem::transmute::<usize, $signature>($real.address()) };
                $body
            }
        )*

        /// What this file defines in place of libc's, by way of `interposed!`.
        fn symbols_with_caller() -> Vec<$crate::ledger::interposed::Symbol> {
            vec![$((&$real, $name as *const () as usize)),*]
        }
    };
}
pub(super) use interposed;
