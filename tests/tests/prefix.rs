//! Where an app answers and what it knows of that, and the folder for its files.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::os::unix::fs::PermissionsExt;

use handover_tests::{
    host::{Host, Setup},
    plugins::fixture,
};

/// What the app at `path` says of itself.
async fn about(host: &Host, path: &str) -> serde_json::Value {
    let answer = host.get(path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

/// The routes that `status` shows of `app`.
async fn routes(host: &Host, app: &str) -> serde_json::Value {
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    let apps = status["apps"].as_array().unwrap();
    let found = apps.iter().find(|one| one["name"] == app).unwrap();
    found["routes"].clone()
}

#[tokio::test]
async fn a_route_that_the_host_chose_can_be_written_down_and_is_the_same() {
    let host = Setup::new().start().await;
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let chosen = routes(&host, "probe").await;
    assert_eq!(chosen, serde_json::json!(["/probe"]));
    let of_chosen = about(&host, "/probe/about").await;
    assert_eq!(of_chosen["base_path"], "/probe");
    assert_eq!(host.get("/probe/version").await.text(), "1.0.0");

    let written = Setup::new()
        .config(&format!("[app.probe]\nroutes = {chosen}\n"))
        .start()
        .await;
    written
        .deploy(&fixture("probe", "1.0.0"))
        .await
        .expect_code(0);
    let of_written = about(&written, "/probe/about").await;
    assert_eq!(of_written["base_path"], "/probe");
    assert_eq!(written.get("/probe/version").await.text(), "1.0.0");
    assert_eq!(written.get("/probe").await.status, 404); // it has no route for `/`
}

#[tokio::test]
async fn the_whole_path_reaches_an_app_that_wants_it() {
    let config = "[app.probe]\nroutes = [\"/version\"]\nstrip_prefix = false\n\
                  [app.hello]\nroutes = [\"/\"]\n";
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    assert_eq!(host.get("/version").await.text(), "1.0.0");
    let host = Setup::new().start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    assert_eq!(about(&host, "/about").await["base_path"], "");
}

#[tokio::test]
async fn all_versions_of_an_app_share_a_folder_of_their_own() {
    let mut host = Setup::new().start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    assert_eq!(host.get("/keep").await.text(), "1.0.0\n");
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    assert_eq!(host.get("/keep").await.text(), "1.0.0\n2.0.0\n");
    host.crash(|_| ()).await;
    host.live("probe", "2.0.0").await;
    assert_eq!(host.get("/keep").await.text(), "1.0.0\n2.0.0\n2.0.0\n");
    let folder = host.state().join("data/probe");
    let mode = folder.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    // One that asks for none has none.
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    assert!(!host.state().join("data/hello").exists());
}
