//! The promises of the drop folders, with real folders and a target that only remembers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use handover_api::AppName;
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{
    DropOutcome, DropTarget, DroppedArtifact, Message, Timing, Trigger, Verb, WatcherHandle,
    spawn_with,
};
use crate::artifact::{Sha256, Signature, Store, testing::TestElf};

const NEVER: Duration = Duration::from_secs(3600);

/// Rescans come when asked for only, and what no event told of counts at once.
const BY_HAND: Timing = Timing {
    rescan: NEVER,
    settle: Duration::ZERO,
    stale: NEVER,
    quiet: Duration::from_millis(2),
    gather: Duration::from_millis(20),
    tick: Duration::ZERO,
};

/// Rescans come by themselves, quickly.
const BY_CLOCK: Timing = Timing {
    rescan: Duration::from_millis(10),
    settle: Duration::from_millis(20),
    tick: Duration::from_millis(50),
    ..BY_HAND
};

type Reply = dyn Fn(&DroppedArtifact) -> DropOutcome + Send + Sync;

struct Target {
    dropped_artifacts: mpsc::UnboundedSender<DroppedArtifact>,
    refused: mpsc::UnboundedSender<(PathBuf, String)>,
    waiting: mpsc::UnboundedSender<(PathBuf, bool)>,
    triggers: mpsc::UnboundedSender<Trigger>,
    reply: Box<Reply>,
    store: Store,
    /// Something else than what was offered has been made live since.
    changed_since: AtomicBool,
    /// Each offer takes one; those of the app `slow` only.
    slow: Semaphore,
}

impl DropTarget for Target {
    fn watches(&self, app: &AppName) -> bool {
        app.as_str() != "off"
    }

    fn admits(&self, path: &Path) -> Result<(), String> {
        if path.ends_with("insecure.so") {
            return Err("anybody could have put it there".to_owned());
        }
        Ok(())
    }

    fn has(&self, _app: &AppName, _sha256: Sha256) -> bool {
        !self.changed_since.load(Ordering::Relaxed)
    }

    fn knows(&self, app: &AppName) -> bool {
        app.as_str() != "unknown"
    }

    async fn triggered(&self, trigger: Trigger, _watcher: WatcherHandle) -> Result<String, String> {
        let ended = match trigger.verb {
            Verb::Stop => Err("it cannot be stopped".to_owned()),
            _ => Ok("it is done".to_owned()),
        };
        self.triggers.send(trigger).unwrap();
        ended
    }

    async fn deploy_dropped(&self, dropped: DroppedArtifact) -> DropOutcome {
        let answer = (self.reply)(&dropped);
        if matches!(answer, DropOutcome::Deployed(_)) {
            self.store.keep(&dropped.artifact).unwrap();
        }
        let slow = dropped.app.as_str() == "slow";
        self.dropped_artifacts.send(dropped).unwrap();
        if slow {
            self.slow.acquire().await.unwrap().forget();
        }
        answer
    }

    fn waits(&self, _app: Option<&AppName>, path: &Path, asked: bool) {
        self.waiting.send((path.to_owned(), asked)).unwrap();
    }

    fn refused(&self, _app: Option<&AppName>, path: &Path, reason: &str) {
        self.refused
            .send((path.to_owned(), reason.to_owned()))
            .unwrap();
    }
}

struct Host {
    temp: TempDir,
    plugins: PathBuf,
    handle: WatcherHandle,
    target: Arc<Target>,
    dropped_artifacts: mpsc::UnboundedReceiver<DroppedArtifact>,
    refused: mpsc::UnboundedReceiver<(PathBuf, String)>,
    waiting: mpsc::UnboundedReceiver<(PathBuf, bool)>,
    triggers: mpsc::UnboundedReceiver<Trigger>,
}

fn fine(dropped: &DroppedArtifact) -> DropOutcome {
    DropOutcome::Deployed(format!("{} is live", dropped.artifact.manifest.version))
}

impl Host {
    fn start(temp: TempDir, timing: Timing, events: bool, reply: Box<Reply>) -> Self {
        let plugins = temp.path().join("plugins");
        let store = Store::open(&temp.path().join("artifacts")).unwrap();
        let (offers_in, dropped_artifacts) = mpsc::unbounded_channel();
        let (refused_in, refused) = mpsc::unbounded_channel();
        let (waiting_in, waiting) = mpsc::unbounded_channel();
        let (triggers_in, triggers) = mpsc::unbounded_channel();
        let target = Arc::new(Target {
            dropped_artifacts: offers_in,
            refused: refused_in,
            waiting: waiting_in,
            triggers: triggers_in,
            reply,
            store: store.clone(),
            changed_since: AtomicBool::new(false),
            slow: Semaphore::new(0),
        });
        let handle = spawn_with(plugins.clone(), store, Arc::clone(&target), timing, events);
        Self {
            temp,
            plugins,
            handle,
            target,
            dropped_artifacts,
            refused,
            waiting,
            triggers,
        }
    }

