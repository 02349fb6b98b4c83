//! The libraries of files that are mapped beside plugins: the dynamic linker takes what is there
//! already for another of the same name.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::mapped::{self, Object};
use crate::{
    ledger::{self, Mapping},
    shown,
};

/// One of them, as it is mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Companion {
    /// The file that the linker found.
    path: PathBuf,
    /// What tells it from another one: its build id, else device and inode of what is mapped.
    identity: String,
}

impl Companion {
    /// Those of this process.
    pub(crate) fn all() -> Vec<Self> {
        let mappings = ledger::mappings().unwrap_or_default();
        mapped::objects()
            .into_iter()
            // The program has no name, what is mapped from memory one of the kernel's.
            .filter(|object| object.name.starts_with(b"/") && !object.name.starts_with(b"/proc/"))
            .map(|object| Self {
                identity: identity(&object, &mappings),
                path: PathBuf::from(OsString::from_vec(object.name)),
            })
            .collect()
    }

    /// Which of `expected` are here as others than they were there, as a sentence for each.
    pub(crate) fn differences(expected: &[Self]) -> Vec<String> {
        let here = Self::all();
        let said = |one: &Self| {
            let mut named = here.iter().filter(|other| other.name() == one.name());
            let first = named.clone().next();
            if named.any(|other| other.identity == one.identity) {
                return None;
            }
            let path = shown::path(&one.path);
            Some(match first {
                Some(other) if other.path == one.path => format!(
                    "{path} is not the one that preflight ran: the host has had it mapped since before the file was replaced, and goes on with \
                     that as long as a generation needs it; give a new build of a library a new name"
                ),
                Some(other) => format!(
                    "{} runs in the place of {path}, which preflight ran: the host has a library of that name already; give each build of a \
                     library a name of its own",
                    shown::path(&other.path)
                ),
                None => format!(
                    "{path}, which preflight ran, is not what runs live: the linker found no library of that name"
                ),
            })
        };
        expected.iter().filter_map(said).collect()
    }

    fn name(&self) -> Option<&std::ffi::OsStr> {
        self.path.file_name()
    }
}

fn identity(object: &Object, mappings: &[Mapping]) -> String {
    if let Some(id) = &object.build_id {
        return id.iter().map(|byte| format!("{byte:02x}")).collect();
    }
    let start = object.range.start;
    let file = mappings.iter().find(|mapping| mapping.range.start == start);
    file.map(|mapping| format!("{} {}", mapping.device, mapping.inode))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_process_has_the_companions_that_it_has() {
        let all = Companion::all();
        assert!(
            all.iter()
                .any(|one| one.path.to_string_lossy().contains("libc"))
        );
        assert!(all.iter().all(|one| !one.identity.is_empty()), "{all:?}");
        assert!(Companion::differences(&all).is_empty());
    }

    #[test]
    fn another_one_at_the_same_path_or_of_the_same_name_is_said() {
        let mut all = Companion::all();
        all.retain(|one| one.path.to_string_lossy().contains("/libc."));
        all.iter_mut().for_each(|one| one.identity.push('0'));
        let said = Companion::differences(&all);
        assert!(
            said[0].contains("is not the one that preflight ran"),
            "{said:?}"
        );
        let elsewhere = Companion {
            path: Path::new("/nowhere").join(all[0].path.file_name().unwrap_or_default()),
            identity: String::new(),
        };
        let said = Companion::differences(&[elsewhere]);
        assert!(said[0].contains("in the place of /nowhere/"), "{said:?}");
    }

    #[test]
    fn mappings_are_known_by_where_they_begin() {
        let maps = "7f00-7f10 r-xp 00000000 fe:00 1234                       /lib/a b.so\n8f00-8f10 rw-p 00000000 00:00 0 \n";
        let mappings: Vec<_> = maps.lines().filter_map(Mapping::parse).collect();
        let at = |start: usize| {
            let object = Object {
                base: start,
                name: Vec::new(),
                range: start..start + 0x10,
                writable: Vec::new(),
                build_id: None,
            };
            identity(&object, &mappings)
        };
        assert_eq!(at(0x7f00), "fe:00 1234");
        assert_eq!(at(0x8f00), "00:00 0");
    }
}
