//! Where lines of the log are written: standard error, a file that is rotated, or the journal.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{MetadataExt, OpenOptionsExt},
            net::UnixDatagram,
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Role;
use crate::config::{AccessLog, AccessLogFile, Log, LogRotation};

/// Where systemd's journal takes entries.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// How long a file that could not be opened is left alone.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How long one wait is for a descriptor that takes nothing at the moment.
const WAIT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Where lines are written.
#[derive(Debug)]
pub(super) enum Destination {
    /// A descriptor that this process was given.
    Descriptor(File),
    /// The journal, one datagram an entry.
    Journal(UnixDatagram),
    /// A file, and standard error as long as it cannot be opened.
    File(Box<LogFile>),
    /// Standard error is closed.
    Nowhere,
}

/// A file that lines are appended to.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    rotation: LogRotation,
    /// Whether this process rotates it: the other one that writes it follows.
    rotates: bool,
    /// The section of the configuration that names it.
    section: &'static str,
    /// Whether lines go to standard error as long as it cannot be opened. Else they are lost.
    or_stderr: bool,
    open: Option<File>,
    failed_at: Option<Instant>,
}

impl Destination {
    /// The destination that `log` names.
    pub(super) fn new(log: &Log, role: Role) -> Self {
        if let Some(path) = &log.file {
            return Self::File(Box::new(LogFile {
                path: path.clone(),
                rotation: log.rotation(),
                rotates: role == Role::Host,
                section: "log",
                or_stderr: true,
                open: None,
                failed_at: None,
            }));
        }
        match io::stderr().as_fd().try_clone_to_owned() {
            Ok(stderr) => journal(&stderr).map_or_else(|| Self::of(stderr), Self::Journal),
            Err(_) => Self::Nowhere,
        }
    }

    /// Where requests are told of.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(super) fn of_requests(log: &AccessLog, to: &AccessLogFile) -> io::Result<Self> {
        Ok(match to {
            AccessLogFile::Stdout => Self::of(io::stdout().as_fd().try_clone_to_owned()?),
            AccessLogFile::Path(path) => Self::File(Box::new(LogFile {
                path: path.clone(),
                rotation: log.rotation(),
                rotates: true,
                section: "access_log",
                or_stderr: false,
                open: None,
                failed_at: None,
            })),
        })
    }

    /// A descriptor.
    pub(super) fn of(descriptor: OwnedFd) -> Self {
        Self::Descriptor(descriptor.into())
    }

    /// Whether entries go to the journal, in its own form.
    pub(super) fn is_journal(&self) -> bool {
        matches!(self, Self::Journal(_))
    }

    /// Writes `lines`; returns how many of them are lost. Blocks as long as the other side takes
    /// nothing.
    pub(super) fn write(&mut self, lines: &[Vec<u8>]) -> u64 {
        match self {
            Self::Nowhere => 0,
            Self::Descriptor(file) => write_to(file, lines),
            Self::Journal(journal) => lines
                .iter()
                .map(|line| u64::from(!send(journal, line)))
                .sum(),
            Self::File(file) => file.write(lines),
        }
    }

    /// Opens a file again: it was renamed.
    pub(super) fn reopen(&mut self) {
        if let Self::File(file) = self {
            file.open = None;
            file.failed_at = None;
        }
    }
}

/// The journal, where it is what reads `stderr`: systemd says so in `JOURNAL_STREAM`.
fn journal(stderr: &OwnedFd) -> Option<UnixDatagram> {
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    let stat = rustix::fs::fstat(stderr).ok()?;
    if stream != format!("{}:{}", stat.st_dev, stat.st_ino) {
        return None;
    }
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(JOURNAL).ok()?;
    Some(socket)
}

/// Sends one entry. One that is longer than a datagram loses its end: half of a line tells more
/// than none.
fn send(journal: &UnixDatagram, entry: &[u8]) -> bool {
    let mut length = entry.len();
    loop {
        match journal.send(&entry[..length]) {
            Ok(_) => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) && length > 1024 => {
                length /= 2;
            }
            Err(_) => return false,
        }
    }
}

/// Writes `lines` to `file` as one piece where the kernel takes it; returns how many are lost.
fn write_to(file: &mut File, lines: &[Vec<u8>]) -> u64 {
    let mut lost = 0;
    let mut rest: &[Vec<u8>] = lines;
    while !rest.is_empty() {
        let piece = rest.concat();
        let (written, failed) = write_piece(file, &piece);
        if !failed {
            break;
        }
        // The line in the middle of which it ended is lost, what follows is tried anew.
        let mut end = 0;
        let whole = rest
            .iter()
            .take_while(|line| {
                end += line.len();
                end <= written
            })
            .count();
        lost += 1;
        rest = &rest[(whole + 1).min(rest.len())..];
    }
    lost
}

/// Writes `piece`: how many bytes went, and whether the rest failed.
fn write_piece(file: &mut File, piece: &[u8]) -> (usize, bool) {
    let mut written = 0;
    while written < piece.len() {
        match file.write(&piece[written..]) {
            Ok(0) => return (written, true),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody made it non-blocking, as programs that share a terminal do.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut one = [PollFd::new(file, PollFlags::OUT)];
                if poll(&mut one, Some(&WAIT)).is_err() {
                    return (written, true);
                }
            }
            Err(_) => return (written, true),
        }
    }
    (written, false)
}

