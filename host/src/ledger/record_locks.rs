//! Record locks for each generation, as two processes have them.
//!
//! POSIX gives record locks (`fcntl` with `F_SETLK`, `lockf`) to the process: two generations never
//! conflict, and each loses its locks when the other closes any descriptor of the file. Two copies
//! of SQLite then write one file at the same time. So a lock that code of a plugin asks for is
//! taken as a lock of an open file description, on a descriptor that the host keeps for each pair
//! of lock owner and file. The kernel decides between the owners, and between them and other
//! processes.
//!
//! **Who owns a lock.** The copy of the code that asks, because that copy has the tables that say
//! which locks "this process" has: the account of the plugin when the code lies in it, else the
//! shared library that it lies in. A libsqlite3.so that two generations share is one copy with one
//! table, and releases by way of one generation's descriptor what it took by way of another's. What
//! is the host's own, or runs in a forked child, goes to libc as it is.
//!
//! **The descriptor that is kept** is the file opened again by way of `/proc/thread-self/fd/N`,
//! which works for deleted and unnamed files too. Where it cannot be opened again (its permissions
//! have changed, no `/proc`), the caller's descriptor is duplicated, which shares its open file
//! description: the same locks, but a child that inherits the caller's descriptor across `exec`
//! keeps them while it lives. It is opened with the access of the caller's; a first write lock by
//! way of another descriptor replaces one that can only be read, and the read locks are taken on
//! the new one before the old one is closed.
//!
//! **When locks end.** When the owner closes any descriptor of the file ([`super::closers`]), and
//! when the library is unmapped. Each time they are released by name first: a forked child has the
//! same open file description, and would keep them. A library that is retained keeps its locks,
//! because what of it still runs may still write.
//!
//! Invariant: the table's mutex is held over no call that waits for a lock, and with all signals
//! blocked, because `close` may be called in a signal handler.

use std::{
    ffi::c_int,
    mem::MaybeUninit,
    ops::Range,
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    AccountId, descriptors, errno, owner,
    process::{self, Place},
    ranges,
    undisturbed::SignalsBlocked,
};

/// How many pairs of owner and file can have locks at once. Beyond it the answer is `ENOLCK`.
const MOST: usize = 4096;

/// The descriptors that are kept have numbers from here on, or from three quarters of what the
/// process may have.
const OUT_OF_THE_WAY: u64 = 4096;

/// Whose locks they are: an [`AccountId`], or [`OBJECT`] with the address where a shared library is
/// mapped.
pub(super) type LockOwner = u64;

const OBJECT: LockOwner = 1 << 63;

/// A file: its device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct File {
    device: u64,
    inode: u64,
}

impl File {
    /// Its device and inode.
    pub(super) fn key(self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

/// What one owner has of one file.
#[derive(Clone, Copy)]
struct Kept {
    /// Zero while the slot is free.
    owner: LockOwner,
    file: File,
    descriptor: c_int,
    access: Access,
}

/// What a descriptor may be used for.
#[derive(Clone, Copy)]
struct Access {
    reads: bool,
    writes: bool,
}

impl Access {
    fn of(flags: c_int) -> Self {
        let mode = flags & libc::O_ACCMODE;
        Self {
            reads: mode == libc::O_RDONLY || mode == libc::O_RDWR,
            writes: mode == libc::O_WRONLY || mode == libc::O_RDWR,
        }
    }

    /// Whether it allows a lock of `kind`. Every access allows to release.
    fn allows(self, kind: c_int) -> bool {
        match kind {
            libc::F_RDLCK => self.reads,
            libc::F_WRLCK => self.writes,
            _ => true,
        }
    }
}

const FREE: Kept = Kept {
    owner: 0,
    file: File {
        device: 0,
        inode: 0,
    },
    descriptor: 0,
    access: Access {
        reads: false,
        writes: false,
    },
};

struct Table {
    kept: [Kept; MOST],
    /// No slot at or above this one was ever used.
    high: usize,
}

/// All zeros, so it takes no memory until there is a lock.
static TABLE: Mutex<Table> = Mutex::new(Table {
    kept: [FREE; MOST],
    high: 0,
});

/// How many threads are using the descriptor of each slot, outside of the mutex. It is not closed
/// as long as there are any, but at the owner's end: a thread that was cancelled while it waited
/// stays counted until then.
static USERS: [AtomicUsize; MOST] = [const { AtomicUsize::new(0) }; MOST];

/// How many slots are used: without any, closing a descriptor costs one look more.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// glibc's `_dl_find_object`, which takes no lock; zero before glibc 2.35.
static FIND_OBJECT: AtomicUsize = AtomicUsize::new(0);

/// Prepares for the first library that is about to be loaded.
pub(super) fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        // SAFETY: the name is a C string; looks up its address only.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr()) };
        FIND_OBJECT.store(found as usize, Ordering::Relaxed);
        // SAFETY: a function of the executable, which stays. Without it a forked child keeps
        // descriptors, nothing else.
        unsafe { libc::pthread_atfork(None, None, Some(forked)) };
    });
}

