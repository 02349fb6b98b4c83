//! Why the dynamic linker did not find a library, said so that somebody can do something about it.

use std::{ffi::CString, path::Path};

use crate::artifact::Linkage;

use super::Layouts;

/// What the linker says when it does not find a library.
const NOT_FOUND: &str = "cannot open shared object file";

/// What to add to `said`, the linker's sentence about a library that it did not load: all that it
/// does not find, since it names the first only, and what to do.
pub(super) fn explain(said: &str, linkage: &Linkage, layouts: Layouts) -> String {
    if !said.contains(NOT_FOUND) {
        return String::new();
    }
    // To look is to load, which is done only where the process is thrown away.
    let missing = match layouts {
        Layouts::Check => missing(linkage),
        Layouts::Trust => Vec::new(),
    };
    let all = match missing.as_slice() {
        // The one that the linker has named.
        [] | [_] => String::new(),
        some => format!("; it needs {}, which are not found", some.join(", ")),
    };
    let beside = linkage.beside_itself();
    let advice = if beside.is_empty() {
        "install it where the system looks (ldconfig), set LD_LIBRARY_PATH for the host, or link it statically".to_owned()
    } else {
        format!(
            "its path {} leads nowhere, because it is mapped from memory and not from where its file lies: {}",
            beside.join(":"),
            Linkage::ORIGIN_ADVICE
        )
    };
    format!("{all}: {advice}")
}

/// The names of needed libraries that lie in none of the folders that it names, and that the linker
/// does not find by itself. Loads those that it finds, for good.
fn missing(linkage: &Linkage) -> Vec<&str> {
    let beside = linkage.beside_itself();
    let lies_there = |name: &&String| {
        linkage
            .search
            .iter()
            .filter(|folder| !beside.contains(&folder.as_str()))
            .any(|folder| Path::new(folder).join(name).exists())
    };
    linkage
        .needed
        .iter()
        .filter(|name| !lies_there(name))
        .filter(|name| {
            let Ok(name) = CString::new(name.as_bytes()) else {
                return false;
            };
            // SAFETY: runs the constructors of a library that the plugin would have brought in
            // anyway, in a preflight child. The handle is given up on purpose, so nothing of it is
            // unmapped.
            unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) }.is_null()
        })
        .map(String::as_str)
        .collect()
}
