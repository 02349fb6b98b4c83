//! The real host as a process, with the plugin that is tested, on a port of its own.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::TcpStream, task::spawn_blocking};

use super::build;
use crate::Error;

/// The variable that names the program.
const PROGRAM: &str = "HANDOVER";
/// Nothing that is waited for takes longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often what cannot be awaited is looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// Lines of the host's log that are shown when a test failed.
const LAST_LINES: usize = 40;

/// How a [`TestHost`] is run.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    config: Option<String>,
    env: BTreeMap<String, String>,
    cargo_arguments: Vec<String>,
    folder: Option<PathBuf>,
    program: Option<PathBuf>,
}

impl Setup {
    /// Runs this program, and not the one that `HANDOVER` names or PATH has.
    #[must_use]
    pub fn program(self, program: impl Into<PathBuf>) -> Self {
        Self {
            program: Some(program.into()),
            ..self
        }
    }

    /// Runs the host with this configuration file, as `handover run --config` reads it:
    /// `[app.NAME]` and whatever else the test is about.
    #[must_use]
    pub fn config(self, toml: impl Into<String>) -> Self {
        Self {
            config: Some(toml.into()),
            ..self
        }
    }

    /// Sets a variable of the host. The app reads it where `[app.NAME] env` lists it.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Builds the plugin with these arguments of `cargo build` as well, as `["--features", "x"]`.
    #[must_use]
    pub fn cargo_arguments<A: Into<String>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        self.cargo_arguments
            .extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Builds the plugin in this folder, and not the package that is tested.
    #[must_use]
    pub fn crate_folder(self, folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: Some(folder.into()),
            ..self
        }
    }

    /// Builds the plugin, starts the host and deploys the plugin to it.
    ///
    /// # Errors
    /// When there is no program `handover`, the plugin does not compile, or the host refuses it.
    pub async fn start(self) -> Result<TestHost, Error> {
        let program = self.program.clone().map_or_else(program, Ok)?;
        let folder = self.folder.clone().or_else(|| {
            let folder = std::env::var_os("CARGO_MANIFEST_DIR")?;
            Some(folder.into())
        });
        let folder = folder.ok_or_else(|| {
            Error::msg("which package is tested is not known: run the test by cargo, or name the folder by `Setup::crate_folder`")
        })?;
        let arguments = self.cargo_arguments.clone();
        let built = spawn_blocking(move || build::library(&folder, &arguments)).await??;
        let home = tempfile::Builder::new().prefix("handover-test").tempdir()?;
        let library = home.path().join("plugin.so");
        // Not a link: cargo writes over the file at the next build.
        fs::copy(&built, &library)?;
        let child = self.spawn(&program, home.path())?;
        let mut host = TestHost {
            home,
            child,
            program,
            library,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            swaps: AtomicU32::new(0),
        };
        host.address = host.answers().await?;
        host.deploy(&host.library).await?;
        Ok(host)
    }

    fn spawn(&self, program: &Path, home: &Path) -> Result<Child, Error> {
        let log = File::create(home.join("log"))?;
        let mut command = Command::new(program);
        command
            .args(["run", "--listen", "127.0.0.1:0", "--control"])
            .arg(control(home))
            .arg("--plugins")
            .arg(home.join("plugins"))
            .arg("--state")
            .arg(home.join("state"))
            .envs(&self.env)
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(config) = &self.config {
            let file = home.join("handover.toml");
            fs::write(&file, config)?;
            command.arg("--config").arg(file);
        }
        command.spawn().map_err(|error| {
            Error::msg(format_args!("{} cannot be run: {error}", program.display()))
        })
    }
}

