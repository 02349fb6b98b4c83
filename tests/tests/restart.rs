//! A host that died serves again what it served, and what has changed meanwhile.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use handover_tests::{
    elf,
    host::Host,
    plugins::{fixture, hello_as, misfit, rewritten},
};
use serde_json::{Value, json};

#[tokio::test]
async fn after_kill_9_the_last_good_artifact_is_served_before_anything_else() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    let refused = misfit("start-error");
    let path = host.scratch("misfit.so");
    fs::write(&path, refused).unwrap();
    host.cli(["deploy", "--app", "hello", path.to_str().unwrap()])
        .await
        .expect_code(4);
    let before = host.active("hello").await;
    host.crash(|_| ()).await;
    let after = host.live("hello", "2.0.0").await;
    assert_eq!(after.artifact, before.artifact);
    assert!(
        after.generation > before.generation,
        "the number only grows, over restarts too"
    );
    assert_eq!(host.get("/").await.text(), "hello 2.0.0");
    host.cli(["history"]).await.expect_code(0).expect_words(&[
        "1.0.0",
        "2.0.0",
        "the database of the misfit is not there",
    ]);
    host.cli(["rollback", "hello"]).await.expect_code(0);
    host.live("hello", "1.0.0").await;
}

#[tokio::test]
async fn what_was_dropped_while_it_was_down_is_live_after_it() {
    let mut host = Host::start().await;
    host.drop_in("hello/hello.so", &hello_as("1.1.0"));
    host.live("hello", "1.1.0").await;
    host.crash(|host| host.drop_in("hello/hello.so", &hello_as("1.2.0")))
        .await;
    host.live("hello", "1.2.0").await;
    // And what was not changed is no news.
    host.deploy_bytes(&hello_as("1.1.5")).await.expect_code(0);
    host.crash(|_| ()).await;
    host.live("hello", "1.1.5").await;
}

#[tokio::test]
async fn a_rollback_stays_after_a_restart() {
    let mut host = Host::start().await;
    for version in ["1.1.0", "1.2.0"] {
        host.drop_in("hello/hello.so", &hello_as(version));
        host.live("hello", version).await;
    }
    host.cli(["rollback", "hello"]).await.expect_code(0);
    host.live("hello", "1.1.0").await;
    host.crash(|_| ()).await;
    host.live("hello", "1.1.0").await;
}

#[tokio::test]
async fn killed_in_the_middle_of_deploys_it_serves_the_old_or_the_new() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    let mut last = host.active("hello").await.generation;
    for n in 0..8u64 {
        let bytes = hello_as(&format!("1.{}.0", n + 1));
        let file = host.scratch("next.so");
        fs::write(&file, bytes).unwrap();
        let before = host.active("hello").await.version;
        host.cli(["deploy", "--detach", file.to_str().unwrap()])
            .await
            .expect_code(0);
        // Somewhere between its beginning and its end; where exactly is up to the machine.
        tokio::time::sleep(std::time::Duration::from_millis(n * 25)).await;
        host.crash(|_| ()).await;
        let live = host
            .app_when("hello", "something to be live", |app| app.active.is_some())
            .await
            .active
            .unwrap();
        assert!(
            live.version == before || live.version == format!("1.{}.0", n + 1),
            "{live:?} after {before}"
        );
        assert!(live.generation > last, "{live:?} after generation {last}");
        last = live.generation;
        assert_eq!(
            host.get("/").await.text(),
            format!("hello {}", live.version)
        );
        host.live("hello", &live.version).await;
    }
}

#[tokio::test]
async fn a_second_host_on_the_same_state_is_refused() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let state = host.state();
    let plugins = host.plugins();
    let arguments = [
        "run",
        "--listen",
        "127.0.0.1:0",
        "--plugins",
        plugins.to_str().unwrap(),
        "--state",
        state.to_str().unwrap(),
    ];
    handover_tests::host::handover(arguments)
        .await
        .expect_code(1)
        .expect_words(&[state.to_str().unwrap()]);
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    host.status().await;
}

#[tokio::test]
async fn sigterm_ends_it_with_grace() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.signal(rustix::process::Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
    assert!(
        !host.control().exists(),
        "the control socket goes with its host"
    );
}

/// Changes what the host, which has ended, remembers of `hello`.
fn edit_record(host: &Host, edit: impl FnOnce(&mut Value)) {
    let file = host.state().join("apps/hello.json");
    let mut record = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    edit(&mut record);
    fs::write(file, serde_json::to_vec(&record).unwrap()).unwrap();
}

/// Puts bytes into the artifact store of a host as if they had been let in. Gives their SHA-256.
fn smuggle(host: &Host, bytes: &[u8]) -> String {
    let store = host.state().join("artifacts");
    let file = store.join("smuggled");
    fs::write(&file, bytes).unwrap();
    let sha256 = sha256(&file);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    fs::rename(file, store.join(format!("{sha256}.so"))).unwrap();
    sha256
}

fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

