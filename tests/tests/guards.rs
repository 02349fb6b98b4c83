//! What keeps a new version out although nothing is wrong with it: a freeze, or sources that nobody
//! has committed. And what is told of those that came in: the history, and how two of them differ.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{ffi::OsStr, fs, path::Path, process::Command};

use handover_tests::{
    host::{Host, Output, Setup, handover},
    plugins::{self, fixture},
};
use rustix::process::Signal;

async fn run(host: &Host, line: &[&str]) -> Output {
    host.cli(line.iter().map(OsStr::new)).await
}

#[tokio::test]
async fn in_a_freeze_nothing_new_goes_live_and_a_rollback_does() {
    let frozen = "[app.probe]\nfreeze = [\"2001-01-01 - 2100-12-31 UTC\"]\n";
    let mut host = Setup::new().config(frozen).start().await;
    let (one, two) = (fixture("probe", "1.0.0"), fixture("probe", "2.0.0"));
    let (one, two) = (one.to_str().unwrap(), two.to_str().unwrap());
    run(&host, &["deploy", one])
        .await
        .expect_code(9)
        .expect_words(&["2101-01-01", "--override-freeze", "nothing is live"]);
    run(&host, &["deploy", one, "--override-freeze"])
        .await
        .expect_code(0);
    run(&host, &["deploy", two, "--canary", "5%"])
        .await
        .expect_code(9);
    host.drop_in("probe/2.so", &fs::read(two).unwrap());
    let text = host.verdict("probe/2.so", "failed").await;
    assert!(text.contains("2101-01-01"), "{text}");
    run(&host, &["status"])
        .await
        .expect_words(&["nothing new goes live until", "2101-01-01"]);
    // Beside what is live it may be looked at.
    run(&host, &["deploy", two, "--stage"]).await.expect_code(0);
    run(&host, &["promote", "probe"]).await.expect_code(9);
    assert_eq!(host.active("probe").await.version, "1.0.0");
    run(&host, &["promote", "probe", "--override-freeze"])
        .await
        .expect_code(0);
    run(&host, &["rollback"]).await.expect_code(0);
    assert_eq!(host.active("probe").await.version, "1.0.0");
    host.signal(Signal::TERM);
    host.ended().await;
    host.again().await;
    host.live("probe", "1.0.0").await;
}

fn git(dir: &Path, arguments: &[&str]) -> String {
    let identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"];
    let output = Command::new("git")
        .current_dir(dir)
        .args(identity)
        .args(arguments)
        .output()
        .expect("git can be run");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {told}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// What a plugin file says of its build.
async fn build_of(file: &Path) -> serde_json::Value {
    let file = file.to_str().unwrap();
    let report = handover(["inspect", "--json", file]).await.expect_code(0);
    report.json()["build"].clone()
}

#[tokio::test]
async fn an_optimised_plugin_knows_its_commit_and_may_be_required_to_be_clean() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("stamped");
    handover(["new", crate_dir.to_str().unwrap()])
        .await
        .expect_code(0);
    fs::copy(
        plugins::workspace().join("Cargo.lock"),
        crate_dir.join("Cargo.lock"),
    )
    .unwrap();
    let built = plugins::target_dir().join("debug/libstamped.so");
    let plain = ["build", "--lib"];
    let optimised = [
        "build",
        "--lib",
        "--config",
        "profile.dev.package.stamped.opt-level=1",
    ];
    plugins::cargo_in(&crate_dir, &plain).await;
    assert!(build_of(&built).await["commit"].is_null());
    let host = Setup::new()
        .config("[app.stamped]\nrequire_clean = true\n")
        .start()
        .await;
    host.deploy(&built)
        .await
        .expect_code(4)
        .expect_words(&["which commit", "require_clean"]);

    git(&crate_dir, &["init", "--quiet"]);
    git(&crate_dir, &["add", "."]);
    git(&crate_dir, &["commit", "--quiet", "-m", "one"]);
    plugins::cargo_in(&crate_dir, &optimised).await;
    let build = build_of(&built).await;
    assert_eq!(build["commit"], git(&crate_dir, &["rev-parse", "HEAD"]));
    assert_eq!(build["dirty"], false);
    let lockfile = git(&crate_dir, &["hash-object", "Cargo.lock"]);
    assert_eq!(build["lockfile"], lockfile);
    host.deploy(&built).await.expect_code(0);

    let source = crate_dir.join("src/lib.rs");
    let mut text = fs::read_to_string(&source).unwrap();
    text.push_str("\n// Another line.\n");
    fs::write(&source, text).unwrap();
    plugins::cargo_in(&crate_dir, &optimised).await;
    assert_eq!(build_of(&built).await["dirty"], true);
    host.deploy(&built)
        .await
        .expect_code(4)
        .expect_words(&["files that differ from commit"]);

    // Nothing but the commit has changed since.
    git(&crate_dir, &["commit", "--quiet", "-a", "-m", "two"]);
    plugins::cargo_in(&crate_dir, &optimised).await;
    let build = build_of(&built).await;
    assert_eq!(build["commit"], git(&crate_dir, &["rev-parse", "HEAD"]));
    assert_eq!(build["dirty"], false);
    host.deploy(&built).await.expect_code(0);
    let history = host.ask("GET", "/v1/history").await.unwrap().json();
    let last = history["history"].as_array().unwrap().last().unwrap();
    assert_eq!(last["commit"], build["commit"]);
}

