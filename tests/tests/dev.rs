//! `handover dev`: the code as it is now, always; and while it does not compile, the code as it
//! was.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use handover_tests::{client::Http1, plugins};
use rustix::process::{Pid, Signal, kill_process};

/// A running `handover dev`.
struct Dev {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    address: SocketAddr,
}

impl Dev {
    fn start(crate_dir: &Path) -> Self {
        Self::start_with(crate_dir, &[])
    }

    fn start_with(crate_dir: &Path, arguments: &[&str]) -> Self {
        Self::start_at(&free_address().to_string(), crate_dir, arguments)
    }

    fn start_by_name(crate_dir: &Path, arguments: &[&str]) -> Self {
        let listen = format!("localhost:{}", free_address().port());
        Self::start_at(&listen, crate_dir, arguments)
    }

    fn start_at(listen: &str, crate_dir: &Path, arguments: &[&str]) -> Self {
        let address = listen.replace("localhost", "127.0.0.1").parse().unwrap();
        let mut command = Command::new(plugins::handover());
        command
            .arg("dev")
            .arg(crate_dir)
            .args(["--listen", listen])
            .args(arguments);
        Self::spawn(address, crate_dir, command, Stdio::null())
    }

    /// At a terminal, whose keys are what is written to standard input.
    fn start_at_terminal(crate_dir: &Path) -> Self {
        let address = free_address();
        let mut command = Command::new("script");
        let line = format!(
            "exec '{}' dev '{}' --listen {address}",
            plugins::handover().display(),
            crate_dir.display()
        );
        command.args(["-qfec", &line, "/dev/null"]);
        Self::spawn(address, crate_dir, command, Stdio::piped())
    }