/// The program: what the variable `HANDOVER` names, else the first `handover` on PATH.
fn program() -> Result<PathBuf, Error> {
    if let Some(named) = std::env::var_os(PROGRAM).filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        return match named.is_file() {
            // The host has a working directory of its own.
            true => Ok(std::path::absolute(named)?),
            false => Err(Error::msg(format_args!(
                "{PROGRAM} is set to {}, where no file is",
                named.display()
            ))),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join("handover"))
        .find(|file| file.is_file());
    found.ok_or_else(|| {
        Error::msg(format_args!(
            "there is no program `handover` on PATH: install it with `cargo install --git {} handover`, or set {PROGRAM} to its path",
            env!("CARGO_PKG_REPOSITORY")
        ))
    })
}

fn control(home: &Path) -> PathBuf {
    home.join("control.sock")
}

/// A real host with the plugin that is tested, in a temporary folder and on a free port of
/// loopback. It is killed when this is dropped, and its log is shown when the test has failed.
///
/// ```ignore
/// #[tokio::test]
/// async fn orders_outlive_swaps_and_crashes() -> Result<(), handover_plugin::Error> {
///     let host = TestHost::start().await?;
///     host.request(Request::post("/orders").body("one")?).await?;
///     host.swap().await?;
///     assert_eq!(host.get("/orders").await?.body(), "one");
///     host.crash().await?;
///     assert_eq!(host.get("/orders").await?.body(), "one");
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct TestHost {
    home: TempDir,
    /// The supervisor of the process that serves.
    child: Child,
    program: PathBuf,
    library: PathBuf,
    address: SocketAddr,
    swaps: AtomicU32,
}

/// What a deploy ended with.
#[derive(Deserialize)]
struct Deployed {
    message: String,
    generation: Option<u64>,
}

impl TestHost {
    /// Whether there is a program `handover`: a test that does without one on a machine that has
    /// none asks this first.
    pub fn is_installed() -> bool {
        program().is_ok()
    }

    /// Builds the package that is tested as it would be deployed, with the profile of the test,
    /// starts a host, and deploys it. [`Setup`] is for a host with a configuration.
    ///
    /// # Errors
    /// As for [`Setup::start`].
    pub async fn start() -> Result<Self, Error> {
        Setup::default().start().await
    }

    /// Deploys the plugin file at `path`, as an older version of this one; returns the generation
    /// that is live by now. The one before has left then.
    ///
    /// # Errors
    /// When the host refuses it: its reason.
    pub async fn deploy(&self, path: impl AsRef<Path>) -> Result<u64, Error> {
        let arguments = [OsStr::new("deploy"), path.as_ref().as_os_str()];
        let output = self.command(arguments).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let result = text.lines().last();
        let result = result.and_then(|line| serde_json::from_str::<Deployed>(line).ok());
        match (output.status.code(), result) {
            // With 7 the old code had to be ended at its drain deadline, but the new one is live.
            (Some(0 | 7), Some(result)) => result
                .generation
                .ok_or_else(|| Error::msg("the host did not say which generation is live")),
            (_, Some(result)) => Err(Error::msg(result.message)),
            (_, None) => Err(failed("deploy", &output)),
        }
    }

    /// Replaces what is live by a second artifact of the same code, which the host maps, starts and
    /// gives the requests as it does with a new version; returns its generation.
    ///
    /// # Errors
    /// When the host refuses it: its reason.
    pub async fn swap(&self) -> Result<u64, Error> {
        let number = self.swaps.fetch_add(1, Ordering::Relaxed) + 1;
        let copy = self.home.path().join(format!("swap-{number}.so"));
        // What lies behind the end of a library is not read, but makes it another artifact.
        let mut bytes = fs::read(&self.library)?;
        bytes.extend_from_slice(format!("\nswap {number}\n").as_bytes());
        fs::write(&copy, bytes)?;
        self.deploy(&copy).await
    }

