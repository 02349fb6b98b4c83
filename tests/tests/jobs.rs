//! Work outlives code: durable jobs, schedules and leases over swaps, restarts and `kill -9`.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{collections::BTreeMap, time::Duration};

use handover_tests::{
    client::{Answer, Http1},
    host::{Host, Setup},
    plugins::fixture,
};
use serde_json::{Value, json};

/// How often something is looked at, at a pause of 50 ms, before a test gives up: two minutes.
const LOOKS: usize = 2400;
/// Jobs of the long test, and how often the host is killed meanwhile.
const JOBS: usize = 400;
const KILLS: usize = 4;

async fn started() -> Host {
    Host::serving(&fixture("jobs", "1.0.0")).await
}

async fn post(host: &Host, path: &str, body: &Value) -> Option<Answer> {
    let mut http = Http1::connect(host.address).await.ok()?;
    let body = body.to_string();
    let headers = [("content-type", "application/json")];
    http.request("POST", path, &headers, Some(body.as_bytes()))
        .await
        .ok()
}

async fn enqueue(host: &Host, path: &str, payload: Value) -> String {
    let answer = post(host, &format!("/enqueue/{path}"), &payload).await;
    let answer = answer.expect("it is answered");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text().to_owned()
}

async fn text(host: &Host, path: &str) -> String {
    host.get(path).await.text().to_owned()
}

