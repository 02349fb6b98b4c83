//! Servers that take a new version of what they serve while they run, each in the way that its own
//! documentation tells.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    builds::{Builds, target},
    contender::{HandoverHost, nginx, nginx_server},
    server::{Server, first_line, free_address, program},
};

/// The file that uWSGI watches.
const CHAIN: &str = "chain";

/// How long a command that reloads may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that reloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloader {
    /// A new artifact, deployed.
    Handover,
    /// SIGHUP to the master.
    Nginx,
    /// SIGUSR2 to the master, which hands the listening sockets over.
    HaProxy,
    /// SIGHUP to the master, threaded workers so that connections are kept.
    Gunicorn,
    /// A touched file: a chain reload, worker by worker, behind its HTTP router.
    Uwsgi,
    /// SIGUSR1 to the cluster: a phased restart, worker by worker.
    Puma,
    /// SIGHUP to `start_server`, which starts a new Starman on the same socket and then sends
    /// SIGQUIT to the old one.
    Starman,
    /// `pm2 reload` of a node cluster.
    Pm2,
}

/// How it is got when it is not there.
enum Source {
    Ours,
    Debian(&'static [&'static str]),
    PyPi(&'static str),
    Npm(&'static str),
}

impl Reloader {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Handover,
        Self::Nginx,
        Self::HaProxy,
        Self::Gunicorn,
        Self::Uwsgi,
        Self::Puma,
        Self::Starman,
        Self::Pm2,
    ];

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Handover => "handover",
            Self::Nginx => "nginx",
            Self::HaProxy => "HAProxy",
            Self::Gunicorn => "gunicorn",
            Self::Uwsgi => "uWSGI",
            Self::Puma => "Puma",
            Self::Starman => "Starman under Server::Starter",
            Self::Pm2 => "node cluster under PM2",
        }
    }

    /// What a reload is.
    pub fn reload_is(self) -> &'static str {
        match self {
            Self::Handover => "`POST /v1/deploy` of an artifact never seen before",
            Self::Nginx => "SIGHUP (`nginx -s reload`)",
            Self::HaProxy => "SIGUSR2 to the master (`-W`)",
            Self::Gunicorn => "SIGHUP, `gthread` workers",
            Self::Uwsgi => {
                "chain reload behind its HTTP router (`--lazy-apps --touch-chain-reload`)"
            }
            Self::Puma => "SIGUSR1, phased restart",
            Self::Starman => "SIGHUP to `start_server --signal-on-hup=QUIT`",
            Self::Pm2 => "`pm2 reload`, an app that closes on SIGINT and tells when it is ready",
        }
    }

    /// How long it gets between two reloads: about what one takes here. Interpreters take long to
    /// start, and some start one worker after the other.
    pub fn gap(self) -> Duration {
        Duration::from_millis(match self {
            Self::Handover | Self::Nginx | Self::HaProxy => 500,
            Self::Gunicorn => 1200,
            Self::Uwsgi | Self::Starman => 2500,
            Self::Puma | Self::Pm2 => 3000,
        })
    }

    fn source(self) -> Source {
        match self {
            Self::Handover => Source::Ours,
            Self::Nginx => Source::Debian(&["nginx-light"]),
            Self::HaProxy => Source::Debian(&["haproxy"]),
            Self::Gunicorn => Source::PyPi("gunicorn"),
            Self::Uwsgi => Source::PyPi("uwsgi"),
            Self::Puma => Source::Debian(&["puma"]),
            Self::Starman => Source::Debian(&["starman", "libserver-starter-perl"]),
            Self::Pm2 => Source::Npm("pm2"),
        }
    }

    /// Where its program is, if it can be run here.
    pub fn program(self) -> Option<PathBuf> {
        let in_tools = |path: &str| Some(tools().join(path)).filter(|path| path.exists());
        match self {
            Self::Handover => Some(PathBuf::new()),
            Self::Nginx => program("nginx"),
            Self::HaProxy => program("haproxy"),
            Self::Gunicorn => in_tools("python/bin/gunicorn").or_else(|| program("gunicorn")),
            Self::Uwsgi => in_tools("python/bin/uwsgi"),
            Self::Puma => program("puma"),
            Self::Starman => program("start_server").and(program("starman")),
            Self::Pm2 => in_tools("node/node_modules/.bin/pm2").or_else(|| program("pm2")),
        }
    }

    /// Its version, if it can be run here.
    pub fn version(self) -> Option<String> {
        let path = self.program()?;
        let path = path.to_str()?;
        match self {
            Self::Handover => Some(env!("CARGO_PKG_VERSION").to_owned()),
            Self::Nginx | Self::HaProxy => first_line(path, &["-v"]),
            Self::Starman => first_line(program("starman")?.to_str()?, &["--version"]),
            // Asked for its version, it starts a daemon.
            Self::Pm2 => first_line("node", &["--version"]).map(|node| format!("node {node}")),
            Self::Gunicorn | Self::Uwsgi | Self::Puma => first_line(path, &["--version"]),
        }
    }

    /// Gets it, by the package manager that has it. Debian's need root.
    ///
    /// # Errors
    /// What the package manager said last.
    pub fn install(self) -> Result<(), String> {
        let python = tools().join("python");
        let node = tools().join("node");
        match self.source() {
            Source::Ours => Ok(()),
            Source::Debian(packages) => {
                let mut command = Command::new("apt-get");
                command
                    .args(["install", "--yes", "--no-install-recommends"])
                    .args(packages);
                // Packages of servers start them; run level 1 tells them not to.
                command
                    .env("DEBIAN_FRONTEND", "noninteractive")
                    .env("RUNLEVEL", "1");
                done(command)
            }
            Source::PyPi(package) => {
                let mut venv = Command::new("python3");
                venv.args(["-m", "venv"]).arg(&python);
                done(venv)?;
                let mut pip = Command::new(python.join("bin/pip"));
                pip.args(["install", "--quiet", package]);
                done(pip)
            }
            Source::Npm(package) => {
                fs::create_dir_all(&node).map_err(|error| error.to_string())?;
                let mut npm = Command::new("npm");
                npm.args(["install", "--silent", "--prefix"])
                    .arg(&node)
                    .arg(package);
                done(npm)
            }
        }
    }

    /// Runs it, and waits until it greets.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(self, builds: &Builds) -> Server {
        let address = free_address();
        if self == Self::Handover {
            return HandoverHost::new(builds, 2).start(address, None);
        }
        let home = Server::home();
        let program = self.program().expect("it was asked for");
        let command = self.command(&program, home.path(), address);
        Server::start(home, address, vec![command])
    }

    fn command(self, path: &Path, home: &Path, address: SocketAddr) -> Command {
        let write = |name: &str, text: &str| {
            let file = home.join(name);
            fs::write(&file, text).expect("the folder is ours");
            file
        };
        let wsgi = "def app(environ, start):\n    \
                    start('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '11')])\n    \
                    return [b'hello 1.0.0']\n";
        let mut command = Command::new(path);
        command.current_dir(home);
        match self {
            Self::Handover => {}
            Self::Nginx => {
                let answer = "return 200 \"hello 1.0.0\"; default_type text/plain;";
                return nginx(home, 2, &nginx_server(address, answer), "");
            }
            Self::HaProxy => {
                let config = format!(
                    "global\n  nbthread 2\ndefaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  timeout connect 5s\n\
                     frontend f\n  bind {address}\n  http-request return status 200 content-type text/plain string \"hello 1.0.0\"\n"
                );
                command
                    .arg("-W")
                    .arg("-f")
                    .arg(write("haproxy.cfg", &config));
            }
            Self::Gunicorn => {
                write("app.py", wsgi);
                command.args([
                    "--worker-class",
                    "gthread",
                    "--threads",
                    "32",
                    "--workers",
                    "2",
                ]);
                command
                    .args(["--keep-alive", "75", "--bind"])
                    .arg(address.to_string())
                    .arg("app:app");
            }
            Self::Uwsgi => {
                let file = write("app.py", wsgi);
                command.arg("--http").arg(address.to_string());
                command.args([
                    "--http-keepalive=60",
                    "--master",
                    "--workers",
                    "2",
                    "--threads",
                    "16",
                    "--disable-logging",
                    "--die-on-term",
                    "--lazy-apps",
                    "--touch-chain-reload",
                ]);
                command.arg(write(CHAIN, ""));
                command.args(["--callable", "app", "--wsgi-file"]).arg(file);
            }
            Self::Puma => {
                let file = write(
                    "config.ru",
                    "run ->(env) { [200, { 'content-type' => 'text/plain' }, ['hello 1.0.0']] }\n",
                );
                command.args(["--workers", "2", "--threads", "16:16", "--bind"]);
                command.arg(format!("tcp://{address}")).arg(file);
            }
            Self::Starman => {
                let file = write(
                    "app.psgi",
                    "sub { [200, ['Content-Type', 'text/plain', 'Content-Length', 11], ['hello 1.0.0']] }\n",
                );
                command =
                    Command::new(program("start_server").unwrap_or_else(|| "start_server".into()));
                command
                    .current_dir(home)
                    .arg("--port")
                    .arg(address.to_string())
                    .args(["--interval", "1"])
                    .args(["--signal-on-hup=QUIT", "--signal-on-term=QUIT"]);
                // Starman works on one connection at a time in each worker, so there are as many as
                // connections.
                command
                    .arg("--")
                    .arg(path)
                    .args(["--workers", "24", "--keepalive-timeout", "60"])
                    .arg(file);
            }
            Self::Pm2 => {
                let text = format!(
                    "const server = require('http').createServer((q, s) => {{\n  s.setHeader('content-type', 'text/plain'); \
                     s.end('hello 1.0.0')\n}})\nserver.keepAliveTimeout = 60000\n\
                     server.listen({}, '127.0.0.1', () => process.send && process.send('ready'))\n\
                     process.on('SIGINT', () => server.close(() => process.exit(0)))\n",
                    address.port()
                );
                let file = write("app.js", &text);
                command.env("PM2_HOME", home.join("pm2"));
                command
                    .args(["start", "--no-daemon", "--instances", "2", "--wait-ready"])
                    .args(["--kill-timeout", "5000"])
                    .arg(file);
            }
        }
        command
    }

    /// Reloads a server of its kind. The host's are reloaded by its control socket instead.
    pub fn reload(self, server: &Server) {
        match self {
            Self::Handover => {}
            Self::Nginx | Self::Gunicorn | Self::Starman => server.signal(Signal::HUP),
            Self::Uwsgi => fs::write(server.dir().join(CHAIN), "").expect("the folder is ours"),
            Self::HaProxy => server.signal(Signal::USR2),
            Self::Puma => server.signal(Signal::USR1),
            Self::Pm2 => {
                let mut command = Command::new(self.program().expect("it runs"));
                command.env("PM2_HOME", server.dir().join("pm2"));
                command.args(["reload", "all"]).stdin(Stdio::null());
                command.stdout(Stdio::null()).stderr(Stdio::null());
                let mut child = command.spawn().expect("it runs");
                // What it has to say is counted by the clients.
                let deadline = Instant::now() + PATIENCE;
                while matches!(child.try_wait(), Ok(None)) {
                    if Instant::now() > deadline {
                        let _ = child.kill(); // ended just now
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
}

/// Where what is not Debian's gets installed.
fn tools() -> PathBuf {
    target().join("contenders")
}

fn done(mut command: Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(text.lines().last().unwrap_or("no reason given").to_owned())
}