    /// With events, and an app folder that is watched already.
    async fn with_events() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("plugins/shop")).unwrap();
        let timing = Timing {
            settle: NEVER,
            ..BY_HAND
        };
        let host = Self::start(temp, timing, true, Box::new(fine));
        host.handle.rescan(None, false).await;
        host
    }

    /// Without events.
    async fn without_events(
        timing: Timing,
        reply: impl Fn(&DroppedArtifact) -> DropOutcome + Send + Sync + 'static,
    ) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let host = Self::start(temp, timing, false, Box::new(reply));
        host.scan().await; // the first look is over: what comes is new
        host
    }

    /// Another host on the same folders, after the old one has ended.
    async fn restart(self, timing: Timing) -> Self {
        self.handle.messages.send(Message::Stop).unwrap();
        self.scan().await; // 0 when nobody answers any more
        Self::start(self.temp, timing, false, Box::new(fine))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.plugins.join(name)
    }

    /// Writes elsewhere and renames in.
    fn rename_in(&self, elf: &TestElf, name: &str) -> PathBuf {
        let temp = elf.write(self.temp.path().join("elsewhere"));
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::rename(temp, &path).unwrap();
        path
    }

    async fn next_dropped(&mut self) -> DroppedArtifact {
        timeout(Duration::from_secs(30), self.dropped_artifacts.recv())
            .await
            .expect("an offer")
            .unwrap()
    }

    /// The version offered next.
    async fn version(&mut self) -> String {
        self.next_dropped()
            .await
            .artifact
            .manifest
            .version
            .to_string()
    }

    fn no_offer(&mut self) {
        if let Ok(dropped) = self.dropped_artifacts.try_recv() {
            panic!("offered: {dropped:?}");
        }
    }

    async fn scan(&self) -> usize {
        self.handle.rescan(None, false).await
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(Duration::from_secs(30), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

async fn answer(path: &Path, suffix: &str) -> String {
    let file = PathBuf::from(format!("{}{suffix}", path.display()));
    until(&format!("{}", file.display()), || file.exists()).await;
    fs::read_to_string(file).unwrap()
}

fn exists(path: &Path, suffix: &str) -> bool {
    Path::new(&format!("{}{suffix}", path.display())).exists()
}

fn shop(version: &str) -> TestElf {
    TestElf::new("shop", version)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_renamed_in_is_offered_and_answered() {
    let mut host = Host::with_events().await;
    let path = host.rename_in(&shop("1.0.0"), "shop/a.so");
    let dropped = host.next_dropped().await;
    assert_eq!((dropped.app.as_str(), &dropped.path), ("shop", &path));
    assert!(!dropped.again);
    let sha256 = Sha256::of(&shop("1.0.0").bytes());
    assert_eq!(dropped.artifact.sha256, sha256);
    assert!(!dropped.artifact.path.starts_with(&host.plugins));
    assert_eq!(
        answer(&path, ".deployed").await,
        format!("1.0.0 is live\nsha256 {sha256}\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_closed_after_writing_is_offered() {
    let mut host = Host::with_events().await;
    let path = shop("1.0.0").write(host.at("shop/a.so"));
    assert_eq!(host.version().await, "1.0.0");
    answer(&path, ".deployed").await;
    shop("1.1.0").write(&path);
    host.next_dropped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_names_the_app_else_the_manifest_does() {
    let mut host = Host::with_events().await;
    host.rename_in(&TestElf::new("other", "1.0.0"), "shop/a.so");
    assert_eq!(host.next_dropped().await.app.as_str(), "shop");
    host.rename_in(&TestElf::new("other", "1.0.0"), "a.so");
    assert_eq!(host.next_dropped().await.app.as_str(), "other");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_written_slowly_is_not_taken_half() {
    let mut host = Host::with_events().await;
    let bytes = shop("1.0.0").bytes();
    let mut file = fs::File::create(host.at("shop/a.so")).unwrap();
    for piece in bytes.chunks(bytes.len() / 5) {
        file.write_all(piece).unwrap();
        assert_eq!(host.scan().await, 0);
    }
    host.no_offer();
    drop(file);
    assert_eq!(
        host.next_dropped().await.artifact.sha256,
        Sha256::of(&bytes)
    );
    assert!(host.refused.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_for_writing_is_not_taken_however_long_it_is_quiet() {
    let mut host = Host::without_events(BY_CLOCK, fine).await;
    let hidden = shop("1.0.0").write(host.at("shop/.a"));
    let writer = fs::File::options().write(true).open(&hidden).unwrap();
    let path = host.at("shop/a.so");
    fs::rename(hidden, &path).unwrap();
    let told = timeout(Duration::from_secs(30), host.waiting.recv()).await;
    assert_eq!(told.unwrap().unwrap(), (path.clone(), false));
    for _ in 0..10 {
        assert_eq!(host.scan().await, 0);
    }
    assert!(host.waiting.try_recv().is_err(), "told once");
    assert_eq!(host.handle.rescan(None, true).await, 0, "not by reload");
    assert_eq!(host.waiting.recv().await.unwrap(), (path, true));
    host.no_offer();
    drop(writer);
    assert_eq!(host.version().await, "1.0.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file_waits_until_it_is_whole() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    let bytes = shop("1.0.0").bytes();
    let path = host.at("shop/a.so");
    fs::create_dir_all(host.at("shop")).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(host.scan().await, 0);
    assert_eq!(
        host.handle.rescan(None, true).await,
        0,
        "not by reload either"
    );
    assert!(!exists(&path, ".failed"));
    fs::write(&path, &bytes).unwrap();
    assert_eq!(host.scan().await, 1);
    assert_eq!(host.version().await, "1.0.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file_is_refused_when_it_was_closed_or_stays_so() {
    let bytes = shop("1.0.0").bytes();
    let mut closed = Host::with_events().await;
    let path = closed.at("shop/a.so");
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(answer(&path, ".failed").await.contains("truncated"));
    assert_eq!(closed.refused.recv().await.unwrap().0, path);

    let timing = Timing {
        stale: Duration::from_millis(50),
        ..BY_CLOCK
    };
    let unseen = Host::without_events(timing, fine).await;
    let path = unseen.at("shop/a.so");
    fs::create_dir_all(unseen.at("shop")).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(answer(&path, ".failed").await.contains("truncated"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_event_the_clock_finds_everything() {
    let mut host = Host::without_events(BY_CLOCK, fine).await;
    let path = host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.version().await, "1.0.0");
    answer(&path, ".deployed").await;
    host.rename_in(&shop("2.0.0"), "shop/a.so");
    let dropped = host.next_dropped().await;
    assert_eq!(dropped.artifact.manifest.version.to_string(), "2.0.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_no_event_told_of_must_be_quiet() {
    let timing = Timing {
        settle: NEVER,
        ..BY_HAND
    };
    let mut host = Host::without_events(timing, fine).await;
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.scan().await, 0);
    host.no_offer();
    assert_eq!(host.handle.rescan(None, true).await, 1, "reload asks now");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_other_bytes_are_offered() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    let path = host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.scan().await, 1);
    host.next_dropped().await;
    shop("1.0.0").write(&path);
    assert_eq!(host.scan().await, 0, "the same bytes again");
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.scan().await, 0, "another inode");
    // The same size, the same time of modification.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let other = shop("1.0.0").salted(1);
    assert_eq!(other.bytes().len(), shop("1.0.0").bytes().len());
    tokio::time::sleep(Duration::from_millis(50)).await; // the change time has a tick
    other.write(&path);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();
    drop(file);
    assert_eq!(host.scan().await, 1);
    host.next_dropped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_put_there_anew_are_offered_when_something_else_is_live() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    let path = host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.scan().await, 1);
    assert!(!host.next_dropped().await.lay_there);
    host.target.changed_since.store(true, Ordering::Relaxed);
    assert_eq!(host.scan().await, 0, "nobody put it there anew");
    let mut mode = fs::metadata(&path).unwrap().permissions();
    mode.set_readonly(true);
    fs::set_permissions(&path, mode).unwrap();
    assert_eq!(host.scan().await, 0, "only its attributes changed");
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.scan().await, 1);
    host.next_dropped().await;
    let mut host = host.restart(BY_HAND).await;
    assert_eq!(host.scan().await, 0, "a restart puts nothing there");
    host.no_offer();
    fs::remove_file(path.with_file_name("a.so.deployed")).unwrap();
    let mut host = host.restart(BY_HAND).await;
    assert!(host.next_dropped().await.lay_there);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_within_one_tick_of_the_clock_is_found() {
    let timing = Timing {
        settle: Duration::ZERO,
        ..BY_CLOCK
    };
    let mut host = Host::without_events(timing, fine).await;
    let path = host.rename_in(&shop("1.0.0"), "shop/a.so");
    host.handle.rescan(None, true).await;
    // Whatever the stamps are: no event tells of it, looks by themselves find it.
    shop("1.0.0").salted(1).write(&path);
    assert_eq!(host.version().await, "1.0.0");
    let other = Sha256::of(&shop("1.0.0").salted(1).bytes());
    assert_eq!(host.next_dropped().await.artifact.sha256, other);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_failed_are_tried_again_only_when_asked() {
    let mut host = Host::without_events(BY_HAND, |_| {
        DropOutcome::Failed("no luck\nbecause of the rain".to_owned())
    })
    .await;
    let path = host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.scan().await, 1);
    host.next_dropped().await;
    let sha256 = Sha256::of(&shop("1.0.0").bytes());
    assert_eq!(
        answer(&path, ".failed").await,
        format!("no luck\nsha256 {sha256}\nbecause of the rain\n")
    );
    assert_eq!(host.scan().await, 0);
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.scan().await, 0);
    let other = Some("other".parse().unwrap());
    assert_eq!(host.handle.rescan(other, true).await, 0);
    let own = Some("shop".parse().unwrap());
    assert_eq!(host.handle.rescan(own, true).await, 1);
    assert!(host.next_dropped().await.again);
    host.rename_in(&shop("1.0.1"), "shop/a.so");
    assert_eq!(host.scan().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_while_it_is_tried_gets_a_second_try_when_it_fails() {
    let mut host =
        Host::without_events(BY_CLOCK, |_| DropOutcome::Failed("no luck".to_owned())).await;
    host.rename_in(&TestElf::new("slow", "1.0.0"), "slow/a.so");
    assert!(!host.next_dropped().await.again);
    let handle = host.handle.clone();
    let mut reload = std::pin::pin!(handle.rescan(None, true));
    // Polled, so it was sent; and a scan that was asked for later has ended, so it was heard.
    let asked = timeout(Duration::ZERO, &mut reload).await;
    assert!(asked.is_err(), "it waits");
    let other = Some("other".parse().unwrap());
    host.handle.rescan(other, false).await;
    host.target.slow.add_permits(1);
    assert!(host.next_dropped().await.again);
    host.target.slow.add_permits(1);
    assert_eq!(reload.await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_host_honours_the_answers() {
    let host = Host::without_events(BY_HAND, |dropped| match dropped.app.as_str() {
        "bad" => DropOutcome::Failed("no".to_owned()),
        _ => DropOutcome::Deployed("yes".to_owned()),
    })
    .await;
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    host.rename_in(&TestElf::new("bad", "1.0.0"), "bad/a.so");
    host.rename_in(&TestElf::new("changed", "1.0.0"), "changed/a.so");
    assert_eq!(host.scan().await, 3);
    host.rename_in(&TestElf::new("changed", "2.0.0"), "changed/a.so");
    let timing = Timing {
        settle: NEVER,
        ..BY_HAND
    };
    let mut host = host.restart(timing).await;
    assert_eq!(
        host.handle.rescan(Some("bad".parse().unwrap()), true).await,
        1
    );
    assert!(host.next_dropped().await.again);
    let mut host = host.restart(BY_HAND).await;
    host.scan().await;
    let dropped = host.next_dropped().await;
    assert_eq!(dropped.app.as_str(), "changed");
    assert_eq!(host.scan().await, 0);
    host.no_offer();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_empty_store_deployed_files_are_offered() {
    let host = Host::without_events(BY_HAND, fine).await;
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.scan().await, 1);
    fs::remove_dir_all(host.temp.path().join("artifacts")).unwrap();
    let mut host = host.restart(BY_HAND).await;
    assert_eq!(host.version().await, "1.0.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_at_once_the_highest_version_is_offered() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    for (version, name) in [
        ("1.9.0", "c.so"),
        ("1.10.0", "b.so"),
        ("1.10.0-rc.1", "a.so"),
    ] {
        host.rename_in(&shop(version), &format!("shop/{name}"));
    }
    assert_eq!(host.scan().await, 1);
    assert_eq!(host.version().await, "1.10.0");
    for name in ["shop/a.so", "shop/c.so"] {
        let text = answer(&host.at(name), ".failed").await;
        assert!(
            text.starts_with("superseded by b.so (version 1.10.0), which arrived with it\nsha256 "),
            "{text}"
        );
    }
    answer(&host.at("shop/b.so"), ".deployed").await;
    assert_eq!(
        host.handle.rescan(None, true).await,
        0,
        "reload is no downgrade"
    );
    let mut host = host.restart(BY_HAND).await;
    assert_eq!(
        host.handle.rescan(None, true).await,
        0,
        "nor after a restart"
    );
    fs::remove_file(host.at("shop/b.so")).unwrap();
    assert_eq!(host.handle.rescan(None, true).await, 1);
    assert_eq!(host.version().await, "1.10.0-rc.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn among_equal_versions_the_newest_then_the_last_name_is_offered() {
    let mut host = Host::without_events(
        Timing {
            settle: NEVER,
            ..BY_HAND
        },
        fine,
    )
    .await;
    let now = SystemTime::now();
    for (salt, name, age) in [
        (1, "a.so", 10),
        (2, "b.so", 20),
        (3, "c.so", 10),
        (4, "d.so", 30),
    ] {
        let path = host.rename_in(&shop("1.0.0").salted(salt), &format!("shop/{name}"));
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(now - Duration::from_secs(age)).unwrap();
    }
    assert_eq!(host.handle.rescan(None, true).await, 1);
    assert_eq!(host.next_dropped().await.path, host.at("shop/c.so"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_under_two_names_get_one_offer_and_two_answers() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    host.rename_in(&shop("1.0.0"), "shop/b.so");
    assert_eq!(host.scan().await, 1);
    answer(&host.at("shop/a.so"), ".deployed").await;
    answer(&host.at("shop/b.so"), ".deployed").await;
    host.next_dropped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_symlink_swap_as_kubernetes_does_it_is_followed() {
    let mut host = Host::with_events().await;
    let folder = host.at("shop");
    let publish = |stamp: &str, version: &str| {
        shop(version).write(folder.join(stamp).join("x.so"));
        symlink(stamp, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    publish("..2026_01", "1.0.0");
    symlink("..data/x.so", folder.join("x.so")).unwrap();
    assert_eq!(host.version().await, "1.0.0");
    publish("..2026_02", "2.0.0");
    assert_eq!(host.version().await, "2.0.0");
    publish("..2026_03", "1.5.0");
    assert_eq!(
        host.version().await,
        "1.5.0",
        "whatever comes is what was wanted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_a_folder_can_be_swapped() {
    let mut host = Host::with_events().await;
    for version in ["1.0.0", "2.0.0"] {
        shop(version).write(host.temp.path().join(version).join("x.so"));
    }
    let (base, next, linked) = (
        host.temp.path().to_owned(),
        host.at(".next"),
        host.at("linked"),
    );
    let swap = |to: &str| {
        symlink(base.join(to), &next).unwrap();
        fs::rename(&next, &linked).unwrap();
    };
    swap("1.0.0");
    assert_eq!(host.next_dropped().await.app.as_str(), "linked");
    swap("2.0.0");
    let dropped = host.next_dropped().await;
    assert_eq!(dropped.artifact.manifest.version.to_string(), "2.0.0");
    let behind = host.temp.path().join("2.0.0/x.so");
    until("the answer", || exists(&behind, ".deployed")).await;
    host.rename_in(&shop("3.0.0"), "linked/x.so");
    let dropped = host.next_dropped().await;
    assert_eq!(
        dropped.artifact.manifest.version.to_string(),
        "3.0.0",
        "the new folder is the one that is watched"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_deleted_and_made_again_is_watched_again() {
    // With the clock: an event may fall between the end of the old watch and the new one.
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp, BY_CLOCK, true, Box::new(fine));
    fs::create_dir_all(host.at("shop")).unwrap();
    host.scan().await;
    for (round, whole) in [(1, false), (2, false), (3, true), (4, true)] {
        let gone = if whole {
            host.plugins.clone()
        } else {
            host.at("shop")
        };
        fs::remove_dir_all(&gone).unwrap();
        fs::create_dir_all(host.at("shop")).unwrap();
        host.scan().await;
        let version = format!("{round}.0.0");
        host.rename_in(&shop(&version), "shop/a.so");
        assert_eq!(host.version().await, version);
        answer(&host.at("shop/a.so"), ".deployed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_moved_in_brings_its_files() {
    let mut host = Host::with_events().await;
    TestElf::new("blog", "1.0.0").write(host.temp.path().join("made/a.so"));
    fs::rename(host.temp.path().join("made"), host.at("blog")).unwrap();
    assert_eq!(host.next_dropped().await.app.as_str(), "blog");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_could_have_put_there_is_refused_and_not_stored() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    let path = host.rename_in(&shop("1.0.0"), "shop/insecure.so");
    assert_eq!(host.scan().await, 0);
    let said = answer(&path, ".failed").await;
    assert!(
        said.starts_with("anybody could have put it there"),
        "{said}"
    );
    assert_eq!(host.refused.recv().await.unwrap().0, path);
    let stored = fs::read_dir(host.temp.path().join("artifacts")).unwrap();
    assert_eq!(stored.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_file_is_offered_again_when_its_signature_comes() {
    let reply = |dropped: &DroppedArtifact| match &dropped.artifact.signature {
        Some(_) => fine(dropped),
        None => DropOutcome::Failed("not signed".to_owned()),
    };
    let mut host = Host::without_events(BY_HAND, reply).await;
    let path = host.rename_in(&shop("1.0.0"), "shop/a.so");
    host.scan().await;
    assert!(host.next_dropped().await.artifact.signature.is_none());
    host.scan().await;
    host.no_offer();
    let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let signature = minisign::sign(None, &pair.sk, b"".as_slice(), None, None).unwrap();
    fs::write(Signature::beside(&path), signature.into_string()).unwrap();
    host.scan().await;
    assert!(host.next_dropped().await.artifact.signature.is_some());
    assert!(
        answer(&path, ".deployed")
            .await
            .starts_with("1.0.0 is live")
    );
    host.scan().await;
    host.no_offer();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_once_with_the_reason() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    fs::create_dir_all(host.at("shop")).unwrap();
    for name in ["a.so", "shop/a.so"] {
        let path = host.at(name);
        fs::write(&path, b"garbage").unwrap();
        assert_eq!(host.scan().await, 0);
        assert!(
            answer(&path, ".failed")
                .await
                .starts_with("it is not an ELF file")
        );
        assert_eq!(host.refused.recv().await.unwrap().0, path);
        host.scan().await;
        assert!(host.refused.try_recv().is_err());
    }
    let mut host = host.restart(BY_HAND).await;
    host.scan().await;
    assert!(host.refused.try_recv().is_err(), "remembered over restarts");
    shop("1.0.0").write(host.at("shop/a.so"));
    assert_eq!(host.scan().await, 1);
    assert!(!exists(&host.at("shop/a.so"), ".failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_file_deletes_its_answer_and_nothing_else() {
    let mut host = Host::with_events().await;
    let path = host.rename_in(&shop("1.0.0"), "shop/a.so");
    host.next_dropped().await;
    answer(&path, ".deployed").await;
    fs::remove_file(&path).unwrap();
    until("the answer is gone", || !exists(&path, ".deployed")).await;
    host.no_offer();
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    host.next_dropped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_tried_is_offered_at_the_next_scan() {
    let tries = std::sync::atomic::AtomicUsize::new(0);
    let mut host = Host::without_events(BY_HAND, move |dropped| {
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => DropOutcome::Later,
            _ => fine(dropped),
        }
    })
    .await;
    let path = host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.scan().await, 1);
    host.next_dropped().await;
    assert!(!exists(&path, ".deployed") && !exists(&path, ".failed"));
    assert_eq!(host.scan().await, 1);
    host.next_dropped().await;
    answer(&path, ".deployed").await;
    assert_eq!(host.scan().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_do_not_wait_for_each_other_and_one_app_goes_in_order() {
    let mut host = Host::without_events(BY_CLOCK, fine).await;
    host.rename_in(&TestElf::new("slow", "1.0.0"), "slow/a.so");
    assert_eq!(host.next_dropped().await.app.as_str(), "slow");
    host.rename_in(&TestElf::new("slow", "2.0.0"), "slow/b.so");
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.next_dropped().await.app.as_str(), "shop");
    answer(&host.at("shop/a.so"), ".deployed").await;
    host.no_offer();
    let handle = host.handle.clone();
    let reload = tokio::spawn(async move { handle.rescan(None, true).await });
    host.target.slow.add_permits(1);
    assert_eq!(host.version().await, "2.0.0");
    assert!(!exists(&host.at("slow/b.so"), ".deployed") && !reload.is_finished());
    host.target.slow.add_permits(1);
    answer(&host.at("slow/b.so"), ".deployed").await;
    reload.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_files_are_all_answered() {
    let mut host = Host::with_events().await;
    for app in 0..250 {
        for version in ["1.0.0", "2.0.0"] {
            let elf = TestElf::new(&format!("app{app}"), version);
            host.rename_in(&elf, &format!("app{app}-{version}.so"));
        }
    }
    for app in 0..250 {
        let path = host.at(&format!("app{app}-2.0.0.so"));
        answer(&path, ".deployed").await;
        let other = host.at(&format!("app{app}-1.0.0.so"));
        until("an answer", || {
            exists(&other, ".deployed") || exists(&other, ".failed")
        })
        .await;
    }
    let mut last = std::collections::HashMap::new();
    while let Ok(dropped) = host.dropped_artifacts.try_recv() {
        last.insert(dropped.app, dropped.artifact.manifest.version.major);
    }
    assert_eq!(last.len(), 250);
    assert!(
        last.values().all(|major| *major == 2),
        "the higher one came last"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_files_are_all_answered_and_looked_at_once() {
    const FILES: usize = 10_000;
    let mut host = Host::without_events(BY_HAND, fine).await;
    fs::create_dir_all(host.at("shop")).unwrap();
    for number in 0..FILES {
        let path = host.at(&format!("shop/{number}.so"));
        match number % 10 {
            0 => drop(shop(&format!("1.{number}.0")).write(path)),
            _ => fs::write(path, "no plugin").unwrap(),
        }
    }
    assert_eq!(host.scan().await, 1);
    assert_eq!(host.version().await, format!("1.{}.0", FILES - 10));
    let answered = fs::read_dir(host.at("shop")).unwrap().count() - FILES;
    assert_eq!(answered, FILES);
    for _ in 0..3 {
        assert_eq!(host.scan().await, 0, "nobody touched them");
    }
    host.no_offer();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_may_be_anything_that_the_file_system_takes() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let mut host = Host::with_events().await;
    for (number, name) in [
        &b"with spaces .so"[..],
        b"two\nlines.so",
        "\u{e9}\u{1f980}.so".as_bytes(),
        b"no text \xff\xfe.so",
        b"superseded by x (version 1.so",
        b"-rf.so",
        b"\x1b[31m.so",
    ]
    .into_iter()
    .enumerate()
    {
        let hidden = shop(&format!("1.{number}.0")).write(host.at("shop/.next"));
        let path = host.at("shop").join(OsStr::from_bytes(name));
        fs::rename(hidden, &path).unwrap();
        assert_eq!(host.next_dropped().await.path, path);
        let mut answer = path.into_os_string();
        answer.push(".deployed");
        until("its answer", || Path::new(&answer).exists()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_superseded_by_an_odd_name_waits_for_the_end_of_that() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let host = Host::without_events(BY_HAND, fine).await;
    let odd = host.at("shop").join(OsStr::from_bytes(b"b\n\xff.so"));
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    let hidden = shop("2.0.0").write(host.at("shop/.next"));
    fs::rename(hidden, &odd).unwrap();
    assert_eq!(host.scan().await, 1);
    let text = answer(&host.at("shop/a.so"), ".failed").await;
    assert!(
        text.starts_with("superseded by b\\n\\xff.so (version 2.0.0)"),
        "{text}"
    );
    let host = host.restart(BY_HAND).await;
    assert_eq!(host.handle.rescan(None, true).await, 0);
    fs::remove_file(odd).unwrap();
    assert_eq!(host.handle.rescan(None, true).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_is_told_once_and_holds_nobody_up() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    fs::create_dir_all(host.at("shop")).unwrap();
    let pipe = host.at("shop/pipe.so");
    let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, fifo, mode, 0).unwrap();
    symlink("/dev/zero", host.at("shop/zero.so")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(host.at("socket.so")).unwrap();
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    assert_eq!(host.scan().await, 1);
    let mut told = Vec::new();
    while let Ok((path, reason)) = host.refused.try_recv() {
        told.push((path.file_name().unwrap().to_owned(), reason));
    }
    told.sort();
    let what = |name: &str, what: &str| {
        (
            name.into(),
            format!("it is {what}, not a file, and is not read"),
        )
    };
    assert_eq!(
        told,
        [
            what("pipe.so", "a pipe"),
            what("socket.so", "a socket"),
            what("zero.so", "a device")
        ]
    );
    host.scan().await;
    assert!(host.refused.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_nobodys_is_left_alone() {
    let host = Host::without_events(BY_HAND, fine).await;
    for name in [
        "shop/.a.so",
        "shop/a.so.part",
        "shop/deeper/a.so",
        "No App/a.so",
        ".hidden/a.so",
        "off/a.so",
    ] {
        shop("1.0.0").write(host.at(name));
    }
    TestElf::new("off", "1.0.0").write(host.at("a.so"));
    fs::create_dir_all(host.at("shop/folder.so")).unwrap();
    fs::write(host.at("shop/note.so.failed"), "somebody's own\n").unwrap();
    symlink("nowhere", host.at("shop/broken.so")).unwrap();
    assert_eq!(host.handle.rescan(None, true).await, 0);
    assert!(!exists(&host.at("off/a.so"), ".failed"));
    assert!(host.at("shop/note.so.failed").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_written_hinders_nothing() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    let path = host.at("shop/a.so");
    fs::create_dir_all(host.at("shop/a.so.deployed/full")).unwrap();
    shop("1.0.0").write(&path);
    assert_eq!(host.scan().await, 1);
    host.next_dropped().await;
    assert_eq!(host.scan().await, 0, "remembered all the same");
    assert_eq!(
        fs::read_dir(host.at("shop")).unwrap().count(),
        2,
        "no temporary file"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overflow_or_an_error_of_the_watcher_is_a_rescan() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    host.scan().await;
    host.rename_in(&shop("1.0.0"), "shop/a.so");
    let overflow =
        notify::Event::new(notify::EventKind::Other).set_flag(notify::event::Flag::Rescan);
    host.handle
        .messages
        .send(Message::Event(Ok(overflow)))
        .unwrap();
    assert_eq!(host.version().await, "1.0.0");
    answer(&host.at("shop/a.so"), ".deployed").await;
    host.rename_in(&shop("2.0.0"), "shop/a.so");
    let error = notify::Error::generic("the queue is lost");
    host.handle
        .messages
        .send(Message::Event(Err(error)))
        .unwrap();
    assert_eq!(host.version().await, "2.0.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_panics_is_an_answer() {
    let host = Host::without_events(BY_HAND, |_| panic!("on purpose")).await;
    let path = host.rename_in(&shop("1.0.0"), "shop/a.so");
    host.scan().await;
    assert!(answer(&path, ".failed").await.contains("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_quick_replacements_end_in_the_last_one() {
    let mut host = Host::with_events().await;
    for version in 1..=100 {
        let elf = shop(&format!("{version}.0.0"));
        if version % 2 == 0 {
            elf.write(host.at("shop/a.so"));
        } else {
            host.rename_in(&elf, "shop/a.so");
        }
    }
    let last = Sha256::of(&shop("100.0.0").bytes());
    loop {
        if host.next_dropped().await.artifact.sha256 == last {
            break;
        }
    }
    let text = answer(&host.at("shop/a.so"), ".deployed").await;
    assert!(text.contains(&last.to_string()), "{text}");
    host.scan().await;
    host.no_offer();
}

#[test]
fn the_thread_ends_with_the_runtime() {
    let temp = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = runtime.block_on(async { Host::start(temp, BY_HAND, true, Box::new(fine)) });
    drop(runtime);
    let other = tokio::runtime::Runtime::new().unwrap();
    assert_eq!(other.block_on(host.handle.rescan(None, false)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_says_how_its_file_is_deployed() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    fs::create_dir_all(host.at("shop")).unwrap();
    fs::write(host.at("shop/a.toml"), "canary = \"5%\"\nmessage = \"why\"").unwrap();
    shop("1.0.0").write(host.at("shop/a.so"));
    host.scan().await;
    let asked = host.next_dropped().await.asked;
    assert_eq!(asked.canary.unwrap().to_string(), "5%");
    assert_eq!(asked.message.unwrap(), "why");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_sidecar_refuses_its_file_until_it_is_mended() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    fs::create_dir_all(host.at("shop")).unwrap();
    fs::write(host.at("shop/a.toml"), "lable = \"next\"").unwrap();
    let path = shop("1.0.0").write(host.at("shop/a.so"));
    host.scan().await;
    let text = answer(&path, ".failed").await;
    assert!(text.contains("a.toml") && text.contains("lable"), "{text}");
    assert_eq!(host.refused.recv().await.unwrap().0, path);
    host.scan().await;
    host.no_offer();
    fs::write(host.at("shop/a.toml"), "label = \"next\"").unwrap();
    host.scan().await;
    assert_eq!(
        host.next_dropped().await.asked.label.unwrap().as_str(),
        "next"
    );
    answer(&path, ".deployed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_is_taken_once_and_answered() {
    let mut host = Host::with_events().await;
    for (name, verb) in [
        ("shop/shop.rollback", Verb::Rollback),
        ("shop.promote", Verb::Promote),
    ] {
        let path = host.at(name);
        fs::write(&path, "too slow\nand more").unwrap();
        let trigger = host.triggers.recv().await.unwrap();
        assert_eq!((trigger.app.as_str(), trigger.verb), ("shop", verb));
        assert_eq!(trigger.message.as_deref(), Some("too slow"));
        assert!(!trigger.by.is_empty());
        assert_eq!(answer(&path, ".done").await, "it is done\n");
        assert!(!path.exists());
    }
    let path = host.at("shop.stop");
    fs::write(&path, "").unwrap();
    assert_eq!(host.triggers.recv().await.unwrap().message, None);
    assert_eq!(answer(&path, ".failed").await, "it cannot be stopped\n");
    host.scan().await;
    assert!(host.triggers.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_trigger_is_left_alone() {
    let mut host = Host::without_events(BY_HAND, fine).await;
    fs::create_dir_all(host.at("shop")).unwrap();
    let others = [
        host.at("unknown.stop"),
        host.at("shop/other.stop"),
        host.at("shop.stopped"),
    ];
    for path in &others {
        fs::write(path, "").unwrap();
    }
    host.scan().await;
    assert!(host.triggers.try_recv().is_err());
    assert!(others.iter().all(|path| path.exists()));
    // That of an app whose folder is switched off is told so.
    let path = host.at("off.stop");
    fs::write(&path, "").unwrap();
    host.scan().await;
    assert!(answer(&path, ".failed").await.contains("switched off"));
    assert_eq!(host.refused.recv().await.unwrap().0, path);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_of_before_the_start_is_not_carried_out() {
    let host = Host::without_events(BY_HAND, fine).await;
    let path = host.at("shop.rollback");
    fs::write(&path, "").unwrap();
    let mut host = host.restart(BY_HAND).await;
    host.scan().await;
    assert!(answer(&path, ".failed").await.contains("touch it again"));
    assert!(host.triggers.try_recv().is_err());
}
