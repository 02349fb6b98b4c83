//! The page for browsers: who gets in, what keeps other sites out, what it streams, and that what
//! it asks for is done and remembered.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, process::CommandExt},
};

use handover_tests::{
    client::{Answer, Http1},
    host::{Host, Setup, handover},
    plugins::{self, fixture},
};
use serde_json::Value;

/// The dashboard of a host, as a browser that has opened a link sees it.
struct Browser {
    address: SocketAddr,
    /// What the paths of the session begin with, slashes included.
    path: String,
    cookie: String,
}

/// Where a link leads, and its token.
fn link(url: &str) -> (SocketAddr, &str) {
    let (address, target) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .unwrap();
    let token = target.trim().strip_prefix("?token=").unwrap();
    (address.parse().unwrap(), token)
}

async fn new_link(host: &Host) -> String {
    host.cli(["dashboard"]).await.expect_code(0).stdout
}

async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Answer {
    let host = address.to_string();
    let mut all = headers.to_vec();
    if !headers.iter().any(|(name, _)| *name == "host") {
        all.push(("host", &host));
    }
    let mut connection = Http1::connect(address).await.unwrap();
    connection.request(method, path, &all, body).await.unwrap()
}

impl Browser {
    async fn of(host: &Host) -> Self {
        Self::opening(&new_link(host).await).await
    }

