//! The descriptors that libraries opened and have not closed.
//!
//! A descriptor is a number that the process hands out again, so the one thing that must never
//! happen is to close a number that has become somebody else's. What is known of each number is who
//! asked libc for it ([`super::fd_interposers`] sees the caller), and which object it stood for
//! then. A number is taken for a library's only while the same object is behind it.
//!
//! That is proof for sockets, pipes and memory files: the kernel gives each of them an inode of its
//! own, so the object was made by the library, and nobody else was given it. It is none for files,
//! which others open too, nor for eventfds and their like, which share one inode: those are named
//! and left open.
//!
//! What is not seen: descriptors that are opened by a system call past libc, or by libc for itself
//! (`fopen`, `opendir`, `getaddrinfo`), or by a shared library for the plugin, and those that
//! constructors open while the library is mapped.

use std::{
    ffi::c_int,
    mem::MaybeUninit,
    path::Path,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use super::{AccountId, closers, ranges};

/// Numbers from here on are not followed: a process that has so many open is far beyond what a
/// library leaks.
const MOST: usize = 1 << 18;

/// What is known of one number.
struct Slot {
    /// The account of the library that opened it; zero for every other one.
    owner: AtomicU64,
    /// The object that it stood for: its device and inode.
    device: AtomicU64,
    inode: AtomicU64,
}

/// Takes no memory but for the numbers that plugins were given.
static SLOTS: [Slot; MOST] = [const {
    Slot {
        owner: AtomicU64::new(0),
        device: AtomicU64::new(0),
        inode: AtomicU64::new(0),
    }
}; MOST];

/// No number at or above this one was ever a library's.
static HIGH: AtomicUsize = AtomicUsize::new(0);

fn slot(fd: c_int) -> Option<&'static Slot> {
    SLOTS.get(usize::try_from(fd).ok()?)
}

/// libc has just given `fd` to the code at `caller`. Neither blocks nor allocates: it may be a
/// signal handler, or a forked child.
pub(super) fn opened(fd: c_int, caller: usize) {
    let Some(slot) = slot(fd) else {
        return;
    };
    if let Some(owner) = ranges::lookup(caller)
        && let Some((device, inode)) = identity(fd)
    {
        slot.device.store(device, Ordering::Relaxed);
        slot.inode.store(inode, Ordering::Relaxed);
        slot.owner.store(owner, Ordering::Release);
        HIGH.fetch_max(fd as usize + 1, Ordering::Release);
    } else {
        forget(slot);
    }
}

/// `fd` is about to be closed. Called before it is: right after that the number may be somebody
/// else's.
pub(super) fn closing(fd: c_int) {
    if let Some(slot) = slot(fd) {
        forget(slot);
    }
}

/// Writes only where there is something, so that the table costs no memory and no cache line is
/// taken from anybody.
fn forget(slot: &Slot) {
    if slot.owner.load(Ordering::Relaxed) != 0 {
        slot.owner.store(0, Ordering::Release);
    }
}

/// What the kernel says of the object behind `fd`.
pub(super) fn stat(fd: c_int) -> Option<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: there is room for the answer, and it is read only when it was written.
    unsafe { (libc::fstat(fd, stat.as_mut_ptr()) == 0).then(|| stat.assume_init()) }
}

/// The device and inode of the object behind `fd`.
pub(super) fn identity(fd: c_int) -> Option<(u64, u64)> {
    stat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

/// The numbers that stand for what the library of `account` opened.
fn of(account: AccountId) -> impl Iterator<Item = (c_int, &'static Slot)> {
    let high = HIGH.load(Ordering::Acquire).min(MOST);
    (0..high).filter_map(move |number| {
        let slot = &SLOTS[number];
        let fd = number as c_int;
        let is_its = slot.owner.load(Ordering::Acquire) == account
            && identity(fd)
                == Some((
                    slot.device.load(Ordering::Relaxed),
                    slot.inode.load(Ordering::Relaxed),
                ));
        is_its.then_some((fd, slot))
    })
}

/// The accounts whose libraries have the file with this device and inode open.
pub(super) fn accounts_with(file: (u64, u64)) -> Vec<AccountId> {
    let high = HIGH.load(Ordering::Acquire).min(MOST);
    SLOTS[..high]
        .iter()
        .enumerate()
        .filter_map(|(number, slot)| {
            let owner = slot.owner.load(Ordering::Acquire);
            (owner != 0 && identity(number as c_int) == Some(file)).then_some(owner)
        })
        .collect()
}

/// How many descriptors the library of `account` has open.
pub(super) fn count(account: AccountId) -> usize {
    of(account).count()
}

/// What became of the descriptors that a library left open, each for people: `descriptor 12
/// (socket)`.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    pub(super) closed: Vec<String>,
    pub(super) open: Vec<String>,
}

