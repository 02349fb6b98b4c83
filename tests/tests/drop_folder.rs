//! Whatever happens to a drop folder, the right version is served in the end.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, io::Write, os::unix::fs::symlink, time::Duration};

use handover_tests::{
    host::{Host, Setup},
    plugins::{fixture, hello_as, misfit},
};
use rustix::process::Signal;

/// How many deploys were tried, by their outcome.
async fn tried(host: &Host, outcome: &str) -> usize {
    let history = host.ask("GET", "/v1/history").await.unwrap().json();
    history["history"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["outcome"] == outcome)
        .count()
}

/// Waits until the drop folders have been scanned once more: by another app that has to be found in
/// them.
async fn scanned(host: &Host) {
    let mark = format!(
        "1.{}.0",
        fs::read_dir(host.plugins().join("scanned")).map_or(0, Iterator::count) % 10
    );
    host.drop_in(&format!("scanned/{mark}.so"), &hello_as(&mark));
    host.live("scanned", &mark).await;
    // The verdict is the last thing that a scan leaves of it.
    host.verdict(&format!("scanned/{mark}.so"), "deployed")
        .await;
}

#[tokio::test]
async fn a_file_written_slowly_is_deployed_once_it_is_whole() {
    let host = Host::start().await;
    let dir = host.plugins().join("hello");
    fs::create_dir(&dir).unwrap();
    let bytes = fs::read(fixture("hello", "1.0.0")).unwrap();
    let mut file = fs::File::create(dir.join("hello.so")).unwrap();
    for piece in bytes.chunks(bytes.len() / 6) {
        file.write_all(piece).unwrap();
        file.sync_all().unwrap();
        // The slowness of the writer, not a wait for something.
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(
            !dir.join("hello.so.failed").exists(),
            "half a file is no failure yet"
        );
    }
    drop(file);
    host.live("hello", "1.0.0").await;
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    host.verdict("hello/hello.so", "deployed").await;
}

#[tokio::test]
async fn a_truncated_file_waits_until_it_is_whole() {
    let host = Host::start().await;
    let bytes = fs::read(fixture("hello", "1.0.0")).unwrap();
    fs::write(host.plugins().join("hello.so"), &bytes[..bytes.len() / 3]).unwrap();
    scanned(&host).await;
    assert!(
        host.status()
            .await
            .apps
            .iter()
            .all(|app| app.name != "hello" || app.active.is_none())
    );
    fs::write(host.plugins().join("hello.so"), &bytes).unwrap();
    host.live("hello", "1.0.0").await;
    host.verdict("hello.so", "deployed").await;
    assert!(
        !host.plugins().join("hello.so.failed").exists(),
        "the verdict on the half is taken back"
    );
}

#[tokio::test]
async fn a_file_copied_in_renamed_in_and_replaced_is_live_each_time() {
    let host = Host::start().await;
    // Copied: into the folder itself, the app's name is the manifest's.
    fs::copy(fixture("hello", "1.0.0"), host.plugins().join("hello.so")).unwrap();
    host.live("hello", "1.0.0").await;
    // Renamed over it.
    host.drop_in("hello.so", &fs::read(fixture("hello", "2.0.0")).unwrap());
    host.live("hello", "2.0.0").await;
    // Overwritten in place, which truncates what was there: the host must not have mapped that.
    fs::copy(fixture("hello", "1.0.0"), host.plugins().join("hello.so")).unwrap();
    host.live("hello", "1.0.0").await;
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    // Cut to nothing: what is live stays.
    fs::write(host.plugins().join("hello.so"), b"").unwrap();
    scanned(&host).await;
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
}

#[tokio::test]
async fn the_folder_names_the_app() {
    let host = Host::start().await;
    host.drop_in("shop/anything.so", &hello_as("1.0.0"));
    host.live("shop", "1.0.0").await;
    let said = host.verdict("shop/anything.so", "deployed").await;
    assert!(said.contains("1.0.0"), "{said}");
}

#[tokio::test]
async fn a_symlink_is_followed_and_its_change_is_seen() {
    let host = Host::start().await;
    for version in ["1.1.0", "1.2.0"] {
        fs::write(host.scratch(version), hello_as(version)).unwrap();
    }
    let link = host.plugins().join("hello.so");
    symlink(host.scratch("1.1.0"), &link).unwrap();
    host.live("hello", "1.1.0").await;
    symlink(host.scratch("1.2.0"), host.scratch("link")).unwrap();
    fs::rename(host.scratch("link"), &link).unwrap();
    host.live("hello", "1.2.0").await;
}

