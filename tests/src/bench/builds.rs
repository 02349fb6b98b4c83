//! The programs that are measured, always as release builds.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::plugins::workspace;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Builds {
    /// The host.
    pub handover: PathBuf,
    /// The server without plugins.
    pub twin: PathBuf,
    /// The hello fixture in versions 1.0.0 and 2.0.0.
    pub hello: [PathBuf; 2],
}

impl Builds {
    /// Builds each apart, so that none gets features that only another wants of a common dependency.
    ///
    /// # Panics
    /// When one does not build.
    pub fn new() -> Self {
        let dir = target().join("release").join("benches");
        fs::create_dir_all(&dir).expect("the target folder can be written");
        let build = |package: &str, file: &str, version: &str| {
            let mut command = Command::new(env!("CARGO"));
            command.args(["build", "--quiet", "--release", "-p", package]);
            command.arg("--target-dir").arg(target());
            if version.is_empty() {
                command.env_remove("HANDOVER_VERSION")
            } else {
                command.env("HANDOVER_VERSION", version)
            };
            let status = command
                .current_dir(workspace())
                .stdin(Stdio::null())
                .status();
            assert!(
                status.expect("cargo can be run").success(),
                "{package} does not build"
            );
            // Copied, so that builds to come do not change what is being measured; and renamed, so that no copy of it that runs is changed.
            let (fresh, kept) = (dir.join("fresh"), dir.join(format!("{version}{file}")));
            fs::copy(target().join("release").join(file), &fresh)
                .and_then(|_| fs::rename(fresh, &kept))
                .expect("cargo has built the file");
            kept
        };
        Self {
            handover: build("handover", "handover", ""),
            twin: build("twin", "twin", ""),
            hello: ["1.0.0", "2.0.0"].map(|version| build("hello", "libhello.so", version)),
        }
    }
}

impl Default for Builds {
    fn default() -> Self {
        Self::new()
    }
}

/// The target folder that this program lies in.
pub(super) fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("a program knows where it is");
    exe.ancestors()
        .nth(3)
        .expect("a bench lies in TARGET/PROFILE/deps")
        .to_owned()
}
