//! What lies beside the sources and is none: what git ignores, and what the app itself writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::io::AsyncWriteExt;

/// Returns those of `paths` that git ignores; none where there is no git or no repository. What git
/// has in its index is never ignored.
pub(super) async fn ignored_by_git(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    // A path dependency may lie in a repository of its own.
    let mut by_folder: BTreeMap<&Path, Vec<&Path>> = BTreeMap::new();
    for path in paths {
        let folder = path.ancestors().skip(1).find(|folder| folder.is_dir());
        if let Some(folder) = folder {
            by_folder.entry(folder).or_default().push(path);
        }
    }
    let mut ignored = BTreeSet::new();
    for (folder, paths) in by_folder {
        ignored.extend(ignored_in(folder, &paths).await.unwrap_or_default());
    }
    ignored
}

async fn ignored_in(folder: &Path, paths: &[&Path]) -> Option<Vec<PathBuf>> {
    let mut git = tokio::process::Command::new("git")
        .args(["check-ignore", "--stdin", "-z"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let mut asked = Vec::new();
    for path in paths {
        asked.extend(path.as_os_str().as_bytes());
        asked.push(0);
    }
    let mut stdin = git.stdin.take()?;
    let write = async move {
        // One that has ended already says so by its output.
        let _ = stdin.write_all(&asked).await;
    };
    let (output, ()) = tokio::join!(git.wait_with_output(), write);
    let output = output.ok()?;
    let names = output.stdout.split(|byte| *byte == 0);
    Some(
        names
            .filter(|name| !name.is_empty())
            .map(|name| PathBuf::from(OsStr::from_bytes(name)))
            .collect(),
    )
}

/// Returns the files that this process, which runs the app, has open for writing.
pub(super) fn open_for_writing() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter(|entry| {
            let info = Path::new("/proc/self/fdinfo").join(entry.file_name());
            fs::read_to_string(info).is_ok_and(|info| may_write(&info))
        })
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .collect()
}

/// Whether a descriptor may write, by its file in `fdinfo`.
fn may_write(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| libc::c_int::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// Whether a file is by its name a database, or a log, which programs write while they run.
pub(super) fn is_data(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let ends = [
        ".db", ".db3", ".sqlite", ".sqlite3", ".redb", ".log", "-journal", "-wal", "-shm",
    ];
    ends.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[tokio::test]
    async fn what_git_ignores_is_found_in_each_repository() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for repository in ["a", "b"] {
            let repository = root.join(repository);
            fs::create_dir_all(repository.join("src")).unwrap();
            let made = std::process::Command::new("git")
                .args(["init", "-q"])
                .current_dir(&repository)
                .status()
                .unwrap();
            assert!(made.success());
            fs::write(repository.join(".gitignore"), "/uploads\n*.gen.rs\n").unwrap();
        }
        fs::create_dir(root.join("c")).unwrap();
        let paths = [
            "a/uploads/new/one.png",
            "a/src/lib.rs",
            "b/src/x y.gen.rs",
            "b/Cargo.toml",
            "c/x.gen.rs",
        ]
        .map(|path| root.join(path));
        let ignored = ignored_by_git(&paths).await;
        assert_eq!(ignored, [paths[0].clone(), paths[2].clone()].into());
    }

    #[test]
    fn a_file_that_is_written_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (written, read) = (root.join("written"), root.join("read"));
        let _written = fs::File::create(&written).unwrap();
        fs::write(&read, "").unwrap();
        let _read = fs::File::open(&read).unwrap();
        let open = open_for_writing();
        assert!(open.contains(&written) && !open.contains(&read), "{open:?}");
    }
}
