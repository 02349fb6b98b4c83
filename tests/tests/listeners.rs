//! Listening sockets: each is known by its key, and outlives the host that serves it.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{net::SocketAddr, os::fd::AsRawFd, path::Path, process::Output};

use handover_tests::{
    client::{Answer, Http1, Http2},
    host::{Host, Setup, handover},
    metrics::Metrics,
    plugins::fixture,
};
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A host with these listeners, on which the probe is live.
async fn serving(listeners: &str) -> Host {
    let host = Setup::new().config(listeners).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host
}

/// Where it listens beside the one line, in the order of the configuration.
async fn listening(host: &Host) -> Vec<String> {
    host.status().await.listen().split_off(1)
}

/// What the app knows of the connection of `GET /connection` with these headers.
async fn connection(at: &str, headers: &[(&str, &str)]) -> Value {
    let mut client = Http1::connect(at.parse().unwrap()).await.unwrap();
    let answer = client.request("GET", "/connection", headers, None).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// What comes back for these bytes until the connection ends.
async fn exchange(at: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    // It may be closed before all of them are there.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(
        handover_tests::host::DEADLINE,
        stream.read_to_end(&mut answer),
    );
    // A reset is an end as well.
    let _ = read.await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

/// How many connections ended or were refused for `reason`.
async fn counted(host: &Host, name: &str, reason: &str) -> f64 {
    let answer = host.ask("GET", "/metrics").await.unwrap();
    Metrics::read(&answer.text())
        .get(name, &[("reason", reason)])
        .unwrap()
}

async fn curl(arguments: &[&str]) -> Output {
    tokio::process::Command::new("curl")
        .args(["-sS", "--max-time", "30"])
        .args(arguments)
        .output()
        .await
        .expect("there is curl")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where the metrics are.
async fn metrics(host: &Host) -> SocketAddr {
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    status["host"]["metrics"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn each_socket_outlives_a_crash_at_its_own_address() {
    let mut host = Setup::new()
        .config("[metrics]\nlisten = \"127.0.0.1:0\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let (apps, figures) = (host.address, metrics(&host).await);
    for _ in 0..2 {
        // Whoever starts the next host sleeps, so there is none when they are asked: both wait in
        // the queue of their socket.
        host.signal(Signal::STOP);
        host.signal_inner(Signal::KILL);
        let waiting = [(apps, "/version"), (figures, "/metrics")].map(|(at, path)| {
            let (connected, is_connected) = tokio::sync::oneshot::channel();
            let asking = tokio::spawn(async move {
                let mut client = Http1::connect(at).await?;
                let _ = connected.send(());
                client.get(path).await
            });
            (asking, is_connected)
        });
        let mut asking = Vec::new();
        for (asked, is_connected) in waiting {
            is_connected.await.unwrap();
            asking.push(asked);
        }
        host.signal(Signal::CONT);
        host.came_back().await;
        for asked in asking {
            let answer = asked.await.unwrap().unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert_eq!((host.address, metrics(&host).await), (apps, figures));
    }
}

#[tokio::test]
async fn each_listener_speaks_what_it_is_told_to_and_outlives_a_crash() {
    let any = "[[listen]]\naddress = \"127.0.0.1:0\"\n";
    let mut host = serving(&format!(
        "{any}protocols = [\"h1\"]\n{any}protocols = [\"h2\"]\n[[listen]]\naddress = \"[::1]:0\"\n\
         [[listen]]\naddress = \"unix:HOME/web.sock\"\nmode = \"0600\"\n"
    ))
    .await;
    let before = listening(&host).await;
    let socket = host.home().join("web.sock");
    for round in 0..2 {
        let at = listening(&host).await;
        assert_eq!(at, before, "{round}");
        let [one, two, six, unix] = &at[..] else {
            panic!("{at:?}")
        };
        let spoken = async |at: &str, flag: &str| -> Result<String, String> {
            let output = curl(&[flag, &format!("http://{at}/version")]).await;
            match output.status.success() {
                true => Ok(text(&output.stdout)),
                false => Err(text(&output.stderr)),
            }
        };
        let (h1, h2) = ("--http1.1", "--http2-prior-knowledge");
        assert_eq!(spoken(one, h1).await.unwrap(), "1.0.0");
        spoken(one, h2).await.unwrap_err();
        spoken(two, h1).await.unwrap_err();
        assert_eq!(spoken(two, h2).await.unwrap(), "1.0.0");
        for flag in [h1, h2] {
            assert_eq!(spoken(six, flag).await.unwrap(), "1.0.0");
            let path = socket.to_str().unwrap();
            let output = curl(&[flag, "--unix-socket", path, "http://x/version"]).await;
            assert_eq!(text(&output.stdout), "1.0.0", "{}", text(&output.stderr));
        }
        assert_eq!(*unix, format!("unix:{}", socket.display()));
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&socket).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        let known = connection(six, &[]).await;
        assert_eq!(known["local"], Value::from(six.as_str()));
        assert_eq!(known["tls"], Value::Null);
        host.signal_inner(Signal::KILL);
        host.came_back().await;
        host.live("probe", "1.0.0").await;
    }
    // What people see.
    let shown = host.cli(["status"]).await.expect_code(0).text();
    assert!(
        shown.contains(&format!("unix:{}", socket.display())),
        "{shown}"
    );
}

#[tokio::test]
async fn the_word_of_a_proxy_reaches_the_app_only_where_it_is_trusted() {
    let any = "[[listen]]\naddress = \"127.0.0.1:0\"\n";
    let host = serving(&format!(
        "{any}trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n{any}trusted_proxies = [\"10.0.0.0/8\"]\n{any}"
    ))
    .await;
    let at = listening(&host).await;
    let said = [
        ("x-forwarded-for", "203.0.113.9, 10.0.0.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "example.org"),
        ("x-real-ip", "203.0.113.9"),
    ];
    let known = connection(&at[0], &said).await;
    assert_eq!(known["client"], "203.0.113.9:0");
    assert_eq!(known["local"], Value::from(at[0].as_str()));
    assert_eq!(known["said"].as_object().unwrap().len(), 4);
    let forwarded = [("forwarded", "for=\"[2001:db8::1]:99\";proto=https")];
    let known = connection(&at[0], &forwarded).await;
    assert_eq!(known["client"], "[2001:db8::1]:99");
    for untrusting in [&at[1], &at[2]] {
        for headers in [&said[..], &forwarded] {
            let known = connection(untrusting, headers).await;
            let client = known["client"].as_str().unwrap();
            assert!(client.starts_with("127.0.0.1:"), "{client}");
            assert_eq!(known["said"].as_object().unwrap().len(), 0, "{known}");
        }
    }
    // The one line believes nothing and takes nothing out.
    let known = connection(&host.address.to_string(), &said).await;
    assert!(known["client"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(known["said"].as_object().unwrap().len(), 4);
    // By HTTP/2 as well.
    let (http2, _) = Http2::connect(at[0].parse().unwrap()).await.unwrap();
    let answer: Answer = http2.get("/connection").await.unwrap();
    assert_eq!(answer.json()["said"].as_object().unwrap().len(), 0);
}

#[tokio::test]
async fn a_header_of_the_proxy_protocol_is_read_where_it_is_asked_for_and_nowhere_else() {
    let any = "[[listen]]\naddress = \"127.0.0.1:0\"\n";
    let host = serving(&format!(
        "{any}proxy_protocol = true\ntrusted_proxies = [\"127.0.0.0/8\"]\n\
         {any}proxy_protocol = true\ntrusted_proxies = [\"10.0.0.0/8\"]\n{any}"
    ))
    .await;
    let at = listening(&host).await;
    let request = "GET /connection HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let line = "PROXY TCP4 203.0.113.9 198.51.100.7 50000 443\r\n";
    let mut version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    version_2.extend([203, 0, 113, 9, 198, 51, 100, 7, 0xc3, 0x50, 0x01, 0xbb]);
    for header in [line.as_bytes(), &version_2] {
        let bytes = [header, request.as_bytes()].concat();
        let answer = exchange(&at[0], &bytes).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains("\"client\":\"203.0.113.9:50000\""),
            "{answer}"
        );
        assert!(
            answer.contains("\"local\":\"198.51.100.7:443\""),
            "{answer}"
        );
        // The other side is no proxy that is trusted: not a byte of it is read.
        assert_eq!(exchange(&at[1], &bytes).await, "");
        // To anybody else it is no HTTP.
        for elsewhere in [&at[2], &host.address.to_string()] {
            let answer = exchange(elsewhere, &bytes).await;
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
                "{answer}"
            );
        }
    }
    // The proxy asks for itself.
    let answer = exchange(&at[0], format!("PROXY UNKNOWN\r\n{request}").as_bytes()).await;
    assert!(answer.contains("\"client\":\"127.0.0.1:"), "{answer}");
    for wrong in [request, "PROXY TCP4 a b c d\r\n", "PROXY "] {
        let mut stream = TcpStream::connect(&at[0]).await.unwrap();
        stream.write_all(wrong.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(text(&answer), "");
    }
    let ended = "handover_connections_ended_total";
    assert_eq!(counted(&host, ended, "proxy_header").await, 3.0);
    let refused = "handover_connections_refused_total";
    assert_eq!(counted(&host, refused, "untrusted_proxy").await, 2.0);
    host.logged("the refusal", |line| line.contains("trusted_proxies only"))
        .await;
}

#[tokio::test]
async fn requests_are_sent_to_https_and_to_the_canonical_host() {
    let any = "[[listen]]\naddress = \"127.0.0.1:0\"\n";
    let host = serving(&format!(
        "{any}http_to_https = true\ntrusted_proxies = [\"127.0.0.1\"]\nhsts = \"1h\"\n\
         {any}canonical_host = \"example.org\"\n"
    ))
    .await;
    let at = listening(&host).await;
    let sent = async |at: &str, arguments: &[&str], path: &str| {
        let format = "%{http_code} %{redirect_url} %header{strict-transport-security}";
        let url = format!("http://{at}{path}");
        let output = curl(&[&["-o", "/dev/null", "-w", format, &url], arguments].concat()).await;
        text(&output.stdout)
    };
    let port = at[1].rsplit(':').next().unwrap();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        assert_eq!(
            sent(&at[0], &[version], "/version?a=b").await,
            "308 https://127.0.0.1/version?a=b "
        );
        // A proxy did that already.
        let by_https = "x-forwarded-proto: https";
        assert_eq!(
            sent(&at[0], &[version, "-H", by_https], "/version").await,
            "200  max-age=3600"
        );
        let elsewhere = format!("308 http://example.org:{port}/version ");
        assert_eq!(sent(&at[1], &[version], "/version").await, elsewhere);
        let name = format!("example.org:{port}:127.0.0.1");
        let arguments = [version, "--resolve", &name];
        let canonical = format!("example.org:{port}");
        assert_eq!(sent(&canonical, &arguments, "/version").await, "200  ");
    }
}

#[tokio::test]
async fn a_socket_of_a_service_manager_is_found_by_its_name() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let host = Setup::new()
        .config("[[listen]]\nsocket = \"web\"\nprotocols = [\"h1\"]\n")
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "web")
        .env("LISTEN_FDS_FIRST_FD", &listener.as_raw_fd().to_string())
        .start()
        .await;
    let named = listener.local_addr().unwrap();
    assert_eq!(listening(&host).await, [named.to_string()]);
    assert_ne!(host.address, named);
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for at in [named, host.address] {
        let answer = Http1::connect(at).await.unwrap().get("/version").await;
        assert_eq!(answer.unwrap().text(), "1.0.0");
    }
}

/// What `run` says with this configuration, when it ends at once.
async fn refusal(folder: &Path, config: &str) -> String {
    let path = folder.join("handover.toml");
    let config = config.replace("HOME", folder.to_str().unwrap());
    std::fs::write(&path, format!("[server]\nstate = \"state\"\n{config}")).unwrap();
    handover(["run", "--config", path.to_str().unwrap()])
        .await
        .expect_code(1)
        .stderr
}

#[tokio::test]
async fn a_listener_that_cannot_be_is_told_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    for (config, words) in [
        (
            format!("[[listen]]\naddress = \"{at}\"\n"),
            "another process has it",
        ),
        (
            "[[listen]]\naddress = \"unix:HOME/file\"\n".to_owned(),
            "is no socket; move it away",
        ),
        (
            "[[listen]]\naddress = \"unix:HOME/none/web.sock\"\n".to_owned(),
            "make its folder",
        ),
        (
            "[[listen]]\nsocket = \"web\"\n".to_owned(),
            "handover.toml:3: listen.socket: no socket named `web`",
        ),
        (
            "[[listen]]\naddress = \"127.0.0.1:0\"\nproxy_protocol = true\n".to_owned(),
            "handover.toml:3: listen: `proxy_protocol` believes",
        ),
    ] {
        let said = refusal(folder.path(), &config).await;
        assert!(said.contains(words), "{config}: {said}");
    }
}