/// Closes in a forked child what the parent keeps: with it, locks would outlive a parent that is
/// killed.
extern "C" fn forked() {
    // Another thread may have had the mutex at the fork, and does not exist here: then they stay
    // open until `exec`.
    let Ok(mut table) = TABLE.try_lock() else {
        return;
    };
    for kept in table.used() {
        if kept.owner != 0 {
            raw_close(kept.descriptor);
            *kept = FREE;
        }
    }
    COUNT.store(0, Ordering::Relaxed);
}

/// Whether anybody has locks. One load.
pub(super) fn any() -> bool {
    COUNT.load(Ordering::Relaxed) != 0
}

/// Whose the locks are that code at `caller` takes: none for the host, and in a forked child.
/// Neither blocks nor allocates.
pub(super) fn owner_of(caller: usize) -> Option<LockOwner> {
    let owner = ranges::lookup(caller).or_else(|| {
        if owner::is_host(caller) {
            None
        } else {
            object(caller).or_else(owner::current)
        }
    })?;
    // In a forked child the locks are the child's, of which libc and the kernel know.
    (process::place() == Place::Here).then_some(owner)
}

/// The shared library that contains `address`.
fn object(address: usize) -> Option<LockOwner> {
    type FindObject = unsafe extern "C" fn(usize, *mut usize) -> c_int;
    let find = FIND_OBJECT.load(Ordering::Relaxed);
    if find == 0 {
        return Some(OBJECT); // one owner for all of them
    }
    // Flags, where it begins and ends, and some more words that are none of ours: twelve on every
    // architecture.
    let mut found = [0; 16];
    // SAFETY: the address is glibc's function of that name, and the type is its signature.
    let find = unsafe { std::mem::transmute::<usize, FindObject>(find) };
    // SAFETY: there is more room than the answer takes.
    let answer = unsafe { find(address, found.as_mut_ptr()) };
    (answer == 0).then_some(OBJECT | found[1] as u64)
}

/// A library that took locks in its constructors, before it had an account, has one now.
pub(super) fn attributed(account: AccountId, mapped: &[Range<usize>]) {
    if !any() {
        return;
    }
    let mut table = table();
    for kept in table.used() {
        let base = (kept.owner & !OBJECT) as usize;
        if kept.owner & OBJECT != 0 && mapped.iter().any(|range| range.contains(&base)) {
            kept.owner = account;
        }
    }
}

/// The table, with all signals blocked.
struct Locked {
    // Released before a signal can come.
    table: MutexGuard<'static, Table>,
    _blocked: SignalsBlocked,
}

fn table() -> Locked {
    let blocked = SignalsBlocked::begin();
    Locked {
        table: TABLE.lock().unwrap_or_else(PoisonError::into_inner),
        _blocked: blocked,
    }
}

impl std::ops::Deref for Locked {
    type Target = Table;
    fn deref(&self) -> &Table {
        &self.table
    }
}

impl std::ops::DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.table
    }
}

impl Table {
    fn used(&mut self) -> &mut [Kept] {
        &mut self.kept[..self.high]
    }

    fn find(&self, owner: LockOwner, file: File) -> Option<usize> {
        self.kept[..self.high]
            .iter()
            .position(|kept| kept.owner == owner && kept.file == file)
    }

    /// The slot of `owner` for `file`, if its descriptor still stands for it: a plugin may have
    /// closed a number that is not its.
    fn sound(&mut self, owner: LockOwner, file: File) -> Option<usize> {
        let index = self.find(owner, file)?;
        if status(self.kept[index].descriptor).is_some_and(|found| found.file == file) {
            return Some(index);
        }
        self.free(index);
        None
    }

    /// Enters `kept`. None when the table is full.
    fn insert(&mut self, kept: Kept) -> Option<usize> {
        // Not one that a thread still counts in, which was closed while it waited.
        let index = (0..MOST).find(|index| {
            self.kept[*index].owner == 0 && USERS[*index].load(Ordering::Acquire) == 0
        })?;
        self.kept[index] = kept;
        self.high = self.high.max(index + 1);
        COUNT.fetch_add(1, Ordering::Relaxed);
        Some(index)
    }