    async fn opening(url: &str) -> Self {
        let (address, token) = link(url);
        let answer = ask(address, "GET", &format!("/?token={token}"), &[], None).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let set = answer.header("set-cookie").unwrap();
        let parts: Vec<_> = set.split("; ").collect();
        let path = parts[1].strip_prefix("Path=").unwrap().to_owned();
        assert_eq!(parts[2..], ["HttpOnly", "SameSite=Strict"]);
        assert!(answer.text().contains(&format!("0; url={path}")));
        Self {
            address,
            path,
            cookie: parts[0].to_owned(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        let path = format!("{}{path}", self.path);
        ask(
            self.address,
            "GET",
            &path,
            &[("cookie", &self.cookie)],
            None,
        )
        .await
    }

    async fn post(&self, path: &str, body: &[u8]) -> Answer {
        let path = format!("{}{path}", self.path);
        let origin = format!("http://{}", self.address);
        let headers = [("cookie", &*self.cookie), ("origin", &*origin)];
        ask(self.address, "POST", &path, &headers, Some(body)).await
    }

    /// The stream of events, from behind the event with the id `last`.
    async fn stream(&self, last: Option<&str>) -> Stream {
        let mut connection = Http1::connect(self.address).await.unwrap();
        let host = self.address.to_string();
        let mut headers = vec![("host", &*host), ("cookie", &self.cookie)];
        headers.extend(last.map(|id| ("last-event-id", id)));
        let path = format!("{}events", self.path);
        connection.send_head("GET", &path, &headers).await.unwrap();
        let head = connection.head("GET").await.unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        Stream {
            connection,
            text: String::new(),
        }
    }
}

struct Stream {
    connection: Http1,
    text: String,
}

/// One of a stream: its kind, its id, its data.
#[derive(Debug)]
struct Sent {
    kind: String,
    id: Option<String>,
    data: Value,
}

impl Stream {
    /// The next one; none when the stream has ended.
    async fn next(&mut self) -> Option<Sent> {
        loop {
            if let Some((one, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let mut lines = one.lines();
                    lines.find_map(|line| Some(line.strip_prefix(name)?.to_owned()))
                };
                let sent = Sent {
                    kind: field("event: ").unwrap(),
                    id: field("id: "),
                    data: serde_json::from_str(&field("data: ").unwrap()).unwrap(),
                };
                self.text = rest.to_owned();
                return Some(sent);
            }
            let piece = self.connection.chunk(&mut Vec::new()).await.ok()??;
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }

    /// The first one of a kind that is as told.
    async fn until(&mut self, kind: &str, is_it: impl Fn(&Value) -> bool) -> Sent {
        loop {
            let sent = self.next().await.unwrap();
            if sent.kind == kind && is_it(&sent.data) {
                return sent;
            }
        }
    }
}

#[tokio::test]
async fn a_link_is_good_for_one_browser_and_nothing_is_answered_without() {
    let host = Host::start().await;
    let url = new_link(&host).await;
    let (address, token) = link(&url);
    assert!(address.ip().is_loopback());
    let opened = format!("/?token={token}");
    let cookie = ask(address, "GET", &opened, &[], None).await;
    assert_eq!(cookie.status, 200);
    let again = ask(address, "GET", &opened, &[], None).await;
    assert_eq!(again.status, 401);
    assert!(again.text().contains("handover dashboard"));
    assert!(again.header("set-cookie").is_none());

    let browser = Browser::of(&host).await;
    let page = browser.get("").await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("<title>handover</title>"));
    for file in ["style.css", "app.js"] {
        assert_eq!(browser.get(file).await.status, 200);
    }
    // Nobody without the cookie, or with that of another session.
    let other = Browser::of(&host).await;
    for path in ["", "app.js", "events", "v1/status", "nothing"] {
        let path = format!("{}{path}", browser.path);
        for headers in [vec![], vec![("cookie", &*other.cookie)]] {
            let answer = ask(address, "GET", &path, &headers, None).await;
            assert_eq!(answer.status, 401, "{path}");
        }
    }
    for path in ["/", "/events", "/v1/status", "/?token=", "/?token=x"] {
        let headers = [("cookie", &*browser.cookie)];
        let answer = ask(address, "GET", path, &headers, None).await;
        assert_eq!(answer.status, 401, "{path}");
    }
    // What is not the page's to ask for.
    for path in [
        "nothing",
        "v1/config",
        "v1/state/probe/export",
        "v1/state/probe/value?key=k",
        "v1/operations/",
        "v2/status",
    ] {
        assert_eq!(browser.get(path).await.status, 404, "{path}");
    }
    for path in ["v1/shutdown", "v1/dashboard"] {
        assert_eq!(browser.post(path, b"").await.status, 404, "{path}");
    }
    assert_eq!(
        browser.get("v1/status").await.json()["host"]["pid"],
        host.pid()
    );
    assert_eq!(browser.post("end", b"").await.status, 200);
    assert_eq!(browser.get("").await.status, 401);
    assert_eq!(other.get("").await.status, 200);
}

#[tokio::test]
async fn other_sites_reach_nothing_through_a_browser() {
    let host = Host::start().await;
    let browser = Browser::of(&host).await;
    let cookie = ("cookie", &*browser.cookie);
    let status = format!("{}v1/status", browser.path);
    let own = format!("http://{}", browser.address);
    let port = browser.address.port();
    let local = format!("localhost:{port}");
    for name in [
        "evil.example",
        &format!("evil.example:{port}"),
        "192.0.2.1",
        "",
    ] {
        let answer = ask(
            browser.address,
            "GET",
            &status,
            &[cookie, ("host", name)],
            None,
        )
        .await;
        assert_eq!(answer.status, 403, "{name}");
    }
    let answer = ask(
        browser.address,
        "GET",
        &status,
        &[cookie, ("host", &local)],
        None,
    )
    .await;
    assert_eq!(answer.status, 200);
    let stop = format!("{}v1/stop?app=probe", browser.path);
    for origin in [
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        &own.replace("http", "https"),
    ] {
        for (method, path) in [("GET", &status), ("POST", &stop)] {
            let headers = [cookie, ("origin", origin)];
            let answer = ask(browser.address, method, path, &headers, Some(b"")).await;
            assert_eq!(answer.status, 403, "{method} {origin}");
        }
    }
    let answer = ask(browser.address, "POST", &stop, &[cookie], Some(b"")).await;
    assert_eq!(answer.status, 403);
    // A link is not used up by another site.
    let url = new_link(&host).await;
    let (_, token) = link(&url);
    let opened = format!("/?token={token}");
    let answer = ask(
        browser.address,
        "GET",
        &opened,
        &[("host", "evil.example")],
        None,
    )
    .await;
    assert_eq!(answer.status, 403);
    assert_eq!(
        ask(browser.address, "GET", &opened, &[], None).await.status,
        200
    );

    // The rules for the browser are in every answer.
    let refused = ask(browser.address, "GET", "/", &[], None).await;
    for answer in [
        browser.get("").await,
        browser.get("v1/status").await,
        refused,
    ] {
        let policy = answer.header("content-security-policy").unwrap();
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "frame-ancestors 'none'",
        ] {
            assert!(
                policy.split("; ").any(|one| one == part),
                "{part} in {policy}"
            );
        }
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert!(answer.header("access-control-allow-origin").is_none());
    }
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere_and_is_small() {
    let host = Host::start().await;
    let browser = Browser::of(&host).await;
    let mut size = 0;
    for file in ["", "style.css", "app.js"] {
        let text = browser.get(file).await.text();
        size += text.len();
        // The name of a namespace is the only address.
        let without = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!without.contains("://"), "{file}");
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!text.contains(word), "{word} in {file}");
        }
    }
    assert!(size < 150 * 1024, "{size} bytes");
}

