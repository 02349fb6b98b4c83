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
    browser::Tab,
    client::{Answer, Http1},
    host::{Host, Setup, handover},
    plugins::{self, fixture},
};
use minisign::KeyPair;
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
    // What apps keep, what is set and who did what is not for them; the log is.
    for path in [
        "v1/settings?app=probe",
        "v1/audit",
        "v1/state/probe/keys",
        "v1/state/probe/stats",
    ] {
        assert_eq!(browser.get(path).await.status, 403, "{path}");
    }
    assert_eq!(browser.get("v1/logs?lines=3").await.status, 200);

    // Who is named no more sees no more, with the session that is there.
    let file = host.home().join("handover.toml");
    let without = fs::read_to_string(&file).unwrap().replace("\"65534\"", "");
    fs::write(&file, without).unwrap();
    host.cli(["reload-config"]).await.expect_code(0);
    assert_eq!(browser.get("v1/status").await.status, 403);
}

/// The page of a host in a real browser; none where the machine has none.
async fn tab(host: &Host) -> Option<Tab> {
    let tab = Tab::open(new_link(host).await.trim()).await;
    if tab.is_none() {
        eprintln!("skipped: this machine has no Chromium");
    }
    tab
}

/// Presses a button of the dialog that is open, and waits until what it asks for has been done.
async fn confirm(tab: &mut Tab, go: &str) {
    tab.press("#ask", go).await;
    tab.until("document.querySelector('#ask .outcome.good, #ask .outcome.bad')")
        .await;
    let said = tab
        .value("document.querySelector('#ask .outcome').className + ': ' + document.querySelector('#ask .outcome').textContent")
        .await;
    assert!(said.as_str().unwrap().contains("good: "), "{go}: {said}");
    tab.press("#ask", "Close").await;
    tab.until("!document.querySelector('#ask').open").await;
}

async fn show(tab: &mut Tab, app: &str) {
    // A link leads to the page by another one.
    tab.until("document.querySelector('main h2')").await;
    tab.value(&format!("void (location.hash = '#{app}')")).await;
    let title = if app.is_empty() { "Host" } else { app };
    tab.until(&format!(
        "document.querySelector('main h2').textContent === '{title}'"
    ))
    .await;
}

/// Who says to have made the newest call of that name, by the audit log.
async fn asked_by(host: &Host, call: &str) -> String {
    host.until("the entry in the audit log", async || {
        let asked = host.cli(["audit", "--json"]).await.json();
        let entries = asked["entries"].as_array().unwrap();
        let newest = entries.iter().rev().find(|one| one["call"] == call)?;
        Some(newest["by"].as_str().unwrap_or_default().to_owned())
    })
    .await
}

#[tokio::test]
async fn each_button_asks_once_does_it_and_says_who() {
    let host = Host::start().await;
    let Some(mut tab) = tab(&host).await else {
        return;
    };
    tab.shows("Nothing has been deployed").await;
    tab.press("main", "Deploy").await;
    tab.choose("#ask [name=file]", &[&fixture("state", "1.0.0")])
        .await;
    tab.fill("#ask [name=by]", "ann").await;
    confirm(&mut tab, "Deploy").await;
    assert_eq!(host.active("state").await.version, "1.0.0");

    show(&mut tab, "state").await;
    for (name, go, call) in [
        ("Restart", "Restart", "POST /v1/restart"),
        ("Reload", "Reload", "POST /v1/reload"),
        ("Pause", "Pause", "POST /v1/pause"),
        ("Resume", "Resume", "POST /v1/resume"),
        ("Stop", "Stop", "POST /v1/stop"),
        ("Start", "Start", "POST /v1/start"),
    ] {
        tab.press("main", name).await;
        tab.fill("#ask [name=by]", "bert").await;
        confirm(&mut tab, go).await;
        assert_eq!(asked_by(&host, call).await, "bert");
    }
    assert_eq!(host.active("state").await.generation, 3);
    // What makes something live is in the history with who wanted it.
    let history = host.cli(["history", "--json"]).await.json();
    let entries = history["history"].as_array().unwrap();
    let by: Vec<_> = entries
        .iter()
        .filter_map(|one| one["by"].as_str())
        .collect();
    assert_eq!(by, ["ann", "bert", "bert"]);

    // Settings: a text, JSON, and taken away.
    let settings = "section[aria-label=Settings]";
    tab.press(settings, "Set").await;
    tab.fill("#ask [name=key]", "theme").await;
    tab.fill("#ask [name=value]", "dark").await;
    confirm(&mut tab, "Set").await;
    assert_eq!(host.get("/setting/theme").await.text(), "\"dark\"");
    tab.press(settings, "Change theme").await;
    tab.fill("#ask [name=value]", "\"light\"").await;
    tab.fill("#ask [name=by]", "carl").await;
    confirm(&mut tab, "Set").await;
    assert_eq!(host.get("/setting/theme").await.text(), "\"light\"");
    assert_eq!(asked_by(&host, "POST /v1/set").await, "carl");
    tab.shows("carl").await;
    tab.press(settings, "Take away theme").await;
    confirm(&mut tab, "Take away").await;
    assert_eq!(host.get("/setting/theme").await.text(), "none");

    show(&mut tab, "").await;
    tab.press("main", "Drain").await;
    confirm(&mut tab, "Drain").await;
    tab.shows("This node is drained").await;
    tab.press("main", "Undo the drain").await;
    confirm(&mut tab, "Undo the drain").await;
    let by = asked_by(&host, "POST /v1/drain-node").await;
    assert!(!by.is_empty(), "the user of the session is filled in");
    tab.shows("Audit log").await;
    tab.shows("bert").await;
}

