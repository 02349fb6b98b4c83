//! `--host`: the commands of this machine for the host of another one, through ssh; and `dial`,
//! which is the other end of that.

use std::{
    ffi::OsString,
    fmt,
    io::{self, Write},
    net::Shutdown,
    path::Path,
    str::FromStr,
};

use handover_api::{Client, ClientError};

use super::{args::Global, exit::Failure};

/// The program in place of `ssh`, as `GIT_SSH` is for git.
const SSH: &str = "HANDOVER_SSH";

/// Where a host runs that is not this machine: `ssh://[USER@]HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteHost {
    /// `[USER@]HOST`, as ssh takes it.
    destination: String,
    port: Option<u16>,
}

/// A text that cannot be a [`RemoteHost`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no host that can be reached: write ssh://[USER@]HOST[:PORT]")]
pub(super) struct InvalidHost(String);

impl FromStr for RemoteHost {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let invalid = || InvalidHost(text.to_owned());
        let rest = text.strip_prefix("ssh://").ok_or_else(invalid)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (destination, port) = match rest.rsplit_once(':') {
            Some((destination, port)) if !port.contains(']') => {
                (destination, Some(port.parse().map_err(|_| invalid())?))
            }
            _ => (rest, None),
        };
        // What begins with a dash would be an option of ssh.
        let host = destination
            .rsplit_once('@')
            .map_or(destination, |(_, host)| host);
        let host = host
            .strip_prefix('[')
            .map_or(host, |host| host.trim_end_matches(']'));
        let is_word = |text: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && !text.contains(|c: char| c.is_whitespace() || c == '/')
        };
        if !is_word(destination) || !is_word(host) {
            return Err(invalid());
        }
        let destination = destination.replace(['[', ']'], "");
        Ok(Self { destination, port })
    }
}

impl fmt::Display for RemoteHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ssh://{}", self.destination)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl RemoteHost {
    /// Returns the command line whose standard input and output are a connection to the control
    /// socket there.
    fn command(&self, control: Option<&Path>) -> Vec<OsString> {
        let program = std::env::var_os(SSH).filter(|program| !program.is_empty());
        let mut line: Vec<OsString> = vec![program.unwrap_or_else(|| "ssh".into())];
        if let Some(port) = self.port {
            line.extend(["-p".into(), port.to_string().into()]);
        }
        line.extend(["-T", "--", &self.destination, "handover"].map(Into::into));
        if let Some(control) = control {
            line.extend(["--control".into(), quoted(control)]);
        }
        line.push("dial".into());
        line
    }
}

/// A word for the shell of the other machine.
fn quoted(path: &Path) -> OsString {
    let text = path.to_string_lossy().replace('\'', r"'\''");
    format!("'{text}'").into()
}

impl Global {
    /// Returns the client of the host that is meant.
    pub(super) fn client(&self) -> Client {
        match &self.host {
            Some(host) => Client::through(host.command(self.control.as_deref())),
            None => Client::new(&self.control()),
        }
    }
}

/// `handover dial`: standard input and output are a connection to the control socket, until the
/// host closes it.
pub(super) fn dial(global: &Global) -> Result<(), Failure> {
    let control = global.control();
    let socket = handover_api::socket::dial(&control).map_err(|error| {
        Failure::from(match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied(control.clone()),
            _ => ClientError::Unreachable {
                path: control.clone(),
                source: error,
            },
        })
    })?;
    let broken =
        |error: io::Error| Failure::new(format!("the connection to the host broke: {error}"));
    let mut to_host = socket.try_clone().map_err(broken)?;
    // Ends with the process: standard input may stay open for ever.
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut to_host); // the host has closed
        let _ = to_host.shutdown(Shutdown::Write);
    });
    let mut out = io::stdout().lock();
    copy(&socket, &mut out).map_err(broken)
}

/// Passes on what comes at once: somebody waits for each line.
fn copy(mut from: impl io::Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = vec![0; 64 << 10];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            length => {
                to.write_all(&piece[..length])?;
                to.flush()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_host_is_a_destination_of_ssh_and_never_an_option() {
        let line = |text: &str, control: Option<&str>| {
            let host: RemoteHost = text.parse().unwrap();
            let line = host.command(control.map(Path::new));
            line.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        assert_eq!(line("ssh://box", None), "ssh -T -- box handover dial");
        assert_eq!(
            line("ssh://ops@box.example.org:2222", Some("/run/it's/c.sock")),
            r"ssh -p 2222 -T -- ops@box.example.org handover --control '/run/it'\''s/c.sock' dial"
        );
        assert_eq!(
            line("ssh://ops@[::1]:22", None),
            "ssh -p 22 -T -- ops@::1 handover dial"
        );
        for text in [
            "box",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://a@-x",
            "ssh://box:port",
            "ssh://a b",
            "ssh://a/b",
        ] {
            assert!(text.parse::<RemoteHost>().is_err(), "{text}");
        }
    }
}
