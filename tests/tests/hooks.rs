//! The operator's programs at a deploy: when each is run, what it is told, and what its end means.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use handover_tests::{
    host::{Host, Setup},
    plugins::{fixture, hello_as},
};

/// A folder with a program that writes down how it is called, and then does `what`.
fn program(what: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "#!/bin/sh\necho \"$HANDOVER_HOOK $HANDOVER_APP $HANDOVER_VERSION ${{HANDOVER_LIVE_VERSION:-none}} \
         ${{HANDOVER_GENERATION:-none}} ${{HANDOVER_OUTCOME:-none}}\" >> {}\n[ $HANDOVER_HOOK = on_failure ] || test -r \"$HANDOVER_ARTIFACT\" || exit 9\n{what}\n",
        folder.path().join("calls").display()
    );
    let path = folder.path().join("hook");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn calls(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A host whose hooks are all that program.
async fn host(folder: &Path) -> Host {
    let hook = folder.join("hook");
    let all = [
        "pre_deploy",
        "migrate",
        "post_deploy",
        "on_failure",
        "on_rollback",
    ];
    let lines: String = all
        .iter()
        .map(|name| format!("{name} = [{hook:?}, \"an argument\"]\n"))
        .collect();
    let config = format!("[app.probe.hooks]\n{lines}deadline = \"2s\"\n");
    Setup::new().config(&config).start().await
}

#[tokio::test]
async fn each_is_run_in_its_place_and_is_told_what_it_is_about() {
    let folder = program("echo \"said by $HANDOVER_HOOK\"");
    let mut host = host(folder.path()).await;
    host.deploy(&fixture("probe", "1.0.0"))
        .await
        .expect_code(0)
        .expect_words(&[
            "said by pre_deploy",
            "said by migrate",
            "said by post_deploy",
            "is live as generation 1",
        ]);
    assert_eq!(
        calls(folder.path()),
        [
            "pre_deploy probe 1.0.0 none none none",
            "migrate probe 1.0.0 none 1 none",
            "post_deploy probe 1.0.0 1.0.0 1 done",
        ]
    );
    // What is live is not deployed, and a start is no deploy.
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.crash(|_| ()).await;
    host.live("probe", "1.0.0").await;
    assert_eq!(calls(folder.path()).len(), 3);

    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.cli(["rollback", "probe"])
        .await
        .expect_code(0)
        .expect_words(&["said by on_rollback"]);
    let all = calls(folder.path());
    assert!(
        all[3].starts_with("pre_deploy probe 2.0.0 1.0.0"),
        "{all:?}"
    );
    assert!(
        all[6].starts_with("on_rollback probe 1.0.0 1.0.0"),
        "{all:?}"
    );
    assert_eq!(all.len(), 7);
}

#[tokio::test]
async fn one_that_refuses_has_changed_nothing() {
    for (hook, code, name) in [
        ("pre_deploy", 4, "was rejected"),
        ("migrate", 1, "could not be"),
    ] {
        let what = format!(
            "[ $HANDOVER_HOOK != {hook} ] || [ $HANDOVER_VERSION = 1.0.0 ] || {{ echo because >&2; exit 3; }}"
        );
        let folder = program(&what);
        let host = host(folder.path()).await;
        host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
        host.deploy(&fixture("probe", "2.0.0"))
            .await
            .expect_code(code)
            .expect_words(&[hook, "ended with 3", "because", name, "stays live"]);
        let last = calls(folder.path()).pop().unwrap();
        assert!(last.starts_with("on_failure probe 2.0.0 1.0.0"), "{last}");
        assert_eq!(host.get("/version").await.text(), "1.0.0");
        host.settled("probe").await;
        // Another time it may say something else about the same bytes.
        fs::write(folder.path().join("hook"), "#!/bin/sh\nexit 0\n").unwrap();
        host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
        assert_eq!(host.get("/version").await.text(), "2.0.0");
    }
}

#[tokio::test]
async fn one_that_hangs_or_cannot_be_started_is_told() {
    let folder = program("[ $HANDOVER_HOOK != migrate ] || sleep 600");
    let host = host(folder.path()).await;
    host.deploy(&fixture("probe", "1.0.0"))
        .await
        .expect_code(1)
        .expect_words(&["migrate", "did not end within 2.0 s"]);
    fs::remove_file(folder.path().join("hook")).unwrap();
    host.deploy(&fixture("probe", "1.0.0"))
        .await
        .expect_code(4)
        .expect_words(&["pre_deploy", "cannot be started", "No such file"]);
    assert!(host.app("probe").await.active.is_none());
}

#[tokio::test]
async fn one_names_another_artifact_and_one_that_fails_late_is_a_warning() {
    let other = fixture("probe", "2.0.0");
    let what = format!(
        "case $HANDOVER_HOOK in pre_deploy) echo some words; echo HANDOVER_ARTIFACT={};; post_deploy) exit 7;; esac",
        other.display()
    );
    let folder = program(&what);
    let host = host(folder.path()).await;
    host.deploy(&fixture("probe", "1.0.0"))
        .await
        .expect_code(0)
        .expect_words(&["is taken instead", "2.0.0", "post_deploy", "ended with 7"]);
    host.live("probe", "2.0.0").await;
    // A second one, under load of a drain.
    let wrong = "[ $HANDOVER_HOOK != pre_deploy ] || echo HANDOVER_ARTIFACT=/there/is/none";
    let folder = program(wrong);
    let host = self::host(folder.path()).await;
    host.deploy(&fixture("probe", "1.0.0"))
        .await
        .expect_code(4)
        .expect_words(&["/there/is/none", "was not taken"]);
}

#[tokio::test]
async fn a_timeout_of_the_deploy_holds_for_them_too() {
    let folder = program("[ $HANDOVER_HOOK != migrate ] || sleep 600");
    let hook = folder.path().join("hook");
    let config = format!("[app.probe.hooks]\nmigrate = {hook:?}\ndeadline = \"1h\"\n");
    let host = Setup::new().config(&config).start().await;
    let file = fixture("probe", "1.0.0");
    let line = ["deploy", file.to_str().unwrap(), "--timeout", "3s"];
    host.cli(line)
        .await
        .expect_code(1)
        .expect_words(&["migrate", "did not end within"]);
}

#[tokio::test]
async fn a_preview_beside_a_canary_is_checked_as_well() {
    let what = "[ $HANDOVER_HOOK != pre_deploy ] || [ $HANDOVER_VERSION != 3.0.0 ] || exit 3";
    let folder = program(what);
    let host = host(folder.path()).await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let file = fixture("probe", "2.0.0");
    let canary = [
        "deploy",
        file.to_str().unwrap(),
        "--detach",
        "--canary",
        "5%",
    ];
    host.cli(canary).await.expect_code(0);
    host.until("the trial", async || {
        host.app("probe").await.canary.map(drop)
    })
    .await;
    let other = host.scratch("other.so");
    fs::write(&other, hello_as("3.0.0")).unwrap();
    let preview = ["deploy", other.to_str().unwrap(), "--app", "probe"];
    host.cli(preview.iter().chain(&["--label", "fix-12"]))
        .await
        .expect_code(4)
        .expect_words(&["pre_deploy", "ended with 3"]);
}