    fn free(&mut self, index: usize) {
        self.kept[index] = FREE;
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }

    /// Releases all locks of a slot, and closes its descriptor unless a thread is using it.
    fn release(&mut self, index: usize, at_end: bool) {
        let descriptor = self.kept[index].descriptor;
        unlock_all(descriptor);
        // A thread that waits there has a descriptor of its own, and closes it later.
        if at_end || USERS[index].load(Ordering::Acquire) == 0 {
            raw_close(descriptor);
            self.free(index);
        }
    }
}

/// A descriptor that is kept, in use by the current thread until [`InUse::done`]. Not by a `Drop`:
/// a thread may be cancelled while it waits for a lock.
struct InUse {
    index: usize,
    descriptor: c_int,
}

impl InUse {
    fn done(self) {
        USERS[self.index].fetch_sub(1, Ordering::Release);
    }
}

/// What the kernel says of a descriptor.
pub(super) struct Status {
    pub(super) file: File,
    /// Only of regular files and folders: opening anything else again does something.
    can_be_reopened: bool,
}

/// What `descriptor` stands for.
pub(super) fn status(descriptor: c_int) -> Option<Status> {
    let stat = descriptors::stat(descriptor)?;
    let kind = stat.st_mode & libc::S_IFMT;
    Some(Status {
        file: File {
            device: stat.st_dev,
            inode: stat.st_ino,
        },
        can_be_reopened: kind == libc::S_IFREG || kind == libc::S_IFDIR,
    })
}

/// libc's `fcntl`.
pub(super) type Fcntl = unsafe extern "C" fn(c_int, c_int, ...) -> c_int;

/// What `fcntl(descriptor, command, lock)` with a command for record locks does for `owner`: as
/// libc's, errno included, but for the process that `F_GETLK` names (-1: the kernel knows none for
/// a lock of an open file description) and for `EDEADLK`, which the kernel does not look for there.
///
/// # Safety
/// `lock` is null or valid, as `fcntl(2)` wants it. A cancellation may unwind through this.
pub(super) unsafe fn fcntl(
    real: Fcntl,
    descriptor: c_int,
    command: c_int,
    lock: *mut libc::flock,
    owner: LockOwner,
) -> c_int {
    let status = status(descriptor).filter(|status| status.can_be_reopened);
    let (Some(Status { file, .. }), false) = (status, lock.is_null()) else {
        // SAFETY: the arguments of the caller, as they came.
        return unsafe { real(descriptor, command, lock) };
    };
    // SAFETY: the caller's promise.
    let mut wanted = unsafe { lock.read() };
    wanted.l_pid = 0;
    if c_int::from(wanted.l_whence) == libc::SEEK_CUR {
        // The position is the caller's descriptor's.
        // SAFETY: has no preconditions.
        let position = unsafe { libc::lseek(descriptor, 0, libc::SEEK_CUR) };
        let Some(start) = wanted.l_start.checked_add(position) else {
            return errno::fail(libc::EOVERFLOW);
        };
        wanted.l_start = start;
        wanted.l_whence = libc::SEEK_SET as _;
    }
    if command == libc::F_GETLK {
        return get(descriptor, owner, file, wanted, lock);
    }
    let kind = c_int::from(wanted.l_type);
    // SAFETY: reads the flags of a descriptor.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
    if flags < 0 || flags & libc::O_PATH != 0 || !Access::of(flags).allows(kind) {
        return errno::fail(libc::EBADF);
    }
    let in_use = if kind == libc::F_UNLCK {
        existing(owner, file)
    } else {
        match kept(descriptor, flags, owner, file, kind) {
            Ok(in_use) => Some(in_use),
            Err(error) => return errno::fail(error),
        }
    };
    let Some(in_use) = in_use else {
        // There is nothing to release. The kernel says whether the range is one.
        wanted.l_type = libc::F_RDLCK as _;
        return raw(descriptor, libc::F_OFD_GETLK, &mut wanted);
    };
    let answer = if command == libc::F_SETLKW {
        // Only this one waits, and is where a thread may be cancelled.
        // SAFETY: the descriptor stays open while it is in use, and the lock is ours.
        unsafe { real(in_use.descriptor, libc::F_OFD_SETLKW, &raw mut wanted) }
    } else {
        raw(in_use.descriptor, libc::F_OFD_SETLK, &mut wanted)
    };
    in_use.done();
    answer
}