    fn spawn(address: SocketAddr, crate_dir: &Path, mut command: Command, stdin: Stdio) -> Self {
        command
            .env("CARGO_TARGET_DIR", plugins::target_dir())
            .env_remove("HANDOVER_VERSION")
            .env_remove("HANDOVER_CONTROL");
        command.current_dir(crate_dir.parent().unwrap());
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::<Mutex<Vec<String>>>::default();
        let outputs: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for output in outputs {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                BufReader::new(output)
                    .lines()
                    .map_while(Result::ok)
                    .for_each(|line| said.lock().unwrap().push(line));
            });
        }
        Self {
            child,
            said,
            address,
        }
    }

    fn has_said(&self, words: &str) -> bool {
        self.said
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.contains(words))
    }

    async fn answers(&self, text: &str) {
        self.until(&format!("`{text}` to be answered"), async || {
            let answer = async { Http1::connect(self.address).await?.get("/").await }.await;
            answer.is_ok_and(|answer| answer.text() == text)
        })
        .await;
    }

    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(240);
        while !is_so().await {
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}:\n{}",
                self.said.lock().unwrap().join("\n")
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It has children of its own, which end with it when it is asked to.
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// An address that is free until now; nobody else takes ports of that range just now.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// A crate outside of the workspace, with the dependencies and the lock file of `probe`, so that
/// they need not be built again.
fn crate_in(dir: &Path, name: &str) {
    let workspace = plugins::workspace();
    let probe = fs::read_to_string(workspace.join("tests/plugins/probe/Cargo.toml")).unwrap();
    let root = fs::read_to_string(workspace.join("Cargo.toml")).unwrap();
    let shared = root
        .split("[workspace.dependencies]")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    let shared = shared.replace("path = \"", &format!("path = \"{}/", workspace.display()));
    let package = root
        .split("[workspace.package]")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    let profile = root
        .split("[profile.dev]")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    let own = probe
        .replace("name = \"probe\"", &format!("name = \"{name}\""))
        .replace("[lints]\nworkspace = true\n", "");
    let text = format!(
        "{own}\n[workspace]\nresolver = \"3\"\n[workspace.package]{package}\n[workspace.dependencies]{shared}\n[profile.dev]{profile}\n"
    );
    fs::create_dir_all(dir.join("src")).unwrap();
    fs::write(dir.join("Cargo.toml"), text).unwrap();
    fs::copy(workspace.join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
}

fn write_source(dir: &Path, greeting: &str) {
    let source = format!(
        "use axum::{{Router, routing::get}};
use handover_plugin::{{Context, Error}};

#[handover_plugin::app]
async fn app(_cx: Context) -> Result<Router, Error> {{
    Ok(Router::new().route(\"/\", get(async || {greeting})))
}}
"
    );
    fs::write(dir.join("src/lib.rs"), source).unwrap();
}

#[tokio::test]
async fn each_change_is_served_and_an_error_keeps_what_was() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("developed");
    crate_in(&crate_dir, "developed");
    write_source(&crate_dir, "\"one\"");
    let dev = Dev::start(&crate_dir);
    dev.answers("one").await;
    let mut kept = Http1::connect(dev.address).await.unwrap();
    assert_eq!(kept.get("/").await.unwrap().text(), "one");

    write_source(&crate_dir, "\"two\"");
    dev.answers("two").await;
    assert_eq!(
        kept.get("/").await.unwrap().text(),
        "two",
        "on the connection that was open"
    );

    write_source(&crate_dir, "not_there()");
    dev.until("the error of the compiler", async || {
        dev.has_said("not_there")
    })
    .await;
    assert_eq!(kept.get("/").await.unwrap().text(), "two");

    write_source(&crate_dir, "\"three\"");
    dev.answers("three").await;
    assert_eq!(kept.get("/").await.unwrap().text(), "three");
}

#[tokio::test]
async fn it_waits_for_code_that_compiles() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("waiting");
    crate_in(&crate_dir, "waiting");
    write_source(&crate_dir, "does_not_exist()");
    let dev = Dev::start(&crate_dir);
    dev.until("the error of the compiler", async || {
        dev.has_said("does_not_exist")
    })
    .await;
    write_source(&crate_dir, "\"at last\"");
    dev.answers("at last").await;
}

#[tokio::test]
async fn a_build_script_that_writes_its_own_sources_anew_is_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("generated");
    crate_in(&crate_dir, "generated");
    // As many do: the same content each time, beside the sources that are watched.
    let script = r#"fn main() {
    std::fs::create_dir_all("src/made").unwrap();
    std::fs::write("src/made/mod.rs", "pub const MARK: &str = \"made\";\n").unwrap();
}
"#;
    fs::write(crate_dir.join("build.rs"), script).unwrap();
    let write = |text: &str| {
        write_source(&crate_dir, &format!("concat!(\"{text}\", \" \")"));
        let path = crate_dir.join("src/lib.rs");
        let source = fs::read_to_string(&path).unwrap();
        fs::write(path, format!("mod made;\npub use made::MARK;\n{source}")).unwrap();
    };
    write("one");
    let dev = Dev::start(&crate_dir);
    dev.answers("one ").await;
    let of_script = || {
        let said = dev.said.lock().unwrap();
        let building = said.iter().filter(|line| line.contains("building"));
        building.filter(|line| line.contains("src/made")).count()
    };
    // What it made is new once, its folder too; then it is known.
    let mut before = 0;
    for text in ["two", "three", "four", "five"] {
        write(text);
        dev.answers(&format!("{text} ")).await;
        if text == "three" {
            before = of_script();
        }
    }
    assert_eq!(of_script(), before, "{:#?}", dev.said.lock().unwrap());
}

#[tokio::test]
async fn the_app_has_its_configuration_and_its_variables_and_each_change_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("configured");
    crate_in(&crate_dir, "configured");
    // As the guide has it: what is missing is an error of the constructor.
    let source = r#"use axum::{Router, routing::get};