impl LogFile {
    fn write(&mut self, lines: &[Vec<u8>]) -> u64 {
        self.follow();
        let Some(file) = &mut self.open else {
            if !self.or_stderr {
                return lines.len() as u64;
            }
            let stderr = io::stderr().as_fd().try_clone_to_owned();
            return stderr.map_or(lines.len() as u64, |stderr| {
                write_to(&mut stderr.into(), lines)
            });
        };
        let lost = write_to(file, lines);
        if self.rotates && self.is_due() {
            self.rotate();
        }
        lost
    }

    /// Opens the file where it is not open, or where its path is another file by now.
    fn follow(&mut self) {
        if let Some(file) = &self.open {
            let same = match (file.metadata(), fs::metadata(&self.path)) {
                (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
                _ => false,
            };
            if same {
                return;
            }
            self.open = None;
        }
        if self.failed_at.is_some_and(|at| at.elapsed() < TRY_AGAIN) {
            return;
        }
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&self.path);
        match opened {
            Ok(file) => {
                self.open = Some(file);
                self.failed_at = None;
            }
            Err(error) => {
                if self.failed_at.is_none() {
                    let meanwhile = match self.or_stderr {
                        true => "go to standard error",
                        false => "are lost",
                    };
                    tracing::warn!(
                        file = %self.path.display(),
                        "the log file cannot be opened: {error}; lines {meanwhile} until it can ({}.file)",
                        self.section
                    );
                }
                self.failed_at = Some(Instant::now());
            }
        }
    }

    fn is_due(&self) -> bool {
        let Some(metadata) = self.open.as_ref().and_then(|file| file.metadata().ok()) else {
            return false;
        };
        let is_large = self
            .rotation
            .max_size
            .is_some_and(|size| metadata.len() >= size);
        let is_old = self.rotation.max_age.is_some_and(|age| {
            // Where the file system does not know when it was made, age is not known either.
            metadata
                .created()
                .ok()
                .and_then(|made| SystemTime::now().duration_since(made).ok())
                .is_some_and(|old| old >= age)
        });
        (is_large || is_old) && metadata.len() > 0
    }

    fn rotate(&mut self) {
        // What cannot be renamed is written on.
        if rotate(&self.path, self.rotation.keep).is_ok() {
            self.open = None;
        }
    }
}

/// Renames the file at `path` to `NAME.1`, what had that name to `NAME.2`, and so on; what is
/// beyond the number to keep goes. Blocks.
///
/// # Errors
/// When the file itself cannot be renamed.
pub(crate) fn rotate(path: &Path, keep: usize) -> io::Result<()> {
    if keep == 0 {
        return fs::remove_file(path);
    }
    for number in (1..keep).rev() {
        // Most of them are not there.
        let _ = fs::rename(rotated(path, number), rotated(path, number + 1));
    }
    fs::rename(path, rotated(path, 1))
}

/// Returns the name of the old file with this number.
pub(crate) fn rotated(path: &Path, number: usize) -> PathBuf {
    let mut path = path.to_owned().into_os_string();
    path.push(format!(".{number}"));
    path.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn log(folder: &Path, rotation: LogRotation, role: Role) -> Destination {
        let log = Log {
            file: Some(folder.join("host.log")),
            max_size: rotation.max_size,
            max_age: rotation.max_age,
            keep: rotation.keep,
            ..Log::default()
        };
        Destination::new(&log, role)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_is_large_is_renamed_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let rotation = LogRotation {
            max_size: Some(10),
            max_age: None,
            keep: 2,
        };
        let mut host = log(folder.path(), rotation.clone(), Role::Host);
        let mut supervisor = log(folder.path(), rotation, Role::Supervisor);
        for number in 0..5 {
            assert_eq!(host.write(&[format!("line {number}\n").into_bytes()]), 0);
            assert_eq!(supervisor.write(&[b"from above\n".to_vec()]), 0);
        }
        assert_eq!(
            names(folder.path()),
            ["host.log", "host.log.1", "host.log.2"]
        );
        let last = fs::read_to_string(folder.path().join("host.log.1")).unwrap();
        assert!(last.contains("line 4\n"), "{last}");
    }

    #[test]
    fn a_file_that_somebody_renamed_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut host = log(folder.path(), Log::default().rotation(), Role::Host);
        host.write(&[b"one\n".to_vec()]);
        fs::rename(folder.path().join("host.log"), folder.path().join("old")).unwrap();
        host.write(&[b"two\n".to_vec()]);
        let read = |name| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(
            (read("old"), read("host.log")),
            ("one\n".into(), "two\n".into())
        );
    }

    #[test]
    fn a_full_disk_costs_the_lines_that_do_not_fit() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut destination = Destination::of(full.into());
        assert_eq!(
            destination.write(&[b"one\n".to_vec(), b"two\n".to_vec()]),
            2
        );
    }

    #[test]
    fn a_terminal_that_takes_nothing_at_the_moment_is_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let line = vec![b'x'; 1 << 20];
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            io::Read::read_to_end(&mut reader, &mut all).unwrap();
            all.len()
        });
        let mut destination = Destination::of(writer.into());
        assert_eq!(destination.write(&[line]), 0);
        drop(destination);
        assert_eq!(reading.join().unwrap(), 1 << 20);
    }
}
