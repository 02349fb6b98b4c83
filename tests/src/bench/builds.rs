//! The programs that are measured: with the profile that is for production, or a quicker one for
//! what is only compared with itself.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{elf, plugins::workspace};

/// What is measured.
#[derive(Debug, Clone)]
pub struct Builds {
    /// The host.
    pub handover: PathBuf,
    /// The server without plugins.
    pub twin: PathBuf,
    /// The hello fixture in version 1.0.0, and the same that calls itself 2.0.0.
    pub hello: [PathBuf; 2],
}

/// How it is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As cargo does it.
    Release,
    /// As what runs for months is built.
    Dist,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dist => "dist",
        }
    }
}

impl Builds {
    /// Builds each apart, so that none gets features that only another wants of a common
    /// dependency.
    ///
    /// # Panics
    /// When one does not build.
    pub fn new(profile: Profile) -> Self {
        let hello = build("hello", "libhello.so", profile);
        let mut second = fs::read(&hello).expect("it was just written");
        elf::set_version(&mut second, "2.0.0");
        Self {
            handover: build("handover", "handover", profile),
            twin: build("twin", "twin", profile),
            hello: [hello, keep("libhello-2.0.0.so", profile, &second)],
        }
    }
}

/// Builds a package of the workspace, and gives a copy of the file that comes of it.
///
/// # Panics
/// When it does not build.
pub fn build(package: &str, file: &str, profile: Profile) -> PathBuf {
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--profile",
            profile.name(),
            "-p",
            package,
        ])
        .arg("--target-dir")
        .arg(target())
        .env_remove("HANDOVER_VERSION")
        .current_dir(workspace())
        .stdin(Stdio::null())
        .status();
    assert!(
        status.expect("cargo can be run").success(),
        "{package} does not build"
    );
    // Copied, so that builds to come do not change what is being measured.
    let bytes = fs::read(target().join(profile.name()).join(file));
    keep(file, profile, &bytes.expect("cargo has built the file"))
}

/// Writes a program or a library beside and renames it, so that no copy that runs is changed.
fn keep(file: &str, profile: Profile, bytes: &[u8]) -> PathBuf {
    let dir = target().join(profile.name()).join("benches");
    let (fresh, kept) = (dir.join("fresh"), dir.join(file));
    fs::create_dir_all(&dir)
        .and_then(|()| fs::write(&fresh, bytes))
        .and_then(|()| fs::set_permissions(&fresh, Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(fresh, &kept))
        .expect("the target folder can be written");
    kept
}

/// The target folder that this program lies in.
pub(super) fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("a program knows where it is");
    exe.ancestors()
        .nth(3)
        .expect("a bench lies in TARGET/PROFILE/deps")
        .to_owned()
}