    /// Kills the process that serves, as a bug or the kernel would, and waits until the host has
    /// come back and serves what it served before.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn crash(&self) -> Result<(), Error> {
        let before = self.status().await?;
        let pid = before["host"]["pid"].as_i64();
        let process = pid
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| Error::msg("the host did not say which process it is"))?;
        kill_process(process, Signal::KILL)?;
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Ok(now) = self.status().await
                && now["host"]["pid"].as_i64() != pid
                && live(&now) == live(&before)
            {
                return Ok(());
            }
            tokio::time::sleep(GLANCE).await;
        }
        Err(self.not_in_time("serve again after its crash"))
    }

    /// What `handover status --json` says.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn status(&self) -> Result<Value, Error> {
        let output = self.command(["status"]).await?;
        if !output.status.success() {
            return Err(failed("status", &output));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The generation that answers new requests.
    ///
    /// # Errors
    /// When the host does not answer, or nothing is live.
    pub async fn generation(&self) -> Result<u64, Error> {
        let status = self.status().await?;
        let generation = status["apps"][0]["active"]["generation"].as_u64();
        generation.ok_or_else(|| Error::msg("nothing is live"))
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of `path`, for a client of the test's own.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asks `GET path`, on a connection of its own; gives the whole answer, whatever its status.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Result<Response<Bytes>, Error> {
        self.request(Request::get(path).body(Bytes::new())?).await
    }

    /// Sends a request, whose URI is a path, on a connection of its own; gives the whole answer.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn request<B: Into<Bytes>>(
        &self,
        request: Request<B>,
    ) -> Result<Response<Bytes>, Error> {
        let mut request = request.map(|body| Full::new(body.into()));
        if !request.headers().contains_key(header::HOST) {
            let host = HeaderValue::from_str(&self.address.to_string())?;
            request.headers_mut().insert(header::HOST, host);
        }
        let stream = TcpStream::connect(self.address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the sender.
        let connection = tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(sender);
        connection.await??;
        Ok(Response::from_parts(head, body))
    }

    /// What the host has logged.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn log(&self) -> Result<String, Error> {
        Ok(fs::read_to_string(self.home.path().join("log"))?)
    }

    /// Runs a command of `handover` against this host, as `["state", "ls", "shop"]`; gives what it
    /// printed, which is JSON.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub async fn command<A: Into<OsString>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Output, Error> {
        let mut command = Command::new(&self.program);
        command
            .args(arguments.into_iter().map(Into::into))
            .arg("--json")
            .arg("--control")
            .arg(control(self.home.path()))
            .env_remove("HANDOVER_HOST")
            .stdin(Stdio::null());
        Ok(spawn_blocking(move || command.output()).await??)
    }

    /// Waits until the host answers; gives where it serves.
    async fn answers(&mut self) -> Result<SocketAddr, Error> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(ended) = self.child.try_wait()? {
                let log = self.last_lines();
                return Err(Error::msg(format_args!(
                    "the host ended at its start ({ended}):\n{log}"
                )));
            }
            if let Ok(status) = self.status().await
                && let Some(address) = status["host"]["listen"][0].as_str()
            {
                return Ok(address.parse()?);
            }
            tokio::time::sleep(GLANCE).await;
        }
        Err(self.not_in_time("answer"))
    }

    fn not_in_time(&self, what: &str) -> Error {
        Error::msg(format_args!(
            "the host did not {what} within {} s:\n{}",
            DEADLINE.as_secs(),
            self.last_lines()
        ))
    }

    fn last_lines(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

/// The apps that serve, and the artifact of each.
fn live(status: &Value) -> Vec<(&Value, &Value)> {
    let apps = status["apps"].as_array().into_iter().flatten();
    apps.filter(|app| app["state"] == "serving")
        .map(|app| (&app["name"], &app["active"]["artifact"]))
        .collect()
}

fn failed(command: &str, output: &Output) -> Error {
    let text = String::from_utf8_lossy(&output.stderr);
    Error::msg(format_args!(
        "`handover {command}` ended with {}: {}",
        output.status,
        text.trim()
    ))
}

impl Drop for TestHost {
    fn drop(&mut self) {
        // The kernel ends the process that serves with its supervisor.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- the last lines of the host's log\n{}",
                self.last_lines()
            );
        }
    }
}