#[tokio::test]
async fn what_happens_is_streamed_and_goes_on_where_it_broke_off() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let browser = Browser::of(&host).await;
    let mut stream = browser.stream(None).await;
    let who = stream.next().await.unwrap();
    assert_eq!(
        (&*who.kind, &who.data["operates"]),
        ("who", &Value::Bool(true))
    );
    let active = stream
        .until("event", |event| event["kind"] == "active")
        .await;
    assert!(active.data["message"].as_str().unwrap().contains("1.0.0"));
    stream
        .until("status", |status| {
            status["apps"][0]["active"]["version"] == "1.0.0"
        })
        .await;
    drop(stream);
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);

    // Nothing of what was seen comes again, and nothing is missing.
    let mut resumed = browser.stream(active.id.as_deref()).await;
    let seen = active.data["seq"].as_u64().unwrap();
    let mut next = seen + 1;
    loop {
        let sent = resumed.until("event", |_| true).await;
        assert_eq!(sent.data["seq"].as_u64(), Some(next));
        next += 1;
        if sent.data["kind"] == "active" && sent.data["generation"] == 2 {
            break;
        }
    }
    resumed
        .until("status", |status| {
            status["apps"][0]["active"]["version"] == "2.0.0"
        })
        .await;
    // An id of another run of the host is none: all of this one come.
    let mut whole = browser.stream(Some("1.1-999999")).await;
    assert_eq!(whole.until("event", |_| true).await.data["seq"], 1);
    // The stream ends with the session.
    browser.post("end", b"").await;
    while whole.next().await.is_some() {}
}

#[tokio::test]
async fn what_the_page_asks_for_is_done_and_remembered_with_who_asked() {
    let host = Host::start().await;
    let browser = Browser::of(&host).await;
    let file = fs::read(fixture("probe", "1.0.0")).unwrap();
    let deployed = browser
        .post("v1/deploy?name=libprobe.so&by=anna&message=prices", &file)
        .await;
    assert_eq!(deployed.status, 200, "{}", deployed.text());
    let lines = deployed.text();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["type"], &last["outcome"]),
        (&"result".into(), &"done".into())
    );
    assert_eq!(host.get("/version").await.text(), "1.0.0");
    let second = fs::read(fixture("probe", "2.0.0")).unwrap();
    browser.post("v1/deploy?name=libprobe.so", &second).await;
    assert_eq!(host.active("probe").await.version, "2.0.0");
    browser.post("v1/rollback?app=probe&by=bert", b"").await;
    assert_eq!(host.active("probe").await.version, "1.0.0");

    let history = browser.get("v1/history?app=probe").await.json();
    let by = |at: usize| history["history"][at]["by"].as_str().unwrap().to_owned();
    assert_eq!((by(0), by(2)), ("anna".to_owned(), "bert".to_owned()));
    assert_eq!(history["history"][0]["message"], "prices");
    // Who says nothing is whoever asked for the link.
    let id = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    assert_eq!(by(1), String::from_utf8(id.stdout).unwrap().trim());

    let stopped = browser.post("v1/stop?app=probe", b"").await;
    assert!(stopped.text().contains("\"done\""), "{}", stopped.text());
    assert_eq!(host.get("/version").await.status, 503);
    let asked = host.cli(["audit", "--json"]).await.json();
    let stop = asked["entries"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&stop["call"], &stop["source"]),
        (&"POST /v1/stop".into(), &"dashboard".into())
    );
    assert!(stop["uid"].is_u64() && stop["pid"].is_null(), "{stop}");
    browser.post("v1/start?app=probe", b"").await;
    assert_eq!(host.get("/version").await.text(), "1.0.0");
    // What cannot be done is said as the control socket says it.
    let refused = browser.post("v1/cancel?id=nothing", b"").await;
    assert!(refused.status >= 400 && refused.json()["error"].is_string());
}

