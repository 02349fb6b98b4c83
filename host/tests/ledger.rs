//! Libraries really unload: whatever they register with the C library, on whichever thread of the
//! host.
#![allow(
    clippy::unwrap_used,
    reason = "a test: what is not as promised ends it"
)]

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, Barrier, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use handover::testing::{
    Artifact, BuildFacts, ElfFacts, Layouts, Library, LoadError, Manifest, Sha256, ledger,
};
use sha2::Digest;

#[path = "../../tests/plugins/thread-locals/src/table.rs"]
mod table;

mod fixture;

use table::{Counts, Table_Ref};

const WORKERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(30);

/// The tests count what is the whole process's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The fixture, built by cargo like any plugin.
fn fixture() -> Artifact {
    static FIXTURE: OnceLock<Artifact> = OnceLock::new();
    FIXTURE
        .get_or_init(|| artifact(fixture::build("thread-locals").unwrap()))
        .clone()
}

fn artifact(path: PathBuf) -> Artifact {
    use object::Object;
    let bytes = std::fs::read(&path).unwrap();
    let build_id = object::File::parse(&*bytes)
        .unwrap()
        .build_id()
        .unwrap()
        .map(<[u8]>::to_vec);
    Artifact {
        sha256: Sha256(sha2::Sha256::digest(&bytes).into()),
        size: bytes.len() as u64,
        path,
        declared: Default::default(),
        db: None,
        migrations: Default::default(),
        manifest: Manifest {
            app: "fixture".parse().unwrap(),
            version: semver::Version::new(1, 0, 0),
            abi: handover::testing::AbiVersion(1, 0),
            layout: handover::testing::MANIFEST_FORMAT,
            schema: 1,
            build: BuildFacts::default(),
        },
        elf: ElfFacts {
            build_id,
            machine: std::env::consts::ARCH.into(),
            linkage: Default::default(),
        },
        signature: None,
        lease: Default::default(),
        image: Default::default(),
        pending: Default::default(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .on_thread_start(ledger::mark_worker)
        .enable_time()
        .build()
        .unwrap()
}

/// One load of the fixture.
struct Loaded {
    library: Library,
    table: Table_Ref,
    counts: &'static Counts,
}

impl Loaded {
    fn new() -> Self {
        let library = Library::open(&fixture(), Layouts::Trust).unwrap();
        let table: Table_Ref = library.root().unwrap();
        Self {
            library,
            table,
            counts: Box::leak(Box::default()),
        }
    }

    fn start(&self) {
        let (table, counts) = (self.table, self.counts);
        on_a_thread_that_ends(move || {
            table.start()(counts);
            table.touch()();
        });
    }

    fn stop(&self) {
        let table = self.table;
        on_a_thread_that_ends(move || {
            table.touch()();
            table.stop()();
        });
    }

    /// Every destructor ran, once, where it belongs.
    fn assert_settled(&self) {
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        assert_eq!(count(&self.counts.misplaced), 0);
        assert_eq!(count(&self.counts.dropped), count(&self.counts.made));
    }
}

/// As constructors and destructors of apps run. Its thread-locals have ended too when this returns.
fn on_a_thread_that_ends(code: impl FnOnce() + Send + 'static) {
    std::thread::spawn(code).join().unwrap();
}

/// Calls `touch` once on each worker.
async fn touch_everywhere(table: Table_Ref) {
    let barrier = Arc::new(Barrier::new(WORKERS));
    let tasks: Vec<_> = (0..WORKERS)
        .map(|_| {
            let barrier = Arc::clone(&barrier);
            tokio::spawn(async move {
                barrier.wait();
                table.touch()();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

fn maps() -> String {
    std::fs::read_to_string("/proc/self/maps").unwrap()
}

/// How many libraries are mapped now.
fn libraries() -> usize {
    let inodes: BTreeSet<String> = maps()
        .lines()
        .filter(|line| line.contains("/memfd:handover:fixture:"))
        .filter_map(|line| line.split_ascii_whitespace().nth(4).map(str::to_owned))
        .collect();
    inodes.len()
}

/// How many thread-specific keys the process can still make.
fn keys_left() -> usize {
    let mut keys = Vec::new();
    loop {
        let mut key = 0;
        // SAFETY: there is room for the key, and it has no destructor.
        if unsafe { libc::pthread_key_create(&mut key, None) } != 0 {
            break;
        }
        keys.push(key);
    }
    for key in &keys {
        // SAFETY: made above.
        assert_eq!(unsafe { libc::pthread_key_delete(*key) }, 0);
    }
    keys.len()
}

fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_ascii_whitespace().skip(1).collect()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn twelve_hundred_loads_leave_nothing_behind() {
    let _alone = alone();
    let before = libraries();
    let runtime = runtime();
    runtime.block_on(async {
        let round = || async {
            let loaded = Loaded::new();
            loaded.start();
            touch_everywhere(loaded.table).await;
            loaded.table.spawn()();
            loaded.table.spawn_raw()();
            loaded.stop();
            loaded.library.settle(PATIENCE).await.unwrap();
            loaded.assert_settled();
            let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
            // The lifecycle threads (2), the workers, two threads spawned, and the runtime's two,
            // with two witnesses each.
            assert_eq!(count(&loaded.counts.made), 2 * (2 + WORKERS + 2 + 2));
            assert_eq!(count(&loaded.counts.values), 2 + WORKERS);
            assert_eq!(count(&loaded.counts.ended), 2);
            loaded.library.close().map_err(|(_, why)| why).unwrap();
            assert_eq!(libraries(), before);
        };
        round().await; // what the host itself makes once
        let (keys, mappings, open) = (keys_left(), maps().lines().count(), descriptors());
        let begin = Instant::now();
        let resident = resident();
        for _ in 0..1200 {
            round().await;
        }
        println!(
            "{:?} a round, from {resident} to {}",
            begin.elapsed() / 1200,
            self::resident()
        );
        assert_eq!(keys_left(), keys);
        assert_eq!(descriptors(), open);
        // Heaps of threads come and go; a library is five mappings.
        assert!(
            maps().lines().count() < mappings + 50,
            "{mappings} mappings before, now:\n{}",
            maps()
        );
    });
    // The workers end after all their plugins are gone.
    drop(runtime);
}

#[test]
fn libraries_come_and_go_at_the_same_time() {
    let _alone = alone();
    let before = libraries();
    let runtime = runtime();
    let keys = keys_left();
    runtime.block_on(async {
        let lanes: Vec<_> = (0..WORKERS)
            .map(|_| {
                tokio::spawn(async {
                    for _ in 0..50 {
                        let loaded = tokio::task::spawn_blocking(|| {
                            let loaded = Loaded::new();
                            loaded.start();
                            loaded
                        })
                        .await
                        .unwrap();
                        for _ in 0..WORKERS {
                            let touch = loaded.table.touch();
                            tokio::spawn(async move { touch() }).await.unwrap();
                        }
                        let loaded = tokio::task::spawn_blocking(|| {
                            loaded.stop();
                            loaded
                        })
                        .await
                        .unwrap();
                        loaded.library.settle(PATIENCE).await.unwrap();
                        loaded.assert_settled();
                        loaded.library.close().map_err(|(_, why)| why).unwrap();
                    }
                })
            })
            .collect();
        for lane in lanes {
            lane.await.unwrap();
        }
    });
    assert_eq!(libraries(), before);
    assert_eq!(keys_left(), keys);
}

#[test]
fn a_thread_that_still_runs_is_named_and_the_library_stays() {
    let _alone = alone();
    let before = libraries();
    runtime().block_on(async {
        let loaded = Loaded::new();
        loaded.start();
        loaded.stop();
        loaded.table.linger()();
        let unsettled = loaded
            .library
            .settle(Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(
            unsettled
                .to_string()
                .contains("1 thread that it started still live")
                && unsettled.to_string().contains("`lingerer`"),
            "{unsettled}"
        );
        let Loaded {
            library, counts, ..
        } = loaded;
        let (library, reason) = library.close().unwrap_err();
        assert!(reason.to_string().contains("`lingerer`"), "{reason}");
        assert_eq!(libraries(), before + 1);

        counts.release.store(1, Ordering::SeqCst);
        library.settle(PATIENCE).await.unwrap();
        library.close().map_err(|(_, why)| why).unwrap();
        assert_eq!(libraries(), before);
    });
}

#[test]
fn a_worker_that_is_kept_busy_is_named_and_visited_when_it_is_free() {
    let _alone = alone();
    let before = libraries();
    runtime().block_on(async {
        let loaded = Loaded::new();
        loaded.start();
        loaded.stop();
        let (release, released) = mpsc::channel::<()>();
        let (busy, is_busy) = tokio::sync::oneshot::channel();
        let touch = loaded.table.touch();
        let task = tokio::spawn(async move {
            touch();
            busy.send(()).unwrap();
            let _ = released.recv();
        });
        is_busy.await.unwrap();
        let unsettled = loaded
            .library
            .settle(Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(unsettled.to_string().contains("worker "), "{unsettled}");
        assert!(
            unsettled.to_string().contains("something else for"),
            "{unsettled}"
        );
        drop(release);
        task.await.unwrap();
        let report = loaded.library.settle(PATIENCE).await.unwrap();
        assert!(report.destructors > 0);
        loaded.assert_settled();
        loaded.library.close().map_err(|(_, why)| why).unwrap();
        assert_eq!(libraries(), before);
    });
}

#[test]
fn a_worker_that_ends_first_runs_what_it_owes() {
    let _alone = alone();
    let before = libraries();
    let loaded = Loaded::new();
    let first = runtime();
    first.block_on(async {
        loaded.start();
        touch_everywhere(loaded.table).await;
        loaded.stop();
    });
    drop(first);
    loaded.assert_settled();
    runtime().block_on(async {
        let report = loaded.library.settle(PATIENCE).await.unwrap();
        assert_eq!(report.destructors, 0);
        loaded.library.close().map_err(|(_, why)| why).unwrap();
    });
    assert_eq!(libraries(), before);
}

#[test]
fn a_thread_of_the_host_that_is_no_worker_is_named() {
    let _alone = alone();
    let before = libraries();
    runtime().block_on(async {
        let loaded = Loaded::new();
        loaded.start();
        loaded.stop();
        let (release, released) = mpsc::channel::<()>();
        let (touched, is_touched) = mpsc::channel();
        let touch = loaded.table.touch();
        let thread = std::thread::Builder::new()
            .name("stranger".into())
            .spawn(move || {
                touch();
                touched.send(()).unwrap();
                let _ = released.recv();
            })
            .unwrap();
        is_touched.recv().unwrap();
        let unsettled = loaded
            .library
            .settle(Duration::from_millis(20))
            .await
            .unwrap_err();
        assert!(unsettled.to_string().contains("`stranger`"), "{unsettled}");
        drop(release);
        thread.join().unwrap();
        loaded.library.settle(PATIENCE).await.unwrap();
        loaded.assert_settled();
        loaded.library.close().map_err(|(_, why)| why).unwrap();
        assert_eq!(libraries(), before);
    });
}

/// What the host itself is told that it does on SIGUSR1.
fn usr1() -> usize {
    let mut old = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only; there is room for the answer, which may be all zeroes too.
    unsafe {
        libc::sigaction(libc::SIGUSR1, std::ptr::null(), old.as_mut_ptr());
        old.assume_init().sa_sigaction
    }
}

/// Whether the kernel calls somebody on SIGUSR1.
fn usr1_is_caught() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
    caught & 1 << (libc::SIGUSR1 - 1) != 0
}

#[test]
fn each_library_has_its_own_signal_handler_and_the_host_never_dies_of_the_signal_again() {
    let _alone = alone();
    let before = libraries();
    runtime().block_on(async {
        let disposition = usr1();
        let old = Loaded::new();
        assert!(!old.table.handle_signal()());
        let new = Loaded::new();
        // Were it told of the old one's handler, it would chain to it, and the old one leaves
        // first.
        assert!(!new.table.handle_signal()());
        assert_eq!(usr1(), disposition, "the host has no handler");
        for library in [old.library, new.library] {
            assert!(usr1_is_caught());
            let report = library.settle(PATIENCE).await.unwrap();
            assert_eq!(report.signals, [format!("SIGUSR1 ({})", libc::SIGUSR1)]);
            library.close().map_err(|(_, why)| why).unwrap();
        }
        assert_eq!(usr1(), disposition);
        assert!(usr1_is_caught(), "its default would kill");
        assert_eq!(libraries(), before);
    });
}

#[test]
fn a_table_of_another_layout_is_refused_and_its_library_can_be_unloaded() {
    let _alone = alone();
    let before = libraries();
    // To abi_stable this test's `Table` and the fixture's are two types, since two packages define
    // them.
    let library = Library::open(&fixture(), Layouts::Check).unwrap();
    let LoadError(reason) = library.root::<Table_Ref>().err().unwrap();
    assert_eq!(
        reason,
        "its root table does not fit: mismatched package the plugin has thread-locals and this host handover"
    );
    runtime().block_on(async {
        library.settle(PATIENCE).await.unwrap();
        library.close().map_err(|(_, why)| why).unwrap();
    });
    assert_eq!(libraries(), before);
}

#[test]
fn bytes_that_are_not_the_artifacts_are_refused() {
    let _alone = alone();
    let before = libraries();
    let folder = tempfile::tempdir().unwrap();
    let mut artifact = fixture();
    let mut bytes = std::fs::read(&artifact.path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    artifact.path = folder.path().join("changed.so");
    std::fs::write(&artifact.path, bytes).unwrap();
    let LoadError(reason) = Library::open(&artifact, Layouts::Trust).unwrap_err();
    assert!(reason.contains("is not what it was"), "{reason}");

    artifact.elf.build_id = Some(vec![1; 20]);
    artifact.path = fixture().path;
    let LoadError(reason) = Library::open(&artifact, Layouts::Trust).unwrap_err();
    assert!(reason.contains("build id"), "{reason}");
    assert_eq!(libraries(), before);
}
