//! One host process: its start, its end, and what that end means.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixDatagram as StdDatagram, process::ExitStatusExt},
    },
    path::Path,
    process::ExitStatus,
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::Interest,
    net::UnixDatagram,
    process::{Child, Command},
};

use super::own_pid;
use crate::{
    ledger::LAST_WORDS,
    net::{
        Listeners,
        listeners::{HandedOn, ListenerKey},
    },
    notify::{ENDED, FAILED, FORGET, KEEP, Notifier, READY, STOPPING},
    process, signals,
    spill::SpillFile,
};

/// The longest message of a host.
const LONGEST_MESSAGE: usize = 1024;

/// A host process.
#[derive(Debug)]
pub(super) struct Host {
    child: Child,
    /// Kept for the log: the child has none any more when it has ended.
    pid: u32,
    reports: UnixDatagram,
    ready: bool,
    said: Said,
    /// By a signal to this process.
    asked_to_end: bool,
    /// What it said of a fault, in the ledger's line.
    last_words: Option<String>,
}

/// What a host has said of its end, or was told.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    /// It is to end.
    stopping: bool,
    /// It could not start, and has said so.
    failed: bool,
    /// It has ended.
    ended: bool,
}

/// A crash, as the next host is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Crash {
    /// `SIGSEGV`, or an exit code.
    pub(super) how: String,
    /// The process that it was.
    pub(super) pid: u32,
    /// What it said of it.
    pub(super) last_words: Option<String>,
}

impl Crash {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "--crashed".to_owned(),
            self.how.clone(),
            "--crashed-pid".to_owned(),
            self.pid.to_string(),
        ];
        if let Some(words) = &self.last_words {
            arguments.extend(["--last-words".to_owned(), words.clone()]);
        }
        arguments
    }
}

/// What the end of a host means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was asked to; its exit code.
    Meant(u8),
    /// It never served, and said why; its exit code.
    NotStarted(u8),
    /// It did not mean to; how.
    Crashed(String),
    /// The same, while it was ending.
    CrashedLate(String),
}

impl Host {
    /// Starts this very program again, with the same arguments, `sockets`, and how the one before
    /// crashed.
    pub(super) fn start(
        sockets: &HandedOn,
        spill: Option<&SpillFile>,
        crashed: Option<&Crash>,
        kept_config: &Path,
    ) -> io::Result<Self> {
        let (reports, theirs) = StdDatagram::pair()?;
        reports.set_nonblocking(true)?;
        let mut command = Command::from(process::own_program()?);
        // So that people who list processes see what they know.
        command.arg0(
            std::env::args_os()
                .next()
                .unwrap_or_else(|| "handover".into()),
        );
        command
            .args(std::env::args_os().skip(1))
            .args(["--supervised", &own_pid()])
            .args(
                spill
                    .into_iter()
                    .flat_map(|spill| ["--spill".to_owned(), spill.number().to_string()]),
            )
            .args(crashed.into_iter().flat_map(Crash::arguments))
            .args(
                crashed
                    .into_iter()
                    .flat_map(|_| ["--kept-config".into(), kept_config.as_os_str().to_owned()]),
            )
            .args(sockets.arguments())
            .env("LISTEN_FDS", sockets.count().to_string())
            .env("LISTEN_FDS_FIRST_FD", sockets.first().to_string())
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDNAMES")
            .env_remove("NOTIFY_SOCKET")
            .stdin(OwnedFd::from(theirs))
            // Or Ctrl-C would reach it twice: from the terminal, and from here.
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn()?;
        Ok(Self {
            pid: child.id().unwrap_or_default(),
            child,
            reports: UnixDatagram::from_std(reports)?,
            ready: false,
            said: Said::default(),
            asked_to_end: false,
            last_words: None,
        })
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it ever served.
    pub(super) fn was_ready(&self) -> bool {
        self.ready
    }

    /// What to tell the next one of its crash.
    pub(super) fn crash(&self, how: String) -> Crash {
        Crash {
            how,
            pid: self.pid,
            last_words: self.last_words.clone(),
        }
    }

    /// Passes a signal on.
    pub(super) fn signal(&mut self, signal: Signal) {
        // One that is so young that it would die of it has opened its log just now.
        if signal == Signal::USR1 && !self.ready {
            return;
        }
        // It may be so young that it dies of it without a word.
        let ends = signal != Signal::HUP && signal != Signal::USR1;
        // The host may have had the first one too, from whoever sent it to both, so it is told
        // which one this is.
        let signal = if ends && self.asked_to_end {
            Signal::QUIT
        } else {
            signal
        };
        self.asked_to_end |= ends;
        self.said.stopping |= ends;
        let pid = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, signal)
        {
            tracing::warn!(?signal, "the host cannot be told: {error}");
        }
    }

    /// Waits for its end, and passes on what it says until then; listening sockets that it gives
    /// away are put into `sockets`. May be dropped and called again.
    pub(super) async fn ended(
        &mut self,
        manager: &Notifier,
        sockets: &mut Listeners,
    ) -> io::Result<End> {
        loop {
            tokio::select! {
                biased;
                Ok(report) = self.reports.async_io(Interest::READABLE, || receive(&self.reports)) => {
                    self.heard(report, manager, sockets);
                }
                status = self.child.wait() => {
                    let status = status?;
                    // What it said just before.
                    while let Ok(report) = self.reports.try_io(Interest::READABLE, || receive(&self.reports)) {
                        self.heard(report, manager, sockets);
                    }
                    return Ok(meaning(status, self.said));
                }
            }
        }
    }

