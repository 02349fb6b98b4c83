//! The initialisers and finalisers of a library (ELF `.init_array` and `.fini_array`), which the
//! host runs instead of the dynamic linker.
//!
//! The dynamic linker runs them within `dlopen` and `dlclose` and holds its own lock meanwhile, so
//! that one which blocks would hold up every other load, unload and `dlsym` of the process. So the
//! image does not name them ([`crate::artifact::Initialisers`]), and the host runs them as glibc
//! would, in its order and with its arguments, outside of that lock, on a thread that somebody
//! waits for with a deadline.
//!
//! What stays with the dynamic linker: the initialisers of libraries that a plugin brings along,
//! and resolvers of ifuncs. A library that is still mapped when the process ends is not finalised.

use std::{
    ffi::{CString, OsString, c_char, c_int},
    ops::Range,
    os::unix::ffi::OsStringExt,
    sync::{Arc, LazyLock, OnceLock},
};

use crate::artifact::Initialisers;

/// The initialisers and finalisers of a library in memory.
#[derive(Clone, Debug)]
pub(super) struct Functions {
    base: usize,
    places: Arc<Initialisers>,
    /// The arguments of its app, if it was given some of its own.
    arguments: Arc<OnceLock<Arguments>>,
}

type Initialiser = unsafe extern "C" fn(c_int, *const *const c_char, *const *const c_char);
type Finaliser = unsafe extern "C" fn();

impl Functions {
    /// Those of the library that is mapped at `range`, with its address 0 at `base`.
    ///
    /// # Errors
    /// When the file says that they are where nothing of it is mapped.
    pub(super) fn mapped(
        places: Arc<Initialisers>,
        base: usize,
        range: &Range<usize>,
    ) -> Result<Self, String> {
        let functions = Self {
            base,
            places,
            arguments: Arc::default(),
        };
        let Initialisers {
            init,
            init_array,
            fini,
            fini_array,
            ..
        } = &*functions.places;
        let is_inside = |address: u64, length: u64| {
            let start = functions.address(address);
            let end = usize::try_from(length)
                .ok()
                .and_then(|length| start.checked_add(length));
            range.contains(&start) && end.is_some_and(|end| end <= range.end)
        };
        let one = |place: &Option<u64>| place.is_none_or(|address| is_inside(address, 1));
        let array = |(address, length): &(u64, u64)| {
            *length == 0
                || (is_inside(*address, *length)
                    && functions
                        .address(*address)
                        .is_multiple_of(align_of::<usize>()))
        };
        if one(init) && one(fini) && array(init_array) && array(fini_array) {
            Ok(functions)
        } else {
            Err("its ELF initialisers or finalisers lie outside of what is mapped".to_owned())
        }
    }

    /// Where an address of the file is in memory.
    fn address(&self, address: u64) -> usize {
        self.base.wrapping_add(address as usize)
    }

    /// What is in an array of addresses.
    ///
    /// # Safety
    /// The library is mapped.
    unsafe fn array(&self, (address, length): (u64, u64)) -> Vec<usize> {
        let number = length as usize / size_of::<usize>();
        if number == 0 {
            return Vec::new();
        }
        let start = self.address(address) as *const usize;
        // SAFETY: `mapped` has seen that the array is aligned and lies in the library, which is
        // mapped by the contract. It was relocated by `dlopen`, and nobody writes it afterwards.
        unsafe { std::slice::from_raw_parts(start, number) }.to_vec()
    }

    /// Has the initialisers get `arguments`, the first of which is the name of the program. The
    /// first time counts.
    pub(super) fn give_arguments(&self, arguments: impl IntoIterator<Item = OsString>) {
        self.arguments.get_or_init(|| Arguments::new(arguments));
    }

    /// Whether there are finalisers.
    pub(super) fn has_finalisers(&self) -> bool {
        self.places.fini.is_some() || self.places.fini_array.1 > 0
    }

    /// Runs the initialisers on this thread. Blocks as long as they do.
    ///
    /// # Safety
    /// The library is mapped until this returns, and they have not run.
    pub(super) unsafe fn initialise(&self) {
        let arguments = self.arguments.get().unwrap_or(&*ARGUMENTS);
        let first = self.places.init.map(|address| self.address(address));
        // SAFETY: the caller's promise.
        let others = unsafe { self.array(self.places.init_array) };
        for function in first.into_iter().chain(others).filter(|at| *at != 0) {
            // SAFETY: an address that the file names as an initialiser: it has this signature in
            // glibc, which passes all three. The vectors of arguments live for ever, and `environ`
            // is what it is for everybody who calls `getenv` now.
            unsafe {
                let initialise = std::mem::transmute::<usize, Initialiser>(function);
                initialise(arguments.number, arguments.pointers.as_ptr(), environ);
            }
        }
    }

    /// Runs the finalisers on this thread. Blocks as long as they do.
    ///
    /// # Safety
    /// The library is mapped until this returns, was initialised, and they have not run. Nothing is
    /// called in it afterwards.
    pub(super) unsafe fn finalise(&self) {
        // SAFETY: the caller's promise.
        let others = unsafe { self.array(self.places.fini_array) };
        let last = self.places.fini.map(|address| self.address(address));
        for function in others.into_iter().rev().chain(last).filter(|at| *at != 0) {
            // SAFETY: an address that the file names as a finaliser, called once, in the order of
            // the dynamic linker.
            unsafe { std::mem::transmute::<usize, Finaliser>(function)() };
        }
    }
}

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// Arguments of a program as initialisers get them. Rust's own takes `std::env::args` from there.
#[derive(Debug)]
struct Arguments {
    number: c_int,
    /// Ends with a null pointer. Each points to one that is never freed.
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers are to strings that nobody frees or writes.
unsafe impl Send for Arguments {}
// SAFETY: as above.
unsafe impl Sync for Arguments {}

static ARGUMENTS: LazyLock<Arguments> = LazyLock::new(|| Arguments::new(std::env::args_os()));

impl Arguments {
    /// Their strings are never freed: whoever has seen them may keep them.
    fn new(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let mut pointers: Vec<_> = arguments
            .into_iter()
            .map(OsString::into_vec)
            // An argument has no zero byte.
            .filter_map(|argument| CString::new(argument).ok())
            .map(|argument| argument.into_raw().cast_const())
            .collect();
        let number = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        pointers.push(std::ptr::null());
        Self { number, pointers }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn functions_outside_of_what_is_mapped_are_refused() {
        let mapped = |places| Functions::mapped(Arc::new(places), 0x1000, &(0x1000..0x3000));
        let good = || {
            let mut places = Initialisers::default();
            places.init = Some(0x10);
            places.init_array = (0x100, 16);
            places.fini = Some(0x20);
            places.fini_array = (0x200, 8);
            places
        };
        assert!(mapped(good()).unwrap().has_finalisers());
        assert!(!mapped(Initialisers::default()).unwrap().has_finalisers());
        let bad: [fn(&mut Initialisers); 5] = [
            |places| places.init = Some(0x2000),
            |places| places.fini = Some(u64::MAX),
            |places| places.init_array = (0x1ff8, 16),
            |places| places.init_array = (0x101, 16),
            |places| places.fini_array = (0, u64::MAX),
        ];
        for spoil in bad {
            let mut places = good();
            spoil(&mut places);
            assert!(mapped(places.clone()).is_err(), "{places:?}");
        }
    }
}
