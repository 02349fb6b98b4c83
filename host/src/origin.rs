//! The environment, the working directory and the mask of new files that the process began with.
//!
//! Plugins may change them for the whole process. What the host starts, what it gives apps to read
//! and what it writes is as it was before any of them.

use std::{
    env,
    ffi::OsString,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    sync::OnceLock,
};

use rustix::fs::Mode;

/// What the process began with.
#[derive(Debug)]
pub(crate) struct Origin {
    /// Its environment.
    environment: Vec<(OsString, OsString)>,
    /// Its working directory; none when that was gone or hidden already.
    folder: Option<PathBuf>,
    /// Its mask for the modes of new files (umask).
    file_mask: u32,
}

/// The mask where the kernel does not tell it.
const USUAL_MASK: u32 = 0o022;

/// What programs rely on wherever they run, and what is no app's own.
const USUAL: [&str; 24] = [
    "HOME",
    "HOSTNAME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "LANG",
    "LANGUAGE",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "NO_COLOR",
    "NO_PROXY",
    "PATH",
    "PWD",
    "SHELL",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TERM",
    "TMPDIR",
    "TZ",
    "TZDIR",
    "USER",
    "XDG_RUNTIME_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// The beginnings of names of the same kind.
const USUAL_BEGINNINGS: [&str; 3] = ["LC_", "RUST_", "TOKIO_"];

/// What a service manager, or the supervisor, says to the host alone: an app that read it would
/// take the host's descriptors for its own, or speak for the host.
const OF_THE_HOST: [&str; 11] = [
    "CACHE_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_FDS_FIRST_FD",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

static ORIGIN: OnceLock<Origin> = OnceLock::new();

/// What the process began with. To be called before any plugin is loaded; remembers it.
pub(crate) fn origin() -> &'static Origin {
    ORIGIN.get_or_init(|| Origin {
        environment: env::vars_os().collect(),
        folder: env::current_dir().ok(),
        file_mask: file_mask().unwrap_or(USUAL_MASK),
    })
}

/// Takes from others the right to write the files that this process makes, and from what it starts:
/// whoever may write those of a host commands it. To be called before any other thread is started.
pub(crate) fn narrow() {
    let mask = file_mask().unwrap_or(USUAL_MASK) | USUAL_MASK;
    rustix::process::umask(Mode::from_raw_mode(mask));
}

fn file_mask() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(mask.trim(), 8).ok()
}

impl Origin {
    /// The value of an environment variable, if it was set and is text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let mut variables = self.environment.iter();
        let (_, value) = variables.find(|(variable, _)| variable == name)?;
        value.to_str().map(ToOwned::to_owned)
    }

    /// The environment of an app that may read the variables `listed`, and what every program
    /// relies on: the variables that this process began with, all of them where none are listed,
    /// but never [those of the host](OF_THE_HOST).
    pub(crate) fn for_app(&self, listed: &[String]) -> Vec<(OsString, OsString)> {
        let is_its = |name: &OsString| {
            let name = name.to_string_lossy();
            let is_given = listed.is_empty()
                || listed.iter().any(|listed| *listed == name)
                || USUAL.contains(&&*name)
                || USUAL_BEGINNINGS
                    .iter()
                    .any(|beginning| name.starts_with(beginning));
            is_given && !OF_THE_HOST.contains(&&*name)
        };
        let its = self.environment.iter().filter(|(name, _)| is_its(name));
        its.cloned().collect()
    }

    /// The permissions of a new file, as they would be if nobody had changed the mask since.
    pub(crate) fn permissions(&self) -> Permissions {
        Permissions::from_mode(0o666 & !self.file_mask)
    }

    /// Makes `command` begin with the same. A folder that is gone by now is left out.
    pub(crate) fn pass_on(&self, command: &mut Command) {
        command
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = self.folder.as_ref().filter(|folder| folder.is_dir()) {
            command.current_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_command_begins_with_nothing_but_what_the_process_began_with() {
        let here = tempfile::tempdir().unwrap();
        let origin = Origin {
            environment: vec![("ONLY".into(), "this".into())],
            folder: Some(here.path().to_owned()),
            file_mask: 0o027,
        };
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo $ONLY $HOME; pwd"])
            .env("HOME", "x");
        origin.pass_on(&mut command);
        let output = command.output().unwrap();
        let folder = here.path().canonicalize().unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            format!("this\n{}\n", folder.display())
        );
        assert_eq!(origin.text("ONLY").as_deref(), Some("this"));
        assert_eq!(origin.text("HOME"), None);
        assert_eq!(origin.permissions().mode(), 0o640);
    }

    #[test]
    fn an_app_has_what_is_listed_and_what_every_program_has() {
        let environment = ["PATH", "LC_ALL", "SHOP_KEY", "OTHER_KEY"];
        let origin = Origin {
            environment: environment.map(|name| (name.into(), "x".into())).into(),
            folder: None,
            file_mask: 0,
        };
        let names = |listed: &[String]| -> Vec<_> {
            let its = origin.for_app(listed).into_iter();
            its.map(|(name, _)| name.into_string().unwrap()).collect()
        };
        assert_eq!(names(&["SHOP_KEY".into()]), ["PATH", "LC_ALL", "SHOP_KEY"]);
        assert_eq!(names(&[]), environment);
    }
}
