//! The tasks of this process, as the kernel lists them, and which of them were seen to begin.
//!
//! Every thread that is made by `pthread_create` enters itself in a table as its first act and
//! marks itself there as its last thread-local destructor, whoever made it. The table is read and
//! written without a lock and without an allocation, since threads begin before `main` and in
//! forked children. Its 16 MiB are memory that nobody touches but for the pages of the numbers in
//! use.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use super::threads::own_tid;

/// `PID_MAX_LIMIT` of the kernel: no task has a higher number.
const NUMBERS: usize = 4 << 20;

/// For each number: zero when no thread with it was seen to begin, [`ALIVE`], or when it ended, as
/// [`ended_at`] has it.
static SEEN: [AtomicU32; NUMBERS] = [const { AtomicU32::new(0) }; NUMBERS];

const ALIVE: u32 = 1;

/// The end of a thread in the table: even, and never zero.
fn ended_at(ticks: u64) -> u32 {
    ((ticks as u32) << 1).max(2)
}

thread_local! {
    /// Marks the end of this thread. Registered first, so that it is dropped last.
    static END: End = const { End };
}

struct End;

impl Drop for End {
    fn drop(&mut self) {
        if let Some(seen) = SEEN.get(own_tid() as usize) {
            seen.store(ended_at(now()), Ordering::Release);
        }
    }
}

/// Enters the current thread, which has just begun.
pub(super) fn begin() {
    if END.try_with(|_| ()).is_ok()
        && let Some(seen) = SEEN.get(own_tid() as usize)
    {
        seen.store(ALIVE, Ordering::Release);
    }
}

/// Whether a thread that was seen to begin is this task.
///
/// Between a thread's mark and its end in the kernel lie a few instructions of libc. After that the
/// kernel may give its number to another task, which has begun later than the mark was made.
pub(super) fn was_seen(tid: i32) -> bool {
    let seen = usize::try_from(tid)
        .ok()
        .and_then(|tid| SEEN.get(tid))
        .map_or(0, |seen| seen.load(Ordering::Acquire));
    match seen {
        0 => false,
        ALIVE => true,
        // Half of the numbers lie before: that is 124 days, so of an older thread the last
        // instructions are a stranger's for a moment.
        end => Task::look(tid)
            .is_none_or(|task| end.wrapping_sub(ended_at(task.began)) <= u32::MAX / 2),
    }
}

/// What the kernel says of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Task {
    /// When it began, in [`now`]'s unit.
    pub(super) began: u64,
    /// Its flags in the kernel.
    flags: u64,
}

impl Task {
    /// None when there is no such task in this process any more.
    pub(super) fn look(tid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).ok()?;
        Self::parse(&stat)
    }

    /// The name between the parentheses may have blanks and parentheses in it.
    fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
        let flags = fields.nth(6)?.parse().ok()?;
        let began = fields.nth(12)?.parse().ok()?;
        Some(Self { began, flags })
    }

    /// Whether it is a worker that the kernel made for itself (io_uring's, vhost's): those never
    /// run code of the process.
    pub(super) fn is_of_kernel(self) -> bool {
        const PF_IO_WORKER: u64 = 0x10;
        const PF_USER_WORKER: u64 = 0x4000;
        self.flags & (PF_IO_WORKER | PF_USER_WORKER) != 0
    }
}

/// Whether a task had a processor for less than a millisecond, which is more than a thread's first
/// act takes: it may not have come to it.
pub(super) fn has_hardly_run(tid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/schedstat"));
    let ran = |stat: String| stat.split_ascii_whitespace().next()?.parse::<u64>().ok();
    // Without the statistics of the scheduler nothing is known of it.
    stat.ok()
        .and_then(ran)
        .is_some_and(|nanoseconds| nanoseconds < 1_000_000)
}

/// The time since the machine was started, in the unit in which the kernel tells when a task began:
/// hundredths of a second.
pub(super) fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: there is room for the time; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    time.tv_sec as u64 * 100 + time.tv_nsec as u64 / 10_000_000
}

/// How often the list is read before it is given up.
const TRIES: usize = 20;

/// The numbers of all tasks of this process that lived throughout.
///
/// # Errors
/// When they cannot be listed.
pub(super) fn all() -> io::Result<Vec<i32>> {
    let own = fs::read_link("/proc/thread-self")?;
    if own.file_name().and_then(|name| name.to_str()) != Some(&*own_tid().to_string()) {
        return Err(io::Error::other(
            "/proc is that of another PID namespace: mount it for this one",
        ));
    }
    for _ in 0..TRIES {
        let folder = Path::new("/proc/self/task");
        let mut tasks = Vec::new();
        for entry in fs::read_dir(folder)? {
            if let Some(tid) = entry?.file_name().to_str().and_then(|tid| tid.parse().ok()) {
                tasks.push(tid);
            }
        }
        // The kernel cuts the list short when the task that it stands at ends meanwhile. The folder
        // has two links and one for each task.
        if tasks.len() as u64 + 2 >= fs::metadata(folder)?.nlink() {
            return Ok(tasks);
        }
    }
    Err(io::Error::other("they begin and end too fast"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn a_task_is_read_whatever_its_name_is() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 4194368 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        let task = Task::parse(stat).unwrap();
        assert_eq!((task.began, task.flags), (4711, 4_194_368));
        assert!(!task.is_of_kernel());
        assert_eq!(Task::parse("7 (a"), None);
    }

    #[test]
    fn a_thread_that_has_had_a_processor_has_not_hardly_run() {
        let begin = std::time::Instant::now();
        while begin.elapsed() < std::time::Duration::from_secs(60) && has_hardly_run(own_tid()) {}
        assert!(!has_hardly_run(own_tid()));
        assert!(!has_hardly_run(i32::MAX)); // there is no such task
    }

    #[test]
    fn a_thread_that_is_made_is_seen_and_began_before_now() {
        let (tell, told) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            tell.send(own_tid()).unwrap();
            let _ = wait.recv();
        });
        let tid = told.recv().unwrap();
        assert!(was_seen(tid));
        assert!(all().unwrap().contains(&tid));
        assert!(Task::look(tid).unwrap().began <= now());
        drop(go);
        thread.join().unwrap();
    }

    #[test]
    fn the_number_of_a_thread_that_ended_is_not_taken_for_it_when_it_is_given_out_again() {
        let tid = own_tid();
        let seen = &SEEN[tid as usize];
        let before = seen.swap(
            ended_at(Task::look(tid).unwrap().began - 1),
            Ordering::AcqRel,
        );
        let taken_for_it = was_seen(tid);
        seen.store(before, Ordering::Release);
        assert!(!taken_for_it);
    }
}
