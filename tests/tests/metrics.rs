//! What machines are told: all of it in the format of Prometheus, on the control socket and, where
//! that is set, over TCP.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::net::SocketAddr;

use handover_tests::{
    client::{Answer, Http1},
    host::{Host, Setup},
    load::Load,
    metrics::Metrics,
    plugins::{fixture, misfit},
};

fn read(answer: &Answer) -> Metrics {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    Metrics::read(&answer.text())
}

async fn scrape(host: &Host) -> Metrics {
    read(&host.ask("GET", "/metrics").await.unwrap())
}

/// Where the host says that its metrics are.
async fn address(host: &Host) -> SocketAddr {
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    status["host"]["metrics"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn metrics_agree_with_what_happened_over_swaps() {
    let host = Setup::new()
        .config("[app.probe]\nrequest_timeout = \"300ms\"\nmax_concurrent = 50\n")
        .start()
        .await;
    // An app that is empty has all its series already: a rate needs a zero to begin with.
    let metrics = scrape(&host).await;
    let probe = ("app", "probe");
    assert_eq!(metrics.get("handover_requests_total", &[probe]), Some(0.0));
    let state =
        |metrics: &Metrics, state| metrics.get("handover_app_state", &[probe, ("state", state)]);
    assert_eq!(state(&metrics, "empty"), Some(1.0));
    assert_eq!(state(&metrics, "serving"), Some(0.0));

    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for _ in 0..7 {
        assert_eq!(host.get("/version").await.status, 200);
    }
    assert_eq!(host.get("/panic").await.status, 500);
    assert_eq!(host.get("/slow?ms=60000").await.status, 504);
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.settled("probe").await;
    let path = host.scratch("misfit.so");
    std::fs::write(&path, misfit("start-panic")).unwrap();
    host.cli(["deploy", "--app", "probe", path.to_str().unwrap()])
        .await
        .expect_code(4);
    assert_eq!(host.get("/version").await.text(), "2.0.0");

    let metrics = scrape(&host).await;
    // What was counted on the generation that is gone is not lost.
    assert_eq!(metrics.get("handover_requests_total", &[probe]), Some(10.0));
    assert_eq!(metrics.get("handover_panics_total", &[probe]), Some(1.0));
    let two = [probe, ("generation", "2")];
    assert_eq!(
        metrics.get("handover_generation_requests_total", &two),
        Some(1.0)
    );
    let info = metrics.all("handover_generation_info", &[probe]);
    assert_eq!(info.len(), 1, "{info:?}");
    assert_eq!(info[0].0["version"], "2.0.0");
    assert_eq!(info[0].0["state"], "active");
    let code = |code| metrics.get("handover_requests_rejected_total", &[probe, ("code", code)]);
    assert_eq!((code("503"), code("504")), (Some(0.0), Some(1.0)));
    let outcome = |outcome| metrics.get("handover_deploys_total", &[probe, ("outcome", outcome)]);
    assert_eq!(outcome("done"), Some(2.0));
    assert_eq!(outcome("rejected"), Some(1.0));
    assert_eq!(outcome("conflict"), Some(0.0));
    for (step, number) in [
        ("store", 3.0),
        ("preflight", 2.0),
        ("load", 2.0),
        ("start", 2.0),
        ("cutover", 2.0),
        ("drain", 1.0),
    ] {
        let count = metrics.get("handover_deploy_step_seconds_count", &[("step", step)]);
        assert_eq!(count, Some(number), "{step}");
        let last = [probe, ("step", step)];
        assert!(
            metrics
                .get("handover_last_deploy_step_seconds", &last)
                .unwrap()
                > 0.0
        );
    }
    let drains = metrics.get("handover_drains_total", &[probe, ("outcome", "drained")]);
    assert_eq!(drains, Some(1.0));
    let told = |kind| metrics.get("handover_events_total", &[("kind", kind)]);
    assert_eq!((told("active"), told("rejected")), (Some(2.0), Some(1.0)));
    assert!(metrics.get("handover_connections_total", &[]).unwrap() >= 10.0);
    assert!(metrics.get("process_resident_memory_bytes", &[]).unwrap() > 1e6);
    assert!(metrics.get("process_cpu_seconds_total", &[]).unwrap() > 0.0);
    let open = metrics.get("process_open_fds", &[]).unwrap();
    let most = metrics.get("process_max_fds", &[]);
    assert!(open > 3.0 && most.is_none_or(|most| open < most), "{open}");
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    let abi = status["host"]["abi"].as_str().unwrap();
    let build = metrics.get("handover_build_info", &[("abi", abi)]);
    assert!(build.is_some());
    let serving = metrics.get("handover_workers", &[("state", "serving")]);
    assert!(serving.unwrap() >= 1.0);
}

#[tokio::test]
async fn a_retained_library_is_told_with_its_reason_and_the_budget() {
    let config = "[app.zoo]\nroutes = [\"/\"]\n[app.zoo.config]\nhabit = \"threads-that-stay\"\n";
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("zoo", "1.0.0")).await.expect_code(0);
    assert_eq!(host.get("/habit").await.status, 200);
    host.deploy(&fixture("zoo", "2.0.0")).await.expect_code(0);
    host.event("it to be retained", |event| event.kind == "retained")
        .await;
    let metrics = scrape(&host).await;
    let retained = metrics.all("handover_generation_retained", &[]);
    assert_eq!(retained.len(), 1, "{retained:?}");
    let labels = &retained[0].0;
    assert_eq!(labels["app"], "zoo");
    assert_eq!(labels["generation"], "1");
    assert_eq!(labels["reason"], "threads");
    assert_eq!(metrics.get("handover_retained_libraries", &[]), Some(1.0));
    assert_eq!(
        metrics.get("handover_leak_budget_libraries", &[]),
        Some(8.0)
    );
    // Its series go on as long as it is mapped.
    let one = [("app", "zoo"), ("generation", "1")];
    assert_eq!(
        metrics.get("handover_generation_requests_total", &one),
        Some(1.0)
    );
}

#[tokio::test]
async fn over_tcp_there_are_the_metrics_and_nothing_else() {
    let host = Setup::new()
        .config("[metrics]\nlisten = \"127.0.0.1:0\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let at = address(&host).await;
    let mut http = Http1::connect(at).await.unwrap();
    // On one connection, as Prometheus does.
    for _ in 0..3 {
        let metrics = read(&http.get("/metrics").await.unwrap());
        assert!(
            metrics
                .get("handover_requests_total", &[("app", "probe")])
                .is_some()
        );
    }
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/v1/status", 404),
        ("POST", "/v1/shutdown", 404),
        ("POST", "/v1/rollback", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/metrics", 405),
    ] {
        let answer = http.request(method, path, &[], None).await.unwrap();
        assert_eq!(answer.status, status, "{method} {path}");
    }
    assert_eq!(host.active("probe").await.version, "1.0.0");

    let curl = |arguments: Vec<String>| async move {
        let mut command = tokio::process::Command::new("curl");
        command.args(["-sS", "--fail"]).args(arguments);
        command.output().await
    };
    let socket = host.control().display().to_string();
    for arguments in [
        vec![format!("http://{at}/metrics")],
        vec!["--unix-socket".into(), socket, "http://h/metrics".into()],
    ] {
        let Ok(output) = curl(arguments).await else {
            return eprintln!("there is no curl here");
        };
        assert!(output.status.success(), "{output:?}");
        Metrics::read(&String::from_utf8(output.stdout).unwrap());
    }
}

#[tokio::test]
async fn without_an_address_there_is_no_port_and_a_taken_one_is_named() {
    let host = Host::start().await;
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    assert_eq!(status["host"].get("metrics"), None);

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("handover.toml");
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[metrics]\nlisten = \"{}\"\n",
        host.address
    );
    std::fs::write(&config, text).unwrap();
    handover_tests::host::handover([
        "run",
        "--no-supervisor",
        "--config",
        config.to_str().unwrap(),
    ])
    .await
    .expect_code(1)
    .expect_words(&["metrics.listen", "choose another address"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_are_not_noticed_by_requests() {
    let host = Setup::new()
        .config("[metrics]\nlisten = \"127.0.0.1:0\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let at = address(&host).await;
    let load = Load {
        keep_alive: 4,
        closing: 1,
        streams: 2,
        pause: std::time::Duration::ZERO,
    };
    let running = load.start(host.address);
    running.more(100).await;
    // More of them than the endpoint takes at a time, some of which never ask.
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(Http1::connect(at).await.unwrap());
    }
    let mut last = 0.0;
    for n in 0..50 {
        let mut http = Http1::connect(at).await.unwrap();
        let answer = http
            .request("GET", "/metrics", &[("connection", "close")], None)
            .await;
        let metrics = read(&answer.unwrap());
        let total = metrics.get("handover_requests_total", &[("app", "probe")]);
        assert!(total.unwrap() >= last, "a counter went back");
        last = total.unwrap();
        if n % 10 == 0 {
            let version = if n % 20 == 0 { "2.0.0" } else { "1.0.0" };
            host.deploy(&fixture("probe", version)).await.expect_code(0);
        }
    }
    running.more(100).await;
    let report = running.stop().await;
    report.expect_unnoticed();
    host.settled("probe").await;
    let metrics = scrape(&host).await;
    let total = metrics.get("handover_requests_total", &[("app", "probe")]);
    #[expect(clippy::cast_precision_loss, reason = "there are not that many")]
    let answered = report.ok as f64;
    assert_eq!(total, Some(answered), "every request is counted once");
}

#[tokio::test]
async fn durations_are_counted_by_app_method_status_and_role_over_swaps() {
    let config = "[metrics]\nrequest_durations = true\n[app.probe]\nroutes = [\"/\"]\n\
                  [app.probe.labels]\nallow = [\"127.0.0.1\"]\n";
    let host = Setup::new().config(config).start().await;
    let name = "http_server_request_duration_seconds_count";
    assert_eq!(host.get("/version").await.status, 503);
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for _ in 0..3 {
        host.get("/version").await;
    }
    assert_eq!(host.get("/not-modified").await.status, 304);
    assert_eq!(host.get("/panic").await.status, 500);
    let mut http = Http1::connect(host.address).await.unwrap();
    http.request("BREW", "/version", &[], None).await.unwrap();
    let file = fixture("probe", "2.0.0");
    host.cli(["deploy", "--stage", file.to_str().unwrap()])
        .await
        .expect_code(0);
    let next = [("handover-version", "next")];
    let answer = http.request("GET", "/version", &next, None).await.unwrap();
    assert_eq!(answer.text(), "2.0.0");
    host.cli(["promote", "probe"]).await.expect_code(0);
    host.get("/version").await;
    let metrics = scrape(&host).await;
    let count = |method, code, role| {
        let labels = [
            ("app", "probe"),
            ("http_request_method", method),
            ("http_response_status_code", code),
            ("role", role),
        ];
        metrics.get(name, &labels)
    };
    assert_eq!(count("GET", "200", "live"), Some(4.0));
    assert_eq!(count("GET", "200", "label"), Some(1.0));
    assert_eq!(count("GET", "304", "live"), Some(1.0));
    assert_eq!(count("GET", "500", "live"), Some(1.0));
    assert_eq!(count("GET", "503", "host"), Some(1.0));
    assert_eq!(count("_OTHER", "405", "live"), Some(1.0));
    let all = metrics.all(name, &[]);
    assert_eq!(all.iter().map(|one| one.1).sum::<f64>(), 9.0, "{all:?}");
    let bucket = "http_server_request_duration_seconds_bucket";
    let of_get = [
        ("http_request_method", "GET"),
        ("http_response_status_code", "200"),
        ("role", "live"),
        ("le", "+Inf"),
    ];
    assert_eq!(metrics.get(bucket, &of_get), Some(4.0));
}