/// `F_GETLK`: what keeps `owner` from having the lock that is `wanted`.
fn get(
    descriptor: c_int,
    owner: LockOwner,
    file: File,
    mut wanted: libc::flock,
    lock: *mut libc::flock,
) -> c_int {
    let in_use = existing(owner, file);
    // Who has no lock conflicts with every other one, as an open file description without locks
    // does.
    let asked = in_use
        .as_ref()
        .map_or(descriptor, |in_use| in_use.descriptor);
    let answer = raw(asked, libc::F_OFD_GETLK, &mut wanted);
    if let Some(in_use) = in_use {
        in_use.done();
    }
    if answer == 0 {
        // SAFETY: the caller of `fcntl` promises that it can be written.
        unsafe {
            if c_int::from(wanted.l_type) == libc::F_UNLCK {
                (*lock).l_type = wanted.l_type;
            } else {
                lock.write(wanted);
            }
        }
    }
    answer
}

/// Whether `lock` is one for writing the whole file.
///
/// # Safety
/// `lock` is null or valid.
pub(super) unsafe fn is_of_all(lock: *const libc::flock) -> bool {
    // SAFETY: the caller's promise.
    let Some(lock) = (unsafe { lock.as_ref() }) else {
        return false;
    };
    c_int::from(lock.l_type) == libc::F_WRLCK
        && c_int::from(lock.l_whence) == libc::SEEK_SET
        && (lock.l_start, lock.l_len) == (0, 0)
}

/// What `lockf(descriptor, command, length)` does for `owner`.
///
/// # Safety
/// A cancellation may unwind through this.
pub(super) unsafe fn lockf(
    real: Fcntl,
    descriptor: c_int,
    command: c_int,
    length: libc::off_t,
    owner: LockOwner,
) -> c_int {
    let (command, kind) = match command {
        libc::F_TEST => (libc::F_GETLK, libc::F_RDLCK),
        libc::F_ULOCK => (libc::F_SETLK, libc::F_UNLCK),
        libc::F_LOCK => (libc::F_SETLKW, libc::F_WRLCK),
        libc::F_TLOCK => (libc::F_SETLK, libc::F_WRLCK),
        _ => return errno::fail(libc::EINVAL),
    };
    // SAFETY: a structure of integers.
    let mut lock = unsafe { std::mem::zeroed::<libc::flock>() };
    lock.l_type = kind as _;
    lock.l_whence = libc::SEEK_CUR as _;
    lock.l_len = length;
    // SAFETY: the lock is ours, and the caller's promise.
    let answer = unsafe { fcntl(real, descriptor, command, &raw mut lock, owner) };
    if command == libc::F_GETLK && answer == 0 && c_int::from(lock.l_type) != libc::F_UNLCK {
        return errno::fail(libc::EACCES);
    }
    answer
}

/// `owner` is about to close a descriptor of `file`: its locks on it end.
pub(super) fn closing(owner: LockOwner, file: File) {
    let mut table = table();
    if let Some(index) = table.sound(owner, file) {
        table.release(index, false);
    }
}

/// Whether `owner` has locks on `file`, or had some and has closed nothing since.
pub(super) fn has(owner: LockOwner, file: File) -> bool {
    table().find(owner, file).is_some()
}

/// The library of `account` is unmapped: ends its locks.
pub(super) fn end(account: AccountId) {
    if !any() {
        return;
    }
    let mut table = table();
    for index in 0..table.high {
        let Kept { owner, file, .. } = table.kept[index];
        if owner == account && table.sound(owner, file).is_some() {
            table.release(index, true);
        }
    }
}

/// The account that an owner is.
pub(super) fn account(owner: LockOwner) -> Option<AccountId> {
    (owner & OBJECT == 0).then_some(owner)
}

/// The accounts that have locks on the file with this device and inode.
pub(super) fn holders(file: (u64, u64)) -> Vec<AccountId> {
    let table = table();
    table.kept[..table.high]
        .iter()
        .filter(|kept| kept.owner != 0 && kept.owner & OBJECT == 0 && kept.file.key() == file)
        .map(|kept| kept.owner)
        .collect()
}

/// The descriptor that is kept for `owner` and `file`, if one is.
fn existing(owner: LockOwner, file: File) -> Option<InUse> {
    if !any() {
        return None;
    }
    let mut table = table();
    let index = table.sound(owner, file)?;
    Some(table.in_use(index))
}

