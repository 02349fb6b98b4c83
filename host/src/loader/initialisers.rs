//! The initialisers and finalisers of a library (ELF `.init_array` and `.fini_array`), which the host runs instead of the dynamic linker.
//!
//! The dynamic linker runs them within `dlopen` and `dlclose` and holds its own lock meanwhile, so that one which blocks would hold up
//! every other load, unload and `dlsym` of the process. So what is mapped is a copy of the image whose `.dynamic` does not name them: the
//! entries keep their values and have tags that no dynamic linker knows. The host runs the functions as glibc would, in its order and with its
//! arguments, outside of that lock, on a thread that somebody waits for with a deadline.
//!
//! What stays with the dynamic linker: the initialisers of libraries that a plugin brings along, and resolvers of ifuncs. A library that is still
//! mapped when the process ends is not finalised; what it registered with `atexit` runs then as ever.

use std::{
    ffi::{CString, OsString, c_char, c_int},
    io,
    ops::Range,
    os::unix::ffi::OsStringExt,
    sync::LazyLock,
};

use object::elf;

use crate::artifact::{Image, ImageError, Manifest};

/// The size of an ELF header, of a program header, and of an entry of `.dynamic`.
const HEADER: usize = 64;
const SEGMENT: usize = 56;
const ENTRY: usize = 16;

/// A longer `.dynamic`, or more program headers, are none of a linker's: such a file is left to the dynamic linker as it is.
const MOST_BYTES: usize = 1 << 20;

/// What is added to a tag so that nobody knows it: the sum lies where a system may have tags of its own, and none has.
const HIDE: u64 = 0x6048_0000;

/// Where the initialisers and finalisers of one file are, as addresses of that file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Places {
    init: Option<u64>,
    init_array: (u64, u64),
    fini: Option<u64>,
    fini_array: (u64, u64),
    /// The offsets in the file of the entries that name them, with their tags.
    entries: Vec<(u64, u64)>,
}

/// The initialisers and finalisers of an image, before it is mapped.
#[derive(Debug)]
pub(super) struct Hidden(Places);

/// The same in memory.
#[derive(Clone, Debug)]
pub(super) struct Functions {
    base: usize,
    places: Places,
}

type Initialiser = unsafe extern "C" fn(c_int, *const *const c_char, *const *const c_char);
type Finaliser = unsafe extern "C" fn();

/// A copy of `image`, which says `manifest` of itself, whose `.dynamic` names neither initialisers nor finalisers. `image` itself when it has
/// none. Blocks.
///
/// # Errors
/// When it cannot be read or copied.
pub(super) fn hide(image: Image, manifest: &Manifest) -> Result<(Image, Hidden), ImageError> {
    let places = Places::read(&image).map_err(ImageError::Memory)?;
    let image = if places.entries.is_empty() {
        image
    } else {
        let edits: Vec<_> = places
            .entries
            .iter()
            .map(|(offset, tag)| (*offset, tag + HIDE))
            .collect();
        image.edited(manifest, &edits)?
    };
    Ok((image, Hidden(places)))
}