use handover_plugin::{Context, Error};

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    #[derive(serde::Deserialize)]
    struct Config {
        title: String,
    }
    let config: Config = cx.config()?;
    let url = cx.env("SHOP_URL").ok_or("SHOP_URL is not set")?;
    let key = cx.env("SHOP_KEY").ok_or("SHOP_KEY is not set")?;
    let also = std::env::var("SHOP_URL").map_err(|error| error.to_string())?;
    assert_eq!(also, url);
    let text = format!("{} {url} {key}", config.title);
    Ok(Router::new().route("/", get(async move || text)))
}
"#;
    fs::write(crate_dir.join("src/lib.rs"), source).unwrap();
    let toml = |title: &str| {
        format!(
            "[app.configured]\nroutes = [\"shop.example.org/\"]\n[app.configured.config]\ntitle = \"{title}\"\n[dev.env]\nSHOP_KEY = \"from-toml\"\n"
        )
    };
    let file = crate_dir.join("handover.toml");
    fs::write(&file, toml("one")).unwrap();
    let env = crate_dir.join(".env");
    fs::write(&env, "SHOP_URL=first\nSHOP_KEY=from-file\n").unwrap();
    {
        let dev = Dev::start_by_name(&crate_dir, &[]);
        dev.answers("one first from-toml").await;

        fs::write(&env, "SHOP_URL='second one'\n").unwrap();
        dev.answers("one second one from-toml").await;

        fs::write(&file, toml("two")).unwrap();
        dev.answers("two second one from-toml").await;

        // What cannot be read changes nothing.
        fs::write(&file, "[app.configured\n").unwrap();
        dev.until("the place of the error", async || {
            dev.has_said("handover.toml:1: ")
        })
        .await;
        dev.answers("two second one from-toml").await;
    }
    let elsewhere = dir.path().join("elsewhere.toml");
    fs::write(&elsewhere, toml("elsewhere")).unwrap();
    let named = elsewhere.to_str().unwrap();
    let dev = Dev::start_with(
        &crate_dir,
        &["--config", named, "--env", "SHOP_KEY=from-flag"],
    );
    dev.answers("elsewhere second one from-flag").await;
}

/// What a browser is answered at `/`.
async fn page(dev: &Dev) -> String {
    let answer = async {
        let mut browser = Http1::connect(dev.address).await?;
        let request = "GET / HTTP/1.1\r\nhost: localhost\r\naccept: text/html,*/*;q=0.8\r\naccept-encoding: gzip\r\n\r\n";
        browser.send(request.as_bytes()).await?;
        browser.answer("GET").await
    };
    answer
        .await
        .map_or_else(|error| error.to_string(), |answer| answer.text())
}

#[tokio::test]
async fn a_browser_is_shown_the_errors_then_the_app_and_each_change_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("shown");
    crate_in(&crate_dir, "shown");
    let html = |text: &str| format!("axum::response::Html(\"<p>{text}</p>\")");
    write_source(&crate_dir, "Vec::<u8>::from(\"<oh>\").no_such_thing()");
    let dev = Dev::start(&crate_dir);
    dev.until("the page with the errors", async || {
        page(&dev).await.contains("Vec&lt;u8&gt;")
    })
    .await;
    let script = |page: &str| {
        let (_, rest) = page
            .split_once("<script src=\"/.handover-dev/reload.js?")
            .unwrap();
        rest.split_once("\"></script>").unwrap().0.to_owned()
    };
    let failed = script(&page(&dev).await);

    // What a page hears: that something else is there than it was made of.
    let mut events = tokio::process::Command::new("curl")
        .args(["-sN", "--max-time", "200"])
        .arg(format!("http://{}/.handover-dev/events", dev.address))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let events = tokio::io::BufReader::new(events.stdout.take().unwrap());
    let mut events = tokio::io::AsyncBufReadExt::lines(events);
    let mut hears = async |token: &str| {
        while let Some(line) = events.next_line().await.unwrap() {
            if line.strip_prefix("data: ") == Some(token) {
                return;
            }
        }
        panic!("the events ended");
    };
    hears(&failed).await;
    let mut before = failed;
    for text in ["one", "two"] {
        write_source(&crate_dir, &html(text));
        let whole = format!("<p>{text}</p><script src=");
        dev.until(text, async || page(&dev).await.starts_with(&whole))
            .await;
        let token = script(&page(&dev).await);
        assert_ne!(token, before);
        hears(&token).await;
        before = token;
    }
    // A failed build beside it is no reason to load anything.
    write_source(&crate_dir, "not_there()");
    dev.until("the error of the compiler", async || {
        dev.has_said("generation 2 goes on")
    })
    .await;
    assert_eq!(script(&page(&dev).await), before);
    drop(dev);

    write_source(&crate_dir, &html("untouched"));
    let dev = Dev::start_with(&crate_dir, &["--no-reload"]);
    dev.answers("<p>untouched</p>").await;
}

