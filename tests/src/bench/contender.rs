//! Who they are and how each is configured, started and reloaded.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command};

use super::{
    builds::Builds,
    callgrind,
    server::{Server, first_line, free_address, program},
};

/// A server to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// The host with the hello plugin.
    Handover,
    /// The same app without a host.
    Twin,
    /// The same server without an app.
    Bare,
    /// nginx with the answer in its configuration.
    NginxStatic,
    /// nginx before the twin, which is how one swaps without us.
    NginxProxy,
}

impl Contender {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Handover,
        Self::Twin,
        Self::Bare,
        Self::NginxStatic,
        Self::NginxProxy,
    ];

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Handover => "handover",
            Self::Twin => "twin",
            Self::Bare => "bare hyper",
            Self::NginxStatic => "nginx, static return",
            Self::NginxProxy => "nginx, proxy to the twin",
        }
    }

    /// What it is, in a line.
    pub fn what(self) -> &'static str {
        match self {
            Self::Handover => "the host with the hello plugin",
            Self::Twin => {
                "the same axum app linked statically into the same hyper server: the limit"
            }
            Self::Bare => "the same hyper server, the greeting without axum",
            Self::NginxStatic => "the greeting in the configuration",
            Self::NginxProxy => "what people run today in order to swap: both processes counted",
        }
    }

    /// Whether it has all routes of the app.
    pub fn has_the_app(self) -> bool {
        matches!(self, Self::Handover | Self::Twin)
    }

    /// Its version, if it can be run here.
    pub fn version(self) -> Option<String> {
        match self {
            Self::Handover | Self::Twin | Self::Bare => Some(env!("CARGO_PKG_VERSION").to_owned()),
            Self::NginxStatic | Self::NginxProxy => {
                let nginx = program("nginx")?;
                first_line(nginx.to_str()?, &["-v"])
            }
        }
    }

    /// Runs it with so many workers, and waits until it answers. With `count`, under callgrind,
    /// which writes there.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(self, builds: &Builds, workers: usize, count: Option<PathBuf>) -> Server {
        self.start_with(builds, workers, count, "")
    }

    /// [`start`](Self::start) with `settings` in the `[server]` section of a host.
    pub fn start_with(
        self,
        builds: &Builds,
        workers: usize,
        count: Option<PathBuf>,
        settings: &str,
    ) -> Server {
        let home = Server::home();
        let address = free_address();
        let under = |program: PathBuf| match &count {
            None => Command::new(program),
            Some(out) => {
                let mut command = callgrind::command(out);
                command.arg(program);
                command
            }
        };
        let twin = |address: SocketAddr| {
            let mut command = under(builds.twin.clone());
            command.arg(address.to_string()).arg(workers.to_string());
            command
        };
        let commands = match self {
            Self::Handover => {
                let mut host = HandoverHost::new(builds, workers).set(settings);
                host.home = Some(home);
                return host.start(address, count.map(|out| callgrind::command(&out)));
            }
            Self::Twin => vec![twin(address)],
            Self::Bare => {
                let mut command = twin(address);
                command.arg("bare");
                vec![command]
            }
            Self::NginxStatic => {
                let answer = "return 200 \"hello 1.0.0\"; default_type text/plain;";
                vec![nginx(
                    home.path(),
                    workers,
                    &nginx_server(address, answer),
                    "",
                )]
            }
            Self::NginxProxy => {
                let behind = free_address();
                let pass = "proxy_pass http://twin; proxy_http_version 1.1; proxy_set_header Connection \"\";";
                let upstream = format!("upstream twin {{ server {behind}; keepalive 64; }}");
                let server = nginx_server(address, pass);
                vec![
                    nginx(home.path(), workers, &server, &upstream),
                    twin(behind),
                ]
            }
        };
        Server::start(home, address, commands)
    }
}

/// How a host is to be run.
#[derive(Debug)]
pub struct HandoverHost<'a> {
    builds: &'a Builds,
    workers: usize,
    /// More of the `[server]` section.
    settings: String,
    /// More of the configuration file.
    config: String,
    /// What lies in the drop folder.
    plugins: Vec<(String, Vec<u8>)>,
    home: Option<tempfile::TempDir>,
}

