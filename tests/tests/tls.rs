//! TLS: certificates by name, read again when they change, sessions and connections that outlive
//! swaps, and clients with certificates.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    net::SocketAddr,
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use handover_tests::{
    client::{
        Fault, Http1, TlsClient, WebSocket,
        tls::{Authority, Issued, der, is_resumed, shown},
        websocket::Message,
    },
    host::{Host, Setup, handover},
    metrics::Metrics,
    plugins::fixture,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const ANY: &str = "[[listen]]\naddress = \"127.0.0.1:0\"\n";

/// A folder for certificates, which outlives its host.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("handover-tls-")
        .tempdir()
        .unwrap()
}

/// The key `tls` with these pairs of `folder`.
fn tls(folder: &Path, names: &[&str], more: &str) -> String {
    let folder = folder.display();
    let pairs: Vec<_> = names
        .iter()
        .map(|name| format!("{{ chain = \"{folder}/{name}.pem\", key = \"{folder}/{name}.key\" }}"))
        .collect();
    format!("tls = {{ certificates = [{}]{more} }}\n", pairs.join(", "))
}

/// A host with these listeners, on which the probe is live, and where they are.
async fn serving(listeners: &str) -> (Host, Vec<String>) {
    let host = Setup::new().config(listeners).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let at = host.status().await.listen().split_off(1);
    (host, at)
}

fn address(listen: &str) -> SocketAddr {
    listen.strip_prefix("https://").unwrap().parse().unwrap()
}

async fn get(client: &TlsClient, at: SocketAddr, name: &str, path: &str) -> Result<Value, Fault> {
    let stream = client.connect(at, name).await?;
    let answer = Http1::over(stream).get(path).await?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    Ok(answer.json())
}

async fn run(program: &str, arguments: &[&str]) -> Output {
    tokio::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn ended(host: &Host, reason: &str) -> f64 {
    let answer = host.ask("GET", "/metrics").await.unwrap();
    Metrics::read(&answer.text())
        .get("handover_connections_ended_total", &[("reason", reason)])
        .unwrap()
}

#[tokio::test]
async fn foreign_clients_speak_both_versions_of_tls_and_of_http() {
    let (folder, authority) = (folder(), Authority::new("handover tests"));
    let path = folder.path();
    authority
        .issue("default", &["default.example.org", "localhost"])
        .put(path, "default");
    std::fs::write(path.join("ca.pem"), &authority.pem).unwrap();
    let config = format!(
        "{ANY}hsts = \"1h\"\n{}{ANY}http_to_https = true\n{ANY}protocols = [\"h1\"]\n{}",
        tls(path, &["default"], ""),
        tls(path, &["default"], ", min_version = \"1.3\"")
    );
    let (host, at) = serving(&config).await;
    let port = address(&at[0]).port();
    let ca = path.join("ca.pem");
    let ca = ca.to_str().unwrap();
    let url = format!("https://localhost:{port}/connection");
    for (flag, http) in [("--http1.1", "1.1"), ("--http2", "2")] {
        for (version, number) in [("1.2", 0x0303), ("1.3", 0x0304)] {
            let (least, most) = (format!("--tlsv{version}"), version);
            let output = run(
                "curl",
                &[
                    "-sS",
                    "-4",
                    "--fail",
                    "--cacert",
                    ca,
                    &least,
                    "--tls-max",
                    most,
                    flag,
                    "-w",
                    "\n%{http_version} %header{strict-transport-security}",
                    &url,
                ],
            )
            .await;
            let said = text(&output.stdout);
            let (body, head) = said.rsplit_once('\n').unwrap_or_default();
            assert_eq!(
                head,
                format!("{http} max-age=3600"),
                "{}",
                text(&output.stderr)
            );
            let known: Value = serde_json::from_str(body).unwrap();
            assert_eq!(known["tls"]["version"], number);
            assert_eq!(known["tls"]["server_name"], "localhost");
            assert_eq!(known["tls"]["client_certificate"], Value::Null);
            assert_eq!(known["said"]["x-forwarded-proto"], "https");
            assert_eq!(known["local"], format!("127.0.0.1:{port}"));
        }
    }
    // What the other listener speaks, by openssl.
    let strict = address(&at[2]).to_string();
    for (version, alpn, is_spoken) in [
        ("-tls1_3", "http/1.1", true),
        ("-tls1_3", "h2", false),
        ("-tls1_2", "http/1.1", false),
    ] {
        let output = run(
            "openssl",
            &[
                "s_client",
                "-connect",
                &strict,
                "-CAfile",
                ca,
                "-verify_return_error",
                version,
                "-alpn",
                alpn,
            ],
        )
        .await;
        let said = text(&output.stdout);
        assert_eq!(
            said.contains(&format!("ALPN protocol: {alpn}")),
            is_spoken,
            "{version} {alpn}: {said} {}",
            text(&output.stderr)
        );
    }
    let old = run(
        "openssl",
        &[
            "s_client",
            "-connect",
            &strict,
            "-tls1_1",
            "-cipher",
            "ALL:@SECLEVEL=0",
        ],
    )
    .await;
    assert!(!old.status.success());
    // Where plain ones are sent.
    let redirect = run(
        "curl",
        &[
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{redirect_url}",
            &format!("http://{}/a", at[1]),
        ],
    )
    .await;
    assert_eq!(
        text(&redirect.stdout),
        format!("https://127.0.0.1:{port}/a")
    );
    // Plain HTTP where TLS is spoken.
    let before = ended(&host, "tls_handshake").await;
    let mut stream = TcpStream::connect(address(&at[0])).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said).await;
    assert!(!text(&said).contains("HTTP/"), "{said:?}");
    host.until("the handshake to be counted", async || {
        (ended(&host, "tls_handshake").await > before).then_some(())
    })
    .await;
    let shown = host.cli(["status"]).await.expect_code(0).text();
    assert!(
        shown.contains(&format!("{} ", at[0])) || shown.contains(&at[0]),
        "{shown}"
    );
}

