//! The client's side of the control socket.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io::{self, Read},
    marker::PhantomData,
    path::{Path, PathBuf},
    process::Stdio,
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Either, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    process::Child,
    sync::mpsc,
};

use crate::{
    AppName, ArtifactReport, AuditList, ChannelBody, ConfigPlan, DashboardLink, Done, Event,
    History, HolderList, JobDetails, JobList, Label, LeaseList, LogRecord, MessageAnswers,
    NodeDrain, Problem, Progress, SIGNATURE, ScheduleList, SettingsList, ShadowList, ShuttingDown,
    StateDone, StateKeyLine, StateStats, Status, TenantList, Wait, query, socket,
};

/// How much of an artifact travels at once.
const PIECE: usize = 64 * 1024;

/// Why a call had no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no host answers at {path}: is `handover run` running? --control or HANDOVER_CONTROL names the socket",
        path = path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The program that leads to the host has failed: the sentence, and the exit code.
    #[error("{0}")]
    Program(String, u8),
    /// The socket belongs to somebody else.
    #[error(
        "you may not use {path}: run as the user of the host, as root, or as one whom its [control] names",
        path = .0.display()
    )]
    Denied(PathBuf),
    /// The host answered that it does not take the call.
    #[error("{}", .0.error)]
    Refused(Problem),
    /// The file that was to be sent cannot be read.
    #[error("{path} cannot be read: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The host was cut off in the middle.
    #[error("the connection to the host broke: {0}")]
    Broken(#[source] hyper::Error),
    /// The answer is not of a kind that this command knows.
    #[error(
        "the host's answer is not understood, so it may be of another version of handover: {0}"
    )]
    Response(String),
}

impl ClientError {
    /// The exit code of the command line for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => 3,
            Self::Program(_, code) => *code,
            Self::Denied(_) => 9,
            Self::Refused(problem) => problem.exit_code,
            Self::File { .. } | Self::Broken(_) | Self::Response(_) => 1,
        }
    }
}

/// A client of one host. Every call has a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    way: Way,
}

/// How the host is reached.
#[derive(Clone, Debug)]
enum Way {
    /// By its control socket, on this machine.
    Socket(PathBuf),
    /// By the standard input and output of a program, from any other.
    Program(Vec<OsString>),
}

/// The bytes of a connection, either way.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What is said of an artifact ahead of its bytes.
struct Upload {
    length: u64,
    signature: Option<String>,
}

type RequestBody = Either<Empty<Bytes>, ChannelBody<io::Error>>;

impl Client {
    /// A client of the host whose control socket is at `path`. Does not connect yet.
    pub fn new(path: &Path) -> Self {
        Self {
            way: Way::Socket(path.to_owned()),
        }
    }

    /// A client of the host that a program connects its standard input and output to, as `ssh box
    /// handover dial` does. It is started anew for each call; what it says to its standard error,
    /// people see.
    pub fn through(program: Vec<OsString>) -> Self {
        Self {
            way: Way::Program(program),
        }
    }

