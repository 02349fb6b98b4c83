//! The artifact that a command means: a file, or what a plugin crate is built to.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use super::{
    args::Global,
    dev::cargo::{Build, Project},
    exit::Failure,
    output,
};
use crate::shown;

/// Returns the file at `path`, or where that is the folder of a crate the one that its release
/// build makes.
pub(super) async fn artifact(global: &Global, path: &Path) -> Result<PathBuf, Failure> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let project = Project {
        folder: path.to_owned(),
        release: true,
        features: Vec::new(),
        package: None,
        colour: output::colour(&io::stderr(), global),
        width: io::stderr().is_terminal().then(output::width).flatten(),
    };
    let krate = project.read().map_err(Failure::new)?;
    krate.check_is_plugin().map_err(Failure::new)?;
    match project.build(&krate, false).await.map_err(Failure::new)? {
        Build::Artifact(file) => Ok(file),
        Build::Failed(_) => Err(Failure::new(format!(
            "nothing was deployed: {} does not compile",
            shown::path(path)
        ))),
        Build::NoPlugin => Err(Failure::new(format!(
            "nothing was deployed: cargo builds no plugin of {}",
            shown::path(path)
        ))),
    }
}
