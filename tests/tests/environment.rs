//! Each generation has an environment and arguments of its own; the working directory is
//! everybody's, and stays.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, os::unix::fs::PermissionsExt};

use handover_tests::{
    host::{Event, Host, Setup},
    plugins::fixture,
};

const APP: &str = "[app.signals]\nenv = [\"SIGNALS_GIVEN\"]\n[app.signals.config]\nrefuse_in_preflight = \"SIGNALS_LEAKED\"\n";

async fn does(host: &Host, what: &str) -> String {
    let answer = host.get(&format!("/do/{what}")).await;
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    answer.text()
}

async fn deploy(host: &Host, version: &str) {
    host.deploy(&fixture("signals", version))
        .await
        .expect_code(0);
    host.settled("signals").await;
}

/// The events of a kind, once there is one.
async fn told(host: &Host, kind: &str) -> Vec<Event> {
    host.event(kind, |event| event.kind == kind).await;
    let events = host.events().await.into_iter();
    events.filter(|event| event.kind == kind).collect()
}

#[tokio::test]
async fn each_generation_has_an_environment_of_its_own() {
    let host = Setup::new()
        .config(APP)
        .env("SIGNALS_GIVEN", "at the start")
        .env("OTHER_SECRET", "of another app")
        .start()
        .await;
    deploy(&host, "1.0.0").await;
    // It begins with what is listed and what every program has.
    assert_eq!(
        does(&host, "vars?way=SIGNALS_").await,
        "SIGNALS_GIVEN=at the start"
    );
    assert_eq!(does(&host, "get?way=OTHER_SECRET").await, "");
    assert_ne!(does(&host, "get?way=PATH").await, "");
    // What it sets by whatever way it reads by whatever way, and its children too.
    assert_eq!(does(&host, "put").await, "0");
    assert_eq!(does(&host, "set?way=SIGNALS_SET&value=one").await, "0");
    does(&host, "set-var?way=SIGNALS_VAR&value=two").await;
    does(&host, "set?way=SIGNALS_GIVEN&value=later").await;
    does(&host, "set?way=SIGNALS_LEAKED&value=1").await;
    assert_eq!(
        does(&host, "vars?way=SIGNALS_").await,
        "SIGNALS_GIVEN=later SIGNALS_LEAKED=1 SIGNALS_SET=one SIGNALS_VAR=two SIGNALS_ZONE=UTC"
    );
    assert_eq!(does(&host, "get?way=SIGNALS_VAR").await, "two");
    assert_eq!(does(&host, "given?way=SIGNALS_GIVEN").await, "at the start");
    assert_eq!(
        does(&host, "echo?way=SIGNALS_SET&value=three").await,
        "one three one three"
    );
    // Nobody else has any of it: neither what comes after it, nor what is checked, whose
    // constructor would refuse.
    for version in ["2.0.0", "1.0.0"] {
        deploy(&host, version).await;
        assert_eq!(
            does(&host, "vars?way=SIGNALS_").await,
            "SIGNALS_GIVEN=at the start"
        );
        does(&host, "set?way=SIGNALS_LEAKED&value=1").await;
    }
    let environment = fs::read(format!("/proc/{}/environ", host.pid())).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("SIGNALS_LEAKED"));
    assert_eq!(host.mapped_plugins(), 1);
}

#[tokio::test]
async fn two_apps_do_not_see_each_others_variables_and_have_arguments_of_their_own() {
    let config = "[app.one]\nroutes = [\"/\"]\nargs = [\"--mode\", \"first one\"]\n[app.two]\nroutes = [\"/other\"]\n";
    let host = Setup::new()
        .config(config)
        .env("SIGNALS_GIVEN", "to both")
        .start()
        .await;
    let path = fixture("signals", "1.0.0");
    for app in ["one", "two"] {
        host.cli([
            "deploy".as_ref(),
            path.as_os_str(),
            "--app".as_ref(),
            app.as_ref(),
        ])
        .await
        .expect_code(0);
    }
    let does = async |app: &str, what: &str| {
        let prefix = if app == "two" { "/other" } else { "" };
        host.get(&format!("{prefix}/do/{what}")).await.text()
    };
    does("one", "set-var?way=SIGNALS_URL&value=1").await;
    does("two", "set-var?way=SIGNALS_URL&value=2").await;
    // Without a list it is all that the host began with.
    assert_eq!(
        does("one", "vars?way=SIGNALS_").await,
        "SIGNALS_GIVEN=to both SIGNALS_URL=1"
    );
    assert_eq!(
        does("two", "vars?way=SIGNALS_").await,
        "SIGNALS_GIVEN=to both SIGNALS_URL=2"
    );
    assert_eq!(does("one", "args").await, "one --mode first one");
    assert_eq!(does("two", "args").await, "two");
}