impl Table {
    fn in_use(&self, index: usize) -> InUse {
        USERS[index].fetch_add(1, Ordering::Acquire);
        InUse {
            index,
            descriptor: self.kept[index].descriptor,
        }
    }
}

/// The descriptor that is kept for `owner` and `file` and allows a lock of `kind`; `descriptor`
/// with `flags` is one of the file's. Gives an errno when there can be none.
fn kept(
    descriptor: c_int,
    flags: c_int,
    owner: LockOwner,
    file: File,
    kind: c_int,
) -> Result<InUse, c_int> {
    {
        let mut table = table();
        if let Some(index) = table.sound(owner, file)
            && table.kept[index].access.allows(kind)
        {
            return Ok(table.in_use(index));
        }
    }
    // Opened without the mutex, as a file system may take its time.
    let (opened, access) = reopen(descriptor, flags, file)?;
    let mut table = table();
    let Some(index) = table.sound(owner, file) else {
        let kept = Kept {
            owner,
            file,
            descriptor: opened,
            access,
        };
        return match table.insert(kept) {
            Some(index) => Ok(table.in_use(index)),
            None => {
                raw_close(opened);
                Err(libc::ENOLCK)
            }
        };
    };
    let old = table.kept[index];
    if old.access.allows(kind) {
        raw_close(opened); // another thread was first
        return Ok(table.in_use(index));
    }
    // A thread that waits on the old one would get its lock there. And the new one has to hold what
    // the old one holds.
    if USERS[index].load(Ordering::Acquire) != 0
        || !(access.reads && access.writes)
        || !move_locks(old.descriptor, opened)
    {
        raw_close(opened);
        return Err(libc::ENOLCK);
    }
    unlock_all(old.descriptor);
    raw_close(old.descriptor);
    table.kept[index].descriptor = opened;
    table.kept[index].access = access;
    Ok(table.in_use(index))
}

/// Opens the file behind `descriptor` again, at a number that is out of the way, with the access
/// that `flags` say or more.
fn reopen(descriptor: c_int, flags: c_int, file: File) -> Result<(c_int, Access), c_int> {
    let mut path = [0_u8; 40];
    let path = proc_path(&mut path, b"", descriptor);
    let mode = flags & libc::O_ACCMODE;
    // A lock for reading may be asked for on a file that was opened for writing only.
    let modes = [
        if mode == libc::O_RDONLY {
            mode
        } else {
            libc::O_RDWR
        },
        mode,
    ];
    for mode in modes {
        let opened = open(path, mode);
        if opened < 0 {
            continue;
        }
        // Another process's /proc would give another file.
        if status(opened).is_some_and(|status| status.file == file) {
            let high = duplicate(opened);
            if high >= 0 {
                raw_close(opened);
                return Ok((high, Access::of(mode)));
            }
            return Ok((opened, Access::of(mode)));
        }
        raw_close(opened);
    }
    match duplicate(descriptor) {
        ..0 => Err(libc::ENOLCK),
        shared => Ok((shared, Access::of(flags))),
    }
}

/// `/proc/thread-self/fd/N` or `fdinfo`, with its terminating zero. Does not allocate.
fn proc_path<'a>(buffer: &'a mut [u8; 40], info: &[u8], descriptor: c_int) -> &'a [u8] {
    let mut length = 0;
    let mut digits = [0; 10];
    let mut rest = descriptor.unsigned_abs();
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for part in [b"/proc/thread-self/fd", info, b"/", &digits[first..], b"\0"] {
        buffer[length..length + part.len()].copy_from_slice(part);
        length += part.len();
    }
    &buffer[..length]
}

/// Takes on `new` the read locks that `old` holds: nobody else can get a lock for writing in
/// between. Only read locks can be on a descriptor that is replaced.
fn move_locks(old: c_int, new: c_int) -> bool {
    let mut path = [0_u8; 40];
    let info = open(proc_path(&mut path, b"info", old), libc::O_RDONLY);
    if info < 0 {
        return false;
    }
    let mut text = Vec::new();
    let mut some = [0_u8; 1024];
    loop {
        // SAFETY: the buffer has that much room.
        match unsafe { libc::read(info, some.as_mut_ptr().cast(), some.len()) } {
            0 => break,
            ..0 => {
                raw_close(info);
                return false;
            }
            read => text.extend_from_slice(&some[..read as usize]),
        }
    }
    raw_close(info);
    let text = String::from_utf8_lossy(&text);
    // `lock:	1: OFDLCK ADVISORY  READ -1 08:01:4711 0 EOF`
    text.lines()
        .filter(|line| line.starts_with("lock:") && line.contains("OFDLCK"))
        .all(|line| {
            let mut words = line.split_whitespace().rev();
            let end = words.next();
            let start = words.next().and_then(|start| start.parse::<i64>().ok());
            let (Some(end), Some(start)) = (end, start) else {
                return false;
            };
            let length = match end.parse::<i64>() {
                Ok(end) => end - start + 1,
                Err(_) => 0, // to the end of the file, wherever that is
            };
            let mut lock = range(libc::F_RDLCK, start, length);
            raw(new, libc::F_OFD_SETLK, &mut lock) == 0
        })
}