    /// Connects. A program that ends before it is done says by its exit code why: those of
    /// `handover dial` for a host that does not answer and a user who may not call it.
    async fn connect(&self) -> Result<(Box<dyn Stream>, Option<Child>), ClientError> {
        let line = match &self.way {
            Way::Socket(path) => {
                let stream = socket::connect(path).await;
                let stream = stream.map_err(|source| match source.kind() {
                    io::ErrorKind::PermissionDenied => ClientError::Denied(path.clone()),
                    _ => ClientError::Unreachable {
                        path: path.clone(),
                        source,
                    },
                })?;
                return Ok((Box::new(stream), None));
            }
            Way::Program(line) => line,
        };
        let name = line.first().map(OsString::as_os_str).unwrap_or_default();
        let cannot = |error: io::Error| {
            ClientError::Program(format!("{} cannot be run: {error}", name.display()), 3)
        };
        let mut child = tokio::process::Command::new(name)
            .args(line.iter().skip(1))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(cannot(io::Error::other("it has no input and output")));
        };
        Ok((Box::new(tokio::io::join(output, input)), Some(child)))
    }

    /// `GET /v1/status`
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get(query::STATUS).await
    }

    /// `GET /v1/history`
    pub async fn history(&self, app: Option<&AppName>) -> Result<History, ClientError> {
        let query = query::History { app: app.cloned() };
        self.get(&query::uri(query::HISTORY, &query)).await
    }

    /// `GET /v1/audit`
    pub async fn audit(&self, query: &query::Audit) -> Result<AuditList, ClientError> {
        self.get(&query::uri(query::AUDIT, query)).await
    }

    /// `GET /v1/jobs`
    pub async fn jobs(&self, query: &query::Jobs) -> Result<JobList, ClientError> {
        self.get(&query::uri(query::JOBS, query)).await
    }

    /// `GET /v1/jobs/ID`
    pub async fn job(&self, id: &str) -> Result<JobDetails, ClientError> {
        let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
        self.get(&format!("{}{id}", query::JOB)).await
    }

    /// `GET /v1/tenants`
    pub async fn tenants(&self, query: &query::OfApp) -> Result<TenantList, ClientError> {
        self.get(&query::uri(query::TENANTS, query)).await
    }

    /// `POST /v1/move`
    pub async fn move_tenant(&self, query: &query::Move) -> Result<Done, ClientError> {
        let uri = query::uri(query::MOVE, query);
        parse(
            self.call(Method::POST, &uri, Either::Left(Empty::new()), None)
                .await?,
        )
        .await
    }

    /// `GET /v1/artifact`
    pub async fn artifact(&self, query: &query::Artifact) -> Result<ArtifactReport, ClientError> {
        self.get(&query::uri(query::ARTIFACT, query)).await
    }

    /// `GET /v1/shadow`
    pub async fn shadow(&self, app: Option<&AppName>) -> Result<ShadowList, ClientError> {
        let query = query::OfApp { app: app.cloned() };
        self.get(&query::uri(query::SHADOW, &query)).await
    }

    /// `GET /v1/holders`
    pub async fn holders(&self, query: &query::Holders) -> Result<HolderList, ClientError> {
        self.get(&query::uri(query::HOLDERS, query)).await
    }

    /// `POST /v1/cancel`: of a job, of a lease that is taken away, or of one that holds a
    /// generation.
    pub async fn cancel(&self, id: &str) -> Result<Done, ClientError> {
        self.post(query::CANCEL, id).await
    }

    /// `POST /v1/retry` of a job.
    pub async fn retry(&self, id: &str) -> Result<Done, ClientError> {
        self.post(query::RETRY, id).await
    }

    /// `GET /v1/settings`
    pub async fn settings(&self, query: &query::OfApp) -> Result<SettingsList, ClientError> {
        self.get(&query::uri(query::SETTINGS, query)).await
    }

    /// `POST /v1/set`, with the value; none where `query` takes the setting away.
    pub async fn set(
        &self,
        query: &query::Set,
        value: Option<&serde_json::Value>,
    ) -> Result<Done, ClientError> {
        let body = value.map_or_else(String::new, ToString::to_string);
        self.post_text(&query::uri(query::SET, query), body).await
    }

    /// `POST /v1/send`
    pub async fn send(
        &self,
        query: &query::Send,
        message: String,
    ) -> Result<MessageAnswers, ClientError> {
        let uri = query::uri(query::SEND, query);
        self.post_text(&uri, message).await
    }

    async fn post_text<T: DeserializeOwned>(
        &self,
        uri: &str,
        text: String,
    ) -> Result<T, ClientError> {
        let (tx, rx) = mpsc::channel(1);
        // There is room for one.
        let _ = tx.try_send(Ok(Bytes::from(text)));
        drop(tx);
        let body = Either::Right(ChannelBody(rx));
        parse(self.call(Method::POST, uri, body, None).await?).await
    }

    /// `GET /v1/schedules`
    pub async fn schedules(&self, query: &query::OfApp) -> Result<ScheduleList, ClientError> {
        self.get(&query::uri(query::SCHEDULES, query)).await
    }

    /// `GET /v1/leases`
    pub async fn leases(&self, query: &query::OfApp) -> Result<LeaseList, ClientError> {
        self.get(&query::uri(query::LEASES, query)).await
    }

    /// `GET /v1/events`; with `follow` the lines never end.
    pub async fn events(&self, follow: bool) -> Result<Lines<Event>, ClientError> {
        let query = query::Events { follow };
        self.lines(Method::GET, &query::uri(query::EVENTS, &query))
            .await
    }

    /// `GET /v1/logs`; with `follow` the lines never end.
    pub async fn logs(&self, query: &query::Logs) -> Result<Lines<LogRecord>, ClientError> {
        self.lines(Method::GET, &query::uri(query::LOGS, query))
            .await
    }

    /// `POST /v1/deploy` with the bytes of `file`, which stream, and the text of their
    /// [`SIGNATURE`] header. The name of the file goes into what is `asked`. The lines come when
    /// the host has them all.
    pub async fn deploy(
        &self,
        file: &Path,
        asked: query::Deploy,
        signature: Option<String>,
    ) -> Result<Lines<Progress>, ClientError> {
        let unreadable = |source| ClientError::File {
            path: file.to_owned(),
            source,
        };
        let mut open = std::fs::File::open(file).map_err(unreadable)?;
        let found = open.metadata().map_err(unreadable)?;
        if !found.is_file() {
            return Err(unreadable(io::Error::other("it is not a file")));
        }
        let (tx, rx) = mpsc::channel(4);
        let name = file
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let query = query::Deploy { name, ..asked };
        let path = query::uri(query::DEPLOY, &query);
        let reading = tokio::task::spawn_blocking(move || {
            loop {
                let mut piece = vec![0; PIECE];
                let next = match open.read(&mut piece) {
                    Ok(0) => return,
                    Ok(length) => {
                        piece.truncate(length);
                        Ok(Bytes::from(piece))
                    }
                    Err(error) => Err(error),
                };
                if tx.blocking_send(next).is_err() {
                    return;
                }
            }
        });
        let lines = self
            .call(
                Method::POST,
                &path,
                Either::Right(ChannelBody(rx)),
                Some(Upload {
                    length: found.len(),
                    signature,
                }),
            )
            .await
            .map(Lines::new);
        drop(reading);
        lines
    }

    /// `POST /v1/reload`
    pub async fn reload(
        &self,
        app: Option<&AppName>,
        wait: Wait,
    ) -> Result<Lines<Progress>, ClientError> {
        let query = query::Reload {
            app: app.cloned(),
            by: None,
            queue: wait.queue(),
            detach: wait.detach(),
        };
        self.lines(Method::POST, &query::uri(query::RELOAD, &query))
            .await
    }

    /// `POST /v1/rollback`; `to` is a version or the number of a generation.
    pub async fn rollback(
        &self,
        app: Option<&AppName>,
        to: Option<&str>,
        wait: Wait,
    ) -> Result<Lines<Progress>, ClientError> {
        let query = query::Rollback {
            app: app.cloned(),
            to: to.map(str::to_owned),
            queue: wait.queue(),
            detach: wait.detach(),
            ..query::Rollback::default()
        };
        self.lines(Method::POST, &query::uri(query::ROLLBACK, &query))
            .await
    }

    /// `POST /v1/promote`: makes the version under a label live.
    pub async fn promote(
        &self,
        app: Option<&AppName>,
        label: Option<&Label>,
        wait: Wait,
    ) -> Result<Lines<Progress>, ClientError> {
        self.labelled(query::PROMOTE, app, label, wait).await
    }

    /// `POST /v1/abort`: ends the version under a label.
    pub async fn abort(
        &self,
        app: Option<&AppName>,
        label: Option<&Label>,
        wait: Wait,
    ) -> Result<Lines<Progress>, ClientError> {
        self.labelled(query::ABORT, app, label, wait).await
    }

    /// `POST /v1/canary/pause`: has a trial stand still.
    pub async fn pause_canary(
        &self,
        app: Option<&AppName>,
    ) -> Result<Lines<Progress>, ClientError> {
        self.canary(query::CANARY_PAUSE, app).await
    }

    /// `POST /v1/canary/resume`: has a trial go on.
    pub async fn resume_canary(
        &self,
        app: Option<&AppName>,
    ) -> Result<Lines<Progress>, ClientError> {
        self.canary(query::CANARY_RESUME, app).await
    }

    async fn canary(
        &self,
        path: &str,
        app: Option<&AppName>,
    ) -> Result<Lines<Progress>, ClientError> {
        let app = app.cloned();
        self.operate(
            path,
            &query::Operation {
                app,
                ..query::Operation::default()
            },
        )
        .await
    }

    /// `POST` to one of the calls whose whole meaning is in their query, such as [`query::STOP`],
    /// and that answer with the lines of an operation.
    pub async fn operate(
        &self,
        path: &str,
        query: &impl serde::Serialize,
    ) -> Result<Lines<Progress>, ClientError> {
        self.lines(Method::POST, &query::uri(path, query)).await
    }

    async fn labelled(
        &self,
        path: &str,
        app: Option<&AppName>,
        label: Option<&Label>,
        wait: Wait,
    ) -> Result<Lines<Progress>, ClientError> {
        let query = query::Labelled {
            app: app.cloned(),
            label: label.cloned(),
            queue: wait.queue(),
            detach: wait.detach(),
            ..query::Labelled::default()
        };
        self.lines(Method::POST, &query::uri(path, &query)).await
    }

    /// `GET /v1/operations/ID`: the lines from the beginning.
    pub async fn operation(&self, id: &str) -> Result<Lines<Progress>, ClientError> {
        self.lines(Method::GET, &format!("{}{id}", query::OPERATIONS))
            .await
    }

    /// `POST /v1/dashboard`: a link for one browser, with the rights of who asks.
    pub async fn dashboard(&self) -> Result<DashboardLink, ClientError> {
        let call = self.call(
            Method::POST,
            query::DASHBOARD,
            Either::Left(Empty::new()),
            None,
        );
        parse(call.await?).await
    }

    /// `POST /v1/drain-node`
    pub async fn drain_node(&self, query: &query::DrainNode) -> Result<NodeDrain, ClientError> {
        let path = query::uri(query::DRAIN_NODE, query);
        parse(
            self.call(Method::POST, &path, Either::Left(Empty::new()), None)
                .await?,
        )
        .await
    }

    /// `POST /v1/shutdown`
    pub async fn shutdown(&self, now: bool) -> Result<ShuttingDown, ClientError> {
        let path = query::uri(query::SHUTDOWN, &query::Shutdown { now });
        parse(
            self.call(Method::POST, &path, Either::Left(Empty::new()), None)
                .await?,
        )
        .await
    }

    /// `GET /v1/config`: what the host works with, as the JSON of its file.
    pub async fn config(&self) -> Result<serde_json::Value, ClientError> {
        self.get(query::CONFIG).await
    }

    /// `GET /v1/config/plan`
    pub async fn config_plan(&self) -> Result<ConfigPlan, ClientError> {
        self.get(query::CONFIG_PLAN).await
    }

    /// `POST /v1/config/reload`
    pub async fn config_reload(&self) -> Result<ConfigPlan, ClientError> {
        parse(
            self.call(
                Method::POST,
                query::CONFIG_RELOAD,
                Either::Left(Empty::new()),
                None,
            )
            .await?,
        )
        .await
    }

    /// `GET /v1/state/APP/keys`
    pub async fn state_keys(
        &self,
        app: &AppName,
        ask: &query::State<'_>,
    ) -> Result<Lines<StateKeyLine>, ClientError> {
        self.lines(Method::GET, &ask.on(app, "keys")).await
    }

    /// `GET /v1/state/APP/value`: the bytes.
    pub async fn state_value(
        &self,
        app: &AppName,
        ask: &query::State<'_>,
    ) -> Result<Bytes, ClientError> {
        let response = self
            .call(
                Method::GET,
                &ask.on(app, "value"),
                Either::Left(Empty::new()),
                None,
            )
            .await?;
        let whole = response.into_body().collect().await;
        Ok(whole.map_err(ClientError::Broken)?.to_bytes())
    }

    /// `GET /v1/state/APP/stats`
    pub async fn state_stats(&self, app: &AppName) -> Result<StateStats, ClientError> {
        self.get(&query::State::default().on(app, "stats")).await
    }

    /// `PUT` or `DELETE /v1/state/APP/value`, or `POST` of what is named, with the bytes of `from`,
    /// which stream.
    pub async fn state_change(
        &self,
        method: Method,
        app: &AppName,
        what: &str,
        ask: &query::State<'_>,
        from: Option<Box<dyn Read + Send>>,
    ) -> Result<StateDone, ClientError> {
        let body = match from {
            None => Either::Left(Empty::new()),
            Some(mut from) => {
                let (tx, rx) = mpsc::channel(4);
                tokio::task::spawn_blocking(move || {
                    loop {
                        let mut piece = vec![0; PIECE];
                        let next = match from.read(&mut piece) {
                            Ok(0) => return,
                            Ok(length) => {
                                piece.truncate(length);
                                Ok(Bytes::from(piece))
                            }
                            Err(error) => Err(error),
                        };
                        if tx.blocking_send(next).is_err() {
                            return;
                        }
                    }
                });
                Either::Right(ChannelBody(rx))
            }
        };
        parse(self.call(method, &ask.on(app, what), body, None).await?).await
    }

    /// `GET /v1/state/APP/export` or `backup`: the lines as they are, to `take`, which may say that
    /// it has enough.
    pub async fn state_dump(
        &self,
        app: &AppName,
        what: &str,
        ask: &query::State<'_>,
        mut take: impl FnMut(&[u8]) -> io::Result<bool>,
    ) -> Result<io::Result<()>, ClientError> {
        let response = self
            .call(
                Method::GET,
                &ask.on(app, what),
                Either::Left(Empty::new()),
                None,
            )
            .await?;
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(bytes) = frame.map_err(ClientError::Broken)?.into_data() {
                match take(&bytes) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => return Ok(Err(error)),
                }
            }
        }
        Ok(Ok(()))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        parse(
            self.call(Method::GET, path, Either::Left(Empty::new()), None)
                .await?,
        )
        .await
    }

    async fn post(&self, path: &str, id: &str) -> Result<Done, ClientError> {
        let path = query::uri(
            path,
            &query::Identity {
                id: id.to_owned(),
                by: None,
            },
        );
        parse(
            self.call(Method::POST, &path, Either::Left(Empty::new()), None)
                .await?,
        )
        .await
    }

    async fn lines<T>(&self, method: Method, path: &str) -> Result<Lines<T>, ClientError> {
        self.call(method, path, Either::Left(Empty::new()), None)
            .await
            .map(Lines::new)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: RequestBody,
        upload: Option<Upload>,
    ) -> Result<Response<Incoming>, ClientError> {
        let (stream, mut child) = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(ClientError::Broken)?;
        // Its errors are also those of the call and of the body.
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "handover");
        if let Some(upload) = upload {
            // With the length said, the host can tell a whole upload from a cut one even if we are
            // killed.
            request = request.header(header::CONTENT_LENGTH, upload.length);
            if let Some(signature) = upload.signature {
                request = request.header(SIGNATURE, signature);
            }
        }
        let request = request
            .body(body)
            .map_err(|error| ClientError::Response(error.to_string()))?;
        let response = match (sender.send_request(request).await, &mut child) {
            (Ok(response), _) => response,
            (Err(error), None) => return Err(ClientError::Broken(error)),
            (Err(error), Some(child)) => return Err(why_broken(child, error).await),
        };
        if let Some(mut child) = child {
            // It lives as long as the connection does, for the body.
            tokio::spawn(async move {
                let _ = connection.await; // the error is that of the body
                let _ = child.wait().await; // nobody asks any more
            });
        }
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let problem = parse::<Problem>(response).await;
        Err(problem.map_or_else(
            |_| ClientError::Response(format!("status {status}")),
            ClientError::Refused,
        ))
    }
}