#[tokio::test]
async fn it_listens_where_the_configuration_says_and_only_on_loopback() {
    let free = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let config = format!("[dashboard]\nlisten = \"{free}\"\n");
    let mut host = Setup::new().config(&config).start().await;
    // It is there before anybody has asked, and lets nobody in.
    assert_eq!(ask(free, "GET", "/", &[], None).await.status, 401);
    let browser = Browser::of(&host).await;
    assert_eq!(browser.address, free);
    // Over a crash the address stays, and sessions end.
    host.signal_inner(rustix::process::Signal::KILL);
    host.came_back().await;
    assert_eq!(browser.get("").await.status, 401);
    assert_eq!(Browser::of(&host).await.address, free);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("handover.toml");
    fs::write(&file, "[dashboard]\nlisten = \"0.0.0.0:9000\"\n").unwrap();
    handover(["config", "check", file.to_str().unwrap()])
        .await
        .expect_code(1)
        .expect_words(&["handover.toml:2", "dashboard.listen", "ssh -L"]);
}

#[tokio::test]
async fn a_host_without_the_key_listens_when_somebody_asks() {
    let host = Host::start().await;
    let first = Browser::of(&host).await;
    let second = Browser::of(&host).await;
    assert_eq!(first.address, second.address);
    assert_ne!(first.cookie, second.cookie);
    assert_ne!(first.path, second.path);
    let json = host
        .cli(["dashboard", "--json"])
        .await
        .expect_code(0)
        .json();
    assert!(json["url"].as_str().unwrap().contains("/?token="));
}

#[tokio::test]
async fn an_observer_has_a_page_that_changes_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can call as other users");
        return;
    }
    const OBSERVER: (u32, u32) = (65534, 65530);
    let config = "[control]\nobserve = [\"65534\"]\ngroup = \"65530\"\n";
    let host = Setup::new()
        .config(config)
        .argument("--control")
        .argument("HOME/run/control.sock")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    fs::set_permissions(host.home(), fs::Permissions::from_mode(0o711)).unwrap();
    let binary = host.scratch("handover");
    fs::copy(plugins::handover(), &binary).unwrap();
    let mut command = std::process::Command::new(&binary);
    command
        .arg("dashboard")
        .env("HANDOVER_CONTROL", host.control())
        .current_dir("/")
        .uid(OBSERVER.0)
        .gid(OBSERVER.1);
    let output = tokio::process::Command::from(command).output().await;
    let url = String::from_utf8(output.unwrap().stdout).unwrap();
    let browser = Browser::opening(&url).await;

    let who = browser.stream(None).await.next().await.unwrap();
    assert_eq!(who.data["operates"], false);
    assert_eq!(browser.get("v1/status").await.status, 200);
    for path in ["v1/stop?app=probe", "v1/deploy", "v1/cancel?id=x"] {
        let answer = browser.post(path, b"").await;
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.text().contains("may observe"));
    }
    assert_eq!(host.get("/version").await.text(), "1.0.0");

    // Who is named no more sees no more, with the session that is there.
    let file = host.home().join("handover.toml");
    let without = fs::read_to_string(&file).unwrap().replace("\"65534\"", "");
    fs::write(&file, without).unwrap();
    host.cli(["reload-config"]).await.expect_code(0);
    assert_eq!(browser.get("v1/status").await.status, 403);
}
