//! Which modules a thread is in: code addresses on its stack, found without stopping it.
//!
//! The kernel tells where the stack of a thread ends that waits in a system call. Words from there
//! up to the thread's own record that lie in code that is mapped are return addresses, or what is
//! left of them: a module that the thread is in is always among those found, one that is found may
//! be one that it has left. So what is read here keeps libraries mapped, and names what people
//! read.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt,
    ptr,
};

use super::{
    AccountId,
    mappings::{Mapping, mappings},
    ranges,
};

/// What is mapped.
#[derive(Debug)]
pub(super) struct Modules {
    mapped: Vec<Range<usize>>,
    /// Where libc's file is mapped, data included.
    libc: Vec<Range<usize>>,
    code: Vec<(Range<usize>, String)>,
    /// The file of the executable.
    host: String,
    memory: Option<File>,
}

/// How much of a stack is read when nothing tells where it begins.
const MOST: usize = 1 << 20;
/// How far the record that glibc has of a thread goes beyond its list of robust mutexes, at the
/// most.
const RECORD: usize = 2048;

/// What a thread does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It runs: where is not told.
    Running,
    /// The kernel does not tell.
    Nothing,
    /// It waits.
    Waiting(Waiting),
}

/// A thread that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The number of the system call, and its first argument; none when it waits for its memory or
    /// was interrupted.
    pub(super) call: Option<(i64, usize)>,
    /// The libraries whose code is on its stack.
    pub(super) libraries: BTreeSet<AccountId>,
    /// The names of the modules whose code is on its stack, innermost first, without those of
    /// libraries that have an account.
    pub(super) modules: Vec<String>,
    /// Whether all of its stack was read, with the function that it began with.
    pub(super) whole: bool,
}

impl Modules {
    /// What is mapped now. Empty when the kernel does not tell.
    pub(super) fn read() -> Self {
        let host = fs::read_link("/proc/self/exe").unwrap_or_default();
        let mut modules = Self {
            mapped: Vec::new(),
            libc: Vec::new(),
            code: Vec::new(),
            host: host.to_string_lossy().into_owned(),
            memory: File::open("/proc/self/mem").ok(),
        };
        for mapping in mappings().unwrap_or_default() {
            modules.enter(mapping);
        }
        modules
    }

    fn enter(&mut self, mapping: Mapping) {
        let Mapping { range, name, .. } = mapping;
        if Self::is_libc(&short(&name)) {
            self.libc.push(range.clone());
        }
        if mapping.is_code {
            self.code.push((range.clone(), name));
        }
        self.mapped.push(range);
    }

    /// The module that has code at `address`.
    fn at(&self, address: usize) -> Option<&str> {
        let next = self.code.partition_point(|(range, _)| range.end <= address);
        let (range, name) = self.code.get(next)?;
        range.contains(&address).then_some(name)
    }

    /// The name of the module at `address` for people; none when it is the host, a library that has
    /// an account, or nothing.
    pub(super) fn name_at(&self, address: usize) -> Option<String> {
        if ranges::lookup(address).is_some() {
            return None;
        }
        let path = self.at(address)?;
        (path != self.host).then(|| short(path))
    }

    /// Whether `name`, one of [`Waiting::modules`], is that of libc, its dynamic linker or the
    /// kernel's part of the process.
    pub(super) fn is_libc(name: &str) -> bool {
        [
            "libc.so", "libc-", "ld-linux", "ld-musl", "ld64", "ld.so", "ld-2",
        ]
        .iter()
        .any(|start| name.starts_with(start))
            || name == "[vdso]"
    }

    /// The word at `address`, if that lies in libc's own memory.
    pub(super) fn word_of_libc(&self, address: usize) -> Option<u64> {
        let mut word = [0; size_of::<u64>()];
        self.libc
            .iter()
            .any(|range| range.contains(&address))
            .then_some(())?;
        self.memory
            .as_ref()?
            .read_exact_at(&mut word, address as u64)
            .ok()?;
        Some(u64::from_ne_bytes(word))
    }

    /// What the thread `tid` of this process does.
    pub(super) fn look(&self, tid: i32) -> Seen {
        let Ok(text) = fs::read_to_string(format!("/proc/self/task/{tid}/syscall")) else {
            return Seen::Nothing;
        };
        if text.starts_with("running") {
            return Seen::Running;
        }
        self.waiting(tid, &text)
            .map_or(Seen::Nothing, Seen::Waiting)
    }

