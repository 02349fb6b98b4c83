//! The net below the books: the tasks of this process that nobody has entered.
//!
//! A task that is no library's ([`super::threads`]), was not seen to begin ([`super::tasks`]) and
//! is not the main thread was made past libc's names: by a system call, by a copy of
//! `pthread_create` that was looked up, by libc for itself. Whose it is can only be told by its age
//! and by the code on its stack ([`super::stack`]):
//!
//! - one whose stack has code of a library on it holds that library, whatever else is known of it;
//! - one that is older than the load of a library is not that library's, and holds it only so;
//! - one whose stack has code of other libraries on it is theirs: the function that a thread began
//!   with is on its stack until it ends;
//! - libc's own helpers, which are known by where they wait, hold none: what they would do for a
//!   library is in other books;
//! - any other holds every library that it is younger than, and one that runs whenever it is looked
//!   at holds every library.

use std::{
    collections::HashMap,
    io,
    os::fd::RawFd,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    AccountId, ranges,
    stack::{Modules, Seen, Waiting},
    tasks::{self, Task},
    threads::{self, Alive},
};

/// A thread that holds a library, though it is not known as that library's.
#[derive(Debug)]
pub(super) struct Stranger {
    pub(super) tid: i32,
    /// It is known as another library's.
    is_anothers: bool,
    /// The library's code is on its stack.
    inside: bool,
    /// It could not be looked at, since it was running each time.
    running: bool,
    modules: Vec<String>,
}

/// A library that is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Library {
    pub(super) account: AccountId,
    /// When it was loaded, in the unit of [`tasks::now`].
    pub(super) loaded: u64,
    /// It may be called on threads of libc's that have not come to the ledger yet.
    pub(super) is_called_back: bool,
}

/// How many times, a millisecond apart, those are looked at that may be about to end.
const TRIES: u32 = 20;

/// How long a thread is given for its first act, which enters it, on a machine whose processors
/// have other work.
const FIRST_ACT: Duration = Duration::from_secs(1);

/// The helpers of libc that were recognised: number and beginning. Each lives as long as the
/// process.
static HELPERS: Mutex<Vec<(i32, u64)>> = Mutex::new(Vec::new());

/// The tasks that hold `library`.
///
/// # Errors
/// When the tasks cannot be listed.
pub(super) fn of(library: Library) -> io::Result<Vec<Stranger>> {
    let known = threads::all();
    let by_tid: HashMap<i32, &Alive> = known.iter().map(|alive| (alive.tid, alive)).collect();
    let mut modules = None;
    let mut held = Vec::new();
    for tid in tasks::all()? {
        if i64::from(tid) == i64::from(std::process::id()) || tasks::was_seen(tid) {
            continue;
        }
        let Some(task) = Task::look(tid) else {
            continue; // it has ended
        };
        if task.is_of_kernel() {
            continue;
        }
        let owner = by_tid.get(&tid).filter(|alive| alive.is(task));
        if let Some(alive) = owner {
            // One that began in a library ends in it. One that did not may serve many, as the pool
            // of a library that came along does.
            if alive.owner == library.account || ranges::lookup(alive.routine).is_some() {
                continue;
            }
        }
        let modules = modules.get_or_insert_with(Modules::read);
        held.extend(judge(library, tid, task, owner.is_some(), modules));
    }
    Ok(held)
}

/// [`of`], after those that are about to end or to be entered had the time to: for when the answer
/// is acted upon.
///
/// # Errors
/// As [`of`].
pub(super) fn lasting(library: Library) -> io::Result<Vec<Stranger>> {
    // A thread that runs now may have been seen to wait, which says more about it.
    let mut waiting = HashMap::new();
    let begin = Instant::now();
    for tries in 0_u32.. {
        let strangers = of(library)?;
        if strangers.is_empty() {
            return Ok(strangers);
        }
        let is_about_to_enter = strangers
            .iter()
            .any(|stranger| stranger.running && tasks::has_hardly_run(stranger.tid));
        if tries >= TRIES && (!is_about_to_enter || begin.elapsed() > FIRST_ACT) {
            break;
        }
        let seen = strangers.into_iter().filter(|stranger| !stranger.running);
        waiting.extend(seen.map(|stranger| (stranger.tid, stranger)));
        std::thread::sleep(Duration::from_millis(1));
    }
    let strangers = of(library)?.into_iter().map(|stranger| {
        let before = waiting.remove(&stranger.tid).filter(|_| stranger.running);
        before.unwrap_or(stranger)
    });
    Ok(strangers.collect())
}

