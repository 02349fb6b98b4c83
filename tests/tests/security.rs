//! Who may cause code to load is the whole question: nobody but those who may.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
};

use handover_tests::{
    client::Http1,
    elf,
    host::{Host, Output, Setup, handover},
    plugins::{self, fixture, hello_as, rewritten},
};
use minisign::KeyPair;

fn mode(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Waits until the drop folder has been looked at: by another app that has to be found in it.
async fn nothing_of(host: &Host, app: &str) {
    assert!(
        host.status()
            .await
            .apps
            .iter()
            .all(|known| known.name != app || known.generations.is_empty()),
        "nothing of {app} was loaded"
    );
}

// ---- the control socket

/// Runs the command line as another user.
async fn as_user(
    binary: &Path,
    socket: &Path,
    (user, group): (u32, u32),
    arguments: &[&OsStr],
) -> Output {
    let mut command = std::process::Command::new(binary);
    command
        .args(arguments)
        .env("HANDOVER_CONTROL", socket)
        .current_dir("/")
        .uid(user)
        .gid(group);
    let output = tokio::process::Command::from(command)
        .output()
        .await
        .unwrap();
    Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[tokio::test]
async fn observers_see_operators_act_and_strangers_do_neither() {
    if !is_root() {
        eprintln!("skipped: only root can call as other users");
        return;
    }
    const GROUP: u32 = 65530;
    const OPERATOR: (u32, u32) = (65533, GROUP);
    const OBSERVER: (u32, u32) = (65534, GROUP);
    const STRANGER: (u32, u32) = (65531, GROUP);
    const OUTSIDER: (u32, u32) = (65531, 65531);
    let host = Setup::new()
        .config("[control]\noperate = [\"65533\"]\nobserve = [\"65534\"]\ngroup = \"65530\"\n")
        .argument("--control")
        .argument("HOME/run/control.sock")
        .start()
        .await;
    let socket = host.control();
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o660
    );
    mode(host.home(), 0o711);
    let binary = host.scratch("handover");
    fs::copy(plugins::handover(), &binary).unwrap();
    let file = host.scratch("hello.so");
    fs::write(&file, hello_as("1.1.0")).unwrap();
    let run = async |who, arguments: &[&OsStr]| as_user(&binary, &socket, who, arguments).await;
    let word = OsStr::new;

    for reading in ["status", "history", "events"] {
        for who in [OPERATOR, OBSERVER] {
            run(who, &[word(reading)]).await.expect_code(0);
        }
    }
    let deploy = [word("deploy"), file.as_os_str()];
    for changing in [
        &deploy[..],
        &[word("reload")],
        &[word("rollback")],
        &[word("shutdown")],
    ] {
        run(OBSERVER, changing)
            .await
            .expect_code(9)
            .expect_words(&["may observe this host", "control.operate"]);
        run(STRANGER, changing)
            .await
            .expect_code(9)
            .expect_words(&["user 65531 may not command a host of root"]);
    }
    run(STRANGER, &[word("status")]).await.expect_code(9);
    // Those who cannot even open it learn the same.
    run(OUTSIDER, &[word("status")]).await.expect_code(9);
    nothing_of(&host, "hello").await;

    run(OPERATOR, &deploy).await.expect_code(0);
    host.live("hello", "1.1.0").await;
}

#[tokio::test]
async fn without_a_setting_nobody_else_can_open_the_control_socket() {
    let host = Host::start().await;
    let bits = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(bits(host.control()), 0o600);
    assert_eq!(bits(host.state()), 0o700);
}

#[tokio::test]
async fn a_socket_that_its_group_could_not_reach_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("handover.toml");
    fs::write(&config, "[control]\ngroup = \"0\"\n").unwrap();
    let run = [
        OsStr::new("run"),
        OsStr::new("--config"),
        config.as_os_str(),
    ];
    handover(run.into_iter().chain([
        OsStr::new("--control"),
        folder.path().join(".handover/c").as_os_str(),
    ]))
    .await
    .expect_code(1)
    .expect_words(&["control.group", "put the socket elsewhere"]);
}

// ---- what others may write