fn range(kind: c_int, start: libc::off_t, length: libc::off_t) -> libc::flock {
    // SAFETY: a structure of integers.
    let mut lock = unsafe { std::mem::zeroed::<libc::flock>() };
    lock.l_type = kind as _;
    lock.l_whence = libc::SEEK_SET as _;
    lock.l_start = start;
    lock.l_len = length;
    lock
}

fn unlock_all(descriptor: c_int) {
    raw(
        descriptor,
        libc::F_OFD_SETLK,
        &mut range(libc::F_UNLCK, 0, 0),
    );
}

/// `fcntl` for a lock by a system call: no cancellation point.
fn raw(descriptor: c_int, command: c_int, lock: &mut libc::flock) -> c_int {
    // SAFETY: the lock is valid.
    unsafe { libc::syscall(libc::SYS_fcntl, descriptor, command, &raw mut *lock) as c_int }
}

/// `open` by a system call: no cancellation point, and nobody's descriptor.
fn open(path: &[u8], mode: c_int) -> c_int {
    debug_assert_eq!(path.last(), Some(&0));
    let flags = mode | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    // SAFETY: the path ends with a zero.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0) as c_int }
}

/// Duplicates a descriptor to a number that programs which count on small ones do not miss.
fn duplicate(descriptor: c_int) -> c_int {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: there is room for the answer, and it is read only when it was written.
    let limit = unsafe {
        match libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr()) {
            0 => limit.assume_init().rlim_cur,
            _ => 0,
        }
    };
    let least = (limit / 4 * 3).min(OUT_OF_THE_WAY) as c_int;
    // SAFETY: has no preconditions.
    unsafe { libc::syscall(libc::SYS_fcntl, descriptor, libc::F_DUPFD_CLOEXEC, least) as c_int }
}