#[tokio::test]
async fn at_a_terminal_keys_ask_for_a_build_for_help_and_for_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("pressed");
    crate_in(&crate_dir, "pressed");
    write_source(&crate_dir, "\"served\"");
    let mut dev = Dev::start_at_terminal(&crate_dir);
    dev.answers("served").await;
    let mut keys = dev.child.stdin.take().unwrap();
    keys.write_all(b"r").unwrap();
    dev.until("a build", async || dev.has_said("the plugin is the same"))
        .await;
    let helps = |dev: &Dev| {
        let said = dev.said.lock().unwrap();
        said.iter().filter(|line| line.contains("q quit")).count()
    };
    // Once at the start already.
    keys.write_all(b"xh").unwrap();
    dev.until("what the keys are", async || helps(&dev) == 2)
        .await;
    keys.write_all(b"q").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match dev.child.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < deadline, "it goes on"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_constructor_that_takes_long_is_told_about_and_one_that_fails_once() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("slow");
    crate_in(&crate_dir, "slow");
    let pipe = dir.path().join("pipe");
    let mode = 0o600.into();
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    // It waits until somebody writes, in the child and then in the host.
    let source = format!(
        r#"use axum::{{Router, routing::get}};
use handover_plugin::{{Context, Error}};

#[handover_plugin::app]
async fn app(_cx: Context) -> Result<Router, Error> {{
    match std::fs::read_to_string({pipe:?})?.as_str() {{
        "fail" => Err(Error::msg("the mast is broken")),
        _ => Ok(Router::new().route("/", get(async || "served"))),
    }}
}}
"#,
        pipe = pipe.to_str().unwrap(),
    );
    let path = crate_dir.join("src/lib.rs");
    fs::write(&path, &source).unwrap();
    let dev = Dev::start(&crate_dir);
    let says = async |text: &'static str| {
        let pipe = pipe.clone();
        tokio::task::spawn_blocking(move || fs::write(pipe, text))
            .await
            .unwrap()
            .unwrap();
    };
    dev.until("what the child is at", async || {
        dev.has_said("its constructor and its checks run in the preflight child")
    })
    .await;
    says("go on").await;
    dev.until("what the host is at", async || {
        dev.has_said("its constructor runs in the host")
    })
    .await;
    says("go on").await;
    dev.answers("served").await;

    fs::write(&path, source.replace("\"served\"", "\"never served\"")).unwrap();
    says("fail").await;
    dev.until("why it is refused", async || {
        dev.has_said("the mast is broken")
    })
    .await;
    // When the next one is served, all that there was to say of it has been said.
    write_source(&crate_dir, "\"served again\"");
    dev.answers("served again").await;
    let said = dev.said.lock().unwrap();
    let times = said
        .iter()
        .filter(|line| line.contains("the mast is broken"));
    assert_eq!(times.count(), 1, "{said:#?}");
}

#[tokio::test]
async fn what_git_ignores_and_what_the_app_writes_is_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("writing");
    crate_in(&crate_dir, "writing");
    fs::write(crate_dir.join(".gitignore"), "/uploads\n").unwrap();
    let git = Command::new("git")
        .args(["init", "-q"])
        .current_dir(&crate_dir)
        .status();
    assert!(git.unwrap().success());
    fs::create_dir(crate_dir.join("uploads")).unwrap();
    // A journal that it holds open beside its sources, a database, and an upload.
    let source = |greeting: &str| {
        format!(
            r#"use axum::{{Router, routing::get}};
use handover_plugin::{{Context, Error}};
use std::{{fs::{{self, File}}, io::Write, sync::{{Arc, Mutex}}}};

#[handover_plugin::app]
async fn app(_cx: Context) -> Result<Router, Error> {{
    let held = File::options().append(true).create(true).open({dir:?}.to_owned() + "/held")?;
    let held = Arc::new(Mutex::new(held));
    Ok(Router::new().route("/", get(async move || {{
        held.lock().unwrap().write_all(b"asked\n").unwrap();
        fs::write({dir:?}.to_owned() + "/shop.db", b"asked").unwrap();
        fs::write({dir:?}.to_owned() + "/uploads/one.png", b"asked").unwrap();
        "{greeting}"
    }})))
}}
"#,
            dir = crate_dir.to_str().unwrap(),
        )
    };
    let path = crate_dir.join("src/lib.rs");
    fs::write(&path, source("one")).unwrap();
    let dev = Dev::start(&crate_dir);
    for greeting in ["one", "two", "three"] {
        fs::write(&path, source(greeting)).unwrap();
        dev.answers(greeting).await;
    }
    for written in ["held", "shop.db", "uploads/one.png"] {
        assert!(crate_dir.join(written).exists(), "{written}");
    }
    // What is seen is told in the order in which it was seen, and these were before the last.
    let said = dev.said.lock().unwrap();
    let about = |name: &str| said.iter().filter(|line| line.contains(name)).count();
    assert_eq!(
        about("held") + about("shop.db") + about("uploads"),
        0,
        "{said:#?}"
    );
    assert!(about("src/lib.rs changed") >= 2, "{said:#?}");
}

