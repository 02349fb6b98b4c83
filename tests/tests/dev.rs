//! `handover dev`: the code as it is now, always; and while it does not compile, the code as it
//! was.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
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
        // Free until now; nobody else takes ports of that range just now.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut command = Command::new(plugins::handover());
        command
            .arg("dev")
            .arg(crate_dir)
            .args(["--listen", &address.to_string()])
            .args(arguments);
        command
            .env("CARGO_TARGET_DIR", plugins::target_dir())
            .env_remove("HANDOVER_VERSION")
            .env_remove("HANDOVER_CONTROL");
        command.current_dir(crate_dir.parent().unwrap());
        let mut child = command
            .stdin(Stdio::null())
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