/// Closes a descriptor that this module opened.
fn raw_close(descriptor: c_int) {
    // SAFETY: it is the table's own, or was just opened by the caller.
    unsafe { libc::syscall(libc::SYS_close, descriptor) };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::{
        fs::{self, OpenOptions},
        os::fd::{AsRawFd, RawFd},
    };

    use super::*;

    const ONE: LockOwner = 1 << 40;

    /// An owner that no other test has.
    fn owner() -> LockOwner {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        prepare();
        process::loads();
        ONE + NEXT.fetch_add(1, Ordering::Relaxed) as u64
    }

    fn file() -> (tempfile::TempDir, fs::File) {
        let folder = tempfile::tempdir().unwrap();
        let file = open_file(&folder, true);
        (folder, file)
    }

    fn open_file(folder: &tempfile::TempDir, writable: bool) -> fs::File {
        OpenOptions::new()
            .read(true)
            .write(writable)
            .create(writable)
            .truncate(false)
            .open(folder.path().join("file"))
            .unwrap()
    }

    fn lock(file: &fs::File, owner: LockOwner, command: c_int, mut lock: libc::flock) -> Answer {
        // SAFETY: the lock is ours, and the thread is not cancelled.
        let answer = unsafe { fcntl(libc::fcntl, file.as_raw_fd(), command, &mut lock, owner) };
        if answer == 0 {
            Ok(lock)
        } else {
            Err(errno::get())
        }
    }

    type Answer = Result<libc::flock, c_int>;

    fn set(
        file: &fs::File,
        owner: LockOwner,
        kind: c_int,
        start: i64,
        length: i64,
    ) -> Result<(), c_int> {
        lock(file, owner, libc::F_SETLK, range(kind, start, length)).map(drop)
    }

    /// Whether another process gets the lock, by the kernel's own record locks on a descriptor that
    /// it inherits.
    fn another_process_gets(file: &fs::File, kind: c_int, start: i64, length: i64) -> bool {
        in_child(|| {
            let mut lock = range(kind, start, length);
            raw(file.as_raw_fd(), libc::F_SETLK, &mut lock) == 0
        })
    }

    fn in_child(does: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child makes system calls and ends.
        match unsafe { libc::fork() } {
            0 => {
                let code = c_int::from(!does());
                // SAFETY: ends the child.
                unsafe { libc::_exit(code) }
            }
            child => {
                let mut status = 0;
                // SAFETY: there is room for the status.
                assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
                status == 0
            }
        }
    }

    fn closes(file: fs::File, owner: LockOwner) {
        closing(owner, status(file.as_raw_fd()).unwrap().file);
    }

    #[test]
    fn two_owners_are_to_each_other_what_two_processes_are() {
        let (folder, first) = file();
        let second = open_file(&folder, true);
        let (a, b) = (owner(), owner());
        set(&first, a, libc::F_WRLCK, 10, 10).unwrap();
        assert_eq!(set(&second, b, libc::F_WRLCK, 15, 1), Err(libc::EAGAIN));
        assert_eq!(set(&second, b, libc::F_RDLCK, 15, 1), Err(libc::EAGAIN));
        assert!(!another_process_gets(&second, libc::F_RDLCK, 15, 1));
        assert_eq!(set(&second, b, libc::F_WRLCK, 20, 1), Ok(()));
        // By another descriptor of the same owner there is no conflict, and it can be released by
        // any of them.
        assert_eq!(set(&second, a, libc::F_RDLCK, 10, 10), Ok(()));
        assert_eq!(set(&second, b, libc::F_RDLCK, 15, 1), Ok(()));
        assert_eq!(set(&second, a, libc::F_UNLCK, 0, 0), Ok(()));
        assert_eq!(set(&first, b, libc::F_WRLCK, 10, 10), Ok(()));
        end(a);
        end(b);
        assert!(another_process_gets(&first, libc::F_WRLCK, 0, 0));
    }

    #[test]
    fn who_asks_is_told_of_others_and_never_of_itself() {
        let (_folder, file) = file();
        let (a, b) = (owner(), owner());
        set(&file, a, libc::F_WRLCK, 10, 10).unwrap();
        let asked = range(libc::F_RDLCK, 0, 0);
        let answer = lock(&file, a, libc::F_GETLK, asked).unwrap();
        assert_eq!(c_int::from(answer.l_type), libc::F_UNLCK);
        let answer = lock(&file, b, libc::F_GETLK, asked).unwrap();
        assert_eq!(c_int::from(answer.l_type), libc::F_WRLCK);
        assert_eq!((answer.l_start, answer.l_len, answer.l_pid), (10, 10, -1));
        end(a);
        end(b);
    }

    #[test]
    fn closing_any_descriptor_of_a_file_ends_its_owners_locks_and_no_others() {
        let (folder, file) = file();
        let (a, b) = (owner(), owner());
        set(&file, a, libc::F_WRLCK, 0, 1).unwrap();
        set(&file, b, libc::F_WRLCK, 1, 1).unwrap();
        closes(open_file(&folder, false), a);
        assert!(another_process_gets(&file, libc::F_WRLCK, 0, 1));
        assert!(!another_process_gets(&file, libc::F_WRLCK, 1, 1));
        end(b);
    }

    #[test]
    fn a_descriptor_allows_the_locks_that_its_access_does() {
        let (folder, _file) = file();
        let (a, b) = (owner(), owner());
        let reads = open_file(&folder, false);
        assert_eq!(set(&reads, a, libc::F_WRLCK, 0, 1), Err(libc::EBADF));
        assert_eq!(set(&reads, a, libc::F_RDLCK, 3, 4), Ok(()));
        assert_eq!(set(&reads, a, libc::F_RDLCK, 100, 0), Ok(()));
        // Now a lock for writing by another one; those for reading move with it.
        let writes = open_file(&folder, true);
        assert_eq!(set(&writes, a, libc::F_WRLCK, 20, 1), Ok(()));
        for start in [3, 6, 20, 100, 1 << 40] {
            assert_eq!(
                set(&writes, b, libc::F_WRLCK, start, 1),
                Err(libc::EAGAIN),
                "{start}"
            );
        }
        for start in [2, 7, 99] {
            assert_eq!(set(&writes, b, libc::F_WRLCK, start, 1), Ok(()), "{start}");
        }
        assert_eq!(set(&reads, a, libc::F_UNLCK, 0, 0), Ok(()));
        assert_eq!(set(&writes, b, libc::F_WRLCK, 0, 0), Ok(()));
        end(a);
        end(b);
    }

    #[test]
    fn a_deleted_file_can_be_locked() {
        let (folder, file) = file();
        let (a, b) = (owner(), owner());
        fs::remove_file(folder.path().join("file")).unwrap();
        assert_eq!(set(&file, a, libc::F_WRLCK, 0, 0), Ok(()));
        assert_eq!(set(&file, b, libc::F_WRLCK, 0, 0), Err(libc::EAGAIN));
        end(a);
        assert_eq!(set(&file, b, libc::F_WRLCK, 0, 0), Ok(()));
        end(b);
    }

    #[test]
    fn a_position_is_the_callers_descriptors() {
        use std::io::{Seek, SeekFrom};
        let (_folder, mut file) = file();
        let (a, b) = (owner(), owner());
        file.seek(SeekFrom::Start(50)).unwrap();
        let mut wanted = range(libc::F_WRLCK, -10, 20);
        wanted.l_whence = libc::SEEK_CUR as _;
        lock(&file, a, libc::F_SETLK, wanted).unwrap();
        // SAFETY: the thread is not cancelled.
        let test = |owner| unsafe { lockf(libc::fcntl, file.as_raw_fd(), libc::F_TEST, 1, owner) };
        assert_eq!(test(a), 0);
        assert_eq!(test(b), -1);
        assert_eq!(errno::get(), libc::EACCES);
        assert_eq!(set(&file, b, libc::F_WRLCK, 0, 40), Ok(()));
        assert_eq!(set(&file, b, libc::F_WRLCK, 60, 0), Ok(()));
        assert_eq!(set(&file, b, libc::F_WRLCK, 59, 1), Err(libc::EAGAIN));
        end(a);
        end(b);
    }

    #[test]
    fn who_waits_for_a_lock_gets_it_when_the_other_closes() {
        let (folder, file) = file();
        let (a, b) = (owner(), owner());
        set(&file, a, libc::F_WRLCK, 0, 0).unwrap();
        let waiting = open_file(&folder, true);
        let waiter = std::thread::spawn(move || {
            lock(&waiting, b, libc::F_SETLKW, range(libc::F_WRLCK, 0, 0)).map(drop)
        });
        // Nothing that others do is held up by it, nor does it get the lock by another's closing.
        let (_other_folder, other) = self::file();
        let c = owner();
        set(&other, c, libc::F_WRLCK, 0, 0).unwrap();
        end(c);
        assert!(!waiter.is_finished());
        closes(file, a);
        waiter.join().unwrap().unwrap();
        end(b);
    }

    #[test]
    fn a_forked_child_neither_has_nor_keeps_the_locks_of_its_parent() {
        let (_folder, file) = file();
        let a = owner();
        set(&file, a, libc::F_WRLCK, 0, 0).unwrap();
        let kept = existing(a, status(file.as_raw_fd()).unwrap().file).unwrap();
        let descriptor: RawFd = kept.descriptor;
        kept.done();
        // Released in the child by libc, as code in it does: not the parent's. And the descriptor
        // is closed there.
        assert!(in_child(|| {
            raw(
                file.as_raw_fd(),
                libc::F_SETLK,
                &mut range(libc::F_UNLCK, 0, 0),
            ) == 0
                && (TABLE.try_lock().is_err() || status(descriptor).is_none())
        }));
        assert!(!another_process_gets(&file, libc::F_RDLCK, 0, 0));
        end(a);
        assert!(status(descriptor).is_none());
    }

    #[test]
    fn a_kept_descriptor_that_was_closed_behind_its_back_is_not_used() {
        let (_folder, file) = file();
        let a = owner();
        set(&file, a, libc::F_WRLCK, 0, 1).unwrap();
        let kept = existing(a, status(file.as_raw_fd()).unwrap().file).unwrap();
        // Another file's number now.
        let (_other_folder, other) = self::file();
        // SAFETY: the number is this test's.
        unsafe { libc::syscall(libc::SYS_dup3, other.as_raw_fd(), kept.descriptor, 0) };
        let number = kept.descriptor;
        kept.done();
        set(&file, a, libc::F_WRLCK, 0, 1).unwrap();
        assert!(another_process_gets(&other, libc::F_WRLCK, 0, 0));
        assert!(!another_process_gets(&file, libc::F_WRLCK, 0, 1));
        end(a);
        raw_close(number);
    }
}