    fn heard(&mut self, report: Report, manager: &Notifier, sockets: &mut Listeners) {
        let Report { text, mut socket } = report;
        for line in text.split(|byte| *byte == b'\n') {
            if let Some(key) = line.strip_prefix(KEEP) {
                if let Some(socket) = socket.take() {
                    keep(key, socket, sockets);
                }
                continue;
            }
            if let Some(key) = line.strip_prefix(FORGET) {
                if let Some(key) = read_key(key) {
                    sockets.remove(&key);
                }
                continue;
            }
            self.ready |= line == READY;
            self.said.stopping |= line == STOPPING;
            self.said.failed |= line == FAILED;
            self.said.ended |= line == ENDED;
            if line.starts_with(LAST_WORDS) {
                self.last_words = Some(String::from_utf8_lossy(line).into_owned());
                continue;
            }
            // The process to watch is this one: it is there when the host is not. And what has
            // ended is said by its end.
            if !line.starts_with(b"MAINPID=") && line != ENDED {
                manager.tell(line);
            }
        }
    }
}

/// What a host says: lines, and a socket that comes with them.
#[derive(Debug)]
struct Report {
    text: Vec<u8>,
    socket: Option<OwnedFd>,
}

/// Receives what a host says, if it has said anything.
fn receive(reports: &UnixDatagram) -> io::Result<Report> {
    let mut text = vec![0; LONGEST_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        reports,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    text.truncate(received.bytes);
    let sockets = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    let socket = sockets.flatten().next();
    Ok(Report { text, socket })
}

fn read_key(text: &[u8]) -> Option<ListenerKey> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Keeps `socket` for the next host.
fn keep(key: &[u8], socket: OwnedFd, sockets: &mut Listeners) {
    let kept = match read_key(key) {
        Some(key) => sockets.put(key, socket),
        None => Err(io::ErrorKind::InvalidInput.into()),
    };
    if let Err(error) = kept {
        let key = String::from_utf8_lossy(key);
        tracing::warn!(%key, %error, "a listening socket of the host cannot be kept");
    }
}

/// What an end means. A plugin may call `exit`, so an exit code alone says nothing.
fn meaning(status: ExitStatus, said: Said) -> End {
    let code = status.code().map(|code| u8::try_from(code).unwrap_or(1));
    let how = match code {
        Some(code) if said.ended || said.failed && said.stopping => return End::Meant(code),
        // So early that it did not handle the signal yet, and had nothing to drain.
        None if said.stopping && ended_by_order(status) => return End::Meant(0),
        Some(code) if said.failed => return End::NotStarted(code),
        Some(code) => format!("exit with code {code}"),
        None => signals::name(status.signal().unwrap_or_default()),
    };
    if said.stopping {
        End::CrashedLate(how)
    } else {
        End::Crashed(how)
    }
}

/// Whether the process ended by one of the signals that ask for an end.
fn ended_by_order(status: ExitStatus) -> bool {
    let orders = [Signal::TERM, Signal::INT, Signal::HUP];
    orders
        .iter()
        .any(|order| status.signal() == Some(order.as_raw()))
}

/// Ties this process to the supervisor that started it: it ends when that one does, and tells it
/// how it is.
///
/// # Errors
/// When the supervisor is gone already, or did not leave what it should have.
pub(crate) fn attach(supervisor: u32) -> io::Result<Notifier> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the line above.
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    if parent != supervisor {
        return Err(io::Error::other(format!(
            "process {supervisor} is not its parent: --supervised is for the host's own use"
        )));
    }
    let socket = StdDatagram::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Nobody else is to read from it or to close it.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Notifier::over(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_announced_is_a_meant_end() {
        let exit = |code: i32| ExitStatus::from_raw(code << 8);
        let killed = |signal: Signal| ExitStatus::from_raw(signal.as_raw());
        let crashed = |how: &str| End::Crashed(how.to_owned());

        let in_the_end = |how: &str| End::CrashedLate(how.to_owned());
        let nothing = Said::default();
        let failed = Said {
            failed: true,
            ..nothing
        };
        let stopping = Said {
            stopping: true,
            ..nothing
        };
        let ended = Said {
            ended: true,
            ..stopping
        };

        assert_eq!(meaning(exit(0), ended), End::Meant(0));
        // A plugin that calls `exit` while it is told to end.
        assert_eq!(meaning(exit(0), stopping), in_the_end("exit with code 0"));
        assert_eq!(
            meaning(killed(Signal::SEGV), stopping),
            in_the_end("SIGSEGV")
        );
        assert_eq!(meaning(killed(Signal::SEGV), ended), in_the_end("SIGSEGV"));
        assert_eq!(meaning(killed(Signal::TERM), stopping), End::Meant(0));
        assert_eq!(meaning(exit(1), failed), End::NotStarted(1));
        assert_eq!(meaning(exit(0), nothing), crashed("exit with code 0"));
        assert_eq!(meaning(killed(Signal::SEGV), nothing), crashed("SIGSEGV"));
        assert_eq!(meaning(killed(Signal::ABORT), nothing), crashed("SIGABRT"));
    }
}
