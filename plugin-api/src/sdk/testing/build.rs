//! Has cargo build the library of the plugin that is tested, as it is deployed: without what only
//! its tests depend on.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;

use crate::Error;

/// What marks the target folder.
const TAG: &str = "CACHEDIR.TAG";

/// A line of cargo, as far as it is read.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    target: Target,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Default, Deserialize)]
struct Target {
    #[serde(default)]
    crate_types: Vec<String>,
}

/// Builds the library of the crate in `folder`, with the profile, the target and the target folder
/// of this very test; gives its file. Blocks as long as cargo takes.
///
/// # Errors
/// When it does not compile, or the crate has no library that a host could load.
pub(super) fn library(folder: &Path, arguments: &[String]) -> Result<PathBuf, Error> {
    let manifest = folder.join("Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command
        .args(["build", "--lib", "--quiet"])
        .arg("--message-format=json-render-diagnostics")
        .arg("--manifest-path")
        .arg(&manifest);
    if let Ok(exe) = std::env::current_exe() {
        command.args(as_built(&exe));
    }
    let output = command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Error::msg(format_args!("{} cannot be run: {error}", cargo.display())))?;
    if !output.status.success() {
        return Err(Error::msg(format_args!(
            "the library of {} does not compile: cargo says why above",
            folder.display()
        )));
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    let messages = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let made = messages.filter(|message| {
        message.reason == "compiler-artifact"
            && message.manifest_path == manifest
            && message.target.crate_types.iter().any(|it| it == "cdylib")
    });
    let mut files = made.flat_map(|message| message.filenames);
    let is_library = |file: &PathBuf| file.extension().is_some_and(|it| it == "so");
    files.rfind(is_library).ok_or_else(|| {
        Error::msg(format_args!(
            "{} has no library that a host could load: add `crate-type = [\"cdylib\"]` to [lib]",
            manifest.display()
        ))
    })
}

/// The arguments by which cargo builds as it has built the test program `exe`, which lies in
/// `TARGET_FOLDER/[TARGET/]PROFILE/deps`.
fn as_built(exe: &Path) -> Vec<OsString> {
    let Some(profile) = exe.ancestors().nth(2) else {
        return Vec::new();
    };
    let mut arguments: Vec<OsString> = vec!["--profile".into()];
    arguments.push(match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev".into(),
        Some(name) => name.into(),
    });
    let above: Vec<_> = profile.ancestors().skip(1).take(2).collect();
    match above[..] {
        [folder, ..] if folder.join(TAG).exists() => {
            arguments.extend(["--target-dir".into(), folder.into()]);
        }
        [target, folder] if folder.join(TAG).exists() => {
            let triple = target.file_name().unwrap_or_default();
            arguments.extend(["--target-dir".into(), folder.into()]);
            arguments.extend(["--target".into(), triple.to_owned()]);
        }
        _ => {}
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_built_as_the_test_was() {
        let home = tempfile::tempdir().expect("there are temporary folders");
        std::fs::write(home.path().join(TAG), "").expect("it can be written");
        let built = |below: &str| {
            let arguments = as_built(&home.path().join(below).join("deps/test-1"));
            let arguments = arguments.iter().map(|it| it.to_string_lossy());
            arguments.collect::<Vec<_>>().join(" ")
        };
        let folder = home.path().display();
        let dev = format!("--profile dev --target-dir {folder}");
        assert_eq!(built("debug"), dev);
        let release = format!("--profile release --target-dir {folder}");
        assert_eq!(built("release"), release);
        let cross = format!("--profile dist --target-dir {folder} --target x86_64-linux");
        assert_eq!(built("x86_64-linux/dist"), cross);
        assert_eq!(built("a/b/c/debug"), "--profile dev");
    }
}