#[tokio::test]
async fn the_history_tells_the_steps_and_what_each_version_has_served() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    for _ in 0..5 {
        host.get("/version").await;
    }
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.get("/version").await;
    let history = host.ask("GET", "/v1/history").await.unwrap().json();
    let [one, two] = history["history"].as_array().unwrap().as_slice() else {
        panic!("{history}")
    };
    for entry in [one, two] {
        let steps: Vec<_> = entry["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|step| step["step"].as_str().unwrap())
            .collect();
        assert_eq!(steps.last(), Some(&"cutover"), "{entry}");
        assert!(steps.contains(&"preflight") && steps.contains(&"load"));
    }
    assert_eq!(one["served"]["requests"], 5);
    assert_eq!(two["served"]["requests"], 1);
    run(&host, &["history"])
        .await
        .expect_words(&["served 5 requests in", "cutover"]);
}

/// `text` as zlib has it that compresses nothing.
fn zlib(text: &str) -> Vec<u8> {
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in text.bytes() {
        a = (a + u32::from(byte)) % 65521;
        b = (b + a) % 65521;
    }
    let length = u16::try_from(text.len()).unwrap();
    let mut packed = vec![0x78, 0x01, 0x01];
    packed.extend(length.to_le_bytes());
    packed.extend((!length).to_le_bytes());
    packed.extend(text.bytes());
    packed.extend((b << 16 | a).to_be_bytes());
    packed
}

/// The plugin `name` as `cargo auditable` would have built it, from one package.
fn audited(dir: &Path, version: &str, package: &str) -> std::path::PathBuf {
    let json =
        format!(r#"{{"packages":[{{"name":"tokio","version":"{package}","source":"registry"}}]}}"#);
    let list = dir.join("list");
    fs::write(&list, zlib(&json)).unwrap();
    let file = dir.join(format!("probe-{version}.so"));
    let done = Command::new("objcopy")
        .arg(format!("--add-section=.dep-v0={}", list.display()))
        .arg(fixture("probe", version))
        .arg(&file)
        .status()
        .expect("objcopy comes with the linker");
    assert!(done.success());
    file
}

#[tokio::test]
async fn two_versions_are_compared_by_what_they_say_and_were_built_from() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (
        audited(dir.path(), "1.0.0", "1.40.0"),
        audited(dir.path(), "2.0.0", "1.41.0"),
    );
    let host = Host::serving(&one).await;
    let file = two.to_str().unwrap();
    let told = run(&host, &["diff", "live", file]).await.expect_code(0);
    let text = told.text();
    let line = |what: &str| {
        let found = text
            .lines()
            .find(|line| line.trim_start().starts_with(what));
        let found = found.unwrap_or_else(|| panic!("no {what}: {text}"));
        found
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(line("version"), ["version", "1.0.0", "2.0.0"]);
    assert_eq!(line("tokio"), ["tokio", "1.40.0", "1.41.0"]);
    assert!(
        !text.contains("rustc"),
        "what is the same is not told: {text}"
    );

    host.deploy(&two).await.expect_code(0);
    let json = run(&host, &["diff", "1.0.0", "--json"])
        .await
        .expect_code(0)
        .json();
    assert_eq!(json["b"]["version"], "2.0.0");
    assert_eq!(json["dependencies"][0]["what"], "tokio");
    run(&host, &["diff", "2", "live"])
        .await
        .expect_code(0)
        .expect_words(&["same bytes"]);
    run(&host, &["diff", "9.9.9"])
        .await
        .expect_code(1)
        .expect_words(&["9.9.9", "handover history"]);
}