/// Closes what the library of `account` left open where it is proven to be its, and names the rest.
/// Its library is unmapped: before that it could still close them itself, and hit the next owner of
/// the number.
pub(super) fn settle(account: AccountId) -> Leftovers {
    let mut left = Leftovers::default();
    for (fd, slot) in of(account) {
        let target = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        let name = name(fd, &target);
        forget(slot);
        // The standard ones are the process's, whoever was given the number.
        if fd > 2 && is_one_of_a_kind(&target) {
            // SAFETY: it stands for an object that only this library was given (`of`), and the
            // library is gone.
            unsafe { closers::real_close(fd) };
            left.closed.push(name);
        } else {
            left.open.push(name);
        }
    }
    left
}

/// Whether the kernel gives each object of this kind an inode of its own.
fn is_one_of_a_kind(target: &Path) -> bool {
    target.to_str().is_some_and(|target| {
        ["socket:[", "pipe:[", "/memfd:"]
            .iter()
            .any(|kind| target.starts_with(kind))
    })
}

fn name(fd: c_int, target: &Path) -> String {
    let target = target.to_string_lossy();
    let what = match target.split_once(":[") {
        Some(("anon_inode", kind)) => kind.trim_end_matches(']'),
        Some((kind, _)) => kind,
        None => &target,
    };
    format!("descriptor {fd} ({what})")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::{
        fs::File,
        os::{
            fd::{FromRawFd, IntoRawFd, OwnedFd},
            unix::net::UnixStream,
        },
    };

    use super::*;

    #[test]
    fn only_what_is_still_the_librarys_and_nobody_elses_is_closed() {
        let account = AccountId::MAX - 1;
        let code = 0x10_0000;
        assert!(ranges::claim(account, &(code..2 * code)));
        let (one, other) = UnixStream::pair().unwrap();
        let [socket, replaced] = [one, other].map(IntoRawFd::into_raw_fd);
        let file = File::open("/dev/null").unwrap().into_raw_fd();
        let hosts = File::open("/dev/zero").unwrap().into_raw_fd();
        for fd in [socket, replaced, file] {
            opened(fd, code);
        }
        opened(hosts, 2 * code);
        // Past libc, so nobody sees that the number is another's now.
        // SAFETY: the numbers are this test's.
        unsafe { libc::syscall(libc::SYS_dup3, hosts, replaced, 0) };
        assert_eq!(count(account), 2);
        let left = settle(account);
        assert_eq!(left.closed, [format!("descriptor {socket} (socket)")]);
        assert_eq!(left.open, [format!("descriptor {file} (/dev/null)")]);
        assert_eq!(identity(replaced), identity(hosts));
        assert_eq!(count(account), 0);
        ranges::give_back(account);
        for fd in [replaced, file, hosts] {
            // SAFETY: made above and nobody else's.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }

    #[test]
    fn what_is_closed_or_opened_by_others_is_forgotten() {
        let account = AccountId::MAX - 2;
        let code = 0x30_0000;
        assert!(ranges::claim(account, &(code..code + 16)));
        let file = File::open("/dev/null").unwrap().into_raw_fd();
        opened(file, code);
        assert_eq!(count(account), 1);
        opened(file, 0);
        assert_eq!(count(account), 0);
        opened(file, code);
        closing(file);
        assert_eq!(count(account), 0);
        ranges::give_back(account);
        // SAFETY: made above and nobody else's.
        drop(unsafe { OwnedFd::from_raw_fd(file) });
    }
}