#[tokio::test]
async fn keys_of_the_state_are_listed_page_by_page_without_their_values() {
    let host = Host::serving(&fixture("state", "1.0.0")).await;
    for number in 0..120 {
        let path = format!("/kv/key-{number:03}");
        let put = ask(host.address, "PUT", &path, &[], Some(b"value")).await;
        assert_eq!(put.status, 200);
    }
    let Some(mut tab) = tab(&host).await else {
        return;
    };
    show(&mut tab, "state").await;
    let card = "section[aria-label=State]";
    tab.press(card, "Show keys").await;
    tab.shows("Keys 1 to 50, and there are more").await;
    tab.shows("key-049").await;
    tab.press(card, "Next").await;
    tab.shows("Keys 51 to 100, and there are more").await;
    tab.press(card, "Next").await;
    tab.shows("Keys 101 to 120, the last").await;
    tab.shows("key-119").await;
    tab.press(card, "Back").await;
    tab.shows("Keys 51 to 100").await;
    tab.fill("[name=prefix]", "key-11").await;
    tab.press(card, "Show keys").await;
    tab.shows("Keys 1 to 10, the last").await;
}

#[tokio::test]
async fn a_page_that_is_opened_after_a_swap_shows_what_was_before_it() {
    let host = Setup::new()
        .config("[metrics]\nrequest_durations = true\n\n[dashboard]\nlisten = \"127.0.0.1:0\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    // The host counts by itself, so that both sides of the swap are in samples.
    let browser = Browser::of(&host).await;
    let mut stream = browser.stream(None).await;
    stream.until("figures", |_| true).await;
    let mut counted = async |path: &str| {
        let mut seconds = 0;
        while seconds < 2 {
            host.get(path).await;
            let sent = stream.until("figures", |_| true).await;
            let samples = sent.data["samples"].as_array().unwrap().iter();
            seconds += samples
                .filter(|one| one["apps"]["probe"]["within"].is_array())
                .count();
        }
    };
    counted("/version").await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    // The second of the swap is of neither side.
    counted("/version").await;
    counted("/fails?version=2.0.0&n=1").await;
    let Some(mut tab) = tab(&host).await else {
        return;
    };
    show(&mut tab, "probe").await;
    tab.shows("The last swap made 2.0.0 live at").await;
    let words = "document.querySelector('section[aria-label=\"Around each swap\"] p').textContent";
    tab.until(&format!(
        "{words}.match(/before it: [0-9.]+ requests a second, no errors, p50 under 5 ms/)"
    ))
    .await;
    tab.until(&format!(
        "{words}.match(/(since|after it): .* errors a second, p50/)"
    ))
    .await;
    for chart in ["Requests a second", "Errors (5xx) a second", "Latency"] {
        let svg = format!("document.querySelector('section[aria-label=\"{chart}\"] svg')");
        tab.until(&format!("{svg}.querySelectorAll('.mark').length === 2"))
            .await;
        tab.until(&format!(
            "{svg}.querySelector('.curve').getAttribute('d').length > 10"
        ))
        .await;
    }
}

#[tokio::test]
async fn the_log_follows_until_somebody_scrolls_back() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let Some(mut tab) = tab(&host).await else {
        return;
    };
    show(&mut tab, "probe").await;
    host.get("/log?name=first&n=400").await;
    tab.shows("first 399").await;
    // Only the last ones are there.
    tab.until("document.querySelectorAll('#records li').length === 300")
        .await;
    let records = "document.querySelector('#records')";
    tab.until(&format!(
        "{records}.scrollHeight - {records}.scrollTop - {records}.clientHeight < 2"
    ))
    .await;
    tab.value(&format!("void ({records}.scrollTop = 100)"))
        .await;
    tab.until("document.querySelector('[aria-pressed=false]')")
        .await;
    host.get("/log?name=second&n=3").await;
    tab.shows("3 new records").await;
    assert_eq!(
        tab.value(&format!("{records}.textContent.includes('second')"))
            .await,
        false
    );
    tab.press("section[aria-label=Log]", "Follow").await;
    tab.shows("second 2").await;
    // Of another level there is nothing.
    let level = "document.querySelector('section[aria-label=Log] select')";
    tab.value(&format!(
        "void ({level}.value = 'error', {level}.dispatchEvent(new Event('change')))"
    ))
    .await;
    tab.shows("No record of this kind is kept").await;
}