/// Asks until `path` answers what is wanted: a test that ends by itself.
async fn until(host: &Host, path: &str, wanted: impl Fn(&str) -> bool) -> String {
    for _ in 0..LOOKS {
        let found = text(host, path).await;
        if wanted(&found) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{path} is {} after two minutes", text(host, path).await);
}

/// What the fixture answers with that it has counted.
fn entries(text: &str) -> Vec<(String, i64)> {
    serde_json::from_str(text).unwrap()
}

async fn counted(host: &Host, namespace: &str) -> Vec<(String, i64)> {
    entries(&text(host, &format!("/counted/{namespace}")).await)
}

async fn jobs(host: &Host, arguments: &[&str]) -> Value {
    let arguments = [&["jobs", "--json"], arguments].concat();
    host.cli(arguments).await.expect_code(0).json()
}

async fn swap(host: &Host, n: usize) {
    let version = ["2.0.0", "1.0.0"][n % 2];
    let file = fixture("jobs", version);
    host.cli(["deploy", "--detach", file.to_str().unwrap()])
        .await
        .expect_code(0);
    host.live("jobs", version).await;
}

#[tokio::test]
async fn a_job_runs_once_is_shown_and_its_result_is_read() {
    let host = started().await;
    let id = enqueue(&host, "effect", json!({ "key": "a" })).await;
    assert_eq!(
        until(&host, &format!("/job/{id}"), |it| it.starts_with("done")).await,
        "done 1"
    );
    assert_eq!(text(&host, "/value/effect/a").await, "1");
    let shown = host.cli(["jobs", "show", &id]).await.expect_code(0);
    for part in [&*id, "effect of jobs", "done"] {
        assert!(shown.text().contains(part), "{}", shown.text());
    }
    // The same key is the same job.
    let first = enqueue(&host, "effect?key=k", json!({ "key": "b" })).await;
    let second = enqueue(&host, "effect?key=k", json!({ "key": "b" })).await;
    assert_eq!(first, second);
    until(&host, "/value/effect/b", |it| it == "1").await;
    // A name that no version knows waits, and says so.
    let waits = enqueue(&host, "unheard-of", json!({})).await;
    let details = host.cli(["jobs", "show", &waits, "--json"]).await.json();
    assert_eq!(details["job"]["state"], "waiting");
    let note = details["job"]["note"].as_str().unwrap();
    assert!(note.contains("no handler for `unheard-of`"), "{note}");
    host.cli(["cancel", &waits]).await.expect_code(0);
    assert_eq!(text(&host, &format!("/job/{waits}")).await, "cancelled");
}

#[tokio::test]
async fn a_record_and_its_job_happen_together_or_not_at_all() {
    let host = started().await;
    let answer = post(&host, "/order/x/false", &json!({})).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let refused = post(&host, "/order/y/true", &json!({})).await.unwrap();
    assert_eq!(refused.status, 503);
    until(&host, "/value/effect/x", |it| it == "1").await;
    assert_eq!(text(&host, "/value/order/x").await, "1");
    assert_eq!(text(&host, "/value/order/y").await, "0");
    assert_eq!(text(&host, "/value/effect/y").await, "0");
    assert!(
        jobs(&host, &["--state", "waiting"]).await["jobs"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn attempts_that_fail_panic_or_take_too_long_end_as_their_options_say() {
    let host = started().await;
    let third = enqueue(&host, "failing", json!(2)).await;
    let dead = enqueue(&host, "failing", json!(9)).await;
    let fatal = enqueue(&host, "fatal", json!(null)).await;
    let late = enqueue(&host, "late", json!(null)).await;
    let wrong = enqueue(&host, "narrow", json!("no task")).await;
    assert_eq!(
        until(&host, &format!("/job/{third}"), |it| it.starts_with("done")).await,
        "done 3"
    );
    for id in [&dead, &fatal, &late] {
        until(&host, &format!("/job/{id}"), |it| it == "dead").await;
    }
    let list = jobs(&host, &["--state", "dead"]).await;
    let error = |id: &str| {
        let all = list["jobs"].as_array().unwrap();
        let job = all.iter().find(|job| job["id"] == id).unwrap();
        job["error"].as_str().unwrap().to_owned()
    };
    assert!(
        error(&dead).contains("attempt 3 failed"),
        "{}",
        error(&dead)
    );
    assert!(error(&fatal).contains("nothing would help"));
    assert!(error(&late).contains("timeout"), "{}", error(&late));
    // It waits for its next attempt, and says why.
    let shown = host.cli(["jobs", "show", &wrong]).await;
    assert!(
        shown.text().contains("its payload is not what"),
        "{}",
        shown.text()
    );
    // The operator tries it again.
    host.cli(["jobs", "retry", &fatal]).await.expect_code(0);
    until(&host, &format!("/job/{fatal}"), |it| it == "dead").await;
    host.cli(["jobs", "show", "nothing"]).await.expect_code(1);
}

#[tokio::test]
async fn a_job_stays_on_the_version_that_began_it_and_is_cancelled_by_its_id() {
    let host = started().await;
    let id = enqueue(&host, "slow?tenant=acme", json!({ "key": "a", "ms": 2000 })).await;
    let other = enqueue(&host, "slow", json!({ "key": "b", "ms": 600_000 })).await;
    for id in [&id, &other] {
        until(&host, &format!("/job/{id}"), |it| it == "running").await;
    }
    swap(&host, 0).await;
    let list = jobs(&host, &["--tenant", "acme"]).await;
    assert_eq!(list["jobs"][0]["state"], "running");
    assert_eq!(list["jobs"][0]["progress"], 0.5);
    assert_eq!(list["jobs"][0]["progress_text"], "half of it");
    let done = until(&host, &format!("/job/{id}"), |it| it.starts_with("done")).await;
    assert_eq!(done, "done \"a by 1.0.0\"");
    host.cli(["cancel", &other]).await.expect_code(0);
    until(&host, &format!("/job/{other}"), |it| it == "cancelled").await;
    // The old generation has nothing left.
    host.settled("jobs").await;
}

#[tokio::test]
async fn a_deploy_that_drops_the_handler_of_waiting_jobs_is_refused_unless_asked_for() {
    let host = started().await;
    let id = enqueue(&host, "effect?delay_ms=600000", json!({ "key": "a" })).await;
    let file = fixture("hello", "1.0.0");
    let file = file.to_str().unwrap();
    let refused = host.cli(["deploy", "--app", "jobs", file]).await;
    let told = refused.expect_code(4).text();
    assert!(
        told.contains("1 of `effect`") && told.contains("--orphan-jobs"),
        "{told}"
    );
    host.cli(["deploy", "--app", "jobs", "--orphan-jobs", file])
        .await
        .expect_code(0);
    let list = jobs(&host, &["jobs"]).await;
    assert_eq!(list["jobs"][0]["id"], id.as_str());
    let note = list["jobs"][0]["note"].as_str().unwrap();
    assert!(
        note.contains("no version") || note.contains("no handler"),
        "{note}"
    );
}

#[tokio::test]
async fn a_promotion_and_a_canary_that_drop_the_handler_are_refused_as_well() {
    let host = started().await;
    let file = fixture("hello", "1.0.0");
    let file = file.to_str().unwrap();
    host.cli(["deploy", "--app", "jobs", "--stage", file])
        .await
        .expect_code(0);
    // What is enqueued after it was staged counts.
    enqueue(&host, "effect?delay_ms=600000", json!({ "key": "a" })).await;
    host.cli(["promote", "jobs"])
        .await
        .expect_code(4)
        .expect_words(&["1 of `effect`", "promote with --orphan-jobs"]);
    assert_eq!(host.active("jobs").await.version, "1.0.0");
    assert_eq!(host.active("jobs").await.generation, 1);
    let other = fixture("hello", "2.0.0");
    let other = other.to_str().unwrap();
    host.cli(["deploy", "--app", "jobs", "--canary", "5%", other])
        .await
        .expect_code(4)
        .expect_words(&["deploy with --orphan-jobs"]);
    host.cli(["promote", "jobs", "--orphan-jobs"])
        .await
        .expect_code(0);
    assert_eq!(host.active("jobs").await.generation, 2);
}

#[tokio::test]
async fn limits_of_a_name_and_of_a_tenant_hold() {
    let host = started().await;
    for n in 0..12 {
        let tenant = ["x", "y", "z", "u"][n % 4];
        let path = format!("narrow?tenant={tenant}");
        enqueue(&host, &path, json!({ "key": "n", "ms": 50 })).await;
    }
    for _ in 0..LOOKS {
        let done = jobs(&host, &["--state", "done"]).await["jobs"]
            .as_array()
            .unwrap()
            .len();
        if done >= 12 {
            let most = counted(&host, "most").await;
            assert!(most[0].1 <= 3, "{most:?}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("they did not end");
}

/// Each job's effect happens exactly once, whatever happens to the host.
#[tokio::test]
async fn effects_happen_exactly_once_over_swaps_and_kill_9() {
    let mut host = started().await;
    let mut accepted = Vec::new();
    let each = JOBS / KILLS;
    for round in 0..KILLS {
        for n in 0..each {
            let key = format!("{:05}", round * each + n);
            let payload = json!({ "key": key, "ms": 5 });
            let answer = post(&host, &format!("/enqueue/effect?key={key}"), &payload).await;
            assert_eq!(answer.expect("it is answered").status, 200);
            accepted.push(key);
            if n % 37 == 36 {
                swap(&host, n / 37 + round).await;
            }
        }
        host.crash(|_| ()).await;
        until(&host, "/", |it| it.ends_with(".0.0")).await;
    }
    let last = format!("/value/effect/{}", accepted.last().unwrap());
    until(&host, &last, |it| it == "1").await;
    for _ in 0..LOOKS {
        let open = jobs(&host, &["jobs"]).await;
        let all = open["jobs"].as_array().unwrap();
        let is_open = |job: &&Value| {
            job["name"] == "effect" && matches!(job["state"].as_str(), Some("waiting" | "running"))
        };
        if all.iter().filter(is_open).count() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let effects: BTreeMap<String, i64> = counted(&host, "default").await.into_iter().collect();
    assert_eq!(effects.len(), accepted.len(), "none is lost");
    for key in &accepted {
        assert_eq!(effects[&format!("effect/{key}")], 1, "{key}");
    }
}

/// Waits until the schedule of the fixture has run once more.
async fn more_ticks(host: &Host) {
    let before = counted(host, "ticks").await.len();
    until(host, "/counted/ticks", |it| entries(it).len() > before).await;
}

#[tokio::test]
async fn a_schedule_is_due_once_each_time_over_swaps_and_a_crash() {
    let mut host = started().await;
    for n in 0..3 {
        more_ticks(&host).await;
        swap(&host, n).await;
    }
    host.crash(|_| ()).await;
    until(&host, "/", |it| it.ends_with(".0.0")).await;
    more_ticks(&host).await;
    let all = counted(&host, "ticks").await;
    for (due, times) in &all {
        assert_eq!(*times, 1, "{due}: {all:?}");
        assert_eq!(due.parse::<u64>().unwrap() % 1000, 0);
    }
    let shown = host.cli(["schedules", "jobs"]).await.expect_code(0).text();
    assert!(
        shown.contains("tick") && shown.contains("every 1s"),
        "{shown}"
    );
}

/// The lease of the fixture, once the live generation has it.
async fn held_by_live(host: &Host) -> Value {
    for _ in 0..LOOKS {
        let list = host.cli(["leases", "--json"]).await.expect_code(0).json();
        let live = host.active("jobs").await.generation;
        let lease = list["leases"][0].clone();
        if lease["generation"] == live && lease["fence"].is_u64() {
            return lease;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the live generation has no lease");
}

#[tokio::test]
async fn what_is_kept_warm_gives_its_work_to_the_live_version_and_gets_it_back() {
    let config = "[app.jobs]\nkeep_warm = \"5m\"\n";
    let host = Setup::new().config(config).start().await;
    for version in ["1.0.0", "2.0.0"] {
        let file = fixture("jobs", version);
        host.deploy(&file).await.expect_code(0);
        held_by_live(&host).await;
    }
    host.cli(["rollback", "jobs"]).await.expect_code(0);
    assert_eq!(host.active("jobs").await.version, "1.0.0");
    held_by_live(&host).await;
    let id = enqueue(&host, "slow", json!({ "key": "a", "ms": 1 })).await;
    let done = until(&host, &format!("/job/{id}"), |it| it.starts_with("done")).await;
    assert_eq!(done, "done \"a by 1.0.0\"");
}

#[tokio::test]
async fn a_lease_has_one_holder_over_swaps_and_is_taken_away_by_the_operator() {
    let host = started().await;
    let mut fence = 0;
    for n in 0..10 {
        let lease = held_by_live(&host).await;
        let now = lease["fence"].as_u64().unwrap();
        assert!(now > fence, "{now} after {fence}");
        fence = now;
        swap(&host, n).await;
    }
    let lease = held_by_live(&host).await;
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    assert_eq!(status["apps"][0]["leases"][0]["fence"], lease["fence"]);
    // It is among what its generation has.
    let generation = lease["generation"].to_string();
    let line = ["drain", "jobs", &generation, "--json"];
    let listed = host.cli(line).await.expect_code(0).json();
    let listed = listed["holders"].as_array().unwrap();
    let held = listed.iter().find(|one| one["kind"] == "lease").unwrap();
    assert_eq!(
        (&held["name"], &held["id"]),
        (&"poller".into(), &lease["id"])
    );
    host.cli(["cancel", lease["id"].as_str().unwrap()])
        .await
        .expect_code(0);
    let again = held_by_live(&host).await;
    assert!(again["fence"].as_u64() > lease["fence"].as_u64());
    let holders = counted(&host, "holders").await;
    for (key, alone) in holders.iter().filter(|(key, _)| key != "inside") {
        // Who was taken away from may still be inside: its number says that it is late.
        let taken_from = key.parse::<u64>().unwrap() > fence;
        assert!(*alone == 1 || taken_from, "{key}: {holders:?}");
    }
}

#[tokio::test]
async fn a_lease_is_a_lock_on_a_file_for_programs_outside() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("poller.lock");
    let config = format!(
        "[app.jobs.lease.poller]\nmirror = {:?}\n",
        file.to_str().unwrap()
    );
    let host = Setup::new().config(&config).start().await;
    host.deploy(&fixture("jobs", "1.0.0")).await;
    for _ in 0..LOOKS {
        let outside = std::process::Command::new("flock")
            .args(["--nonblock", file.to_str().unwrap(), "true"])
            .status()
            .unwrap();
        if !outside.success() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nobody holds the lock");
}
