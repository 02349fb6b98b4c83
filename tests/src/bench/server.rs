//! Contenders as processes, and the processor time and memory that they take.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a server may take until it answers; under callgrind everything takes fifty times as
/// long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server that runs. It is ended when dropped.
#[derive(Debug)]
pub struct Server {
    /// The processes that were started for it, the one that answers clients first.
    children: Vec<Child>,
    home: TempDir,
    /// Where it answers.
    pub address: SocketAddr,
}

/// Processor time by thread, in nanoseconds.
#[derive(Debug, Clone, Default)]
pub struct Spent(BTreeMap<u32, u64>);

/// What a server holds at a moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Resident memory of all its processes, in bytes.
    pub resident: u64,
    /// Of that, what is of no file: heaps, stacks, and what libraries had written to.
    pub anonymous: u64,
    /// Files in memory, whole, mapped or not: the host keeps a copy of each library in one.
    pub copies: u64,
    /// Threads.
    pub threads: usize,
    /// Open descriptors.
    pub descriptors: usize,
    /// Mappings.
    pub mappings: usize,
}

impl Server {
    /// A folder for a server to be.
    ///
    /// # Panics
    /// When there is no temporary folder.
    pub fn home() -> TempDir {
        tempfile::Builder::new()
            .prefix("handover-bench-")
            .tempdir()
            .expect("there is a temporary folder")
    }

    /// Runs `commands`, the one that answers at `address` first, and waits until it does.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(home: TempDir, address: SocketAddr, commands: Vec<Command>) -> Self {
        let children = commands
            .into_iter()
            .map(|mut command| {
                let log = fs::File::create(home.path().join("log")).expect("the folder is ours");
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(log);
                command
                    .spawn()
                    .unwrap_or_else(|error| panic!("{command:?}: {error}"))
            })
            .collect();
        let mut server = Self {
            children,
            home,
            address,
        };
        server.wait_until_it_answers();
        server
    }

    fn wait_until_it_answers(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !greets(self.address) {
            for child in &mut self.children {
                let ended = child.try_wait().expect("it is a child");
                assert!(
                    ended.is_none() && Instant::now() < deadline,
                    "no answer at {}, {ended:?}: {}",
                    self.address,
                    fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.home.path()
    }

    /// The process that answers clients, or the parent of those that do.
    pub fn pid(&self) -> u32 {
        self.children[0].id()
    }

    /// The processes that were started, and all that they started.
    pub fn processes(&self) -> BTreeSet<u32> {
        let parents = parents();
        let mut tree: BTreeSet<u32> = self.children.iter().map(Child::id).collect();
        loop {
            let found = parents
                .iter()
                .filter(|(pid, parent)| tree.contains(parent) && !tree.contains(pid))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>();
            if found.is_empty() {
                return tree;
            }
            tree.extend(found);
        }
    }

    /// The processor time that all its threads have taken, user and system.
    ///
    /// The same account as utime and stime in `/proc/PID/stat`, which the kernel cuts down to
    /// hundredths of a second there.
    pub fn spent(&self) -> Spent {
        let mut spent = BTreeMap::new();
        for pid in self.processes() {
            for thread in entries(&format!("/proc/{pid}/task")) {
                let account = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat"));
                let nanoseconds = account.ok().and_then(|line| {
                    line.split_whitespace()
                        .next()
                        .and_then(|field| field.parse().ok())
                });
                spent.extend(nanoseconds.map(|nanoseconds| (thread, nanoseconds)));
            }
        }
        Spent(spent)
    }

    /// The processor time that all its processes have taken, those that have ended and were waited
    /// for included. To the hundredth of a second that the kernel tells.
    pub fn spent_with_ended(&self) -> Duration {
        let hundredths: u64 = self
            .processes()
            .into_iter()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok())
            .map(|stat| {
                let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
                // utime, stime, cutime, cstime
                let fields = fields.split_whitespace().skip(11).take(4);
                fields
                    .filter_map(|field| field.parse::<u64>().ok())
                    .sum::<u64>()
            })
            .sum();
        Duration::from_millis(10 * hundredths)
    }

    /// What it holds now.
    pub fn footprint(&self) -> Footprint {
        let mut sum = Footprint {
            resident: 0,
            anonymous: 0,
            copies: 0,
            threads: 0,
            descriptors: 0,
            mappings: 0,
        };
        for pid in self.processes() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                let kilobytes =
                    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
                kilobytes.unwrap_or_default() * 1024
            };
            sum.resident += field("VmRSS:");
            sum.anonymous += field("RssAnon:");
            sum.threads += entries(&format!("/proc/{pid}/task")).len();
            let descriptors = entries(&format!("/proc/{pid}/fd"));
            sum.descriptors += descriptors.len();
            sum.copies += descriptors
                .iter()
                .map(|fd| format!("/proc/{pid}/fd/{fd}"))
                .filter(|link| {
                    fs::read_link(link).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:"))
                })
                .filter_map(|link| Some(fs::metadata(link).ok()?.blocks() * 512))
                .sum::<u64>();
            sum.mappings += fs::read_to_string(format!("/proc/{pid}/maps"))
                .unwrap_or_default()
                .lines()
                .count();
        }
        sum
    }

    /// Sends a signal to the process that answers clients.
    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Asks its processes to end, waits until they have, and gives back the folder.
    ///
    /// # Panics
    /// When they do not.
    pub fn end(mut self) -> TempDir {
        self.end_children();
        std::mem::replace(&mut self.home, Self::home())
    }

    fn end_children(&mut self) {
        for mut child in self.children.drain(..) {
            send(child.id(), Signal::TERM);
            let deadline = Instant::now() + PATIENCE;
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end_children();
    }
}

impl Spent {
    /// What was taken since `before`. Of threads that ended in between, the rest is not known.
    pub fn since(&self, before: &Self) -> Duration {
        let each = self.0.iter().map(|(thread, now)| {
            now.saturating_sub(before.0.get(thread).copied().unwrap_or_default())
        });
        Duration::from_nanos(each.sum())
    }
}

/// A loopback address that nobody has now.
///
/// # Panics
/// When there is none.
pub fn free_address() -> SocketAddr {
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
    taken.local_addr().expect("it is bound")
}

/// Whether a program can be run; where it is.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The first line that `program argument` prints.
pub fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines()
        .find(|line| !line.trim().is_empty())
        .map(str::to_owned)
}

fn greets(address: SocketAddr) -> bool {
    let asked = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer.starts_with(b"HTTP/1.1 200"))
    };
    asked().unwrap_or(false)
}

/// Every process and its parent.
fn parents() -> BTreeMap<u32, u32> {
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything: the fields go on behind the last one.
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_whitespace().nth(1)?.parse().ok()
    };
    entries("/proc")
        .into_iter()
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect()
}

/// The entries of a folder whose names are numbers.
fn entries(folder: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Sends a signal to a process that this program has started.
fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended already.
        let _ = kill_process(pid, signal);
    }
}