#[tokio::test]
async fn a_dropped_file_that_others_may_write_is_not_loaded() {
    let host = Host::start().await;
    let path = host.plugins().join("hello/hello.so");
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::write(host.scratch("hello.so"), hello_as("1.1.0")).unwrap();
    mode(host.scratch("hello.so"), 0o666);
    fs::rename(host.scratch("hello.so"), &path).unwrap();
    let said = host.verdict("hello/hello.so", "failed").await;
    assert!(
        said.contains("may be written by everybody") && said.contains("chmod go-w"),
        "{said}"
    );
    nothing_of(&host, "hello").await;
    // What to do is in the answer, and it works.
    mode(&path, 0o644);
    host.cli(["reload"]).await.expect_code(0);
    host.live("hello", "1.1.0").await;
}

#[tokio::test]
async fn a_drop_folder_that_others_may_write_brings_nothing_unless_that_is_accepted() {
    let host = Host::start().await;
    mode(host.plugins(), 0o777);
    host.drop_in("hello.so", &hello_as("1.1.0"));
    let said = host.verdict("hello.so", "failed").await;
    assert!(
        said.contains("may be written by everybody") && said.contains("insecure_paths"),
        "{said}"
    );
    nothing_of(&host, "hello").await;

    let host = Setup::new()
        .config("[trust]\ninsecure_paths = true\n")
        .start()
        .await;
    mode(host.plugins(), 0o777);
    host.drop_in("hello.so", &hello_as("1.1.0"));
    host.live("hello", "1.1.0").await;
}

#[tokio::test]
async fn a_link_to_what_others_may_write_is_not_followed() {
    let host = Host::start().await;
    let open = host.scratch("open");
    fs::create_dir(&open).unwrap();
    fs::write(open.join("hello.so"), hello_as("1.1.0")).unwrap();
    mode(&open, 0o777);
    symlink(open.join("hello.so"), host.plugins().join("hello.so")).unwrap();
    let said = host.verdict("hello.so", "failed").await;
    assert!(said.contains("scratch/open may be written"), "{said}");
    nothing_of(&host, "hello").await;
}

#[tokio::test]
async fn an_answer_is_never_written_through_a_link() {
    let host = Host::start().await;
    let victim = host.scratch("victim");
    fs::write(&victim, "precious").unwrap();
    for name in [".handover-hello.so", "hello.so.failed", "hello.so.deployed"] {
        symlink(&victim, host.plugins().join(name)).unwrap();
    }
    mode(host.plugins(), 0o777);
    host.drop_in("hello.so", &hello_as("1.1.0"));
    host.until("the answer", async || {
        let answer = host.plugins().join("hello.so.failed");
        fs::symlink_metadata(answer)
            .is_ok_and(|facts| facts.is_file())
            .then_some(())
    })
    .await;
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[tokio::test]
async fn a_configuration_that_others_may_write_is_refused_unless_the_command_line_accepts_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("handover.toml");
    // What it says of itself is no excuse.
    fs::write(&config, "[trust]\ninsecure_paths = true\n").unwrap();
    mode(&config, 0o666);
    handover([
        OsStr::new("run"),
        OsStr::new("--config"),
        config.as_os_str(),
    ])
    .await
    .expect_code(1)
    .expect_words(&[
        "handover.toml may be written by everybody",
        "--insecure-paths",
    ]);

    let mut host = Setup::new()
        .config("")
        .argument("--insecure-paths")
        .start()
        .await;
    mode(host.home().join("handover.toml"), 0o666);
    host.crash(|_| ()).await;
}

#[tokio::test]
async fn a_state_directory_that_others_could_replace_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("open");
    fs::create_dir(&open).unwrap();
    mode(&open, 0o777);
    handover([
        OsStr::new("run"),
        OsStr::new("--listen"),
        OsStr::new("127.0.0.1:0"),
        OsStr::new("--state"),
        open.join("state").as_os_str(),
        OsStr::new("--plugins"),
        folder.path().join("plugins").as_os_str(),
        OsStr::new("--control"),
        folder.path().join("c").as_os_str(),
    ])
    .await
    .expect_code(1)
    .expect_words(&["state directory", "open may be written by everybody"]);
}

// ---- names

