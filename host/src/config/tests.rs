//! The file as people write it: every key is read, and every error says where and what to do.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{num::NonZeroUsize, time::Duration};

use serde_json::json;

use super::*;
use crate::values::{LONGEST, THREADS};

fn read(text: &str) -> Result<Config, ConfigError> {
    Config::of_sources(vec![Source {
        path: "/etc/handover.toml".into(),
        text: text.to_owned(),
    }])
}

fn error(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

fn name(text: &str) -> AppName {
    text.parse().unwrap()
}

#[test]
fn every_key_is_read() {
    let config = read(
        r#"
        [server]
        listen = "0.0.0.0:80"
        workers = 3
        spare_workers = 1
        stall_after = "none"
        plugins = "drop"
        state = "/var/lib/handover"
        version_header = true
        shutdown_deadline = "1m"
        max_crashes = 5
        crash_window = "2m"
        leak_budget = { bytes = "512KiB", retained = 0 }
        first_byte_timeout = "5s"
        head_timeout = "10s"
        body_timeout = "15s"
        idle_timeout = "none"
        write_timeout = "1m"
        http2_ping = "20s"
        http2_ping_timeout = "3s"
        max_connections = 1000
        max_connections_per_address = 100
        [control]
        operate = ["1001", "deploy", "@ops"]
        observe = ["@1002"]
        group = "ops"
        [trust]
        keys = ["RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"]
        insecure_paths = true
        [log]
        level = "info,handover=debug"
        format = "json"
        file = "log/host.log"
        max_size = "1MiB"
        max_age = "1d"
        keep = 2
        [app.shop]
        routes = ["/", "Example.org/", "/api/"]
        watch = "stage"
        min_version = "1.2.0"
        drain_deadline = "none"
        job_deadline = "2h"
        bake = "5m"
        request_timeout = "10s"
        max_concurrent = 100
        queue = 20
        execution = "own"
        execution_threads = 3
        max_old_generations = 2
        when_full = "end-oldest"
        runtime_threads = 2
        env = ["HOME"]
        keep_artifacts = 0
        [app.shop.config]
        title = "Shop"
        since = 2020-01-02
        deep = { list = [1, 2.5, true] }
        [app.shop.check]
        start = false
        deadline = "5s"
        requests = [{ path = "/healthz" }, { path = "/gone", status = 410 }]
        "#,
    )
    .unwrap();
    let server = &config.server;
    assert_eq!(server.listen, "0.0.0.0:80".parse().ok());
    assert_eq!(server.workers.unwrap().get(), 3);
    assert_eq!((server.spare_workers, server.stall_after), (1, None));
    assert_eq!(server.plugins, Path::new("/etc/drop"));
    assert_eq!(server.state, Path::new("/var/lib/handover"));
    assert_eq!(server.control, Path::new("/var/lib/handover/control.sock"));
    assert!(server.version_header);
    assert_eq!(server.shutdown_deadline, Duration::from_secs(60));
    assert_eq!(server.max_crashes.get(), 5);
    assert_eq!(server.crash_window, Duration::from_secs(120));
    assert_eq!(
        server.leak_budget,
        LeakBudget {
            bytes: 512 << 10,
            descriptors: 64,
            retained: 0
        }
    );
    assert_eq!(
        server.timeouts(),
        Timeouts {
            first_byte: Some(Duration::from_secs(5)),
            head: Some(Duration::from_secs(10)),
            body: Some(Duration::from_secs(15)),
            idle: None,
            write: Some(Duration::from_secs(60)),
            http2_ping: Some(Duration::from_secs(20)),
            http2_pong: Duration::from_secs(3),
        }
    );
    assert_eq!(
        server.clients(),
        Clients {
            max_connections: NonZeroUsize::new(1000),
            max_connections_per_address: NonZeroUsize::new(100),
        }
    );
    assert_eq!(
        (config.log.level.as_str(), config.log.format),
        ("info,handover=debug", LogFormat::Json)
    );
    assert_eq!(
        config.log.file.as_deref(),
        Some(Path::new("/etc/log/host.log"))
    );
    assert_eq!(
        config.log.rotation(),
        LogRotation {
            max_size: Some(1 << 20),
            max_age: Some(Duration::from_secs(86_400)),
            keep: 2
        }
    );
    let control = &config.control;
    assert_eq!(
        control.operate,
        [
            Who::Uid(1001),
            Who::User("deploy".into()),
            Who::Group("ops".into())
        ]
    );
    assert_eq!(control.observe, [Who::Group("1002".into())]);
    assert_eq!(control.group.as_deref(), Some("ops"));
    assert!(config.trust.keys.are_set() && config.trust.insecure_paths);
    let app = config.app(&name("shop"));
    assert_eq!(app.min_version, Some("1.2.0".parse().unwrap()));
    let routes: Vec<_> = app.routes.iter().map(RoutePrefix::to_string).collect();
    assert_eq!(routes, ["/", "example.org/", "/api"]);
    assert_eq!(
        (app.watch, app.when_full),
        (Watch::Stage, WhenFull::EndOldest)
    );
    assert_eq!(app.drain_deadline, None);
    assert_eq!(app.job_deadline, Some(Duration::from_secs(7200)));
    assert_eq!(app.bake, Some(Duration::from_secs(300)));
    assert_eq!(app.request_timeout, Some(Duration::from_secs(10)));
    assert_eq!(app.max_concurrent.map(NonZeroUsize::get), Some(100));
    assert_eq!(app.queue, 20);
    assert_eq!(
        (app.execution, app.execution_threads),
        (Execution::Own, NonZeroUsize::new(3))
    );
    assert_eq!((app.max_old_generations, app.keep_artifacts), (2, 0));
    assert_eq!(app.runtime_threads.get(), 2);
    assert_eq!(app.env, ["HOME"]);
    assert_eq!(
        app.config,
        json!({"title": "Shop", "since": "2020-01-02", "deep": {"list": [1, 2.5, true]}})
    );
    assert!(!app.check.start);
    assert_eq!(app.check.deadline, Duration::from_secs(5));
    let requests: Vec<_> = app
        .check
        .requests
        .iter()
        .map(|r| (r.path.as_str(), r.status))
        .collect();
    assert_eq!(requests, [("/healthz", 200), ("/gone", 410)]);
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = read("").unwrap();
    let server = &config.server;
    assert_eq!(server.listen, "127.0.0.1:8080".parse().ok());
    assert_eq!(server.plugins, Path::new("/etc/plugins"));
    assert_eq!(server.control, Path::new("/etc/.handover/control.sock"));
    assert!(!server.version_header);
    assert_eq!(server.idle_timeout, Some(Duration::from_secs(65)));
    let app = config.app(&name("any"));
    assert!(app.routes.is_empty() && app.env.is_empty() && app.check.start);
    assert_eq!(app.drain_deadline, Some(Duration::from_secs(30)));
    assert_eq!(app.job_deadline, None);
    assert_eq!((app.max_old_generations, app.keep_artifacts), (4, 5));
    assert_eq!(app.config, json!({}));
    let without = Config::without_file().server;
    assert!(without.version_header);
    let here = std::env::current_dir().unwrap();
    assert_eq!(without.plugins, here.join("plugins"));
    assert_eq!(without.control, here.join(".handover/control.sock"));
}

#[test]
fn an_error_says_file_line_key_and_what_to_do() {
    let text = error("[server]\n\nlisten = \"localhost\"\n");
    assert!(
        text.starts_with("/etc/handover.toml:3: server.listen: "),
        "{text}"
    );
    let text = error("[app.shop]\ndrain_deadline = \"soon\"\n");
    assert!(
        text.contains(":2: app.shop.drain_deadline: `soon`")
            && text.contains("\"30s\"")
            && text.contains("none"),
        "{text}"
    );
    let text = error("[app.shop]\nroutes = [\n  \"/a\",\n  \"api\",\n]\n");
    assert!(
        text.contains(":4: app.shop.routes: `api` is not a route"),
        "{text}"
    );
    for (faulty, says) in [
        ("[app.shop.check]\nrequests = [{ path = \"x\" }]", "`/`"),
        (
            "[app.shop.check]\nrequests = [{ path = \"/\", status = 99 }]",
            "99",
        ),
        ("[app.shop]\nenv = [\"A=1\"]", "names only"),
        ("[log]\nlevel = \"a=b=c\"", "log filter"),
        (
            "[trust]\nkeys = [\n\"RW\"]",
            ":3: trust.keys: `RW` is not a public key",
        ),
        ("[control]\noperate = [\"@\"]", "control.operate: `@`"),
        ("[control]\nobserve = [\"deploy\"]", "set control.group"),
        ("[app.shop]\nmin_version = \"2\"", "app.shop.min_version"),
        ("[server]\nworkers = 0", "server.workers"),
        ("[server]\nshutdown_deadline = \"0s\"", "zero"),
        (
            "[server]\nidle_timeout = \"0s\"",
            "server.idle_timeout: it cannot be zero",
        ),
        ("[server]\nmax_connections = 0", "server.max_connections"),
        (
            "[server]\nmax_connections_per_address = 9223372036854775807",
            ":2: server.max_connections_per_address: it cannot be 9223372036854775807",
        ),
        (
            "[server]\nleak_budget = { bytes = \"64MB\" }",
            "`64MB` is not a size",
        ),
        (
            "[app.shop]\nmax_old_generations = 0",
            "a number from 1 to 1000",
        ),
        (
            "[app.shop.labels]\nhost = \"preview.example.org\"",
            "app.shop.labels.host: `preview.example.org` is no host name with a place",
        ),
        ("[app.shop.labels]\nallow = [\"me\"]", "`me` is no network"),
        ("[app.Shop]\n", "`Shop` is not an app name"),
        ("[app.shop.config]\nx = nan", "app.shop.config"),
        ("[server\n", ":1: "),
    ] {
        let text = error(faulty);
        assert!(text.contains(says), "{text}");
    }
}

/// Every key, by its table: those that an error about an unknown one offers.
fn keys_of(table: &str) -> Vec<String> {
    let text = error(&format!("[{table}]\nzzzzzzzz = 1\n"));
    let (_, known) = text.split_once("use one of ").unwrap();
    known.split(", ").map(str::to_owned).collect()
}

#[test]
fn no_value_of_any_key_is_more_than_an_error_with_its_line_and_key() {
    let numbers = [0, 1, -1, i64::MAX, i64::MIN, 1 << 40].map(|number| number.to_string());
    let texts = [
        "400000000000years",
        "18446744073709551615s",
        "3651days",
        "10years",
        "1ns",
        "0s",
        "-1s",
        "99999999999999999999999h",
        "18446744073709551615GiB",
        "16777216GiB",
        "9999999999999999999999B",
        "",
        "\u{0}",
        "none",
        "é",
    ]
    .map(|text| format!("{text:?}").replace("\\0", "\\u0000"));
    let others = [
        "nan",
        "1e400",
        "true",
        "[]",
        "[1]",
        "{}",
        "{ bytes = \"1B\" }",
        "1979-05-27",
    ];
    let values = numbers
        .into_iter()
        .chain(texts)
        .chain(others.map(str::to_owned));
    let tables = [
        "server",
        "control",
        "metrics",
        "trust",
        "log",
        "app.shop",
        "app.shop.check",
        "app.shop.labels",
    ];
    for value in values {
        for table in tables {
            for key in keys_of(table) {
                let text = format!("# one\n[{table}]\n{key} = {value}\n");
                match read(&text) {
                    Ok(config) => assert_has_a_place(&config),
                    Err(error) => assert!(
                        error.to_string().contains(&format!(":3: {table}.{key}: "))
                            // Of all of it, which has no line.
                            || key == "config" && error.to_string().contains("app.shop.config"),
                        "{text}: {error}"
                    ),
                }
            }
        }
    }
    for key in ["bytes", "descriptors", "retained"] {
        let text = error(&format!("[server]\nleak_budget = {{ {key} = -1 }}\n"));
        assert!(text.contains(":2: server.leak_budget: "), "{text}");
    }
}

/// Whatever is set can be added to the time of any clock, and started that often.
fn assert_has_a_place(config: &Config) {
    let (server, app) = (&config.server, config.app(&name("shop")));
    let spans = [
        server.stall_after,
        Some(server.shutdown_deadline),
        Some(server.crash_window),
        config.log.max_age,
        app.drain_deadline,
        app.job_deadline,
        app.bake,
        app.request_timeout,
        Some(app.check.deadline),
    ];
    assert!(spans.into_iter().flatten().all(|span| span <= LONGEST));
    let threads = [
        server.workers.map_or(1, NonZeroUsize::get),
        server.spare_workers,
        app.runtime_threads.get(),
    ];
    assert!(threads.into_iter().all(|count| count <= THREADS));
}

#[test]
fn an_unknown_key_gets_the_nearest_name() {
    let text = error("[server]\nlisten = \"127.0.0.1:1\"\nworker = 3\n");
    assert!(
        text.contains(":3: server.worker: there is no `worker` here: did you mean `workers`?"),
        "{text}"
    );
    let text = error("[app.shop]\nwatch = \"staged\"\n");
    assert!(text.contains("did you mean `stage`?"), "{text}");
    let text = error("[zzz]\n");
    assert!(
        text.contains(
            "use one of server, listen, acme, control, metrics, dashboard, trust, log, access_log, audit, dev, app"
        ),
        "{text}"
    );
}

#[test]
fn every_key_of_a_listener_is_read() {
    let config = read(
        r#"
        [[listen]]
        address = "[::]:80"
        reuse_port = true
        ipv6_only = true
        protocols = ["h1"]
        proxy_protocol = true
        trusted_proxies = ["10.0.0.0/8", "unix"]
        http_to_https = true
        hsts = "365days"
        canonical_host = "Example.org"
        [[listen]]
        address = "unix:run/web.sock"
        mode = "0600"
        [listen.tls]
        certificates = [{ chain = "a.pem", key = "/keys/a.pem" }]
        client_ca = "ca.pem"
        client_auth = "optional"
        min_version = "1.3"
        [[listen]]
        socket = "web"
        "#,
    )
    .unwrap();
    assert_eq!(config.server.listen, None);
    let [tcp, unix, named] = &config.listen[..] else {
        panic!("{:?}", config.listen);
    };
    assert_eq!(tcp.place, "/etc/handover.toml:2: listen");
    assert_eq!(
        tcp.socket,
        ListenSocket::Address("[::]:80".parse().unwrap())
    );
    assert!(tcp.options.reuse_port && tcp.options.ipv6_only);
    assert!(tcp.protocols.http1 && !tcp.protocols.http2);
    assert!(tcp.proxy_protocol && tcp.http_to_https);
    let trusted = tcp.trusted_proxies.as_ref().unwrap();
    assert!(trusted.trusts(None) && trusted.trusts("10.1.1.1".parse().ok()));
    assert_eq!(tcp.hsts, Some(Duration::from_secs(365 * 86_400)));
    assert_eq!(tcp.canonical_host.as_deref(), Some("example.org"));
    assert_eq!(
        unix.socket,
        ListenSocket::Address(ListenAddress::Unix("/etc/run/web.sock".into()))
    );
    assert_eq!(unix.options.mode, Some(0o600));
    let tls = unix.tls.as_ref().unwrap();
    let files: Vec<_> = tls.files().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(files, ["/etc/a.pem", "/keys/a.pem", "/etc/ca.pem"]);
    assert!(!tls.client_certificate_required);
    assert_eq!(tls.min_version, TlsVersion::Tls13);
    assert_eq!(unix.protocols, Protocols::default());
    assert_eq!(unix.trusted_proxies, Some(TrustedProxies::default()));
    assert_eq!(named.socket, ListenSocket::Named("web".to_owned()));

    let both = "[server]\nlisten = \"127.0.0.1:1\"\n[[listen]]\naddress = \"127.0.0.1:2\"\n";
    let places: Vec<_> = read(both)
        .unwrap()
        .listeners()
        .into_iter()
        .map(|listen| listen.place)
        .collect();
    assert_eq!(places, ["server.listen", "/etc/handover.toml:3: listen"]);
}

#[test]
fn a_listener_that_makes_no_sense_is_told_with_its_line() {
    let web = "[[listen]]\naddress = \"127.0.0.1:80\"\n";
    for (text, line, words) in [
        ("[[listen]]\n".to_owned(), 1, "`address`"),
        (format!("{web}socket = \"web\"\n"), 1, "write one of them"),
        (
            format!("{web}[[listen]]\naddress = \"127.0.0.1:80\"\n"),
            3,
            "listened at already (/etc/handover.toml:1",
        ),
        (
            "[[listen]]\naddress = \"here\"\n".to_owned(),
            2,
            "listen.address: `here` is no address",
        ),
        (
            "[[listen]]\nsocket = \"a:b\"\n".to_owned(),
            2,
            "FileDescriptorName=",
        ),
        (
            format!("{web}mode = \"0660\"\n"),
            1,
            "only a unix socket has a `mode`",
        ),
        (
            "[[listen]]\naddress = \"unix:/x\"\nmode = \"999\"\n".to_owned(),
            3,
            "listen.mode: `999` is no mode",
        ),
        (
            "[[listen]]\naddress = \"unix:/x\"\nreuse_port = true\n".to_owned(),
            1,
            "a unix socket has no port",
        ),
        (
            format!("{web}protocols = []\n"),
            1,
            "`protocols` names none",
        ),
        (
            format!("{web}protocols = [\"h3\"]\n"),
            3,
            "there is no `h3` here",
        ),
        (
            format!("{web}proxy_protocol = true\n"),
            1,
            "trusted_proxies",
        ),
        (
            format!("{web}trusted_proxies = [\n\"10.0.0.0/8\",\n\"10.0.0\"]\n"),
            5,
            "listen.trusted_proxies: `10.0.0` is no network",
        ),
        (
            format!("{web}canonical_host = \"example.org:80\"\n"),
            3,
            "listen.canonical_host",
        ),
        (format!("{web}hsts = \"long\"\n"), 3, "listen.hsts"),
        (
            format!("{web}tls = {{}}\n"),
            3,
            "tls: no certificate is named",
        ),
        (
            format!("{web}[listen.tls]\ncertificates = [{{ chain = \"a\" }}]\n"),
            4,
            "key",
        ),
        (
            format!(
                "{web}[listen.tls]\ncertificates = [{{ chain = \"a\", key = \"b\" }}]\nclient_auth = \"required\"\n"
            ),
            3,
            "`client_auth` takes a `client_ca`",
        ),
        (
            format!(
                "{web}tls = {{ certificates = [{{ chain = \"a\", key = \"b\" }}], min_version = \"1.1\" }}\n"
            ),
            3,
            "there is no `1.1` here",
        ),
        (
            format!(
                "{web}http_to_https = true\ntls = {{ certificates = [{{ chain = \"a\", key = \"b\" }}] }}\n"
            ),
            1,
            "listeners without `tls`",
        ),
        (
            format!("{web}proxies = []\n"),
            3,
            "there is no `proxies` here",
        ),
    ] {
        let error = error(&text);
        assert!(
            error.contains(&format!("handover.toml:{line}: listen")) && error.contains(words),
            "{text}: {error}"
        );
    }
}

#[test]
fn two_apps_cannot_have_one_route() {
    let text =
        error("[app.a]\nroutes = [\"example.org/x\"]\n[app.b]\nroutes = [\"EXAMPLE.org/x/\"]\n");
    assert!(
        text.contains(":4: app.b.routes:") && text.contains("app `a`"),
        "{text}"
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::read(Path::new("/nowhere/handover.toml")).unwrap_err();
    assert!(
        error.to_string().starts_with("/nowhere/handover.toml: "),
        "{error}"
    );
}

fn source(path: &str, text: &str) -> Source {
    Source {
        path: path.into(),
        text: text.to_owned(),
    }
}

#[test]
fn apps_may_have_files_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let main = folder.path().join("handover.toml");
    fs::write(&main, "[app.shop]\nroutes = [\"/\"]\n").unwrap();
    let apps = folder.path().join("apps.d");
    fs::create_dir(&apps).unwrap();
    fs::write(
        apps.join("mail.toml"),
        "[app.mail]\nroutes = [\"/mail\"]\n[app.mail.lease.poller]\nmirror = \"poller.lock\"\n",
    )
    .unwrap();
    fs::write(apps.join(".hidden.toml"), "[broken").unwrap();
    fs::write(apps.join("notes.txt"), "[broken").unwrap();
    let config = Config::read(&main).unwrap();
    let names: Vec<_> = config.apps.keys().map(AppName::as_str).collect();
    assert_eq!(names, ["mail", "shop"]);
    assert_eq!(
        config.app(&name("mail")).mirrors().get("poller"),
        Some(&apps.join("poller.lock"))
    );
    fs::write(apps.join("zzz.toml"), "[app.mail]\n").unwrap();
    let error = Config::read(&main).unwrap_err().to_string();
    assert!(
        error.contains("zzz.toml:1: app.mail: app `mail` has a section in")
            && error.contains("mail.toml already"),
        "{error}"
    );
}

#[test]
fn a_further_file_holds_apps_and_shares_their_routes() {
    let main = || source("/etc/handover.toml", "[app.shop]\nroutes = [\"/\"]\n");
    let read = |text| {
        Config::of_sources(vec![main(), source("/etc/apps.d/a.toml", text)])
            .unwrap_err()
            .to_string()
    };
    let text = read("[server]\nworkers = 1\n");
    assert!(
        text.starts_with("/etc/apps.d/a.toml:1: server: there is no `server` here"),
        "{text}"
    );
    let text = read("[app.blog]\nroutes = [\"/blog\", \"/\"]\n");
    assert!(text.contains(": the route `/` of app"), "{text}");
}

#[test]
fn what_is_written_again_is_read_as_the_same() {
    let text = r#"
        [server]
        workers = 3
        leak_budget = { bytes = "1536KiB" }
        idle_timeout = "none"
        [[listen]]
        address = "unix:/run/web.sock"
        mode = "0600"
        [listen.tls]
        certificates = [{ chain = "a.pem", key = "b.pem" }]
        client_ca = "ca.pem"
        client_auth = "optional"
        [control]
        operate = ["7", "deploy", "@ops"]
        group = "ops"
        [trust]
        keys = ["RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"]
        [app.shop]
        routes = ["example.org/a"]
        execution = "own"
        bake = "1h 30m"
        [app.shop.config]
        deep = { list = [1, 2.5, true] }
        [app.shop.labels]
        allow = ["10.0.0.0/8", "unix"]
        host = "{label}.example.org"
        [app.shop.jobs]
        keep_done = "2days"
        "#;
    let once = toml::to_string(&read(text).unwrap()).unwrap();
    let again = toml::to_string(&read(&once).unwrap()).unwrap();
    assert_eq!(once, again);
    for part in [
        "bake = \"1h 30m\"",
        "mode = \"0600\"",
        "bytes = \"1536KiB\"",
        "\"@ops\"",
    ] {
        assert!(once.contains(part), "{part}: {once}");
    }
}
