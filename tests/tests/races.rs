//! Whatever cuts in between, the last good artifact is served and the store is clean.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use handover_tests::{
    client::Http1,
    elf,
    host::{Host, Setup},
    load::Load,
    plugins::{self, fixture, misfit, rewritten},
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

const BUSY: Load = Load {
    keep_alive: 4,
    closing: 1,
    streams: 2,
    pause: Duration::from_millis(2),
};

/// `probe` saying that it is `version`.
fn probe_as(version: &str) -> Vec<u8> {
    rewritten("probe", |bytes| elf::set_version(bytes, version))
}

/// The names in the store.
fn stored(host: &Host) -> BTreeSet<String> {
    fs::read_dir(host.state().join("artifacts"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Waits until the store holds the artifact that is live and nothing else.
async fn clean(host: &Host, app: &str) {
    let only = format!("{}.so", host.active(app).await.artifact);
    host.until("the store to hold what is live and no more", async || {
        (stored(host) == BTreeSet::from([only.clone()])).then_some(())
    })
    .await;
}

/// Begins a deploy by the command line in the background.
fn deploying(host: &Host, path: &Path) -> tokio::process::Child {
    tokio::process::Command::new(plugins::handover())
        .arg("deploy")
        .arg(path)
        .env("HANDOVER_CONTROL", host.control())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn under_way(host: &Host, app: &str) {
    host.app_when(app, "the deploy to be under way", |app| {
        app.state == "deploying"
    })
    .await;
}

#[tokio::test]
async fn a_deploy_during_a_deploy_is_a_conflict_and_hurts_neither() {
    let host = Setup::new()
        .config("[app.probe.check]\ndeadline = \"3s\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let load = BUSY.start(host.address);
    load.more(50).await;
    // It hangs in its preflight until the deadline.
    let hanging = host.scratch("hanging.so");
    fs::write(&hanging, misfit("start-hang")).unwrap();
    let first = host.cli([
        OsStr::new("deploy"),
        hanging.as_os_str(),
        OsStr::new("--app"),
        OsStr::new("probe"),
    ]);
    let second = async {
        under_way(&host, "probe").await;
        for call in [
            &[OsStr::new("deploy"), fixture("probe", "2.0.0").as_os_str()][..],
            &[OsStr::new("rollback"), OsStr::new("probe")],
            &[OsStr::new("reload"), OsStr::new("probe")],
        ] {
            let output = host.cli(call).await;
            // There is nothing before 1.0.0 to go back to, which is found out first.
            if output.code != Some(1) {
                output.expect_code(8).expect_words(&["under way"]);
            }
        }
    };
    let (first, ()) = tokio::join!(first, second);
    first.expect_code(4);
    assert_eq!(host.active("probe").await.version, "1.0.0");
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    load.more(50).await;
    load.stop().await.expect_unnoticed();
}

#[tokio::test]
async fn a_reload_during_a_drain_leaves_the_draining_alone() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let address = host.address;
    let long = tokio::spawn(async move {
        Http1::connect(address)
            .await?
            .get("/stream?n=200&every_ms=20")
            .await
    });
    host.app_when("probe", "the stream to be in flight", |app| {
        app.generations.iter().any(|known| known.in_flight > 0)
    })
    .await;
    let load = BUSY.start(host.address);
    host.cli([
        OsStr::new("deploy"),
        fixture("probe", "2.0.0").as_os_str(),
        OsStr::new("--detach"),
    ])
    .await
    .expect_code(0);
    host.live("probe", "2.0.0").await;
    // Several times: nothing to do, something new, all of them while the first one drains.
    host.cli(["reload", "probe"]).await.expect_code(0);
    host.drop_in("probe/probe.so", &probe_as("2.1.0"));
    host.live("probe", "2.1.0").await;
    host.drop_in("probe/probe.so", &probe_as("2.2.0"));
    host.cli(["reload"]).await;
    host.live("probe", "2.2.0").await;
    let answer = long.await.unwrap().unwrap();
    assert_eq!(answer.text().lines().count(), 200, "the stream is whole");
    assert!(answer.text().lines().all(|line| line == "1.0.0"));
    host.settled("probe").await;
    load.more(50).await;
    let report = load.stop().await;
    // 2.1.0 and 2.2.0 are 1.0.0 by their own word: only the losses count here.
    report.expect_none_lost();
    assert!(report.stale.is_empty(), "{report:?}");
}

#[tokio::test]
async fn a_control_client_that_is_killed_in_its_upload_leaves_nothing() {
    let host = Setup::new()
        .config("[app.probe]\nkeep_artifacts = 0\n")
        .start()
        .await;
    host.deploy_bytes(&probe_as("1.1.0")).await.expect_code(0);
    let load = BUSY.start(host.address);
    load.more(20).await;
    let bytes = probe_as("1.2.0");
    let length = bytes.len().to_string();
    for part in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        let mut http = Http1::connect_unix(&host.control()).await.unwrap();
        http.send_head("POST", "/v1/deploy", &[("content-length", &length)])
            .await
            .unwrap();
        http.send(&bytes[..part]).await.unwrap();
        host.until("the upload to have begun", async || {
            (stored(&host).len() == 2).then_some(())
        })
        .await;
        drop(http);
        clean(&host, "probe").await;
    }
    assert_eq!(host.active("probe").await.version, "1.1.0");
    host.deploy_bytes(&bytes).await.expect_code(0);
    clean(&host, "probe").await;
    load.more(20).await;
    load.stop().await.expect_none_lost();
}

#[tokio::test]
async fn a_control_client_that_is_killed_in_its_deploy_stops_nothing() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let load = BUSY.start(host.address);
    load.more(20).await;
    let slow = host.scratch("probe.so");
    for version in ["1.1.0", "1.2.0", "1.3.0"] {
        fs::write(&slow, probe_as(version)).unwrap();
        let mut client = deploying(&host, &slow);
        under_way(&host, "probe").await;
        client.kill().await.unwrap();
        host.live("probe", version).await;
        // Somebody else hears how it ended.
        host.event("its end", |event| {
            event.kind == "active" && event.message.contains(version)
        })
        .await;
    }
    load.more(20).await;
    load.stop().await.expect_none_lost();
}

#[tokio::test]
async fn a_storm_of_five_hundred_files_in_five_seconds_ends_in_the_newest() {
    const FILES: u32 = 500;
    let host = Setup::new()
        .config("[app.probe]\nkeep_artifacts = 0\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let load = BUSY.start(host.address);
    // Most of them are no plugins at all; each fiftieth is one.
    let began = Instant::now();
    for n in 1..=FILES {
        let name = format!("probe/{n:03}.so");
        if n % 50 == 0 {
            host.drop_in(&name, &probe_as(&format!("1.{n}.0")));
        } else {
            host.drop_in(&name, format!("no plugin, number {n}").as_bytes());
        }
        tokio::time::sleep_until((began + Duration::from_millis(10) * n).into()).await;
    }
    eprintln!("{FILES} files in {:?}", began.elapsed());
    host.live("probe", &format!("1.{FILES}.0")).await;
    host.until("every file to be answered", async || {
        let answered = fs::read_dir(host.plugins().join("probe"))
            .unwrap()
            .flatten()
            .filter(|entry| {
                let name = entry.file_name().into_string().unwrap();
                name.ends_with(".so.deployed") || name.ends_with(".so.failed")
            })
            .count();
        (answered >= FILES as usize).then_some(())
    })
    .await;
    host.settled("probe").await;
    clean(&host, "probe").await;
    load.more(50).await;
    let report = load.stop().await;
    report.expect_none_lost();
    assert!(report.stale.is_empty(), "{report:?}");
}

/// What must hold when the store cannot take an artifact: told, nothing left, and good again when
/// there is room.
async fn survives_a_full_store(host: &Host, make_room: impl FnOnce()) {
    let load = BUSY.start(host.address);
    load.more(20).await;
    let path = host.scratch("probe.so");
    let before = stored(host);
    for n in 0..3 {
        fs::write(&path, probe_as(&format!("1.1.{n}"))).unwrap();
        host.deploy(&path)
            .await
            .expect_code(1)
            .expect_words(&["artifacts", "was not taken"]);
        assert_eq!(stored(host), before, "nothing is left of it");
    }
    host.drop_in("probe/probe.so", &probe_as("1.1.9"));
    // It is tried again at each scan, so there is no verdict; the log says why.
    host.logged("the log to say so", |line| {
        line.contains("cannot take a file")
    })
    .await;
    assert_eq!(host.active("probe").await.version, "1.0.0");
    make_room();
    host.live("probe", "1.1.9").await;
    host.deploy(&path).await.expect_code(0);
    load.more(20).await;
    load.stop().await.expect_none_lost();
}

#[tokio::test]
async fn a_limit_on_file_sizes_is_an_error_and_not_the_end() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let pid = Pid::from_raw(i32::try_from(host.pid()).unwrap()).unwrap();
    let limit = |bytes| {
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        prlimit(Some(pid), Resource::Fsize, limit).unwrap();
    };
    limit(Some(64 * 1024));
    survives_a_full_store(&host, || limit(None)).await;
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_old_code_serves_on() {
    /// A small file system over a folder, gone when dropped.
    struct Small(PathBuf);
    impl Drop for Small {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount")
                .arg("--lazy")
                .arg(&self.0)
                .status();
        }
    }
    let host = Host::start().await;
    let store = host.state().join("artifacts");
    let size = fs::metadata(fixture("probe", "1.0.0")).unwrap().len() * 7 / 2;
    let mounted = std::process::Command::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size},mode=755"),
            "tmpfs",
        ])
        .arg(&store)
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let _small = Small(store.clone());
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let ballast = store.join("ballast");
    fs::write(&ballast, vec![7; usize::try_from(size).unwrap() / 7 * 4]).unwrap();
    survives_a_full_store(&host, || fs::remove_file(&ballast).unwrap()).await;
}

