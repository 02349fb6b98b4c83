//! The configuration changed while the host runs: as a whole or not at all, and told before.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{net::SocketAddr, time::Duration};

use handover_tests::{
    client::Http1,
    host::{Host, Output, Setup},
    load::Load,
    plugins::{fixture, hello_as},
};
use rustix::process::Signal;

async fn reload(host: &Host, toml: &str) -> Output {
    // Beside what the harness has written, which names the paths.
    std::fs::create_dir_all(host.home().join("apps.d")).unwrap();
    std::fs::write(host.home().join("apps.d/probe.toml"), toml).unwrap();
    host.cli(["reload-config"]).await
}

#[tokio::test]
async fn a_changed_file_takes_effect_and_a_broken_one_changes_nothing() {
    let host = Setup::new().config("").start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let said = reload(
        &host,
        "[app.probe]\nroutes = [\"/version\"]\nstrip_prefix = false\n",
    )
    .await;
    said.expect_code(0).expect_words(&["app.probe"]);
    assert_eq!(host.get("/version").await.status, 200);
    let broken = "[app.probe]\nroutes = [\"/other\"]\nroute = 1\n";
    let said = reload(&host, broken).await;
    said.expect_code(1)
        .expect_words(&["did you mean `routes`", "nothing was changed"]);
    assert_eq!(host.get("/version").await.status, 200);
}

/// Writes the main file, whose folders are those of the host.
fn write(host: &Host, toml: &str) {
    let text = format!("[server]\nversion_header = true\n{toml}");
    std::fs::write(host.home().join("handover.toml"), text).unwrap();
}

/// An address that nobody has.
fn free() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// The version that answers at `address`; none when nobody listens there.
async fn answers(address: SocketAddr) -> Option<String> {
    let mut http = Http1::connect(address).await.ok()?;
    Some(http.get("/version").await.ok()?.text())
}

fn listener(address: SocketAddr) -> String {
    format!("[[listen]]\naddress = \"{address}\"\n")
}

#[tokio::test]
async fn listeners_and_apps_come_and_go_under_load_and_outlive_a_crash() {
    let mut host = Setup::new().config("").start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let load = Load::LIGHT.start(host.address);
    load.more(20).await;
    let (one, other) = (free(), free());
    write(&host, &listener(one));
    host.cli(["plan"])
        .await
        .expect_code(0)
        .expect_words(&[&one.to_string(), "listen"]);
    assert_eq!(answers(one).await, None);
    host.cli(["reload-config"]).await.expect_code(0);
    assert_eq!(answers(one).await.as_deref(), Some("1.0.0"));
    // A kept connection of it outlives what is changed beside it.
    let mut kept = Http1::connect(one).await.unwrap();
    kept.get("/version").await.unwrap();
    write(&host, &format!("{}{}", listener(one), listener(other)));
    host.signal(Signal::HUP);
    host.until("the other listener", async || answers(other).await)
        .await;
    kept.get("/version").await.unwrap();
    // One that cannot be had leaves everything as it was, the good one beside it too.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let new = free();
    let text = format!(
        "{}{}{}",
        listener(one),
        listener(new),
        listener(taken.local_addr().unwrap())
    );
    write(&host, &text);
    host.cli(["reload-config"])
        .await
        .expect_code(1)
        .expect_words(&["another process has it", "nothing was changed"]);
    assert_eq!(answers(new).await, None);
    assert!(answers(other).await.is_some());
    load.more(20).await;
    load.stop().await.expect_unnoticed();

    // After a crash there is what was in effect, not what lies in the file.
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    host.live("probe", "1.0.0").await;
    for address in [one, other] {
        assert_eq!(answers(address).await.as_deref(), Some("1.0.0"));
    }
    assert_eq!(answers(new).await, None);
    // A broken one is no obstacle either.
    write(&host, "[[listen]]\nadress = 1\n");
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    assert_eq!(answers(other).await.as_deref(), Some("1.0.0"));
    write(&host, &listener(one));
    host.cli(["reload-config"]).await.expect_code(0);
    assert_eq!(answers(other).await, None);
    assert_eq!(answers(one).await.as_deref(), Some("1.0.0"));
}

#[tokio::test]
async fn five_hundred_changes_half_of_them_broken_lose_nothing() {
    const CHANGES: usize = 500;
    let host = Setup::new().config("").start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.deploy_bytes(&hello_as("1.0.0")).await.expect_code(0);
    let load = Load {
        keep_alive: 4,
        closing: 2,
        streams: 2,
        pause: Duration::from_millis(2),
    }
    .start(host.address);
    load.more(20).await;
    for change in 0..CHANGES {
        let limit = 1000 + change;
        let app =
            format!("[app.probe]\nroutes = [\"/\"]\nmax_concurrent = {limit}\nqueue = 1000\n");
        let broken = match change % 4 {
            1 => "[app.hello]\nroute = [\"/hello\"]\n",
            3 => "[app.hello]\nroutes = [\"/hello\"]\nbake = \"soon\"\n",
            _ => "",
        };
        write(&host, &format!("{app}{broken}"));
        let said = host.cli(["reload-config"]).await;
        said.expect_code(i32::from(!broken.is_empty()));
        let shown = host.cli(["config", "show", "--json"]).await.json();
        let expected = limit - change % 2;
        assert_eq!(shown["app"]["probe"]["max_concurrent"], expected);
    }
    load.more(20).await;
    load.stop().await.expect_unnoticed();
}
