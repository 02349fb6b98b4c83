//! The sources of the project, for tests that read them.

use std::{fs, path::PathBuf};

use crate::plugins::workspace;

/// The files of Rust in `folder` of the project and below, without what is built. Empty where there
/// is no such folder.
///
/// # Panics
/// When an entry cannot be read.
pub fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut folders = vec![workspace().join(folder)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}