#[tokio::test]
async fn a_deploy_takes_its_signature_along() {
    let pair = KeyPair::generate_unencrypted_keypair().unwrap();
    let config = format!("[trust]\nkeys = [\"{}\"]\n", pair.pk.to_base64());
    let host = Setup::new().config(&config).start().await;
    let file = fixture("hello", "1.0.0");
    let bytes = fs::read(&file).unwrap();
    let signed = minisign::sign(None, &pair.sk, bytes.as_slice(), None, None).unwrap();
    let signature = host.scratch("hello.so.minisig");
    fs::write(&signature, signed.into_string()).unwrap();
    let Some(mut tab) = tab(&host).await else {
        return;
    };
    tab.press("main", "Deploy").await;
    tab.choose("#ask [name=file]", &[&file]).await;
    tab.press("#ask", "Deploy").await;
    tab.until("document.querySelector('#ask .outcome.bad')")
        .await;
    tab.press("#ask", "Close").await;
    tab.until("!document.querySelector('#ask').open").await;
    tab.press("main", "Deploy").await;
    tab.choose("#ask [name=file]", &[&file]).await;
    tab.choose("#ask [name=signature]", &[&signature]).await;
    confirm(&mut tab, "Deploy").await;
    assert_eq!(host.active("hello").await.version, "1.0.0");
}

#[tokio::test]
async fn a_tenant_that_stays_is_moved_with_what_it_has_there() {
    let config = "[app.probe.tenant]\nfrom = \"header:x-tenant\"\nmove = \"when-idle\"\n";
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let _slow = begin_slow(&host, &[("x-tenant", "acme")]).await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    let Some(mut tab) = tab(&host).await else {
        return;
    };
    show(&mut tab, "probe").await;
    tab.press("main", "Move acme").await;
    tab.value("document.querySelector('#ask [name=now]').click()")
        .await;
    tab.fill("#ask [name=by]", "dora").await;
    confirm(&mut tab, "Move").await;
    assert_eq!(asked_by(&host, "POST /v1/move").await, "dora");
    host.settled("probe").await;
}

#[tokio::test]
async fn what_holds_an_old_version_is_cancelled() {
    let config = "[app.probe]\nroutes = [\"/\"]\ndrain_deadline = \"none\"\n";
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let _slow = begin_slow(&host, &[]).await;
    let file = fixture("probe", "2.0.0");
    host.cli(["deploy", "--detach", file.to_str().unwrap()])
        .await
        .expect_code(0);
    let Some(mut tab) = tab(&host).await else {
        return;
    };
    show(&mut tab, "probe").await;
    tab.press("main", "Cancel request GET /slow").await;
    tab.fill("#ask [name=by]", "emil").await;
    confirm(&mut tab, "Cancel it").await;
    assert_eq!(asked_by(&host, "POST /v1/cancel").await, "emil");
    host.settled("probe").await;
}

/// Begins a request that is answered in ten minutes.
async fn begin_slow(host: &Host, headers: &[(&str, &str)]) -> Http1 {
    let mut slow = Http1::connect(host.address).await.unwrap();
    slow.send_head("GET", "/slow?ms=600000", headers)
        .await
        .unwrap();
    host.until("the request", async || {
        let app = host.app("probe").await;
        (app.generations[0].in_flight > 0).then_some(())
    })
    .await;
    slow
}

#[tokio::test]
async fn the_page_is_used_by_keyboard_alone_and_comes_back_after_a_lost_connection() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let Some(mut tab) = tab(&host).await else {
        return;
    };
    show(&mut tab, "probe").await;
    // Tab by tab to the button, which Enter presses; Escape leaves, and the focus is where it was.
    tab.until(
        "[...document.querySelectorAll('main button')].some((one) => one.textContent === 'Pause')",
    )
    .await;
    for _ in 0..60 {
        tab.key("Tab").await;
        if tab.value("document.activeElement.textContent").await == "Pause" {
            break;
        }
    }
    tab.key("Enter").await;
    tab.until("document.querySelector('#ask').open").await;
    tab.key("Escape").await;
    tab.until("!document.querySelector('#ask').open").await;
    tab.until("document.activeElement.textContent === 'Pause'")
        .await;
    // Everything that can be used has a name.
    let unnamed = tab
        .value(
            "[...document.querySelectorAll('button, input, select, textarea, [tabindex=\"0\"], meter')]\
             .filter((one) => !(one.getAttribute('aria-label') || one.textContent.trim() && one.tagName === 'BUTTON' || one.labels?.length))\
             .map((one) => one.outerHTML)",
        )
        .await;
    assert_eq!(unnamed, serde_json::json!([]));

    // A host that says nothing is none, until it does.
    host.signal_inner(rustix::process::Signal::STOP);
    tab.shows("connection lost").await;
    host.signal_inner(rustix::process::Signal::CONT);
    tab.shows("connected").await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    tab.shows("2.0.0, generation 2").await;
}