    fn waiting(&self, tid: i32, text: &str) -> Option<Waiting> {
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let hex = |field: &str| usize::from_str_radix(field.strip_prefix("0x")?, 16).ok();
        let (call, at) = match fields.as_slice() {
            ["-1", sp, pc] => (None, (sp, pc)),
            [number, first, .., sp, pc] => (Some((number.parse().ok()?, hex(first)?)), (sp, pc)),
            _ => return None,
        };
        let (sp, pc) = (hex(at.0)?, hex(at.1)?);
        let next = self.mapped.partition_point(|range| range.end <= sp);
        let mapped = self.mapped.get(next).filter(|range| range.contains(&sp))?;
        let record = record(tid).filter(|record| (sp..mapped.end).contains(&record.start));
        let (end, whole) = match record {
            Some(record) => (record.end.min(mapped.end), true),
            None => (mapped.end.min(sp + MOST), false),
        };
        let sp = sp.next_multiple_of(size_of::<usize>());
        let mut bytes = vec![0; end.saturating_sub(sp)];
        self.memory
            .as_ref()?
            .read_exact_at(&mut bytes, sp as u64)
            .ok()?;
        let words = bytes
            .chunks_exact(size_of::<usize>())
            .filter_map(|word| Some(usize::from_ne_bytes(word.try_into().ok()?)));
        let mut waiting = Waiting {
            call,
            libraries: BTreeSet::new(),
            modules: Vec::new(),
            whole,
        };
        for address in std::iter::once(pc).chain(words) {
            let Some(path) = self.at(address) else {
                continue;
            };
            if let Some(account) = ranges::lookup(address) {
                waiting.libraries.insert(account);
            } else if path != self.host {
                let name = short(path);
                if !waiting.modules.contains(&name) {
                    waiting.modules.push(name);
                }
            }
        }
        Some(waiting)
    }
}

/// The name of a file without its folder.
fn short(path: &str) -> String {
    match path {
        "" => "generated code".to_owned(),
        path => path.rsplit('/').next().unwrap_or(path).to_owned(),
    }
}

/// The record that glibc has of a thread that it made, above its stack, from the list of robust
/// mutexes in it on. What lies behind may be taken for a part of it.
pub(super) fn record(tid: i32) -> Option<Range<usize>> {
    let mut head = ptr::null::<()>();
    let mut len = 0_usize;
    // SAFETY: there is room for both answers, and the kernel keeps neither address.
    let answer =
        unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    (answer == 0 && !head.is_null()).then(|| head.addr()..head.addr() + RECORD)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::{sync::mpsc, thread};

    use super::*;
    use crate::ledger::threads::own_tid;

    #[test]
    fn a_waiting_thread_is_seen_whole_in_libc() {
        let (tell, told) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            tell.send(own_tid()).unwrap();
            let _ = wait.recv();
        });
        let tid = told.recv().unwrap();
        let modules = Modules::read();
        let waiting = loop {
            match modules.look(tid) {
                Seen::Waiting(waiting) if waiting.call.is_some() => break waiting,
                Seen::Nothing => panic!("the kernel does not tell where a thread waits"),
                _ => thread::yield_now(),
            }
        };
        assert!(waiting.whole);
        assert!(
            waiting.modules.iter().any(|name| Modules::is_libc(name)),
            "{waiting:?}"
        );
        assert!(waiting.libraries.is_empty());
        drop(go);
        thread.join().unwrap();
    }

    #[test]
    fn modules_are_told_by_the_names_of_their_files() {
        let mut modules = Modules::read();
        modules.mapped.clear();
        modules.code.clear();
        for line in [
            "1000-2000 rw-p 00000000 00:00 0 ",
            "2000-3000 r-xp 00000000 08:01 7                  /usr/lib/libcb v2.so.1",
            "4000-5000 r-xp 00000000 00:00 0 ",
        ] {
            modules.enter(Mapping::parse(line).unwrap());
        }
        assert_eq!(modules.name_at(0x2010).as_deref(), Some("libcb v2.so.1"));
        assert_eq!(modules.name_at(0x4010).as_deref(), Some("generated code"));
        assert_eq!(modules.name_at(0x1010), None);
        assert_eq!(modules.name_at(0x3000), None);
        assert!(Modules::is_libc("libc.so.6") && !Modules::is_libc("libcb.so"));
    }
}