fn judge(
    library: Library,
    tid: i32,
    task: Task,
    is_anothers: bool,
    modules: &Modules,
) -> Option<Stranger> {
    let is_older = task.began < library.loaded;
    let seen = modules.look(tid);
    let mut stranger = Stranger {
        tid,
        is_anothers,
        inside: false,
        running: seen == Seen::Running,
        modules: Vec::new(),
    };
    let waiting = match seen {
        Seen::Waiting(waiting) => waiting,
        // What is known of it otherwise says nothing about where it is now.
        Seen::Running if is_helper(tid, task, None, modules) => return None,
        Seen::Running => return (!is_anothers).then_some(stranger),
        Seen::Nothing => return (!is_older && !is_anothers).then_some(stranger),
    };
    if is_helper(tid, task, Some(&waiting), modules) {
        return None;
    }
    stranger.inside = waiting.libraries.contains(&library.account);
    let is_libcs = is_libcs(&waiting, library.is_called_back);
    let is_theirs = is_anothers || is_older || is_libcs || !waiting.libraries.is_empty();
    stranger.modules = waiting.modules;
    (stranger.inside || !is_theirs).then_some(stranger)
}

/// Whether libc made this task for itself, and it cannot come to call a library that nobody knows
/// of.
///
/// All of a thread that libc made is read, with the function that it began with. When that and all
/// else is libc's, it is a helper, or a thread that is about to call back. Where a library may be
/// called back the helper has to be seen to wait for work.
fn is_libcs(waiting: &Waiting, is_called_back: bool) -> bool {
    waiting.whole
        && waiting.libraries.is_empty()
        && waiting.modules.iter().all(|name| Modules::is_libc(name))
        && match waiting.call {
            None => false,
            Some(call) => !is_called_back || waits_for_notices(call),
        }
}

/// Whether a thread waits for what the kernel has to say, as the helper does that serves
/// `mq_notify`.
fn waits_for_notices((number, first): (i64, usize)) -> bool {
    if number != libc::SYS_recvfrom {
        return false;
    }
    let (mut domain, mut size): (libc::c_int, _) = (0, size_of::<libc::c_int>() as u32);
    // SAFETY: there is room for the answer; whatever the descriptor is by now, it is only asked.
    let answer = unsafe {
        libc::getsockopt(
            first as RawFd,
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut domain).cast(),
            &raw mut size,
        )
    };
    answer == 0 && domain == libc::AF_NETLINK
}

/// The set of the one signal that glibc keeps for its timers.
const OF_TIMERS: u64 = 1 << (32 - 1);

/// Whether it is the helper of glibc that serves timers with `SIGEV_THREAD`. It waits for the
/// signals of a set that lies in libc and has only glibc's own in it; threads that it has started
/// are tasks before a timer is deleted, so it may do what it likes.
fn is_helper(tid: i32, task: Task, waiting: Option<&Waiting>, modules: &Modules) -> bool {
    let mut helpers = HELPERS.lock().unwrap_or_else(PoisonError::into_inner);
    if helpers.contains(&(tid, task.began)) {
        return true;
    }
    let is_helper = waiting
        .and_then(|waiting| waiting.call)
        .filter(|(number, _)| *number == libc::SYS_rt_sigtimedwait)
        .is_some_and(|(_, set)| modules.word_of_libc(set) == Some(OF_TIMERS));
    if is_helper {
        helpers.push((tid, task.began));
    }
    is_helper
}

impl Stranger {
    /// ``tid 4711 `pool` (on its stack: its code, libcb.so)``, for people.
    fn describe(&self) -> String {
        let name = threads::describe(self.tid);
        let own = self.inside.then_some("its code");
        let others = self.modules.iter().map(String::as_str);
        let modules: Vec<_> = own.into_iter().chain(others).collect();
        if self.running {
            format!("{name} (running)")
        } else if modules.is_empty() {
            name
        } else {
            format!("{name} (on its stack: {})", modules.join(", "))
        }
    }
}

/// The sentences for people on those that hold a library.
pub(super) fn sentences(strangers: &[Stranger]) -> impl Iterator<Item = String> {
    let tell = |is_anothers: bool, one: &str, many: &str| {
        let those: Vec<_> = strangers
            .iter()
            .filter(|stranger| stranger.is_anothers == is_anothers)
            .map(Stranger::describe)
            .collect();
        let what = if those.len() == 1 { one } else { many };
        (!those.is_empty()).then(|| format!("{} {what}: {}", those.len(), those.join(", ")))
    };
    [
        tell(
            false,
            "thread that nobody can account for still lives",
            "threads that nobody can account for still live",
        ),
        tell(
            true,
            "thread that another library started is in its code",
            "threads that another library started are in its code",
        ),
    ]
    .into_iter()
    .flatten()
}
