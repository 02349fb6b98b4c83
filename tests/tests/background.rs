//! What goes on beside requests: it begins when its version is live, is seen, hears of the end, and
//! what nobody counts is told.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::path::PathBuf;

use handover_tests::{
    host::{Host, Setup},
    plugins::fixture,
};

/// A host whose apps read `settings`, and the file that they write to.
async fn host(settings: &str) -> (Host, PathBuf) {
    let host = Setup::new()
        .config(&format!(
            "[app.background.config]\nlines = \"HOME/lines\"\n{settings}\n"
        ))
        .start()
        .await;
    let lines = host.home().join("lines");
    (host, lines)
}

async fn deploy(host: &Host, version: &str) -> handover_tests::host::Output {
    host.deploy(&fixture("background", version))
        .await
        .expect_code(0)
}

fn read(lines: &PathBuf) -> Vec<String> {
    let text = std::fs::read_to_string(lines).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

async fn until_said(host: &Host, lines: &PathBuf, what: &[&str]) {
    host.until(&format!("{what:?}"), async || {
        (read(lines) == what).then_some(())
    })
    .await;
}

/// The work of the app in the status, as kind, name and tenant.
async fn work(host: &Host) -> Vec<(u64, String, String, String)> {
    let answer = host.ask("GET", "/v1/status").await.unwrap().json();
    let generations = answer["apps"][0]["generations"].as_array().unwrap().clone();
    let mut seen = Vec::new();
    for generation in generations {
        for work in generation["work"].as_array().into_iter().flatten() {
            let text = |key: &str| work[key].as_str().unwrap_or_default().to_owned();
            assert!(work["age_ms"].is_u64(), "{work}");
            seen.push((
                generation["generation"].as_u64().unwrap(),
                text("kind"),
                text("name"),
                text("tenant"),
            ));
        }
    }
    seen
}

fn row(generation: u64, kind: &str, name: &str, tenant: &str) -> (u64, String, String, String) {
    (
        generation,
        kind.to_owned(),
        name.to_owned(),
        tenant.to_owned(),
    )
}

#[tokio::test]
async fn a_worker_runs_while_its_version_is_live_and_never_in_preflight() {
    let (host, lines) = host("worker = true").await;
    deploy(&host, "1.0.0").await;
    until_said(&host, &lines, &["1.0.0 mill begins"]).await;
    assert_eq!(work(&host).await, [row(1, "worker", "mill", "")]);
    let text = host.cli(["status"]).await.text();
    assert!(text.contains("generation 1: worker `mill`, "), "{text}");

    deploy(&host, "2.0.0").await;
    host.settled("background").await;
    let mut said = read(&lines);
    said.sort();
    assert_eq!(
        said,
        ["1.0.0 mill begins", "1.0.0 mill stops", "2.0.0 mill begins"]
    );
    assert_eq!(work(&host).await, [row(2, "worker", "mill", "")]);
    assert_eq!(host.mapped_plugins(), 1);
}

#[tokio::test]
async fn a_version_that_is_refused_has_no_worker() {
    let (host, lines) = host("worker = true\nlistens = \"nothing\"").await;
    host.deploy(&fixture("background", "1.0.0"))
        .await
        .expect_code(4);
    assert_eq!(read(&lines), [""; 0]);
}

#[tokio::test]
async fn a_worker_that_does_not_stop_is_cancelled_at_the_deadline() {
    let host = Setup::new()
        .config(
            "[app.background]\ndrain_deadline = \"200ms\"\n[app.background.config]\ndeaf = true\n",
        )
        .start()
        .await;
    deploy(&host, "1.0.0").await;
    host.until("it to begin", async || {
        (!work(&host).await.is_empty()).then_some(())
    })
    .await;
    host.deploy(&fixture("background", "2.0.0"))
        .await
        .expect_code(7);
    host.settled("background").await;
    assert_eq!(work(&host).await, [row(2, "worker", "deaf mill", "")]);
}

#[tokio::test]
async fn status_names_jobs_and_whose_they_are() {
    let (host, _) = host("").await;
    deploy(&host, "1.0.0").await;
    assert_eq!(host.get("/job").await.text(), "1.0.0");
    assert_eq!(work(&host).await, [row(1, "job", "invoice run", "acme")]);
    let text = host.cli(["status"]).await.text();
    assert!(
        text.contains("generation 1: job `invoice run` for acme, "),
        "{text}"
    );
}

#[tokio::test]
async fn tasks_that_nobody_counts_are_told() {
    let (host, lines) = host("bare = true").await;
    let output = host
        .cli([
            "deploy".as_ref(),
            fixture("background", "1.0.0").as_os_str(),
            "--json".as_ref(),
        ])
        .await
        .expect_code(0)
        .text();
    // In the trial start it ran as well.
    assert!(output.contains("bare_tasks"), "{output}");
    assert!(output.contains("1 task that nobody counts"), "{output}");
    assert_eq!(read(&lines), ["1.0.0 bare begins", "1.0.0 bare begins"]);
    for _ in 0..2 {
        host.get("/bare").await;
    }
    deploy(&host, "2.0.0").await;
    let event = host
        .event("the tasks to be told", |event| {
            event.kind == "warning" && event.message.contains("was stopped with")
        })
        .await;
    assert_eq!(event.generation, Some(1));
    assert!(
        event.message.contains("3 tasks running that nobody counts"),
        "{}",
        event.message
    );
    assert!(event.message.contains("cx.worker("), "{}", event.message);
    host.settled("background").await;
    assert_eq!(host.mapped_plugins(), 1);
}

#[tokio::test]
async fn who_waits_for_ctrl_c_hears_the_end_of_its_generation_and_of_nothing_else() {
    for listens in ["ctrl_c", "ctrlc", "signal-hook"] {
        let (mut host, lines) = host(&format!("listens = \"{listens}\"")).await;
        deploy(&host, "1.0.0").await;
        let heard = format!("1.0.0 heard {listens}");
        // The rehearsal of the end in preflight.
        until_said(&host, &lines, &[&heard]).await;
        deploy(&host, "2.0.0").await;
        let second = format!("2.0.0 heard {listens}");
        host.until("the end to be heard", async || {
            let mut said = read(&lines);
            said.sort();
            (said == [heard.as_str(), &heard, &second]).then_some(())
        })
        .await;
        // The host's own end is the host's, and a generation hears of it when it is its turn.
        host.signal(rustix::process::Signal::TERM);
        assert_eq!(host.ended().await, Some(0), "{listens}");
        assert_eq!(read(&lines).len(), 4, "{listens}: {:?}", read(&lines));
    }
}

#[tokio::test]
async fn a_handler_that_exits_ends_its_own_thread_and_not_the_host() {
    let (host, lines) = host("listens = \"ctrlc exits\"").await;
    deploy(&host, "1.0.0").await;
    let pid = host.pid();
    deploy(&host, "2.0.0").await;
    host.event("it to be told", |event| {
        event.kind == "warning"
            && event
                .message
                .contains("called exit(0) when it was told to end")
    })
    .await;
    host.event("its library to stay", |event| {
        event.kind == "retained" && event.message.contains("ctrl-c")
    })
    .await;
    assert_eq!(host.get("/version").await.text(), "2.0.0");
    assert_eq!(host.status().await.host.pid, pid);
    assert!(!read(&lines).is_empty());
}
