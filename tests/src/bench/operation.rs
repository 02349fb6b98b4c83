//! Swaps as the host tells them: by its control socket, step by step.

use std::{
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::server::Server;
use crate::client::{Answer, Fault, Http1};

/// Asks the control sockets of hosts.
#[derive(Debug)]
pub struct Control {
    runtime: tokio::runtime::Runtime,
    socket: PathBuf,
}

/// One step of a deploy.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// `store`, `preflight`, `load`, `start` or `cutover`.
    pub name: String,
    /// How long it took.
    pub took: Duration,
}

impl Control {
    /// Of the host that runs as `server`.
    ///
    /// # Panics
    /// When there is no poller.
    pub fn of(server: &Server) -> Self {
        Self::at(server.dir().join("state").join("control.sock"))
    }

    fn at(socket: PathBuf) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        Self {
            runtime: runtime.expect("there is a poller"),
            socket,
        }
    }

    /// The path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn ask(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Answer, Fault> {
        self.runtime.block_on(async {
            let mut http = Http1::connect_unix(&self.socket).await?;
            http.request(method, path, &[], body).await
        })
    }

    /// Deploys an artifact, after those that are under way, and gives the steps once all is done,
    /// the drain of the old generation included.
    ///
    /// # Errors
    /// When it is refused; what the host says.
    pub fn deploy(&self, bytes: &[u8]) -> Result<Vec<Step>, String> {
        let answer = self
            .ask("POST", "/v1/deploy?name=hello.so&queue=true", Some(bytes))
            .map_err(|fault| fault.to_string())?;
        steps(&answer)
    }

    /// Deploys on a thread of its own, which ends when all is done: with what drains, that may take
    /// long.
    pub fn deploy_beside(&self, bytes: Vec<u8>) -> JoinHandle<Result<Vec<Step>, String>> {
        let socket = self.socket.clone();
        std::thread::spawn(move || Self::at(socket).deploy(&bytes))
    }

    /// Waits until the status says what is waited for.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub fn until(&self, wanted: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let status = self.status();
            if wanted(&status) {
                return;
            }
            assert!(Instant::now() < deadline, "it did not come: {status:#}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What the host says of itself; null when it says nothing.
    pub fn status(&self) -> Value {
        let answer = self.ask("GET", "/v1/status", None).unwrap_or_default();
        serde_json::from_slice(&answer.body).unwrap_or_default()
    }

    /// The steps of operation `number`, once it has ended; none when there is no such operation.
    ///
    /// # Errors
    /// When it did not end well; what the host says.
    pub fn operation(&self, number: u64) -> Option<Result<Vec<Step>, String>> {
        let answer = self
            .ask("GET", &format!("/v1/operations/op-{number}"), None)
            .ok()?;
        (answer.status == 200).then(|| steps(&answer))
    }

    /// How many generations are mapped.
    pub fn generations(&self) -> usize {
        self.status()["apps"][0]["generations"]
            .as_array()
            .map_or(0, Vec::len)
    }
}

fn steps(answer: &Answer) -> Result<Vec<Step>, String> {
    let text = answer.text();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .collect::<Vec<_>>();
    let last = lines.last().cloned().unwrap_or_default();
    if last["outcome"] != "done" {
        return Err(text);
    }
    let steps = lines.iter().filter(|line| line["type"] == "step");
    Ok(steps
        .map(|line| Step {
            name: line["step"].as_str().unwrap_or_default().to_owned(),
            took: Duration::from_micros(line["took_us"].as_u64().unwrap_or_default()),
        })
        .collect())
}