#[tokio::test]
async fn a_store_that_cannot_be_written_is_told_and_the_old_code_serves_on() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "skipped: the host has to run as somebody whom a mode stops, which takes root to do"
        );
        return;
    }
    let host = Setup::new().user(65534).start().await;
    fs::set_permissions(
        host.home(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(host.state().join("artifacts"), mode).unwrap();
    };
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    mode(0o500);
    survives_a_full_store(&host, || mode(0o755)).await;
}

/// Clients that ask one after the other until their connection breaks: what was sent, answered and
/// lost.
#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    answered: AtomicU64,
    lost: AtomicU64,
    wrong: AtomicU64,
    stop: AtomicBool,
}

fn ask_until_it_dies(
    counts: &Arc<Counts>,
    address: std::net::SocketAddr,
) -> tokio::task::JoinHandle<()> {
    let counts = Arc::clone(counts);
    tokio::spawn(async move {
        let Ok(mut http) = Http1::connect(address).await else {
            return;
        };
        while !counts.stop.load(Ordering::Relaxed) {
            counts.sent.fetch_add(1, Ordering::Relaxed);
            match http.get("/slow?ms=2").await {
                Ok(answer) if answer.status == 200 => {
                    counts.answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(_) => {
                    counts.wrong.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => {
                    counts.lost.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    })
}

#[tokio::test]
async fn kill_9_at_any_moment_of_a_deploy_leaves_the_last_good_artifact_and_a_clean_store() {
    const KILLS: u32 = 20;
    const CLIENTS: u64 = 4;
    let mut host = Setup::new()
        .config("[app.probe]\nkeep_artifacts = 0\n")
        .start()
        .await;
    host.deploy_bytes(&probe_as("1.0.0")).await.expect_code(0);
    let file = host.scratch("probe.so");
    // How long a deploy takes here: the moments are spread over it and a little beyond.
    let began = Instant::now();
    host.deploy_bytes(&probe_as("1.0.1")).await.expect_code(0);
    let whole = began.elapsed() * 5 / 4;
    let mut before = "1.0.1".to_owned();
    let counts = Arc::new(Counts::default());
    let (mut went_through, mut held) = (0, 0);
    for n in 0..KILLS {
        let next = format!("1.1.{n}");
        fs::write(&file, probe_as(&next)).unwrap();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| ask_until_it_dies(&counts, host.address))
            .collect();
        let mut deploy = deploying(&host, &file);
        // The moment, not a wait for something.
        tokio::time::sleep(whole * n / KILLS).await;
        host.crash(|_| ()).await;
        deploy.wait().await.unwrap();
        for client in clients {
            client.await.unwrap();
        }
        let live = host.active("probe").await.version;
        assert!(
            live == before || live == next,
            "{live} is neither {before} nor {next}"
        );
        if live == next {
            went_through += 1;
        } else {
            held += 1;
        }
        assert_eq!(host.get("/version").await.status, 200);
        assert_eq!(host.get("/version").await.version(), Some(&*live));
        clean(&host, "probe").await;
        let records: Vec<_> = fs::read_dir(host.state().join("apps"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(records, ["probe.json"]);
        before = live;
    }
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (sent, answered) = (of(&counts.sent), of(&counts.answered));
    let (lost, wrong) = (of(&counts.lost), of(&counts.wrong));
    eprintln!(
        "{KILLS} kills: {held} kept the old one, {went_through} had the new one; {sent} sent, {answered} answered, {lost} lost, {wrong} wrong"
    );
    assert_eq!(wrong, 0);
    assert_eq!(sent, answered + lost);
    assert!(
        lost <= CLIENTS * u64::from(KILLS),
        "only what was in flight in a process that died is lost"
    );
    // Nothing that happened hinders the next one.
    host.deploy_bytes(&probe_as("1.2.0")).await.expect_code(0);
    clean(&host, "probe").await;
}

/// Reads the lines of a deploy that is begun on the control socket, until `step` has been said or
/// the deploy has ended.
async fn deploy_until(host: &Host, bytes: &[u8], step: &str) -> Http1<tokio::net::UnixStream> {
    let mut http = Http1::connect_unix(&host.control()).await.unwrap();
    let length = bytes.len().to_string();
    http.send_head(
        "POST",
        "/v1/deploy?name=probe.so",
        &[("content-length", &length)],
    )
    .await
    .unwrap();
    http.send(bytes).await.unwrap();
    if step == "upload" {
        return http;
    }
    assert_eq!(http.head("POST").await.unwrap().status, 200);
    let mut text = String::new();
    loop {
        let piece = http.chunk(&mut Vec::new()).await.unwrap();
        let piece = piece.unwrap_or_else(|| panic!("no {step} in {text}"));
        text.push_str(&String::from_utf8_lossy(&piece));
        for line in text.lines() {
            // The last line may not be whole yet.
            let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else {
                continue;
            };
            if line["step"] == step || line["type"] == step {
                return http;
            }
        }
    }
}

/// What the host will serve after a restart, by its own record.
fn head(host: &Host) -> (String, String) {
    let record = fs::read(host.state().join("apps").join("probe.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let head = &record["head"];
    (text(&head["version"]), text(&head["artifact"]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_right_after_each_step_leaves_a_head_that_is_right() {
    const CLIENTS: u64 = 4;
    let mut host = Setup::new()
        .config("[app.probe]\nkeep_artifacts = 0\n")
        .start()
        .await;
    host.deploy_bytes(&probe_as("1.0.0")).await.expect_code(0);
    let counts = Arc::new(Counts::default());
    let mut before = "1.0.0".to_owned();
    let mut deaths = 0;
    for round in 0..2 {
        for (n, step) in [
            "upload",
            "accepted",
            "store",
            "preflight",
            "load",
            "start",
            "cutover",
            "result",
        ]
        .into_iter()
        .enumerate()
        {
            let next = format!("1.{}.{round}", n + 1);
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| ask_until_it_dies(&counts, host.address))
                .collect();
            let heard = deploy_until(&host, &probe_as(&next), step).await;
            let mut recorded = None;
            host.crash(|host| recorded = Some(head(host))).await;
            deaths += 1;
            drop(heard);
            for client in clients {
                client.await.unwrap();
            }
            // What was on the disk when it died is what is live now, bytes and all.
            let live = host.active("probe").await;
            assert_eq!(
                recorded,
                Some((live.version.clone(), live.artifact.clone())),
                "after {step}"
            );
            match step {
                // HEAD is written after the cutover is told, and before the result is.
                "cutover" => assert!([&before, &next].contains(&&live.version), "{live:?}"),
                "result" => assert_eq!(live.version, next, "after {step}"),
                // Killed by then, or it went on for a moment after it was heard.
                _ => assert!([&before, &next].contains(&&live.version), "{live:?}"),
            }
            assert_eq!(host.get("/version").await.version(), Some(&*live.version));
            clean(&host, "probe").await;
            before = live.version;
        }
    }
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!(
        "kill -9 after each step: {} sent, {} answered, {} lost with the process",
        of(&counts.sent),
        of(&counts.answered),
        of(&counts.lost)
    );
    assert_eq!(of(&counts.wrong), 0);
    assert_eq!(of(&counts.sent), of(&counts.answered) + of(&counts.lost));
    assert!(of(&counts.lost) <= CLIENTS * deaths);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_in_the_middle_cost_nobody_anything() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let load = BUSY.start(host.address);
    load.more(50).await;
    let mut left = 0;
    for round in 0..4 {
        for n in 0..25 {
            let mut http = Http1::connect(host.address).await.unwrap();
            match n % 5 {
                // In the head, which is no request yet.
                0 => http
                    .send(b"GET /version HTTP/1.1\r\nhost: h")
                    .await
                    .unwrap(),
                // In the body of the request.
                1 => {
                    http.send_head("POST", "/echo", &[("content-length", "100000")])
                        .await
                        .unwrap();
                    http.send(&[7; 5000]).await.unwrap();
                }
                // While the app works.
                2 => http.send_head("GET", "/slow?ms=60000", &[]).await.unwrap(),
                // In the body of the answer.
                3 => {
                    http.send_head("GET", "/stream?n=100000&every_ms=1", &[])
                        .await
                        .unwrap();
                    assert_eq!(http.head("GET").await.unwrap().status, 200);
                    http.chunk(&mut Vec::new()).await.unwrap();
                }
                // Without reading what it asked for.
                _ => http
                    .send_head("GET", "/download?bytes=3000000", &[])
                    .await
                    .unwrap(),
            }
            drop(http);
            left += 1;
        }
        // In the middle of a swap as well.
        let version = if round % 2 == 0 { "2.0.0" } else { "1.0.0" };
        host.deploy(&fixture("probe", version)).await.expect_code(0);
    }
    load.more(50).await;
    let report = load.stop().await;
    report.expect_unnoticed();
    println!("{left} clients left in the middle");
    let app = host.settled("probe").await;
    assert_eq!(app.generations[0].in_flight, 0, "{app:?}");
    assert_eq!(app.generations[0].panics, 0);
}
