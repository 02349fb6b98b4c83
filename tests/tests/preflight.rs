//! What cannot live is refused before it is let in, with a reason, and the live generation never
//! notices.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, time::Duration};

use handover_tests::{
    elf,
    host::{Host, Setup, handover},
    load::Load,
    plugins::{fixture, misfit, rewritten},
};

/// What is wrong, its bytes, and the words that the reason must have.
fn unacceptable() -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let probe = fs::read(fixture("probe", "1.0.0")).unwrap();
    vec![
        ("an empty file", Vec::new(), &[]),
        (
            "garbage",
            b"this is not a library at all".repeat(100),
            &["ELF"],
        ),
        (
            "a truncated file",
            probe[..probe.len() / 2].to_vec(),
            &["truncated"],
        ),
        (
            "a file without its last bytes",
            probe[..probe.len() - 1].to_vec(),
            &["truncated"],
        ),
        (
            "the wrong architecture",
            rewritten("hello", |bytes| elf::set_machine(bytes, 183)),
            &["aarch64", "x86_64"],
        ),
        (
            "no manifest",
            fs::read(fixture("no-manifest", "1.0.0")).unwrap(),
            &["manifest"],
        ),
        (
            "a newer ABI",
            rewritten("hello", |bytes| elf::set_abi(bytes, 1, 9)),
            &["1.9"],
        ),
        (
            "another ABI",
            rewritten("hello", |bytes| elf::set_abi(bytes, 2, 0)),
            &["2.0"],
        ),
        (
            "a table of another shape",
            fs::read(fixture("misshapen", "1.0.0")).unwrap(),
            &["root table"],
        ),
        (
            "panic = abort",
            rewritten("hello", |bytes| {
                elf::rewrite_manifest(bytes, |manifest| {
                    manifest["build"]["panic"] = "abort".into()
                })
            }),
            &["panic", "abort"],
        ),
        ("a crash while loading", misfit("load-segv"), &["SIGSEGV"]),
        (
            "an error",
            misfit("start-error"),
            &["the database of the misfit is not there"],
        ),
        (
            "a panic",
            misfit("start-panic"),
            &["panic", "the misfit panics"],
        ),
        ("a crash", misfit("start-segv"), &["SIGSEGV"]),
        ("an abort", misfit("start-abort"), &["SIGABRT"]),
        ("an exit", misfit("start-exit"), &["exit"]),
        ("a hang", misfit("start-hang"), &["2s"]),
        ("a busy hang", misfit("start-spin"), &["2s"]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_unacceptable_artifact_is_refused_with_a_reason_and_nobody_notices() {
    let host = Setup::new()
        .config("[app.probe.check]\ndeadline = \"2s\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let before = host.active("probe").await;

    let load = Load {
        keep_alive: 4,
        closing: 1,
        streams: 4,
        pause: Duration::from_millis(5),
    }
    .start(host.address);
    for (what, bytes, words) in unacceptable() {
        eprintln!("refusing {what}");
        let file = host.scratch("unacceptable.so");
        fs::write(&file, bytes).unwrap();
        let output = host
            .cli(["deploy", "--app", "probe", file.to_str().unwrap()])
            .await;
        eprintln!("{}", output.text());
        output.expect_code(4).expect_words(words);
        load.more(10).await;
    }
    let report = load.stop().await;
    report.expect_unnoticed();
    assert_eq!(report.versions.len(), 1);
    let after = host.active("probe").await;
    assert_eq!(
        (after.generation, after.artifact),
        (before.generation, before.artifact)
    );
    assert_eq!(host.mapped_plugins(), 1, "nothing refused was mapped");
}

#[tokio::test]
async fn check_says_the_same_without_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("checked.so");
    for (what, bytes, words) in unacceptable()
        .into_iter()
        .filter(|(what, ..)| !what.contains("hang"))
    {
        eprintln!("checking {what}");
        fs::write(&file, bytes).unwrap();
        handover(["check", file.to_str().unwrap()])
            .await
            .expect_code(4)
            .expect_words(words);
    }
    let good = fixture("probe", "1.0.0");
    handover(["check", good.to_str().unwrap()])
        .await
        .expect_code(0);
    let json = handover(["check", good.to_str().unwrap(), "--json"])
        .await
        .expect_code(0)
        .json();
    assert!(json.is_object(), "{json}");
}

#[tokio::test]
async fn an_unhealthy_one_is_refused_by_its_smoke_request() {
    let host = Setup::new().config("[app.misfit.check]\nrequests = [{ path = \"/\" }, { path = \"/nowhere\", status = 404 }]\n").start().await;
    host.deploy(&fixture("misfit", "1.0.0"))
        .await
        .expect_code(0);
    let before = host.active("misfit").await;
    host.deploy_bytes(&misfit("unhealthy"))
        .await
        .expect_code(5)
        .expect_words(&["500", "GET /"]);
    assert_eq!(host.active("misfit").await.generation, before.generation);
    assert_eq!(host.get("/").await.status, 200);
}

#[tokio::test]
async fn one_that_fails_only_in_the_host_leaves_the_old_one_live() {
    let host = Setup::new()
        .config("[app.misfit.check]\ndeadline = \"2s\"\n")
        .start()
        .await;
    host.deploy(&fixture("misfit", "1.0.0"))
        .await
        .expect_code(0);
    let before = host.active("misfit").await;
    for (habit, words) in [
        ("live-error", "the database of the misfit is not there"),
        ("live-panic", "the misfit panics"),
        ("live-hang", "2s"),
    ] {
        let output = host
            .deploy_bytes(&misfit(habit))
            .await
            .expect_words(&[words]);
        assert!(matches!(output.code, Some(1 | 4)), "{output:?}");
        assert_eq!(host.active("misfit").await.generation, before.generation);
        assert_eq!(host.get("/").await.text(), "misfit: none");
    }
    // The one that hangs is in its constructor still, and is shown for it; the others are gone.
    let app = host.app("misfit").await;
    let states: Vec<_> = app.generations.iter().map(|one| &*one.state).collect();
    assert_eq!(states, ["active", "retained"], "{:?}", app.generations);
}

#[tokio::test]
async fn a_constructor_that_must_not_run_twice_is_not_run_by_preflight() {
    let host = Setup::new()
        .config("[app.misfit.check]\nstart = false\n")
        .start()
        .await;
    // It would fail in preflight; in the host it fails as well, which shows that it was tried there
    // first.
    let output = host.deploy_bytes(&misfit("start-error")).await;
    assert!(matches!(output.code, Some(1 | 4)), "{output:?}");
    let output = output.expect_words(&["the database of the misfit is not there"]);
    assert!(
        !output.text().to_lowercase().contains("preflight refused"),
        "{output:?}"
    );
    host.deploy_bytes(&misfit("none")).await.expect_code(0);
}

#[tokio::test]
async fn a_refusal_on_an_empty_host_leaves_it_empty_and_well() {
    let host = Host::start().await;
    host.deploy_bytes(&misfit("start-panic"))
        .await
        .expect_code(4);
    assert_eq!(host.get("/").await.status, 404);
    host.deploy(&fixture("misfit", "1.0.0"))
        .await
        .expect_code(0);
    assert_eq!(host.get("/").await.status, 200);
}

/// What a smoke request asks of an answer, and what it says when that is another one.
#[tokio::test]
async fn smoke_requests_look_at_status_fields_body_and_time() {
    for (request, says) in [
        (
            "{ path = \"/fields?n=2\", headers = { x-many = \"v\" }, body = \"2.0\" }",
            None,
        ),
        (
            "{ path = \"/head\", send = { host = \"shop.example.org\", x-key = \"k-7\" }, body = \"k-7\", within = \"20s\" }",
            None,
        ),
        (
            "{ path = \"/fields?n=1\", headers = { x-many = \"w\" } }",
            Some("`x-many: v`, wanted `w`"),
        ),
        (
            "{ path = \"/version\", headers = { x-none = \"v\" } }",
            Some("without `x-none`"),
        ),
        (
            "{ path = \"/version\", body = \"9.9.9\" }",
            Some("no `9.9.9`: it begins with `2.0.0`"),
        ),
        (
            "{ path = \"/slow?ms=60000\", within = \"200ms\" }",
            Some("was not answered within 200ms"),
        ),
    ] {
        let host = Setup::new()
            .config(&format!("[app.probe.check]\nrequests = [{request}]\n"))
            .start()
            .await;
        let output = host.deploy(&fixture("probe", "2.0.0")).await;
        match says {
            None => drop(output.expect_code(0)),
            Some(says) => drop(output.expect_code(5).expect_words(&[says])),
        }
    }
}

/// The constructor meets another database in preflight than in the host.
#[tokio::test]
async fn preflight_has_variables_of_its_own() {
    let host = Setup::new()
        .env("HANDOVER_PROBE_DATABASE", "production")
        .config(
            "[app.probe]
env = [\"HANDOVER_PROBE_DATABASE\"]
[app.probe.check]
env = { HANDOVER_PROBE_DATABASE = \"scratch\" }
requests = [{ path = \"/env?name=HANDOVER_PROBE_DATABASE\", body = \"scratch\" }]
",
        )
        .start()
        .await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    let has = host.get("/env?name=HANDOVER_PROBE_DATABASE").await.text();
    assert!(has.contains("production"), "{has}");
}
