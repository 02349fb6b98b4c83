//! `environ` as a library sees it: the dynamic linker binds it to that of the process, and the host
//! to the library's own, before anything of the library runs.

use std::{ffi::c_char, ops::Range, ptr};

use rustix::mm::{MprotectFlags, mprotect};

use super::mapped::Object;
use crate::ledger::mappings;

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// Binds `environ` of `library` to the one at the address `own`. Returns how many places named it.
///
/// Whatever holds its address now, the dynamic linker has put it there: nothing of the library has
/// run. So it is looked for in all that the linker may have written, which takes microseconds.
///
/// # Safety
/// The library is mapped and relocated, and nothing of it has run. At `own` is an array of strings
/// for as long as it is mapped.
pub(super) unsafe fn bind(library: &Object, own: usize) -> usize {
    let of_process = (&raw const environ).addr();
    let mut places = Vec::new();
    for segment in &library.writable {
        let start = segment.start.next_multiple_of(align_of::<usize>());
        for address in
            (start..segment.end.saturating_sub(size_of::<usize>() - 1)).step_by(size_of::<usize>())
        {
            // SAFETY: aligned, and inside of a segment that is mapped.
            if unsafe { ptr::with_exposed_provenance::<usize>(address).read() } == of_process {
                places.push(address);
            }
        }
    }
    for address in &places {
        // SAFETY: as above; nobody else reads or writes there yet.
        unsafe { write(*address, own) };
    }
    places.len()
}

/// Writes `value` to `address`, which may be on a page that the dynamic linker has made read-only
/// after it has relocated it.
///
/// # Safety
/// It is mapped, and nobody reads or writes there.
unsafe fn write(address: usize, value: usize) {
    let page = rustix::param::page_size();
    let start = ptr::with_exposed_provenance_mut(address & !(page - 1));
    let is_writable = |range: &Range<usize>| range.contains(&address);
    let was_writable = mappings()
        .unwrap_or_default()
        .iter()
        .any(|mapping| mapping.is_writable && is_writable(&mapping.range));
    // SAFETY: a page of the library, which stays readable throughout.
    unsafe {
        if !was_writable
            && mprotect(start, page, MprotectFlags::READ | MprotectFlags::WRITE).is_err()
        {
            return;
        }
        ptr::with_exposed_provenance_mut::<usize>(address).write(value);
        if !was_writable {
            // It was so before; that it cannot be again costs a guard, and nothing else.
            let _ = mprotect(start, page, MprotectFlags::READ);
        }
    }
}