#[tokio::test]
async fn what_a_service_manager_says_to_the_host_is_not_said_to_apps() {
    // Whatever is listed: a crate that takes sockets by their numbers would take the host's.
    for env in ["", "env = [\"LISTEN_FDS\", \"NOTIFY_SOCKET\", \"OWN\"]\n"] {
        let folder = tempfile::tempdir().unwrap();
        let notify = folder.path().join("notify");
        let _manager = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
        let host = Setup::new()
            .config(&format!("[app.signals]\n{env}"))
            .env("OWN", "value")
            .env("NOTIFY_SOCKET", notify.to_str().unwrap())
            .env("WATCHDOG_USEC", "30000000")
            .start()
            .await;
        deploy(&host, "1.0.0").await;
        for name in ["LISTEN_", "NOTIFY_", "WATCHDOG_"] {
            assert_eq!(does(&host, &format!("vars?way={name}")).await, "", "{env}");
        }
        assert_eq!(does(&host, "get?way=OWN").await, "value");
    }
}

#[tokio::test]
async fn a_plugin_that_wants_to_go_to_another_folder_is_refused() {
    let host = Setup::new().config(APP).relative().start().await;
    let elsewhere = host.scratch("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    deploy(&host, "1.0.0").await;
    let go = format!("go?value={}", elsewhere.display());
    assert!(does(&host, &go).await.contains("not permitted"));
    let events = told(&host, "working_directory").await;
    assert_eq!(events.len(), 1, "{events:#?}");
    assert_eq!(events[0].generation, Some(1));
    assert!(
        events[0].message.contains(elsewhere.to_str().unwrap())
            && events[0].message.contains("refused"),
        "{}",
        events[0].message
    );
    let folder = fs::read_link(format!("/proc/{}/cwd", host.pid())).unwrap();
    assert_eq!(folder, host.home().canonicalize().unwrap());
    // A relative path is told with the folder that it means.
    fs::write(host.home().join("note"), "found").unwrap();
    assert_eq!(does(&host, "read?value=note").await, "found");
    let told = host
        .event("the relative path", |event| {
            event.message.contains("opened `note`")
        })
        .await;
    assert!(
        told.message.contains(folder.to_str().unwrap()),
        "{}",
        told.message
    );
}

#[tokio::test]
async fn a_mask_of_new_files_is_told_and_is_not_the_hosts() {
    let host = Setup::new().config(APP).start().await;
    deploy(&host, "1.0.0").await;
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
    let before = status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))
        .map(|mask| u32::from_str_radix(mask.trim(), 8).unwrap())
        .unwrap();
    // Nobody may do anything, were it not for the host's own.
    does(&host, "mask?number=511").await;
    let events = told(&host, "file_mask").await;
    assert_eq!(events[0].generation, Some(1));
    let newer = fs::read(fixture("signals", "2.0.0")).unwrap();
    host.drop_in("signals.so", &newer);
    host.verdict("signals.so", "deployed").await;
    host.settled("signals").await;
    for file in [
        host.plugins().join("signals.so.deployed"),
        host.state().join("apps/signals.json"),
        host.state().join("running.json"),
    ] {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666 & !before, "{}", file.display());
    }
    does(&host, &format!("mask?number={before}")).await;
    // It was set back; what comes later is told later.
    does(&host, "go?value=/").await;
    told(&host, "working_directory").await;
    assert_eq!(told(&host, "file_mask").await.len(), 1);
}