#[tokio::test]
async fn each_name_has_its_certificate_and_the_first_is_for_all_others() {
    let (folder, authority) = (folder(), Authority::new("handover tests"));
    let path = folder.path();
    let issue = |name: &str, names: &[&str]| {
        let issued = authority.issue(name, names);
        issued.put(path, name);
        der(&issued.chain)
    };
    let default = issue("default", &["default.example.org"]);
    let shop = issue("shop", &["shop.example.org", "Shop.Example.net"]);
    let wild = issue("wild", &["*.example.org"]);
    let config = format!("{ANY}{}", tls(path, &["default", "shop", "wild"], ""));
    let (_host, at) = serving(&config).await;
    let client = TlsClient::trusting(&authority);
    for (name, expected) in [
        ("shop.example.org", &shop),
        ("shop.example.net", &shop),
        ("other.example.org", &wild),
        ("default.example.org", &default),
    ] {
        let stream = client.connect(address(&at[0]), name).await.unwrap();
        assert_eq!(shown(&stream), **expected, "{name}");
        let known = Http1::over(stream).get("/connection").await.unwrap().json();
        assert_eq!(known["tls"]["server_name"], name);
    }
    // A wildcard is for one label, and nobody is for this one: it gets the first, which it refuses.
    for name in ["a.b.example.org", "example.org", "example.com"] {
        let error = client.connect(address(&at[0]), name).await.unwrap_err();
        assert!(error.to_string().contains("not valid for name"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_under_load_without_a_lost_request() {
    let (folder, authority) = (folder(), Authority::new("handover tests"));
    let path = folder.path();
    authority.issue("0", &["example.org"]).put(path, "web");
    let (host, at) = serving(&format!("{ANY}{}", tls(path, &["web"], ""))).await;
    let at = address(&at[0]);
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let client = TlsClient::trusting(&authority);
    let mut clients = tokio::task::JoinSet::new();
    for keeps in [true, true, false] {
        let (client, stop, asked) = (client.clone(), Arc::clone(&stop), Arc::clone(&asked));
        clients.spawn(async move {
            let mut open = Http1::over(client.connect(at, "example.org").await?);
            while !stop.load(Ordering::Relaxed) {
                if !keeps {
                    open = Http1::over(client.connect(at, "example.org").await?);
                }
                let answer = open.get("/version").await?;
                assert_eq!(answer.text(), "1.0.0");
                asked.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Fault>(())
        });
    }
    // One that has been open since before.
    let mut old = WebSocket::upgrade(
        Http1::over(client.connect(at, "example.org").await.unwrap()),
        "/ws",
    )
    .await
    .unwrap();
    let shown_now = async || {
        // A client of its own each time, since a session that is resumed shows the certificate of
        // before.
        let client = TlsClient::trusting(&authority);
        shown(&client.connect(at, "example.org").await.unwrap())
    };
    let mut last = Vec::new();
    for round in 1..=3 {
        let issued = authority.issue(&round.to_string(), &["example.org"]);
        issued.put(path, "web");
        last = der(&issued.chain);
        host.until("the new certificate", async || {
            (shown_now().await == last).then_some(())
        })
        .await;
    }
    host.event("the certificates to be told", |event| {
        event.kind == "certificate_loaded" && event.message.contains("handover.toml:3: listen.tls")
    })
    .await;
    // What cannot be used changes nothing.
    let failures = async || {
        let events = host.events().await.into_iter();
        events
            .filter(|event| event.kind == "certificate_failed")
            .map(|event| event.message)
            .collect::<Vec<_>>()
    };
    let key = authority.issue("other", &["example.org"]).key;
    for (file, content, words) in [
        ("web.key", key.as_str(), "does not go with the certificate"),
        ("web.key", "nothing", "holds no private key"),
        ("web.pem", "nothing", "holds no certificate"),
    ] {
        let before = failures().await.len();
        std::fs::write(path.join(file), content).unwrap();
        let said = host
            .until("a failure", async || {
                failures()
                    .await
                    .split_off(before)
                    .into_iter()
                    .find(|said| said.contains(words))
            })
            .await;
        assert!(said.contains("what was there before goes on"), "{said}");
        assert_eq!(shown_now().await, last);
    }
    std::fs::remove_file(path.join("web.pem")).unwrap();
    host.until("a failure", async || {
        failures()
            .await
            .into_iter()
            .find(|said| said.contains("no such file"))
    })
    .await;
    assert_eq!(shown_now().await, last);
    let issued = authority.issue("good again", &["example.org"]);
    issued.put(path, "web");
    host.until("the good one", async || {
        (shown_now().await == der(&issued.chain)).then_some(())
    })
    .await;
    old.send("still here").await.unwrap();
    assert!(
        matches!(old.receive().await.unwrap(), Message::Text(text) if text.contains("still here"))
    );
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap().unwrap();
    }
    assert!(asked.load(Ordering::Relaxed) > 20);
}

#[tokio::test]
async fn websockets_and_sessions_outlive_twenty_swaps() {
    let (folder, authority) = (folder(), Authority::new("handover tests"));
    let path = folder.path();
    authority.issue("web", &["example.org"]).put(path, "web");
    let more = "[app.probe]\ndrain_deadline = \"none\"\nmax_old_generations = 50\n";
    let config = format!("{ANY}{}{more}", tls(path, &["web"], ""));
    let (host, at) = serving(&config).await;
    let at = address(&at[0]);
    let client = TlsClient::trusting(&authority);
    let mut sockets = Vec::new();
    for round in 0..20 {
        let stream = client.connect(at, "example.org").await.unwrap();
        // The tickets of the first session come with its first bytes.
        assert_eq!(is_resumed(&stream), round > 0, "{round}");
        let http = Http1::over(stream);
        sockets.push(WebSocket::upgrade(http, "/ws").await.unwrap());
        let sent = format!("round {round}");
        for socket in &mut sockets {
            socket.send(&sent).await.unwrap();
            let echoed = socket.receive().await.unwrap();
            assert!(
                matches!(&echoed, Message::Text(text) if text.contains(&sent)),
                "{echoed:?}"
            );
        }
        let version = ["2.0.0", "1.0.0"][round % 2];
        let file = fixture("probe", version);
        let file = file.to_str().unwrap();
        // It would wait for the old websockets.
        let detached = host.cli(["deploy", file, "--detach"]).await;
        detached.expect_code(0);
        host.live("probe", version).await;
        let answer = get(&client, at, "example.org", "/connection")
            .await
            .unwrap();
        assert_eq!(answer["tls"]["version"], 0x0304);
    }
    assert_eq!(sockets.len(), 20);
}

#[tokio::test]
async fn a_session_is_resumed_after_its_certificate_has_changed() {
    let (folder, authority) = (folder(), Authority::new("handover tests"));
    let path = folder.path();
    authority.issue("web", &["example.org"]).put(path, "web");
    let (host, at) = serving(&format!("{ANY}{}", tls(path, &["web"], ""))).await;
    let at = address(&at[0]);
    let client = TlsClient::trusting(&authority);
    get(&client, at, "example.org", "/connection")
        .await
        .unwrap();
    let issued = authority.issue("next", &["example.org"]);
    issued.put(path, "web");
    host.event("the new one", |event| event.kind == "certificate_loaded")
        .await;
    let stream = client.connect(at, "example.org").await.unwrap();
    assert!(is_resumed(&stream));
    let fresh = TlsClient::trusting(&authority);
    let stream = fresh.connect(at, "example.org").await.unwrap();
    assert_eq!(shown(&stream), der(&issued.chain));
}

#[tokio::test]
async fn clients_show_certificates_where_that_is_asked_for() {
    let (folder, authority) = (folder(), Authority::new("handover tests"));
    let path = folder.path();
    let clients = Authority::new("clients");
    let strangers = Authority::new("strangers");
    authority.issue("web", &["example.org"]).put(path, "web");
    std::fs::write(path.join("clients.pem"), &clients.pem).unwrap();
    let ca = format!(", client_ca = \"{}/clients.pem\"", path.display());
    let required = tls(path, &["web"], &ca);
    let optional = tls(path, &["web"], &format!("{ca}, client_auth = \"optional\""));
    let (host, at) = serving(&format!("{ANY}{required}{ANY}{optional}")).await;
    let (required, optional) = (address(&at[0]), address(&at[1]));
    let own = clients.issue("a client", &["client.example.org"]);
    let foreign = strangers.issue("a stranger", &["client.example.org"]);
    let with = |own: Option<&Issued>| TlsClient::new(&authority, own);
    let known = async |client: TlsClient, at| {
        let answer = get(&client, at, "example.org", "/connection").await?;
        Ok::<_, Fault>(answer["tls"]["client_certificate"].as_u64())
    };
    let length = Some(der(&own.chain).len() as u64);
    assert_eq!(known(with(Some(&own)), required).await.unwrap(), length);
    assert_eq!(known(with(Some(&own)), optional).await.unwrap(), length);
    assert_eq!(known(with(None), optional).await.unwrap(), None);
    known(with(None), required).await.unwrap_err();
    for at in [required, optional] {
        known(with(Some(&foreign)), at).await.unwrap_err();
    }
    // Others are let in from now on, and a session of before lets nobody in.
    let client = with(Some(&own));
    known(client.clone(), required).await.unwrap();
    std::fs::write(path.join("clients.pem"), &strangers.pem).unwrap();
    host.until("both listeners to be told", async || {
        let events = host.events().await;
        (events
            .iter()
            .filter(|event| event.kind == "certificate_loaded")
            .count()
            >= 2)
            .then_some(())
    })
    .await;
    known(client, required).await.unwrap_err();
    assert!(
        known(with(Some(&foreign)), required)
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn a_client_that_makes_no_handshake_is_ended() {
    let (folder, authority) = (folder(), Authority::new("handover tests"));
    let path = folder.path();
    authority.issue("web", &["example.org"]).put(path, "web");
    let (host, at) = serving(&format!(
        "[server]\nfirst_byte_timeout = \"300ms\"\n{ANY}{}",
        tls(path, &["web"], "")
    ))
    .await;
    let mut stream = TcpStream::connect(address(&at[0])).await.unwrap();
    // The beginning of a hello, and no more.
    stream.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
    let mut said = Vec::new();
    let read = tokio::time::timeout(
        handover_tests::host::DEADLINE,
        stream.read_to_end(&mut said),
    );
    let _ = read.await.expect("it is ended");
    assert!(said.is_empty());
    assert!(ended(&host, "first_byte_timeout").await >= 1.0);
}

#[tokio::test]
async fn the_proxy_protocol_comes_before_the_handshake() {
    let (folder, authority) = (folder(), Authority::new("handover tests"));
    let path = folder.path();
    authority.issue("web", &["localhost"]).put(path, "web");
    std::fs::write(path.join("ca.pem"), &authority.pem).unwrap();
    let (_host, at) = serving(&format!(
        "{ANY}proxy_protocol = true\ntrusted_proxies = [\"127.0.0.1\"]\n{}",
        tls(path, &["web"], "")
    ))
    .await;
    let ca = path.join("ca.pem");
    let url = format!("https://localhost:{}/connection", address(&at[0]).port());
    let arguments = [
        "-sS",
        "-4",
        "--haproxy-protocol",
        "--cacert",
        ca.to_str().unwrap(),
        &url,
    ];
    let output = run("curl", &arguments).await;
    let known: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    assert!(known["client"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(known["tls"]["server_name"], "localhost");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_told_with_what_to_do() {
    let (folder, authority) = (folder(), Authority::new("handover tests"));
    let path = folder.path();
    let web = authority.issue("web", &["example.org"]);
    web.put(path, "web");
    let other = authority.issue("other", &["example.org"]);
    let mixed = Issued {
        key: other.key,
        ..web.clone()
    };
    mixed.put(path, "mixed");
    std::fs::write(path.join("empty.pem"), "").unwrap();
    std::fs::write(path.join("empty.key"), &web.key).unwrap();
    let ca = format!(", client_ca = \"{}/empty.pem\"", path.display());
    for (tls, words) in [
        (
            tls(path, &["none"], ""),
            "there is no such file: correct the path",
        ),
        (
            tls(path, &["mixed"], ""),
            "name the two that were issued together",
        ),
        (
            tls(path, &["empty"], ""),
            "holds no certificate: it is to be a PEM file with -----BEGIN CERTIFICATE-----",
        ),
        (tls(path, &["web"], &ca), "empty.pem holds no certificate"),
        ("tls = {}\n".to_owned(), "no certificate is named"),
    ] {
        let config = path.join("handover.toml");
        let text = format!("[server]\nstate = \"state\"\n{ANY}{tls}");
        std::fs::write(&config, text).unwrap();
        let said = handover(["run", "--config", config.to_str().unwrap()])
            .await
            .expect_code(1)
            .stderr;
        assert!(
            said.contains("handover.toml:") && said.contains("listen.tls: "),
            "{said}"
        );
        assert!(said.contains(words), "{tls}: {said}");
    }
}
