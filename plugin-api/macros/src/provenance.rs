//! Where the sources of a plugin come from, asked of git when an optimised build expands `#[app]`.
//!
//! What `HANDOVER_COMMIT` says goes before it. Builds without optimisation are made at each save,
//! of what nobody has committed yet: they are not asked about.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use proc_macro2::TokenStream;
use quote::quote;

/// What is known of the sources.
#[derive(Debug, Default)]
pub(crate) struct Provenance {
    /// The commit, where there is one.
    commit: String,
    /// Whether files of the workspace differ from it.
    is_dirty: bool,
    /// What git calls the content of `Cargo.lock`.
    lockfile: String,
    /// The files whose change makes this wrong.
    depends_on: Vec<PathBuf>,
}

impl Provenance {
    /// Returns that of the crate that is being compiled.
    pub(crate) fn of_this_crate() -> Self {
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        match manifest_dir {
            Some(dir) if is_optimised(env::args()) => Self::of(&dir),
            _ => Self::default(),
        }
    }

    fn of(dir: &Path) -> Self {
        let Some(commit) = git(dir, &["rev-parse", "HEAD"]) else {
            return Self::default();
        };
        let lockfile = dir
            .ancestors()
            .map(|folder| folder.join("Cargo.lock"))
            .find(|lockfile| lockfile.is_file());
        let workspace = lockfile.as_deref().and_then(Path::parent).unwrap_or(dir);
        // What cannot be found out is not clean.
        let is_dirty = git(workspace, &["status", "--porcelain", "--", "."])
            .is_none_or(|changes| !changes.is_empty());
        // Each commit adds a line to it, which `HEAD` itself does not see on a branch.
        let log = git(dir, &["rev-parse", "--git-path", "logs/HEAD"]).map(|log| dir.join(log));
        let depends_on = log.into_iter().chain(lockfile.clone());
        Self {
            commit,
            is_dirty,
            lockfile: lockfile
                .and_then(|file| git(dir, &["hash-object", "--", file.to_str()?]))
                .unwrap_or_default(),
            depends_on: depends_on.filter(|file| file.is_file()).collect(),
        }
    }

    /// Returns the fields of `Facts` about it.
    pub(crate) fn fields(&self) -> TokenStream {
        let Self {
            commit,
            is_dirty,
            lockfile,
            depends_on,
        } = self;
        let depends_on = depends_on.iter().filter_map(|file| file.to_str());
        quote! {
            commit: match ::core::option_env!("HANDOVER_COMMIT") {
                ::core::option::Option::Some(commit) => commit,
                ::core::option::Option::None => #commit,
            },
            dirty: match ::core::option_env!("HANDOVER_COMMIT") {
                ::core::option::Option::Some(commit) => handover::says_dirty(commit),
                ::core::option::Option::None => #is_dirty,
            },
            lockfile: {
                // They are not in the plugin: the compiler learns that it depends on them.
                #(const _: &[u8] = ::core::include_bytes!(#depends_on);)*
                #lockfile
            },
        }
    }
}

/// Whether the compiler with these arguments optimises.
fn is_optimised(arguments: impl Iterator<Item = String>) -> bool {
    arguments
        .filter_map(|argument| {
            let level = argument.strip_prefix("opt-level=");
            let level = level.or_else(|| argument.strip_prefix("-Copt-level="));
            level.map(|level| level != "0")
        })
        .last()
        .unwrap_or(false)
}

/// What git says in `dir`; none when it says nothing good, or there is none.
fn git(dir: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(dir)
        // Nothing is refreshed on the disk.
        .env("GIT_OPTIONAL_LOCKS", "0")
        .args(arguments)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_optimised_by(arguments: &[&str]) -> bool {
        is_optimised(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn an_optimised_build_is_told_by_the_arguments_of_the_compiler() {
        assert!(is_optimised_by(&[
            "rustc",
            "-C",
            "opt-level=3",
            "-C",
            "lto"
        ]));
        assert!(is_optimised_by(&["rustc", "-Copt-level=s"]));
        assert!(!is_optimised_by(&["rustc", "-C", "opt-level=0"]));
        assert!(!is_optimised_by(&[
            "rustc",
            "-C",
            "opt-level=3",
            "-C",
            "opt-level=0"
        ]));
        assert!(!is_optimised_by(&["rustc", "--edition=2024"]));
    }
}