#[tokio::test]
async fn no_name_leads_out_of_a_folder() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let before = everything_in(host.home());
    for name in ["../evil", "/etc/evil", "..", ".hidden", "a/b", "A"] {
        let bytes = rewritten("hello", |bytes| {
            elf::rewrite_manifest(bytes, |manifest| manifest["app"] = name.into());
        });
        let output = host.deploy_bytes(&bytes).await.expect_code(4);
        output.expect_words(&["is not an app name"]);
        let query = name.replace('/', "%2F");
        for call in [
            format!("/v1/deploy?app={query}"),
            format!("/v1/reload?app={query}"),
            format!("/v1/rollback?app={query}"),
        ] {
            let answer = host.ask("POST", &call).await.unwrap();
            assert_eq!(answer.status, 400, "{call}: {}", answer.text());
        }
    }
    // The name of an upload is only ever shown.
    let mut http = Http1::connect_unix(&host.control()).await.unwrap();
    let answer = http
        .post("/v1/deploy?name=..%2F..%2Fevil.so", b"no plugin")
        .await
        .unwrap();
    assert!(answer.text().contains("rejected"), "{}", answer.text());
    let after: Vec<_> = everything_in(host.home())
        .into_iter()
        .filter(|path| !before.contains(path) && !path.to_string_lossy().contains("scratch"))
        .collect();
    assert!(after.is_empty(), "nothing may be written: {after:?}");
}

fn everything_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // What is temporary may be gone already.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(everything_in(&path));
        }
        found.push(path);
    }
    found
}

// ---- bytes

#[tokio::test]
async fn stored_bytes_that_were_changed_are_never_loaded() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    let first = host.active("hello").await.artifact;
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    let swap = |host: &Host, artifact: &str| {
        let stored = host.state().join(format!("artifacts/{artifact}.so"));
        fs::remove_file(&stored).unwrap();
        fs::write(&stored, hello_as("6.6.6")).unwrap();
    };
    swap(&host, &first);
    host.cli(["rollback", "hello", "--to", "1.0.0"])
        .await
        .expect_code(1)
        .expect_words(&["damaged", "deploy it again"]);
    assert_eq!(host.get("/").await.text(), "hello 2.0.0");
    // And at a restart: rather nothing than what nobody deployed.
    let second = host.active("hello").await.artifact;
    host.crash(|host| swap(host, &second)).await;
    host.event("the refusal", |event| event.message.contains("damaged"))
        .await;
    assert_eq!(host.get("/").await.status, 503);
    // Deployed again, it is whole again.
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    assert_eq!(host.get("/").await.text(), "hello 2.0.0");
}

// ---- signatures

fn keys() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().unwrap()
}

fn signature(pair: &KeyPair, bytes: &[u8]) -> String {
    minisign::sign(None, &pair.sk, bytes, None, None)
        .unwrap()
        .into_string()
}

