//! What the SDK offers to tests of plugins: a real host, from a plugin's own `cargo test`.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::path::Path;

use handover_plugin::testing::{Setup, TestHost};
use handover_tests::{
    host::DEADLINE,
    plugins::{fixture, handover, workspace},
};
use http::Request;

fn setup() -> Setup {
    Setup::default()
        .program(handover())
        .crate_folder(workspace().join("example-plugin"))
}

/// The processes of a host.
async fn pids(host: &TestHost) -> Vec<u64> {
    let pid = host.status().await.unwrap()["host"]["pid"]
        .as_u64()
        .unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    vec![pid, line.unwrap().trim().parse().unwrap()]
}

#[tokio::test]
async fn it_serves_is_swapped_and_comes_back_and_leaves_nothing() {
    let host = setup().start().await.unwrap();
    let pids = pids(&host).await;
    assert_eq!(host.get("/healthz").await.unwrap().status(), 200);
    assert_eq!(host.get("/none").await.unwrap().status(), 404);
    assert!(host.url("/x").ends_with(&format!("{}/x", host.address())));
    assert_eq!(host.swap().await.unwrap(), 2);
    assert_eq!(host.swap().await.unwrap(), 3);
    host.crash().await.unwrap();
    assert!(host.generation().await.unwrap() > 3);
    let older = host.deploy(fixture("example-plugin", "2.0.0")).await;
    assert_eq!(older.unwrap(), host.generation().await.unwrap());
    let listed = host.command(["state", "ls", "example-plugin"]).await;
    assert!(listed.unwrap().status.success());
    assert!(host.log().unwrap().contains("example-plugin"));
    let now = self::pids(&host).await;
    assert_eq!(now[1], pids[1], "the supervisor stays");
    drop(host);
    let deadline = std::time::Instant::now() + DEADLINE;
    while now
        .iter()
        .any(|pid| Path::new(&format!("/proc/{pid}")).exists())
    {
        assert!(std::time::Instant::now() < deadline, "{now:?} still run");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn it_has_the_configuration_that_the_test_gives_it() {
    let host = setup()
        .config("[app.example-plugin]\nroutes = [\"links.test/\"]\n")
        .start()
        .await
        .unwrap();
    assert_eq!(host.get("/healthz").await.unwrap().status(), 404);
    let named = Request::get("/healthz").header("host", "links.test");
    let answer = host.request(named.body("").unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do() {
    let host = setup().start().await.unwrap();
    let refused = host.deploy(fixture("no-manifest", "1.0.0")).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("manifest"), "{refused}");
    let live = host.generation().await.unwrap();
    assert_eq!(live, 1, "the code before is still live");

    let error = setup().config("lisen = 1\n").start().await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("ended at its start"), "{error}");
    assert!(error.contains("lisen"), "{error}");

    let error = setup().crate_folder(workspace().join("host/api")).start();
    let error = error.await.unwrap_err().to_string();
    assert!(error.contains("crate-type = [\"cdylib\"]"), "{error}");
}