/// Returns why the program had no answer for us.
async fn why_broken(child: &mut Child, error: hyper::Error) -> ClientError {
    match child.wait().await.ok().and_then(|status| status.code()) {
        // What it has said to its standard error says more.
        Some(code) if code != 0 => {
            let told = format!("no host was reached: the way to it ended with exit code {code}");
            ClientError::Program(told, if matches!(code, 3 | 9) { code as u8 } else { 3 })
        }
        _ => ClientError::Broken(error),
    }
}

async fn parse<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ClientError> {
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(ClientError::Broken)?
        .to_bytes();
    serde_json::from_slice(&body).map_err(|error| ClientError::Response(error.to_string()))
}

/// One line of an answer, as it came and as what it means.
#[derive(Debug)]
pub struct Line<T> {
    /// The JSON, without the line's end.
    pub text: String,
    /// The meaning.
    pub value: T,
}

/// An answer of one JSON object a line, read as the lines come.
#[derive(Debug)]
pub struct Lines<T> {
    body: Incoming,
    splitter: Splitter,
    kind: PhantomData<fn() -> T>,
}

impl<T> Lines<T> {
    fn new(response: Response<Incoming>) -> Self {
        Self {
            body: response.into_body(),
            splitter: Splitter::default(),
            kind: PhantomData,
        }
    }
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next line; none at the end. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Result<Option<Line<T>>, ClientError> {
        loop {
            if let Some(text) = self.splitter.next() {
                let value = serde_json::from_str(&text)
                    .map_err(|error| ClientError::Response(format!("{error} in {text}")))?;
                return Ok(Some(Line { text, value }));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(bytes) = frame.map_err(ClientError::Broken)?.into_data() {
                        self.splitter.push(&bytes);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}

/// Bytes in pieces to whole lines. What follows the last line's end is a line that was cut, and is
/// never given.
#[derive(Debug, Default)]
struct Splitter {
    lines: VecDeque<String>,
    rest: Vec<u8>,
}

impl Splitter {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.rest);
                let line = String::from_utf8_lossy(line.trim_ascii()).into_owned();
                if !line.is_empty() {
                    self.lines.push_back(line);
                }
            }
        }
    }

    fn next(&mut self) -> Option<String> {
        self.lines.pop_front()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn lines_are_whole_however_the_bytes_come() {
        let mut splitter = Splitter::default();
        for piece in ["{\"a\"", ":1}\n{\"b\":\"é", "\"}\r\n\n{\"c\":3}\n{\"cut\""] {
            splitter.push(piece.as_bytes());
        }
        let lines: Vec<_> = std::iter::from_fn(|| splitter.next()).collect();
        assert_eq!(lines, ["{\"a\":1}", "{\"b\":\"é\"}", "{\"c\":3}"]);
    }

    #[tokio::test]
    async fn a_host_that_does_not_answer_is_exit_code_3() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let error = Client::new(&path).status().await.unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert_eq!(
            error.to_string(),
            format!(
                "no host answers at {}: is `handover run` running? --control or HANDOVER_CONTROL names the socket",
                path.display()
            )
        );
    }
}
