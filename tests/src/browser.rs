//! A page in Chromium, driven over its DevTools protocol. A machine without Chromium has none.

use std::{fs, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::client::{WebSocket, websocket::Message};

/// The names that Chromium goes by.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// How long the browser may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a page is looked at while something is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A tab. Dropping it ends its browser.
#[derive(Debug)]
pub struct Tab {
    socket: WebSocket,
    session: String,
    last: u64,
    _browser: Child,
    _profile: TempDir,
}

impl Tab {
    /// Opens `url`; none where there is no Chromium.
    pub async fn open(url: &str) -> Option<Self> {
        let profile = tempfile::tempdir().expect("a temporary folder");
        let browser = NAMES.iter().find_map(|name| {
            Command::new(name)
                .args(["--headless=new", "--no-sandbox", "--disable-gpu"])
                .args(["--disable-dev-shm-usage", "--remote-debugging-port=0"])
                .arg(format!("--user-data-dir={}", profile.path().display()))
                .arg("about:blank")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .kill_on_drop(true)
                .spawn()
                .ok()
        })?;
        let (address, path) = door(profile.path()).await;
        let socket = WebSocket::connect(address, &path).await;
        let mut tab = Self {
            socket: socket.expect("Chromium answers"),
            session: String::new(),
            last: 0,
            _browser: browser,
            _profile: profile,
        };
        let target = tab
            .call("Target.createTarget", json!({"url": "about:blank"}))
            .await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = tab.call("Target.attachToTarget", attach).await;
        tab.session = attached["sessionId"].as_str().expect("a session").into();
        tab.call("Page.navigate", json!({"url": url})).await;
        Some(tab)
    }

    /// Calls a method of the protocol.
    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut call = json!({"id": self.last, "method": method, "params": params});
        if !self.session.is_empty() {
            call["sessionId"] = self.session.clone().into();
        }
        let sent = self.socket.send(&call.to_string()).await;
        sent.expect("Chromium listens");
        let answered = timeout(PATIENCE, async {
            loop {
                let said = self.socket.receive().await.expect("Chromium answers");
                let Message::Text(text) = said else {
                    panic!("Chromium has left: {said:?}");
                };
                let said: Value = serde_json::from_str(&text).expect("Chromium says JSON");
                if said["id"] == self.last {
                    return said;
                }
            }
        });
        let mut answer = answered.await.expect("Chromium answers in time");
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].take()
    }

    /// Returns the value of an expression of JavaScript.
    pub async fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", params).await;
        let problem = &answer["exceptionDetails"];
        assert!(problem.is_null(), "{expression}: {problem}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true of the page.
    pub async fn until(&mut self, expression: &str) {
        let end = Instant::now() + PATIENCE;
        let guarded =
            format!("(() => {{ try {{ return !!({expression}) }} catch {{ return false }} }})()");
        while self.value(&guarded).await != true {
            if Instant::now() > end {
                let page = self.value("document.body.innerText").await;
                panic!("not in time: {expression}\n{}", page.as_str().unwrap_or(""));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until the page has `text` in it.
    pub async fn shows(&mut self, text: &str) {
        let text = Value::from(text);
        self.until(&format!("document.body.innerText.includes({text})"))
            .await;
    }

    /// Presses the button of that name in the first element that `within` selects, as a mouse does.
    pub async fn press(&mut self, within: &str, name: &str) {
        let (within, name) = (Value::from(within), Value::from(name));
        let button = format!(
            "[...document.querySelector({within}).querySelectorAll('button')].find((one) => !one.disabled \
             && (one.getAttribute('aria-label') ?? one.textContent) === {name})"
        );
        self.until(&button).await;
        let middle = format!(
            "(() => {{ const one = {button}; if (!one) return null; one.scrollIntoView({{block: 'center'}}); \
             const at = one.getBoundingClientRect(), x = at.x + at.width / 2, y = at.y + at.height / 2; \
             return one.contains(document.elementFromPoint(x, y)) ? [x, y] : null }})()"
        );
        // What comes in above it moves it: it is pressed where it has come to rest.
        let mut before = Value::Null;
        let middle = loop {
            let now = self.value(&middle).await;
            if now.is_array() && now == before {
                break now;
            }
            before = now;
            sleep(LOOK_EVERY * 2).await;
        };
        for kind in ["mousePressed", "mouseReleased"] {
            let params = json!({
                "type": kind, "x": middle[0], "y": middle[1], "button": "left", "clickCount": 1
            });
            self.call("Input.dispatchMouseEvent", params).await;
        }
    }

    /// Types into the field that `selector` selects, in place of what is there.
    pub async fn fill(&mut self, selector: &str, text: &str) {
        let selector = Value::from(selector);
        self.until(&format!("document.querySelector({selector})"))
            .await;
        self.value(&format!(
            "(() => {{ const one = document.querySelector({selector}); one.focus(); one.select() }})()"
        ))
        .await;
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// Chooses files in the field that `selector` selects.
    pub async fn choose(&mut self, selector: &str, files: &[&Path]) {
        self.until(&format!(
            "document.querySelector({})",
            Value::from(selector)
        ))
        .await;
        let field = format!("document.querySelector({})", Value::from(selector));
        let field = json!({"expression": field});
        let field = self.call("Runtime.evaluate", field).await;
        let set = json!({"objectId": field["result"]["objectId"], "files": files});
        self.call("DOM.setFileInputFiles", set).await;
    }

    /// Presses a key, such as `Tab`.
    pub async fn key(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let code = match key {
                "Tab" => 9,
                "Enter" => 13,
                _ => 27,
            };
            let mut params =
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if key == "Enter" && kind == "keyDown" {
                params["text"] = "\r".into();
            }
            self.call("Input.dispatchKeyEvent", params).await;
        }
    }
}

/// Where a browser with that profile listens, which it says in a file.
async fn door(profile: &Path) -> (SocketAddr, String) {
    let file = profile.join("DevToolsActivePort");
    let end = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(&file).unwrap_or_default();
        if let Some((port, path)) = text.split_once('\n') {
            let port: u16 = port.parse().expect("a port");
            return (([127, 0, 0, 1], port).into(), path.trim().to_owned());
        }
        assert!(Instant::now() < end, "Chromium does not start");
        sleep(LOOK_EVERY).await;
    }
}
