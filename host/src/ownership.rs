//! Who may write what lies at a path: whoever may put a plugin, a configuration or a folder of them
//! in place commands the host.

use std::{
    collections::VecDeque,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use nix::unistd::{Gid, Group, Uid, User};

/// As many links as the kernel follows.
const LINKS: usize = 40;

/// Why a path is not to be trusted, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Insecure {
    /// Somebody else has it.
    #[error(
        "{path} belongs to user {owner}, who is neither the host's user ({own}) nor root: `chown {own} {path}`, or accept it with \
         {SETTING}",
        path = path.display()
    )]
    Owner {
        /// The file, folder or link.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// The user of this process.
        own: u32,
    },
    /// Others may write it.
    #[error("{path} may be written by {who}: `chmod go-w {path}`, or accept it with {SETTING}", path = path.display())]
    Writable {
        /// The file or folder.
        path: PathBuf,
        /// `everybody` or `group 100`.
        who: String,
    },
    /// It cannot be found out.
    #[error("{path} cannot be examined: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// What accepts insecure paths.
const SETTING: &str =
    "`[trust] insecure_paths = true` (`--insecure-paths` for the configuration file)";

/// Checks that nobody but the user of this process and root can change what `path` leads to: the
/// file or folder itself, every folder on the way to it, and every link and what it leads to.
///
/// A folder with the sticky bit may be written by others: what is somebody else's in it cannot be
/// replaced by them. Blocks on the disk.
///
/// # Errors
/// The first thing on the way that others may change.
pub(crate) fn check(path: &Path) -> Result<(), Insecure> {
    let failed = |path: &Path, source| Insecure::Io {
        path: path.to_owned(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(|source| failed(path, source))?;
    let mut left: VecDeque<PathBuf> = components(&absolute);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    judge(&at, &look(&at)?)?;
    while let Some(next) = left.pop_front() {
        if next == Path::new("..") {
            at.pop();
            continue;
        }
        let next = at.join(next);
        let facts = look(&next)?;
        judge(&next, &facts)?;
        if !facts.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(failed(&next, io::Error::other("too many links")));
        }
        let target = fs::read_link(&next).map_err(|source| failed(&next, source))?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        for component in components(&target).into_iter().rev() {
            left.push_front(component);
        }
    }
    Ok(())
}

/// The parts of a path that lead on: names and `..`.
fn components(path: &Path) -> VecDeque<PathBuf> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(PathBuf::from(name)),
            Component::ParentDir => Some(PathBuf::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn look(path: &Path) -> Result<Metadata, Insecure> {
    fs::symlink_metadata(path).map_err(|source| Insecure::Io {
        path: path.to_owned(),
        source,
    })
}

fn judge(path: &Path, facts: &Metadata) -> Result<(), Insecure> {
    let own = Uid::effective().as_raw();
    if facts.uid() != own && facts.uid() != 0 {
        return Err(Insecure::Owner {
            path: path.to_owned(),
            owner: facts.uid(),
            own,
        });
    }
    // The mode of a link says nothing, and a sticky folder lets nobody touch what is another's.
    let mode = facts.mode();
    if facts.is_symlink() || facts.is_dir() && mode & 0o1000 != 0 {
        return Ok(());
    }
    let who = if mode & 0o002 != 0 {
        "everybody".to_owned()
    } else if mode & 0o020 != 0 && !is_private(facts.uid(), facts.gid()) {
        format!("group {}", facts.gid())
    } else {
        return Ok(());
    };
    Err(Insecure::Writable {
        path: path.to_owned(),
        who,
    })
}

/// Whether the group is the user's own and nobody else's: many systems give each user one of its
/// name, and let it write what the user makes.
fn is_private(owner: u32, group: u32) -> bool {
    let (Ok(Some(user)), Ok(Some(group))) = (
        User::from_uid(Uid::from_raw(owner)),
        Group::from_gid(Gid::from_raw(group)),
    ) else {
        return false;
    };
    user.gid == group.gid
        && user.name == group.name
        && group.mem.iter().all(|member| *member == user.name)
}

/// Returns the name of a user, or the number of one without. Blocks: the system's list of users may
/// be a server far away.
pub(crate) fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("user {uid}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_only_its_user_may_write_is_fine_in_a_sticky_folder_too() {
        let temp = folder();
        let shared = temp.path().join("shared");
        fs::create_dir(&shared).unwrap();
        mode(&shared, 0o1777);
        let file = shared.join("a.so");
        fs::write(&file, "").unwrap();
        mode(&file, 0o644);
        check(&file).unwrap();
    }

    #[test]
    fn what_others_may_write_is_named_wherever_it_is_on_the_way() {
        let temp = folder();
        let folder = temp.path().join("plugins/shop");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("a.so");
        fs::write(&file, "").unwrap();
        for part in [&file, &folder, &temp.path().join("plugins")] {
            mode(part, 0o757);
            let error = check(&file).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{} may be written by everybody", part.display()))
                    && error.contains("chmod go-w")
                    && error.contains("insecure_paths"),
                "{error}"
            );
            mode(part, 0o755);
        }
        check(&file).unwrap();
    }

    #[test]
    fn a_link_is_as_good_as_what_it_leads_to() {
        let temp = folder();
        let (inside, outside) = (temp.path().join("inside"), temp.path().join("outside"));
        for folder in [&inside, &outside] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(outside.join("a.so"), "").unwrap();
        symlink("../outside", inside.join("..data")).unwrap();
        symlink("..data/a.so", inside.join("a.so")).unwrap();
        check(&inside.join("a.so")).unwrap();
        mode(&outside, 0o777);
        let error = check(&inside.join("a.so")).unwrap_err().to_string();
        assert!(error.contains("outside may be written"), "{error}");
    }

    #[test]
    fn links_in_a_circle_end() {
        let temp = folder();
        symlink("b", temp.path().join("a")).unwrap();
        symlink("a", temp.path().join("b")).unwrap();
        assert!(matches!(
            check(&temp.path().join("a")),
            Err(Insecure::Io { .. })
        ));
    }

    #[test]
    fn what_belongs_to_somebody_else_is_refused() {
        if !Uid::effective().is_root() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let temp = folder();
        let file = temp.path().join("a.so");
        fs::write(&file, "").unwrap();
        std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
        let error = check(&file).unwrap_err().to_string();
        assert!(error.contains("belongs to user 65534"), "{error}");
        // A group that many are in is somebody else too.
        std::os::unix::fs::chown(&file, Some(0), Some(65534)).unwrap();
        mode(&file, 0o664);
        let error = check(&file).unwrap_err().to_string();
        assert!(error.contains("group 65534"), "{error}");
        // The user's own group is nobody else.
        std::os::unix::fs::chown(&file, Some(0), Some(0)).unwrap();
        check(&file).unwrap();
    }
}