#[tokio::test]
async fn a_mounted_config_map_is_swapped_as_kubernetes_does_it() {
    let host = Host::start().await;
    let volume = host.plugins().join("hello");
    let publish = |version: &str| {
        let payload = format!("..{version}");
        fs::create_dir_all(volume.join(&payload)).unwrap();
        fs::write(volume.join(&payload).join("hello.so"), hello_as(version)).unwrap();
        symlink(&payload, volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    };
    publish("1.1.0");
    symlink("..data/hello.so", volume.join("hello.so")).unwrap();
    host.live("hello", "1.1.0").await;
    publish("1.2.0");
    host.live("hello", "1.2.0").await;
    fs::remove_dir_all(volume.join("..1.1.0")).unwrap();
    publish("1.3.0");
    host.live("hello", "1.3.0").await;
    let answered = host.active("hello").await.generation;
    assert_eq!(
        answered, 3,
        "the payload folders are not offers of their own"
    );
}

#[tokio::test]
async fn of_two_at_once_the_higher_version_is_live_by_number_not_by_text() {
    let host = Host::start().await;
    let (nine, ten) = (hello_as("1.9.0"), hello_as("1.10.0"));
    host.drop_in("hello/a.so", &ten);
    host.drop_in("hello/b.so", &nine);
    host.live("hello", "1.10.0").await;
    scanned(&host).await;
    assert_eq!(host.active("hello").await.version, "1.10.0");
    // Both are answered, whatever the answer.
    host.verdict("hello/a.so", "deployed").await;
    let answered = |kind: &str| host.plugins().join(format!("hello/b.so.{kind}")).exists();
    host.until("an answer to the lower one", async || {
        (answered("deployed") || answered("failed")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lower_version_in_a_new_file_is_no_deploy_but_in_place_of_the_live_one_it_is() {
    let host = Host::start().await;
    host.drop_in("hello/hello-2.so", &hello_as("1.2.0"));
    host.live("hello", "1.2.0").await;
    host.drop_in("hello/hello-1.so", &hello_as("1.1.0"));
    let said = host.verdict("hello/hello-1.so", "failed").await;
    assert!(said.contains("1.1.0") && said.contains("1.2.0"), "{said}");
    assert_eq!(host.active("hello").await.version, "1.2.0");
    host.drop_in("hello/hello-2.so", &hello_as("1.0.1"));
    host.live("hello", "1.0.1").await;
}

#[tokio::test]
async fn garbage_is_answered_with_the_reason_and_leaves_the_live_one() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.drop_in("hello/broken.so", &b"not a library".repeat(50));
    let reason = host.verdict("hello/broken.so", "failed").await;
    assert!(reason.to_lowercase().contains("elf"), "{reason}");
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    // Not every file in a drop folder is an offer.
    fs::write(host.plugins().join("hello/README.txt"), "read me").unwrap();
    fs::write(host.plugins().join("hello/.hidden.so"), "hidden").unwrap();
    scanned(&host).await;
    assert!(!host.plugins().join("hello/README.txt.failed").exists());
    assert!(!host.plugins().join("hello/.hidden.so.failed").exists());
}

#[tokio::test]
async fn the_same_bytes_again_do_nothing_and_say_so() {
    let host = Host::start().await;
    let bytes = hello_as("1.0.0");
    host.drop_in("hello/hello.so", &bytes);
    let first = host.live("hello", "1.0.0").await;
    host.verdict("hello/hello.so", "deployed").await;
    // The same file touched, the same bytes in its place, the same bytes under another name, and by
    // hand.
    fs::File::open(host.plugins().join("hello/hello.so"))
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    host.drop_in("hello/hello.so", &bytes);
    host.drop_in("hello/copy.so", &bytes);
    let said = host.verdict("hello/copy.so", "deployed").await;
    assert!(said.contains("already"), "{said}");
    host.deploy_bytes(&bytes)
        .await
        .expect_code(0)
        .expect_words(&["already"]);
    scanned(&host).await;
    assert_eq!(host.active("hello").await.generation, first.generation);
}

#[tokio::test]
async fn the_same_file_put_there_again_is_live_again() {
    let host = Host::start().await;
    let (one, two) = (hello_as("1.1.0"), hello_as("1.2.0"));
    for (version, bytes) in [
        ("1.1.0", &one),
        ("1.2.0", &two),
        ("1.1.0", &one),
        ("1.2.0", &two),
    ] {
        host.drop_in("hello/hello.so", bytes);
        host.live("hello", version).await;
    }
    // What was made live by hand meanwhile is no reason to leave it.
    host.deploy_bytes(&one).await.expect_code(0);
    host.drop_in("hello/hello.so", &two);
    host.live("hello", "1.2.0").await;
    // Nor is it by a plain copy over itself.
    host.deploy_bytes(&one).await.expect_code(0);
    fs::write(host.plugins().join("hello/hello.so"), &two).unwrap();
    host.live("hello", "1.2.0").await;
}

#[tokio::test]
async fn a_folder_deleted_and_made_again_is_still_watched() {
    let host = Host::start().await;
    host.drop_in("hello/hello.so", &hello_as("1.1.0"));
    host.live("hello", "1.1.0").await;
    // Its answer is the last that is written there.
    host.verdict("hello/hello.so", "deployed").await;
    fs::remove_dir_all(host.plugins().join("hello")).unwrap();
    host.drop_in("hello/hello.so", &hello_as("1.2.0"));
    host.live("hello", "1.2.0").await;
    host.verdict("hello/hello.so", "deployed").await;
    // The whole of it as well.
    fs::remove_dir_all(host.plugins()).unwrap();
    assert_eq!(
        host.get("/").await.text(),
        "hello 1.2.0",
        "what is live needs no file"
    );
    host.drop_in("hello/hello.so", &hello_as("1.3.0"));
    host.live("hello", "1.3.0").await;
}

#[tokio::test]
async fn bytes_that_failed_are_not_tried_again_until_somebody_asks() {
    let host = Host::start().await;
    let bytes = misfit("start-error");
    host.drop_in("misfit/misfit.so", &bytes);
    let reason = host.verdict("misfit/misfit.so", "failed").await;
    assert!(
        reason.contains("the database of the misfit is not there"),
        "{reason}"
    );
    assert_eq!(tried(&host, "rejected").await, 1);
    // Touched, and replaced by the same.
    host.drop_in("misfit/misfit.so", &bytes);
    scanned(&host).await;
    scanned(&host).await;
    assert_eq!(tried(&host, "rejected").await, 1);
    host.cli(["reload"]).await;
    assert_eq!(tried(&host, "rejected").await, 2);
    // Other bytes are another matter.
    host.drop_in("misfit/misfit.so", &misfit("none"));
    host.live("misfit", "1.0.0").await;
    host.verdict("misfit/misfit.so", "deployed").await;
    assert!(!host.plugins().join("misfit/misfit.so.failed").exists());
}

#[tokio::test]
async fn what_is_staged_waits_for_reload_or_sighup() {
    let host = Setup::new()
        .config("[app.hello]\nwatch = \"stage\"\n")
        .start()
        .await;
    for (version, by_signal) in [("1.1.0", false), ("1.2.0", true)] {
        let before = host
            .status()
            .await
            .apps
            .first()
            .and_then(|app| app.active.clone())
            .map(|active| active.generation);
        host.drop_in("hello/hello.so", &hello_as(version));
        host.app_when("hello", "it to be staged", |app| {
            app.staged
                .as_ref()
                .is_some_and(|staged| staged["version"] == version)
        })
        .await;
        let active = host
            .app("hello")
            .await
            .active
            .map(|active| active.generation);
        assert_eq!(active, before, "staging activates nothing");
        if by_signal {
            host.signal(Signal::HUP);
        } else {
            host.cli(["reload", "hello"]).await.expect_code(0);
        }
        host.live("hello", version).await;
        host.app_when("hello", "nothing to be staged", |app| {
            app.staged.as_ref().is_none_or(serde_json::Value::is_null)
        })
        .await;
    }
}

#[tokio::test]
async fn a_folder_that_is_off_is_left_alone() {
    let host = Setup::new()
        .config("[app.hello]\nwatch = \"off\"\n")
        .start()
        .await;
    host.drop_in("hello/hello.so", &hello_as("1.1.0"));
    scanned(&host).await;
    assert!(
        host.status()
            .await
            .apps
            .iter()
            .all(|app| app.name != "hello" || app.active.is_none())
    );
}

#[tokio::test]
async fn a_deploy_by_hand_is_not_undone_by_the_folder() {
    let host = Host::start().await;
    host.drop_in("hello/hello.so", &hello_as("1.2.0"));
    host.live("hello", "1.2.0").await;
    host.deploy_bytes(&hello_as("1.3.0")).await.expect_code(0);
    host.deploy_bytes(&hello_as("1.1.0")).await.expect_code(0);
    scanned(&host).await;
    scanned(&host).await;
    assert_eq!(
        host.active("hello").await.version,
        "1.1.0",
        "a file that has been answered is no news"
    );
}

#[tokio::test]
async fn files_that_wait_when_the_host_starts_are_live() {
    let mut host = Host::start().await;
    host.crash(|host| {
        host.drop_in("hello/hello.so", &hello_as("1.1.0"));
        host.drop_in("probe.so", &fs::read(fixture("probe", "1.0.0")).unwrap());
    })
    .await;
    host.live("hello", "1.1.0").await;
    host.live("probe", "1.0.0").await;
}

#[tokio::test]
async fn a_storm_of_drops_ends_in_the_last_one() {
    let host = Host::start().await;
    for round in 0..4 {
        for minor in 0..10 {
            host.drop_in("hello/hello.so", &hello_as(&format!("1.{minor}.{round}")));
        }
    }
    host.live("hello", "1.9.3").await;
    let settled = host.settled("hello").await;
    assert_eq!(settled.active.unwrap().version, "1.9.3");
}

#[tokio::test]
async fn folders_of_configured_apps_are_there_from_the_start() {
    let host = Setup::new()
        .config("[app.hello]\n[app.other]\nwatch = \"off\"\n")
        .start()
        .await;
    let folder = host.plugins().join("hello");
    host.until("the folder to be made", async || {
        folder.is_dir().then_some(())
    })
    .await;
    fs::copy(fixture("hello", "1.0.0"), folder.join("hello.so")).unwrap();
    host.verdict("hello/hello.so", "deployed").await;
    assert!(!host.plugins().join("other").exists());
}