impl<'a> HandoverHost<'a> {
    /// With the hello plugin.
    pub fn new(builds: &'a Builds, workers: usize) -> Self {
        let hello = fs::read(&builds.hello[0]).expect("it was built");
        Self {
            builds,
            workers,
            settings: String::new(),
            config: "[app.hello]\nmax_old_generations = 1000\n".to_owned(),
            plugins: vec![("hello.so".to_owned(), hello)],
            home: None,
        }
    }

    /// With this configuration behind `[server]`, and these plugins, by their path in the drop
    /// folder.
    pub fn with(mut self, config: &str, plugins: Vec<(String, Vec<u8>)>) -> Self {
        self.config = config.to_owned();
        self.plugins = plugins;
        self
    }

    /// With these lines in `[server]`.
    pub fn set(mut self, settings: &str) -> Self {
        self.settings = settings.to_owned();
        self
    }

    /// In the folder of one that has ended, whose state it takes over.
    pub fn again(mut self, home: tempfile::TempDir) -> Self {
        self.home = Some(home);
        self
    }

    /// Runs it; under another program, if one is given.
    pub fn start(&mut self, address: SocketAddr, under: Option<Command>) -> Server {
        let home = self.home.take().unwrap_or_else(Server::home);
        let workers = self.workers;
        let Self {
            settings, config, ..
        } = &*self;
        let config = format!("[server]\nworkers = {workers}\n{settings}\n{config}");
        fs::write(home.path().join("handover.toml"), config).expect("the folder is ours");
        let plugins = home.path().join("plugins");
        fs::create_dir_all(&plugins).expect("the folder is ours");
        for (path, bytes) in &self.plugins {
            let file = plugins.join(path);
            fs::create_dir_all(file.parent().unwrap_or(&plugins)).expect("the folder is ours");
            fs::write(file, bytes).expect("the folder is ours");
        }
        let run = |command: &mut Command, home: &std::path::Path| {
            command.env_remove("HANDOVER_CONTROL").arg("run");
            command.arg("--config").arg(home.join("handover.toml"));
            command.arg("--listen").arg(address.to_string());
            command.arg("--plugins").arg(home.join("plugins"));
            command.arg("--state").arg(home.join("state"));
        };
        let mut command = Command::new(&self.builds.handover);
        run(&mut command, home.path());
        let server = Server::start(home, address, vec![command]);
        let Some(mut under) = under else {
            return server;
        };
        // Its child that checks artifacts does not live under another program: so it has been
        // checked before, and is restored. And nothing lies in the drop folder, so that looking
        // there costs next to nothing.
        let home = server.end();
        for (path, _) in &self.plugins {
            fs::remove_file(home.path().join("plugins").join(path)).expect("the folder is ours");
        }
        under.arg(&self.builds.handover);
        run(&mut under, home.path());
        // What is counted is the process that serves, not a parent that waits for it.
        under.arg("--no-supervisor");
        Server::start(home, address, vec![under])
    }
}

/// A server of nginx that answers everything with `location`.
pub(super) fn nginx_server(address: SocketAddr, location: &str) -> String {
    format!("server {{ listen {address}; location / {{ {location} }} }}")
}

/// nginx in the foreground, with everything it writes in `home`.
pub(super) fn nginx(
    home: &std::path::Path,
    workers: usize,
    server: &str,
    upstream: &str,
) -> Command {
    let at = home.display();
    let config = format!(
        "daemon off; user root; worker_processes {workers}; pid {at}/nginx.pid; error_log {at}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n  access_log off; keepalive_requests 100000000; keepalive_timeout 300s; tcp_nodelay on;\n\
         client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
         uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n  {upstream}\n  {server}\n}}\n"
    );
    fs::write(home.join("nginx.conf"), config).expect("the folder is ours");
    let mut command = Command::new(program("nginx").unwrap_or_else(|| "nginx".into()));
    command.arg("-c").arg(home.join("nginx.conf"));
    command
}
