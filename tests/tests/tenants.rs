//! Tenants that move to a new version each by itself, when they have nothing in flight on the old
//! one.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{collections::BTreeMap, time::Duration};

use handover_tests::{
    client::Http1,
    host::{Host, Setup},
    plugins::fixture,
};

const TENANTS: &str = "[app.probe.tenant]
from = \"header:x-tenant\"
move = \"when-idle\"
";

async fn host() -> Host {
    let host = Setup::new().config(TENANTS).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host
}

async fn ask(host: &Host, tenant: &str, target: &str) -> String {
    let mut http = Http1::connect(host.address).await.unwrap();
    let headers = [("x-tenant", tenant)];
    let answer = http.request("GET", target, &headers, None).await.unwrap();
    assert_eq!(answer.status, 200, "{tenant} {target}");
    answer.text()
}

/// Begins a request of `tenant` that is not answered before it is told to be.
async fn begin(host: &Host, tenant: &str, target: &str) -> Http1 {
    let mut http = Http1::connect(host.address).await.unwrap();
    let headers = [("x-tenant", tenant)];
    http.send_head("GET", target, &headers).await.unwrap();
    http
}

/// Waits until `count` of tenants are in flight on generation 1.
async fn held(host: &Host, count: usize) {
    host.until("what is held", async || {
        let list = host.cli(["drain", "probe", "1", "--json"]).await.json();
        let list = list["holders"].as_array().unwrap();
        let of_tenants = list.iter().filter(|one| one["tenant"].is_string());
        (of_tenants.count() == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_tenant_stays_until_it_has_nothing_there_and_never_goes_back() {
    let host = host().await;
    let slow = begin(&host, "acme", "/slow?ms=600000").await;
    held(&host, 1).await;
    host.deploy(&fixture("probe", "2.0.0"))
        .await
        .expect_code(0)
        .expect_words(&["stays for its tenants"]);
    for _ in 0..3 {
        assert_eq!(ask(&host, "acme", "/version").await, "1.0.0");
        assert_eq!(ask(&host, "other", "/version").await, "2.0.0");
        assert_eq!(host.get("/version").await.text(), "2.0.0");
    }
    host.cli(["tenants"]).await.expect_code(0).expect_words(&[
        "probe",
        "acme",
        "request GET /slow",
    ]);
    host.cli(["status"])
        .await
        .expect_words(&["generation 1 stays for its tenants, who have 1 in flight"]);
    // A job that one of its requests begins holds it as well.
    assert_eq!(ask(&host, "acme", "/version").await, "1.0.0");
    drop(slow);
    host.until("its move", async || {
        (ask(&host, "acme", "/version").await == "2.0.0").then_some(())
    })
    .await;
    for _ in 0..10 {
        assert_eq!(ask(&host, "acme", "/version").await, "2.0.0");
    }
    host.event("the unload", |event| event.kind == "unloaded")
        .await;
    host.cli(["tenants"])
        .await
        .expect_words(&["Every tenant is on the live version."]);
}

#[tokio::test]
async fn streams_connections_and_jobs_hold_their_tenant() {
    let host = host().await;
    let stream = begin(&host, "streams", "/stream?n=1000000&every_ms=20").await;
    ask(&host, "works", "/job?ms=3000&name=report&tenant=works").await;
    held(&host, 2).await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    assert_eq!(ask(&host, "streams", "/version").await, "1.0.0");
    assert_eq!(ask(&host, "works", "/version").await, "1.0.0");
    host.until("the end of the job", async || {
        (ask(&host, "works", "/version").await == "2.0.0").then_some(())
    })
    .await;
    assert_eq!(ask(&host, "streams", "/version").await, "1.0.0");
    host.cli(["move", "probe", "streams"])
        .await
        .expect_code(0)
        .expect_words(&["streams", "generation 1"]);
    assert_eq!(ask(&host, "streams", "/version").await, "2.0.0");
    host.cli(["move", "probe", "streams"])
        .await
        .expect_code(1)
        .expect_words(&["handover tenants"]);
    drop(stream);
    host.event("the unload", |event| event.kind == "unloaded")
        .await;
}

#[tokio::test]
async fn a_tenant_is_moved_at_once_by_hand_and_all_are_at_the_deadline() {
    let config = format!("{TENANTS}move_deadline = \"4s\"\n");
    let host = Setup::new().config(&config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let mut one = begin(&host, "one", "/slow?ms=600000").await;
    let _other = begin(&host, "other", "/slow?ms=600000").await;
    held(&host, 2).await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.cli(["move", "probe", "one", "--now"])
        .await
        .expect_code(0)
        .expect_words(&["1 request told to end"]);
    assert_eq!(one.answer("GET").await.unwrap().status, 503);
    assert_eq!(ask(&host, "one", "/version").await, "2.0.0");
    host.event("the deadline", |event| {
        event.kind == "tenants" && event.message.contains("move_deadline")
    })
    .await;
    host.until("the move of the other", async || {
        (ask(&host, "other", "/version").await == "2.0.0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_thousand_tenants_move_each_once_and_nothing_is_lost() {
    const TENANTS: usize = 1000;
    let host = host().await;
    // A third of them have a job, which ends at its own time.
    for tenant in (0..TENANTS).step_by(3) {
        let ms = 2000 + tenant * 3;
        let target = format!("/job?ms={ms}&name=report&tenant=t{tenant}");
        ask(&host, &format!("t{tenant}"), &target).await;
    }
    host.cli([
        "deploy",
        fixture("probe", "2.0.0").to_str().unwrap(),
        "--detach",
    ])
    .await
    .expect_code(0);
    host.live("probe", "2.0.0").await;
    let mut http = Http1::connect(host.address).await.unwrap();
    let mut versions = BTreeMap::<usize, String>::new();
    let (mut asked, mut moves) = (0_u64, 0);
    let mut round = async || {
        for tenant in 0..TENANTS {
            let name = format!("t{tenant}");
            let headers = [("x-tenant", name.as_str())];
            let answer = http.request("GET", "/version", &headers, None).await;
            let version = answer.unwrap().text();
            asked += 1;
            match versions.insert(tenant, version.clone()) {
                Some(before) if before != version => {
                    assert_eq!(version, "2.0.0", "{name} went back");
                    moves += 1;
                }
                Some(_) => {}
                None if version == "2.0.0" => {
                    // Of two that share a slot, one may wait for the other.
                    assert_ne!(tenant % 3, 0, "{name} moved though it has a job");
                }
                None => {}
            }
        }
        versions.values().all(|version| version == "2.0.0")
    };
    while !round().await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(moves >= 300, "{moves} moved later, of {asked} requests");
    host.event("the unload", |event| event.kind == "unloaded")
        .await;
}