/// The messages of the step `preflight` in the first operation of this run of the host, which made
/// `hello` live again.
async fn checked_at_start(host: &Host) -> Vec<String> {
    let checked = preflights(host, "op-1").await;
    if checked.is_empty() {
        // For whoever reads why a test failed that wanted some.
        for event in host.events().await {
            println!("{}: {}", event.kind, event.message);
        }
    }
    checked
}

async fn preflights(host: &Host, operation: &str) -> Vec<String> {
    let path = format!("/v1/operations/{operation}");
    let lines = host.ask("GET", &path).await.unwrap().text();
    lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["step"] == "preflight")
        .map(|line| line["message"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_restart_and_a_rollback_refuse_another_abi_as_a_deploy_does() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    let forged = rewritten("hello", |bytes| {
        elf::set_version(bytes, "1.5.0");
        elf::set_abi(bytes, 99, 0);
    });
    host.crash(|host| {
        let artifact = smuggle(host, &forged);
        edit_record(host, |record| {
            record["head"] = json!({"artifact": artifact, "version": "1.5.0", "source": null});
            // As if it had been live, and checked by this very host.
            record["history"][0]["artifact"] = json!(artifact);
            record["history"][0]["version"] = json!("1.5.0");
            record["checked"][0]["artifact"] = json!(artifact);
        });
    })
    .await;
    host.live("hello", "2.0.0").await;
    let refused = host
        .event("the refusal", |event| event.kind == "rejected")
        .await;
    assert!(
        refused.message.contains("1.5.0") && refused.message.contains("ABI 99.0"),
        "{refused:?}"
    );
    host.cli(["rollback", "hello", "--to", "1.5.0"])
        .await
        .expect_code(4)
        .expect_words(&["ABI 99.0"]);
    assert_eq!(host.get("/").await.text(), "hello 2.0.0");
}

#[tokio::test]
async fn what_no_verdict_of_this_host_says_fits_is_compared_before_it_is_loaded() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    let misshapen = fs::read(fixture("misshapen", "1.0.0")).unwrap();
    host.crash(|host| {
        let artifact = smuggle(host, &misshapen);
        edit_record(host, |record| {
            record["head"] = json!({"artifact": artifact, "version": "1.0.0", "source": null});
            record["checked"]
                .as_array_mut()
                .unwrap()
                .push(json!({"artifact": artifact, "host": "0.0.1", "abi": "1.0"}));
        });
    })
    .await;
    host.live("hello", "1.0.0").await;
    let refused = host
        .event("the refusal", |event| event.kind == "rejected")
        .await;
    for word in ["root table", "0.0.1", "cannot run it"] {
        assert!(refused.message.contains(word), "{refused:?}");
    }
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
}

#[tokio::test]
async fn a_verdict_is_asked_again_by_another_host_and_by_the_same_one_not() {
    let other_host = |host: &Host| {
        edit_record(host, |record| {
            for checked in record["checked"].as_array_mut().unwrap() {
                checked["host"] = json!("0.0.1");
            }
        });
    };
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    host.crash(|_| ()).await;
    host.live("hello", "2.0.0").await;
    assert_eq!(checked_at_start(&host).await, [""; 0]);
    host.crash(other_host).await;
    host.live("hello", "2.0.0").await;
    let checked = checked_at_start(&host).await;
    assert!(checked[0].contains("layouts match"), "{checked:?}");
    assert!(!checked[0].contains("constructor"), "{checked:?}");
    // The new verdict is kept, and a rollback to what has none checks all.
    host.crash(|_| ()).await;
    host.live("hello", "2.0.0").await;
    assert_eq!(checked_at_start(&host).await, [""; 0]);
    let rollback = host
        .cli(["rollback", "hello"])
        .await
        .expect_code(0)
        .expect_words(&["preflight", "constructor ended"]);
    assert!(rollback.text().contains("1.0.0"), "{rollback:?}");
    host.cli(["rollback", "hello", "--to", "2.0.0"])
        .await
        .expect_code(0);
    let again = host
        .cli(["rollback", "hello", "--to", "1.0.0"])
        .await
        .expect_code(0);
    assert!(!again.text().contains("preflight"), "{again:?}");
}

#[tokio::test]
async fn what_was_live_is_served_by_another_host_whatever_a_deploy_would_be_refused_for() {
    const DT_FLAGS: u64 = 30;
    const DF_STATIC_TLS: u64 = 16;
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    // What an earlier host let in.
    let older = rewritten("hello", |bytes| {
        elf::set_version(bytes, "1.5.0");
        elf::set_dynamic_bits(bytes, DT_FLAGS, DF_STATIC_TLS);
        elf::set_dynamic_bits(bytes, 0x6fff_fffb, 8); // it never unloads
    });
    host.reconfigure(
        "[app.hello.check]\nleave = \"refuse\"\nrequests = [{ path = \"/\", status = 500 }]\n",
    );
    host.crash(|host| {
        let artifact = smuggle(host, &older);
        edit_record(host, |record| {
            record["head"] = json!({"artifact": artifact, "version": "1.5.0", "source": null});
        });
    })
    .await;
    host.live("hello", "1.5.0").await;
    assert_eq!(checked_at_start(&host).await.len(), 1);
}