impl Places {
    /// What the file says. Nothing for one whose headers make no sense, which the dynamic linker refuses.
    fn read(image: &Image) -> io::Result<Self> {
        let Some(header) = read(image, 0, HEADER)? else {
            return Ok(Self::default());
        };
        let half = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        if header[..4] != elf::ELFMAG || header[4] != elf::ELFCLASS64 || half(54) != SEGMENT {
            return Ok(Self::default());
        }
        let Some(segments) = read(image, word(&header, 32), half(56) * SEGMENT)? else {
            return Ok(Self::default());
        };
        let segments = segments.as_chunks::<SEGMENT>().0;
        let kind = |segment: &[u8; SEGMENT]| {
            u32::from_ne_bytes([segment[0], segment[1], segment[2], segment[3]])
        };
        // The dynamic linker reads it where it is mapped, so its offset is that of the segment which maps it.
        let dynamic = segments
            .iter()
            .find(|segment| kind(segment) == elf::PT_DYNAMIC);
        let found = dynamic.and_then(|dynamic| {
            let (address, length) = (word(dynamic, 16), word(dynamic, 40));
            segments
                .iter()
                .filter(|segment| kind(segment) == elf::PT_LOAD)
                .find_map(|segment| {
                    let into = address.checked_sub(word(segment, 16))?;
                    let is_inside = into.checked_add(length)? <= word(segment, 32);
                    Some((word(segment, 8).checked_add(into)?, length)).filter(|_| is_inside)
                })
        });
        let Some((offset, length)) = found else {
            return Ok(Self::default());
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(dynamic) = read(image, offset, length)? else {
            return Ok(Self::default());
        };
        let mut places = Self::default();
        for (number, entry) in dynamic.as_chunks::<ENTRY>().0.iter().enumerate() {
            let (tag, value) = (word(entry, 0), word(entry, 8));
            match u32::try_from(tag).unwrap_or(u32::MAX) {
                elf::DT_NULL => break,
                elf::DT_INIT => places.init = Some(value),
                elf::DT_INIT_ARRAY => places.init_array.0 = value,
                elf::DT_INIT_ARRAYSZ => places.init_array.1 = value,
                elf::DT_FINI => places.fini = Some(value),
                elf::DT_FINI_ARRAY => places.fini_array.0 = value,
                elf::DT_FINI_ARRAYSZ => places.fini_array.1 = value,
                _ => continue,
            }
            places.entries.push((offset + (number * ENTRY) as u64, tag));
        }
        Ok(places)
    }
}

/// `length` bytes at `offset` of the image; none when it ends before, or nobody needs so many.
fn read(image: &Image, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
    if length > MOST_BYTES {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    match image.read_at(&mut bytes, offset) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        // An offset that no file can have.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

/// The eight bytes at `at`, which are there.
fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

impl Hidden {
    /// The functions of the library that is mapped at `range`, with its address 0 at `base`.
    ///
    /// # Errors
    /// When the file says that they are where nothing of it is mapped.
    pub(super) fn mapped(self, base: usize, range: &Range<usize>) -> Result<Functions, String> {
        let functions = Functions {
            base,
            places: self.0,
        };
        let Places {
            init,
            init_array,
            fini,
            fini_array,
            ..
        } = &functions.places;
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
}

impl Functions {
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
        // SAFETY: `Hidden::mapped` has seen that the array is aligned and lies in the library, which is mapped by the contract. It was relocated
        // by `dlopen`, and nobody writes it afterwards.
        unsafe { std::slice::from_raw_parts(start, number) }.to_vec()
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
        let arguments = &*ARGUMENTS;
        let first = self.places.init.map(|address| self.address(address));
        // SAFETY: the caller's promise.
        let others = unsafe { self.array(self.places.init_array) };
        for function in first.into_iter().chain(others).filter(|at| *at != 0) {
            // SAFETY: an address that the file names as an initialiser: it has this signature in glibc, which passes all three. The vectors of
            // arguments live for ever, and `environ` is what it is for everybody who calls `getenv` now.
            unsafe {
                let initialise = std::mem::transmute::<usize, Initialiser>(function);
                initialise(arguments.number, arguments.pointers.as_ptr(), environ);
            }
        }
    }

    /// Runs the finalisers on this thread. Blocks as long as they do.
    ///
    /// # Safety
    /// The library is mapped until this returns, was initialised, and they have not run. Nothing is called in it afterwards.
    pub(super) unsafe fn finalise(&self) {
        // SAFETY: the caller's promise.
        let others = unsafe { self.array(self.places.fini_array) };
        let last = self.places.fini.map(|address| self.address(address));
        for function in others.into_iter().rev().chain(last).filter(|at| *at != 0) {
            // SAFETY: an address that the file names as a finaliser, called once, in the order of the dynamic linker.
            unsafe { std::mem::transmute::<usize, Finaliser>(function)() };
        }
    }
}

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// The arguments of this process as initialisers get them. Rust's own takes `std::env::args` from there.
struct Arguments {
    number: c_int,
    /// Ends with a null pointer. Each points to one that is never freed.
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers are to strings that nobody frees or writes.
unsafe impl Send for Arguments {}
// SAFETY: as above.
unsafe impl Sync for Arguments {}

static ARGUMENTS: LazyLock<Arguments> = LazyLock::new(|| {
    let mut pointers: Vec<_> = std::env::args_os()
        .map(OsString::into_vec)
        // An argument has no zero byte.
        .filter_map(|argument| CString::new(argument).ok())
        .map(|argument| argument.into_raw().cast_const())
        .collect();
    let number = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
    pointers.push(std::ptr::null());
    Arguments { number, pointers }
});

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn functions_outside_of_what_is_mapped_are_refused() {
        let hidden = |places| Hidden(places).mapped(0x1000, &(0x1000..0x3000));
        let good = Places {
            init: Some(0x10),
            init_array: (0x100, 16),
            fini: Some(0x20),
            fini_array: (0x200, 8),
            entries: Vec::new(),
        };
        assert!(hidden(good.clone()).unwrap().has_finalisers());
        assert!(!hidden(Places::default()).unwrap().has_finalisers());
        for bad in [
            Places {
                init: Some(0x2000),
                ..good.clone()
            },
            Places {
                fini: Some(u64::MAX),
                ..good.clone()
            },
            Places {
                init_array: (0x1ff8, 16),
                ..good.clone()
            },
            Places {
                init_array: (0x101, 16),
                ..good.clone()
            },
            Places {
                fini_array: (0, u64::MAX),
                ..good
            },
        ] {
            assert!(hidden(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
