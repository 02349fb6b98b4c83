//! The locks on files that libraries were refused, and who had them: what a constructor that says
//! "already open" means.
//!
//! Many embedded databases may be open only once (redb, fjall, sled by `flock`; RocksDB, LevelDB by
//! record locks). A new generation starts while the old one still has its files open, so its
//! constructor fails, in the preflight child already. The error of the library names neither the
//! file nor the other one; the kernel and the ledger can.

use std::{
    ffi::c_int,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{AccountId, descriptors, errno, known, owner, record_locks};

/// How many files are remembered for one library.
const MOST: usize = 4;

/// A lock on a file that somebody else had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedLock {
    /// The file, as the kernel calls it.
    pub path: PathBuf,
    /// `flock` or `a record lock`.
    pub how: String,
    /// Its device and inode.
    pub file: (u64, u64),
    /// The process that had it, where the kernel names one.
    pub process: Option<i32>,
    /// Whose code was refused. Means nothing in another process.
    #[serde(skip)]
    account: Option<AccountId>,
}

/// What was refused to whom.
static REFUSED: Mutex<Vec<(AccountId, RefusedLock)>> = Mutex::new(Vec::new());

/// libc has answered `answer` when code of `owner` wanted a lock on `fd`. Keeps the error of the
/// thread.
pub(super) fn note(answer: c_int, fd: c_int, owner: record_locks::LockOwner, how: &str) {
    let error = errno::get();
    if answer == 0 || error != libc::EWOULDBLOCK {
        return;
    }
    let account = record_locks::account(owner).or_else(owner::current);
    let status = record_locks::status(fd);
    if let (Some(account), Some(status)) = (account, status) {
        let file = status.file.key();
        // Not where a thread may be cancelled: taking a lock without waiting is no such place.
        let mut before = 0;
        // SAFETY: there is room for the state before.
        unsafe { pthread_setcancelstate(DISABLED, &raw mut before) };
        if is_new(account, file) {
            let refused = RefusedLock {
                path: std::fs::read_link(format!("/proc/thread-self/fd/{fd}")).unwrap_or_default(),
                how: how.to_owned(),
                file,
                process: process_with_lock(file),
                account: Some(account),
            };
            lock().push((account, refused));
        }
        // SAFETY: as above.
        unsafe { pthread_setcancelstate(before, std::ptr::null_mut()) };
    }
    errno::set(error);
}

/// `PTHREAD_CANCEL_DISABLE`
const DISABLED: c_int = 1;

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
}

fn lock() -> MutexGuard<'static, Vec<(AccountId, RefusedLock)>> {
    REFUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `file` is not remembered for `account` and there is room for it: a database that many
/// use is refused all the time.
fn is_new(account: AccountId, file: (u64, u64)) -> bool {
    let refused = lock();
    let mut its = refused.iter().filter(|(whose, _)| *whose == account);
    its.clone().count() < MOST && its.all(|(_, refused)| refused.file != file)
}

/// The process that has a lock on `file`, as `/proc/locks` has it: one that took it for itself, and
/// none for locks of open file descriptions.
fn process_with_lock(file: (u64, u64)) -> Option<i32> {
    let (major, minor) = (libc::major(file.0), libc::minor(file.0));
    let wanted = format!("{major:02x}:{minor:02x}:{}", file.1);
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // `1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF`
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == wanted)?;
        let process = words.get(at.checked_sub(1)?)?.parse().ok()?;
        (process > 0).then_some(process)
    })
}

/// What `account` was refused.
pub(super) fn of(account: AccountId) -> Vec<RefusedLock> {
    let refused = lock();
    refused
        .iter()
        .filter(|(whose, _)| *whose == account)
        .map(|(_, refused)| refused.clone())
        .collect()
}

/// Forgets `account`.
pub(super) fn forget(account: AccountId) {
    lock().retain(|(whose, _)| *whose != account);
}

impl RefusedLock {
    /// Who has the file locked or open now, and what to do, in the process of the host. The first
    /// sentence of it is a clause.
    pub fn explain(&self) -> String {
        let Self { path, how, .. } = self;
        let path = path.display();
        let own = std::process::id().cast_signed();
        let holders = holders(self.file, self.account);
        let who = match self.process {
            Some(process) if process != own => {
                return format!("process {process} has {path} locked ({how})");
            }
            Some(_) if holders.is_empty() => "a generation of this host".to_owned(),
            None if holders.is_empty() => return format!("{path} is locked ({how})"),
            _ => holders.join(" and "),
        };
        format!(
            "{who} has {path} locked ({how}). A file that may be open only once cannot be open in two generations, and a deploy has both \
             for a moment. Let the old one close it after `Context::draining()`, and the new one open it outside of its constructor, \
             trying again until the old one has closed it; or write `cutover = \"handoff\"` into the section of the app, and the host ends \
             the old one first"
        )
    }
}

/// `reason`, with who has the files locked that were refused: in the process of the host.
pub(crate) fn explained(reason: &str, refused: &[RefusedLock]) -> String {
    let mut explained = reason.to_owned();
    for refused in refused {
        explained.push_str("; ");
        explained.push_str(&refused.explain());
    }
    explained
}

/// The names of the libraries that have `file` locked or open.
fn holders(file: (u64, u64), except: Option<AccountId>) -> Vec<String> {
    let mut accounts = record_locks::holders(file);
    accounts.extend(descriptors::accounts_with(file));
    accounts.retain(|account| Some(*account) != except);
    accounts.sort_unstable();
    accounts.dedup();
    let known = accounts.into_iter().filter_map(known::of);
    known
        .map(|known| {
            format!(
                "generation {} of {} ({})",
                known.generation, known.app, known.version
            )
        })
        .collect()
}
