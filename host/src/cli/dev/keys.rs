//! The keys that a person presses at the terminal. The supervisor, which has the terminal, reads
//! them and passes them on to the host by a pipe beside its state.

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    thread,
};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use tokio::{io::AsyncReadExt, net::unix::pipe};

/// The name of the pipe.
const PIPE: &str = "keys";

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Build now.
    Rebuild,
    /// Show the app in a browser.
    Open,
    /// Clear the terminal.
    Clear,
    /// End.
    Quit,
    /// Say what the keys are.
    Help,
}

/// What the keys are, for people.
pub(super) const HELP: &str = "r rebuild · o open in a browser · c clear · q quit · h help";

impl Key {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte.to_ascii_lowercase() {
            b'r' => Self::Rebuild,
            b'o' => Self::Open,
            b'c' => Self::Clear,
            b'q' => Self::Quit,
            b'h' | b'?' => Self::Help,
            _ => return None,
        })
    }
}

/// The terminal, which gives each key at once and does not show it; as it was when dropped.
#[derive(Debug)]
pub(super) struct Terminal(Termios);

impl Terminal {
    /// Passes the keys of the terminal on to the host whose state is in `state`. None where
    /// standard input is no terminal, or one that somebody else reads from.
    ///
    /// # Errors
    /// When the pipe cannot be made, or the terminal cannot be read so.
    pub(super) fn pass_on(state: &Path) -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        // Whoever reads in the background is stopped.
        let is_ours = stdin.is_terminal()
            && rustix::termios::tcgetpgrp(&stdin)
                .is_ok_and(|group| group == rustix::process::getpgrp());
        if !is_ours {
            return Ok(None);
        }
        let pipe = file(state);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )?;
        // For both, so that it stays open while the host is started again.
        let mut pipe = OpenOptions::new().read(true).write(true).open(pipe)?;
        let before = rustix::termios::tcgetattr(&stdin)?;
        let mut now = before.clone();
        now.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        now.special_codes[SpecialCodeIndex::VMIN] = 1;
        now.special_codes[SpecialCodeIndex::VTIME] = 0;
        rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &now)?;
        thread::Builder::new()
            .name("keys".to_owned())
            .spawn(move || {
                let mut keys = [0; 64];
                while let Ok(read @ 1..) = io::stdin().read(&mut keys) {
                    if pipe.write_all(&keys[..read]).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// The keys that are passed on.
#[derive(Debug)]
pub(super) struct Keys(Option<pipe::Receiver>);

impl Keys {
    /// Those for the host whose state is in `state`; none ever where nobody passes them on.
    pub(super) fn of(state: &Path) -> Self {
        let mut options = pipe::OpenOptions::new();
        Self(options.read_write(true).open_receiver(file(state)).ok())
    }

    /// Whether there is somebody to press them.
    pub(super) fn are_read(&self) -> bool {
        self.0.is_some()
    }

    /// Waits for the next one. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Key {
        loop {
            let Some(pipe) = &mut self.0 else {
                return std::future::pending().await;
            };
            match pipe.read_u8().await.map(Key::of) {
                Ok(Some(key)) => return key,
                Ok(None) => {}
                Err(_) => self.0 = None,
            }
        }
    }
}

fn file(state: &Path) -> PathBuf {
    state.join(PIPE)
}
