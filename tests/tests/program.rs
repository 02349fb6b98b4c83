//! One crate is a program and a plugin: what `cargo run` does, the host does, and swaps.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
};

use handover_tests::{
    client::{Http1, Http2, WebSocket, websocket::Message},
    host::{Host, Setup},
    load::Load,
    plugins::{fixture, fixture_program, target_dir, workspace},
};
use rustix::process::{Pid, Signal, kill_process};

/// A port that was free just now.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// The app as a program of its own.
struct Program {
    child: Child,
    said: std::io::Lines<BufReader<std::process::ChildStdout>>,
    address: SocketAddr,
}

impl Program {
    fn start() -> Self {
        let mut child = Command::new(fixture_program("program", "1.0.0"))
            .env_remove("PROGRAM_LISTEN")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = said.next().unwrap().unwrap();
        let address = line.strip_prefix("listening on ").unwrap();
        Self {
            address: address.parse().unwrap(),
            child,
            said,
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that the app does, by its answers.
async fn answers(address: SocketAddr, version: &str) {
    let mut http = Http1::connect(address).await.unwrap();
    assert_eq!(http.get("/version").await.unwrap().text(), version);
    assert_eq!(http.get("/client").await.unwrap().text(), "127.0.0.1");
    assert_eq!(http.get("/nowhere").await.unwrap().status, 404);
    let big = vec![b'x'; 1_000_000];
    let echoed = http
        .request("POST", "/echo", &[], Some(&big))
        .await
        .unwrap();
    assert_eq!(echoed.body, big);
    let events = http.get("/events?n=3").await.unwrap();
    assert_eq!(
        events.text(),
        format!("data: {version} 0\n\ndata: {version} 1\n\ndata: {version} 2\n\n")
    );
    let mut socket = WebSocket::connect(address, "/ws").await.unwrap();
    socket.send("hello").await.unwrap();
    assert_eq!(
        socket.receive().await.unwrap(),
        Message::Text(format!("{version} hello"))
    );
    socket.close(1000).await.unwrap();
    let (two, _) = Http2::connect(address).await.unwrap();
    assert_eq!(two.get("/version").await.unwrap().text(), version);
}

#[tokio::test]
async fn the_program_serves_and_ends_as_axum_has_it() {
    let mut program = Program::start();
    answers(program.address, "1.0.0").await;
    let mut idle = Http1::connect(program.address).await.unwrap();
    idle.get("/version").await.unwrap();
    let pid = Pid::from_child(&program.child);
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(
        program.said.next().unwrap().unwrap(),
        "program 1.0.0 said good-bye to 127.0.0.1:0"
    );
    assert!(program.child.wait().unwrap().success());
}

#[tokio::test]
async fn the_same_file_is_a_plugin_that_swaps_and_says_good_bye() {
    let listen = free();
    let folder = tempfile::tempdir().unwrap();
    let ended = folder.path().join("ended");
    let host = Setup::new()
        .env("PROGRAM_LISTEN", &listen.to_string())
        .env("PROGRAM_ENDED", ended.to_str().unwrap())
        .start()
        .await;
    host.deploy(&fixture("program", "1.0.0"))
        .await
        .expect_code(0);
    answers(host.address, "1.0.0").await;
    // Even the preflight child goes through all of its `main`.
    assert_eq!(std::fs::read_to_string(&ended).unwrap(), "1.0.0");
    std::fs::remove_file(&ended).unwrap();

    let load = Load::LIGHT.start(host.address);
    for version in ["2.0.0", "1.0.0", "2.0.0"] {
        host.deploy(&fixture("program", version))
            .await
            .expect_code(0);
        load.more(20).await;
    }
    load.stop().await.expect_unnoticed();
    answers(host.address, "2.0.0").await;
    assert_eq!(host.settled("program").await.generations.len(), 1);
    host.event("all of them to be unloaded", |event| {
        event.kind == "unloaded" && event.generation == Some(3)
    })
    .await;
    assert_eq!(host.mapped_plugins(), 1);
    assert_eq!(std::fs::read_to_string(&ended).unwrap(), "1.0.0");
}

#[tokio::test]
async fn a_main_that_fails_keeps_the_old_code_live() {
    let fails = Setup::new().env("PROGRAM_FAILS", "the database is away");
    let host: Host = fails.start().await;
    host.deploy(&fixture("program", "1.0.0"))
        .await
        .expect_code(4)
        .expect_words(&["did not start", "the database is away"]);
}

#[tokio::test]
async fn a_port_of_its_own_goes_from_each_generation_to_the_next() {
    let admin = free();
    let host = Setup::new()
        .env("PROGRAM_ADMIN", &admin.to_string())
        .start()
        .await;
    let asked = async || Http1::connect(admin).await?.get("/admin").await;
    let versions = ["1.0.0", "2.0.0"];
    host.deploy(&fixture("program", versions[0]))
        .await
        .expect_code(0);
    assert_eq!(asked().await.unwrap().text(), "1.0.0");
    // New connections all the while: none is refused, whoever answers.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let asking = tokio::spawn(async move {
        let mut answers = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let answer = Http1::connect(admin).await?.get("/admin").await?;
            assert!(versions.contains(&answer.text().as_str()), "{answer:?}");
            answers += 1;
        }
        Ok::<_, handover_tests::client::Fault>(answers)
    });
    for version in versions.iter().rev().cycle().take(6) {
        host.deploy(&fixture("program", version))
            .await
            .expect_code(0);
        let live = host.settled("program").await;
        assert_eq!(live.active.unwrap().version, *version);
        assert_eq!(asked().await.unwrap().text(), *version);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(asking.await.unwrap().unwrap() > 10);
    let text = host.cli(["status"]).await.text();
    assert!(
        text.contains(&format!("listens by itself at {admin}")),
        "{text}"
    );
    assert_eq!(host.mapped_plugins(), 1);

    // Where the next one does not want it, it goes with the last that did.
    host.cli([
        "deploy".as_ref(),
        fixture("hello", "1.0.0").as_os_str(),
        "--app".as_ref(),
        "program".as_ref(),
    ])
    .await
    .expect_code(0);
    host.settled("program").await;
    host.until("the port to be free", async || {
        TcpListener::bind(admin).ok()
    })
    .await;
    let text = host.cli(["status"]).await.text();
    assert!(!text.contains("listens by itself"), "{text}");
}

/// What the compiler says to a crate whose `src/lib.rs` is `source`.
fn refused_by_the_compiler(source: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let sdk = workspace().join("plugin-api");
    let manifest = format!(
        "[workspace]\n[package]\nname = \"misfit-of-types\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
         [lib]\ncrate-type = [\"cdylib\"]\n[dependencies]\nhandover-plugin = {{ path = {sdk:?} }}\n\
         tokio = {{ version = \"1\", features = [\"net\"] }}\n"
    );
    std::fs::create_dir(folder.path().join("src")).unwrap();
    std::fs::write(folder.path().join("Cargo.toml"), manifest).unwrap();
    std::fs::write(folder.path().join("src/lib.rs"), source).unwrap();
    std::fs::copy(
        workspace().join("Cargo.lock"),
        folder.path().join("Cargo.lock"),
    )
    .unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline"])
        .current_dir(folder.path())
        .env("CARGO_TARGET_DIR", target_dir())
        .output()
        .unwrap();
    assert!(!output.status.success(), "it is taken");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_is_no_app_is_told_what_one_is() {
    let told = refused_by_the_compiler(
        "#[handover_plugin::app]\nfn app(_: handover_plugin::Context) -> Result<String, handover_plugin::Error> { Ok(String::new()) }\n",
    );
    assert!(told.contains("`String` is no app"), "{told}");
    assert!(
        told.contains("of the crate http 1 and implements `tower::Service`"),
        "{told}"
    );
    let told = refused_by_the_compiler(
        "#[handover_plugin::main]\nasync fn main() {\n    let at = tokio::net::TcpListener::bind(\"127.0.0.1:0\").await.unwrap();\n    \
         handover_plugin::serve(at, String::new()).await.unwrap();\n}\n",
    );
    assert!(
        told.contains("`String` is no app that can be served"),
        "{told}"
    );
    assert!(told.contains("enable the feature `axum`"), "{told}");
    let told = refused_by_the_compiler("#[handover_plugin::main]\nfn main() {}\n");
    assert!(told.contains("`main` is async here"), "{told}");
}
