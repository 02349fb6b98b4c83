//! What the dynamic linker and the kernel say about what is mapped.

use std::{
    ffi::{CStr, c_int, c_void},
    ops::Range,
};

use crate::ledger::{Mapping, mappings};

/// One object that the dynamic linker has mapped.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// The address that its file's address 0 is mapped at.
    pub(super) base: usize,
    /// The name it was opened by.
    pub(super) name: Vec<u8>,
    /// From its first mapped byte to its last.
    pub(super) range: Range<usize>,
    /// The segments that it was written to, or may be.
    pub(super) writable: Vec<Range<usize>>,
    /// The GNU build id in its memory.
    pub(super) build_id: Option<Vec<u8>>,
}

impl Object {
    /// The name of its file without the folder, for people.
    pub(super) fn short_name(&self) -> String {
        let name = self.name.rsplit(|byte| *byte == b'/').next();
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }
}

/// All objects, in the order in which they were loaded.
pub(super) fn objects() -> Vec<Object> {
    let mut objects = Vec::<Object>::new();
    // SAFETY: `object` matches the signature and takes the vector, which outlives the call, as what
    // it is.
    unsafe { libc::dl_iterate_phdr(Some(object), (&raw mut objects).cast()) };
    objects
}

/// # Safety
/// To be called by `dl_iterate_phdr` with a `Vec<Object>`.
unsafe extern "C" fn object(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    objects: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise; the object described stays mapped during the call, the linker
    // holds its lock.
    let (info, objects) = unsafe { (&*info, &mut *objects.cast::<Vec<Object>>()) };
    let name = if info.dlpi_name.is_null() {
        Vec::new()
    } else {
        // SAFETY: a C string of the linker's, valid during the call.
        unsafe { CStr::from_ptr(info.dlpi_name) }
            .to_bytes()
            .to_vec()
    };
    let headers = if info.dlpi_phdr.is_null() {
        &[][..]
    } else {
        // SAFETY: that many program headers of the object are there, valid during the call.
        unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) }
    };
    let base = info.dlpi_addr as usize;
    let mut range: Option<Range<usize>> = None;
    let mut writable = Vec::new();
    let mut build_id = None;
    for header in headers {
        let start = base.wrapping_add(header.p_vaddr as usize);
        let end = start.wrapping_add(header.p_memsz as usize);
        match header.p_type {
            libc::PT_LOAD => {
                // A smaller range than the mapped one loses nothing: padding holds no code.
                let page = 4096;
                let start = start & !(page - 1);
                if header.p_flags & libc::PF_W != 0 {
                    writable.push(start..end);
                }
                range = Some(match range {
                    Some(range) => range.start.min(start)..range.end.max(end),
                    None => start..end,
                });
            }
            libc::PT_NOTE if build_id.is_none() => {
                // SAFETY: notes lie in a loaded segment, readable while the object is mapped.
                let notes = unsafe { std::slice::from_raw_parts(start as *const u8, end - start) };
                build_id = gnu_build_id(notes, header.p_align as usize);
            }
            _ => {}
        }
    }
    objects.push(Object {
        base,
        name,
        range: range.unwrap_or(base..base),
        writable,
        build_id,
    });
    0
}

/// The GNU build id among ELF notes.
fn gnu_build_id(mut notes: &[u8], align: usize) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let align = if align == 8 { 8 } else { 4 };
    let word =
        |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    loop {
        let name_len = word(notes, 0)? as usize;
        let desc_len = word(notes, 4)? as usize;
        let kind = word(notes, 8)?;
        let name = notes.get(12..12usize.checked_add(name_len)?)?;
        let desc_at = (12 + name_len).next_multiple_of(align);
        let desc = notes.get(desc_at..desc_at.checked_add(desc_len)?)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(desc.to_vec());
        }
        notes = notes.get((desc_at + desc_len).next_multiple_of(align)..)?;
    }
}

/// The address ranges where the file with `inode`, one of our memory files, is mapped.
///
/// # Errors
/// When /proc cannot be read.
pub(super) fn of_inode(inode: u64) -> std::io::Result<Vec<Range<usize>>> {
    // Memory files are told from others by their name, since inode numbers are only unique on one
    // device.
    let is =
        |mapping: &Mapping| mapping.inode == inode && mapping.name.starts_with("/memfd:handover:");
    let found = mappings()?.into_iter().filter(is);
    Ok(found.map(|mapping| mapping.range).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_id_is_found_behind_other_notes() {
        let mut notes = Vec::new();
        for (kind, name, desc) in [(1u32, b"XYZW\0", &[9u8; 5][..]), (3, b"GNU\0\0", &[7; 20])] {
            let name = &name[..if kind == 3 { 4 } else { 5 }];
            notes.extend((name.len() as u32).to_ne_bytes());
            notes.extend((desc.len() as u32).to_ne_bytes());
            notes.extend(kind.to_ne_bytes());
            notes.extend(name);
            notes.resize(notes.len().next_multiple_of(4), 0);
            notes.extend(desc);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        assert_eq!(gnu_build_id(&notes, 4), Some(vec![7; 20]));
    }

    #[test]
    fn damaged_notes_are_no_build_id() {
        assert_eq!(gnu_build_id(&[0xff; 64], 4), None);
        assert_eq!(gnu_build_id(&[], 4), None);
    }
}