/// As minisign prints it.
fn id(pair: &KeyPair) -> String {
    let mut bytes = pair.pk.keynum().to_vec();
    bytes.reverse();
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn trusting(pair: &KeyPair) -> String {
    format!("[trust]\nkeys = [\"{}\"]\n", pair.pk.to_base64())
}

#[tokio::test]
async fn only_what_is_signed_is_deployed() {
    let (ours, foreign) = (keys(), keys());
    let mut host = Setup::new().config(&trusting(&ours)).start().await;
    let file = host.scratch("hello.so");
    let beside = host.scratch("hello.so.minisig");
    let bytes = hello_as("1.1.0");
    fs::write(&file, &bytes).unwrap();

    host.deploy(&file)
        .await
        .expect_code(4)
        .expect_words(&["not signed", &id(&ours)]);
    fs::write(&beside, signature(&foreign, &bytes)).unwrap();
    host.deploy(&file)
        .await
        .expect_code(4)
        .expect_words(&[&format!("signed by key {}", id(&foreign)), &id(&ours)]);
    fs::write(&beside, signature(&ours, &hello_as("1.0.9"))).unwrap();
    host.deploy(&file)
        .await
        .expect_code(4)
        .expect_words(&["is not one of these bytes"]);
    fs::write(&beside, "nonsense").unwrap();
    host.deploy(&file)
        .await
        .expect_code(1)
        .expect_words(&["hello.so.minisig"]);
    nothing_of(&host, "hello").await;
    assert!(
        host.events()
            .await
            .iter()
            .all(|event| event.generation.is_none()),
        "nothing was loaded"
    );

    fs::write(&beside, signature(&ours, &bytes)).unwrap();
    host.deploy(&file).await.expect_code(0);
    host.live("hello", "1.1.0").await;
    let named = host.scratch("elsewhere.minisig");
    let newer = hello_as("1.2.0");
    fs::write(&file, &newer).unwrap();
    fs::write(&named, signature(&ours, &newer)).unwrap();
    host.cli([
        OsStr::new("deploy"),
        file.as_os_str(),
        OsStr::new("--signature"),
        named.as_os_str(),
    ])
    .await
    .expect_code(0);
    host.live("hello", "1.2.0").await;
    // Verified again when it comes out of the store.
    host.cli(["rollback"]).await.expect_code(0);
    host.live("hello", "1.1.0").await;
    host.crash(|_| ()).await;
    host.live("hello", "1.1.0").await;
    let stored = host.state().join("artifacts");
    host.crash(|_| {
        for entry in fs::read_dir(&stored).unwrap().flatten() {
            if entry.path().extension() == Some(OsStr::new("minisig")) {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    })
    .await;
    host.event("the refusal", |event| event.message.contains("not signed"))
        .await;
    assert_eq!(host.get("/").await.status, 503);
}

#[tokio::test]
async fn a_dropped_file_is_taken_when_its_signature_comes() {
    let ours = keys();
    let host = Setup::new().config(&trusting(&ours)).start().await;
    let bytes = hello_as("1.1.0");
    host.drop_in("hello.so", &bytes);
    let said = host.verdict("hello.so", "failed").await;
    assert!(
        said.contains("not signed") && said.contains(&id(&ours)),
        "{said}"
    );
    host.drop_in("hello.so.minisig", signature(&ours, &bytes).as_bytes());
    host.live("hello", "1.1.0").await;
    host.verdict("hello.so", "deployed").await;
    assert!(!host.plugins().join("hello.so.failed").exists());
    // The signature first: no detour.
    let newer = hello_as("1.2.0");
    host.drop_in(
        "hello/newer.so.minisig",
        signature(&ours, &newer).as_bytes(),
    );
    host.drop_in("hello/newer.so", &newer);
    host.live("hello", "1.2.0").await;
}

#[tokio::test]
async fn check_verifies_as_a_deploy_would() {
    let ours = keys();
    let folder = tempfile::tempdir().unwrap();
    let (config, file) = (
        folder.path().join("handover.toml"),
        folder.path().join("hello.so"),
    );
    fs::write(
        &config,
        format!("{}[app.hello]\nmin_version = \"1.1.0\"\n", trusting(&ours)),
    )
    .unwrap();
    let check = async |bytes: &[u8], signed: bool| {
        fs::write(&file, bytes).unwrap();
        let beside = folder.path().join("hello.so.minisig");
        if signed {
            fs::write(&beside, signature(&ours, bytes)).unwrap();
        } else {
            fs::remove_file(&beside).unwrap_or_default();
        }
        handover([
            OsStr::new("check"),
            file.as_os_str(),
            OsStr::new("--config"),
            config.as_os_str(),
        ])
        .await
    };
    check(&hello_as("1.1.0"), false)
        .await
        .expect_code(4)
        .expect_words(&["not signed", &id(&ours)]);
    check(&hello_as("1.1.0"), true)
        .await
        .expect_code(0)
        .expect_words(&[&format!("signed by key {}", id(&ours))]);
    check(&hello_as("1.0.9"), true)
        .await
        .expect_code(4)
        .expect_words(&["min_version"]);
}

// ---- downgrades

#[tokio::test]
async fn nothing_older_than_min_version_comes_by_any_way() {
    let mut host = Setup::new()
        .config("[app.hello]\nkeep_artifacts = 5\n")
        .start()
        .await;
    for version in ["1.1.0", "1.2.0"] {
        host.deploy_bytes(&hello_as(version)).await.expect_code(0);
    }
    host.reconfigure("[app.hello]\nmin_version = \"1.2.0\"\n");
    host.crash(|_| ()).await;
    host.live("hello", "1.2.0").await;
    let words = ["1.1.", "older than 1.2.0", "min_version"];
    host.deploy_bytes(&hello_as("1.1.5"))
        .await
        .expect_code(4)
        .expect_words(&words);
    host.cli(["rollback"])
        .await
        .expect_code(4)
        .expect_words(&words);
    host.cli(["rollback", "--to", "1.1.0"]).await.expect_code(4);
    host.drop_in("hello/hello.so", &hello_as("1.1.9"));
    host.verdict("hello/hello.so", "failed").await;
    assert_eq!(host.active("hello").await.version, "1.2.0");
    // What is live stays over a restart, even when it is too old by now: that is no way back to
    // anything.
    host.reconfigure("[app.hello]\nmin_version = \"1.3.0\"\n");
    host.crash(|_| ()).await;
    host.live("hello", "1.2.0").await;
    host.event("a word about it", |event| {
        event.message.contains("serves on") && event.message.contains("1.3.0")
    })
    .await;
    host.deploy_bytes(&hello_as("1.3.0")).await.expect_code(0);
}