#[tokio::test]
async fn a_crash_in_a_handler_is_told_with_its_route_and_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("crashing");
    crate_in(&crate_dir, "crashing");
    let source = r#"use axum::{Router, extract::Path, routing::get};
use handover_plugin::{Context, Error};

fn deep(n: u64) -> u64 {
    let block = std::hint::black_box([n; 1000]);
    if n == 0 { 0 } else { deep(n + 1) + block[3] }
}

#[handover_plugin::app]
async fn app(_cx: Context) -> Result<Router, Error> {
    Ok(Router::new()
        .route("/", get(async || "served"))
        .route("/exits", get(async || -> &'static str { std::process::exit(3) }))
        .route("/overflows/{n}", get(async |Path(n): Path<u64>| deep(n).to_string()))
        .route("/faults", get(async || {
            unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
            "never"
        })))
}
"#;
    let path = crate_dir.join("src/lib.rs");
    fs::write(&path, source).unwrap();
    let dev = Dev::start(&crate_dir);
    dev.answers("served").await;
    for (route, how) in [
        ("/faults", "SIGSEGV in /faults of crashing"),
        ("/exits", "exit with code 3 in /exits of crashing"),
        ("/overflows/7", "SIGABRT in /overflows/7 of crashing"),
    ] {
        let mut connection = Http1::connect(dev.address).await.unwrap();
        connection.get(route).await.unwrap_err();
        dev.answers("served").await;
        dev.until(how, async || dev.has_said(how)).await;
    }
    // It is no reason to take anything back, and the next change is served as ever.
    fs::write(&path, source.replace("\"served\"", "\"after the crashes\"")).unwrap();
    dev.answers("after the crashes").await;
}

/// What `handover dev` says to a crate that is no plugin.
fn refused(crate_dir: &Path) -> String {
    let output = Command::new(plugins::handover())
        .arg("dev")
        .arg(crate_dir)
        .args(["--listen", "127.0.0.1:0"])
        .env("CARGO_TARGET_DIR", plugins::target_dir())
        .env_remove("HANDOVER_CONTROL")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The lines of `said` from the one that is `from` on that stand before the next sentence: what one
/// pastes.
fn to_paste(said: &str, from: &str) -> String {
    // As a terminal shows it, lines after the first are indented.
    let lines = said.lines().map(str::trim_start);
    let lines = lines.skip_while(|line| *line != from);
    let lines = lines.take_while(|line| !line.starts_with("and "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Makes the crate `name` in `dir` one without a library section and without the SDK, as people
/// have it.
fn ordinary_crate_in(dir: &Path, name: &str) {
    crate_in(dir, name);
    let path = dir.join("Cargo.toml");
    let manifest = fs::read_to_string(&path).unwrap();
    let lib = "[lib]\ncrate-type = [\"cdylib\"]\ntest = false\ndoctest = false\n";
    let sdk = "handover-plugin = { workspace = true, features = [\"sdk\"] }\n";
    assert!(
        manifest.contains(lib) && manifest.contains(sdk),
        "{manifest}"
    );
    let tokio = "tokio = { workspace = true, features = [";
    let manifest = manifest.replace(lib, "").replace(sdk, "").replace(
        tokio,
        &format!("{tokio}\"macros\", \"net\", \"rt-multi-thread\", "),
    );
    fs::write(path, manifest).unwrap();
}

fn append(path: &Path, text: &str) {
    let before = fs::read_to_string(path).unwrap();
    fs::write(path, format!("{before}\n{text}")).unwrap();
}

const MAIN: &str = "use axum::{Router, routing::get};

#[tokio::main]
async fn main() {
    let app = Router::new().route(\"/\", get(async || \"served\"));
    let listener = tokio::net::TcpListener::bind(\"127.0.0.1:0\").await.unwrap();
    axum::serve(listener, app).await.unwrap();
}
";

#[tokio::test]
async fn a_crate_with_a_main_only_is_told_what_works_when_pasted() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("mainly");
    ordinary_crate_in(&crate_dir, "mainly");
    let main = crate_dir.join("src/main.rs");
    fs::write(&main, MAIN).unwrap();
    let said = refused(&crate_dir);
    append(&crate_dir.join("Cargo.toml"), &to_paste(&said, "[lib]"));
    // Both replacements as they are told.
    let mut source = MAIN.to_owned();
    for line in said.lines().filter(|line| line.contains(" instead of ")) {
        let (new, old) = line.split_once(" instead of ").unwrap();
        assert!(source.contains(old.trim()), "{line}");
        source = source.replace(old.trim(), new.trim());
    }
    fs::write(&main, source).unwrap();
    let dev = Dev::start(&crate_dir);
    dev.answers("served").await;
}

#[tokio::test]
async fn a_library_with_a_program_in_a_workspace_is_told_what_works_when_pasted() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("both");
    ordinary_crate_in(&root, "both");
    // The package becomes a member, and the workspace stays above it.
    let member = root.join("web");
    fs::create_dir_all(member.join("src")).unwrap();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let (package, workspace) = manifest.split_once("\n[workspace]\n").unwrap();
    fs::write(member.join("Cargo.toml"), package).unwrap();
    fs::write(
        root.join("Cargo.toml"),
        format!("[workspace]\nmembers = [\"web\"]\n{workspace}"),
    )
    .unwrap();
    fs::remove_dir_all(root.join("src")).unwrap();
    let library = "pub fn router() -> axum::Router {\n    axum::Router::new().route(\"/\", axum::routing::get(async || \"served\"))\n}\n";
    fs::write(member.join("src/lib.rs"), library).unwrap();
    fs::write(
        member.join("src/main.rs"),
        "fn main() { let _ = both::router(); }\n",
    )
    .unwrap();

    // The root has one package, and that is no plugin yet.
    let said = refused(&member);
    assert!(
        said.contains("crate-type = [\"cdylib\", \"rlib\"]"),
        "{said}"
    );
    append(&member.join("Cargo.toml"), &to_paste(&said, "[lib]"));
    assert!(said.contains("#[handover_plugin::app]"), "{said}");
    append(
        &member.join("src/lib.rs"),
        "#[handover_plugin::app]\nfn app(_: handover_plugin::Context) -> Result<axum::Router, handover_plugin::Error> {\n    Ok(router())\n}\n",
    );
    for folder in [&member, &root] {
        let dev = Dev::start(folder);
        dev.answers("served").await;
    }
    // The program is one still.
    plugins::cargo_in(&member, &["build", "--bin", "both"]).await;
}

#[tokio::test]
async fn by_https_it_has_a_certificate_of_its_own_which_stays() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("private");
    crate_in(&crate_dir, "private");
    write_source(&crate_dir, "\"by https\"");
    let certificate = plugins::target_dir().join("handover-dev/localhost.pem");
    let mut before = None;
    for _ in 0..2 {
        let dev = Dev::start_with(&crate_dir, &["--tls"]);
        let url = format!("https://localhost:{}/", dev.address.port());
        dev.until("an answer by https", async || {
            // Who knows the certificate asks without a doubt.
            let output = tokio::process::Command::new("curl")
                .args(["-sS", "-4", "--cacert"])
                .arg(&certificate)
                .arg(&url)
                .output()
                .await
                .unwrap();
            output.stdout == b"by https"
        })
        .await;
        let said = format!("https://{}", dev.address);
        dev.until("the address", async || dev.has_said(&said)).await;
        let shown = fs::read(&certificate).unwrap();
        assert!(before.is_none_or(|before| before == shown));
        before = Some(shown);
    }
}
