//! The calls of the control socket: one table of them, and what each answers.

use std::{
    convert::Infallible,
    fmt, io,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use handover_api::{
    AppName, AuditList, AuditSource, ChannelBody, ConfigPlan, DashboardLink, Done, Event,
    EventKind, History, HolderList, OperationResult, Outcome, Problem, Progress, SIGNATURE,
    ShadowList, ShuttingDown, TenantList, Wait, query,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{broadcast, mpsc};

use super::{
    audit, logs,
    server::{Backend, Upload},
    shutdown::{Shutdown, ShutdownHandle},
    state, work,
};
use crate::{
    access::{Peer, Role},
    artifact::{Signature, StoreError},
    background,
    operations::operation::{Keyed, Operation, Reserved},
    ownership,
    reconfigure::ReconfigureError,
    report::holders::HolderId,
    rollout::{self, settings::SettingsError},
    telemetry::{Gather, exposition},
};

/// How many lines or pieces may wait for a slow other side.
pub(super) const WAITING: usize = 32;

/// How long the text of a setting or a message is at most.
const LONGEST_TEXT: usize = 1 << 20;

/// How long the bytes of a caller that is refused are read.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) type ControlResponse = Response<Either<Full<Bytes>, ChannelBody<Infallible>>>;

/// A call that is not taken.
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    allow: Option<HeaderValue>,
    pub(crate) problem: Problem,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, exit_code: u8, error: impl fmt::Display) -> Self {
        Self {
            status,
            allow: None,
            problem: Problem {
                error: error.to_string(),
                exit_code,
            },
        }
    }

    pub(crate) fn denied(error: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, Outcome::Denied.exit_code(), error)
    }

    pub(crate) fn into_response(self) -> ControlResponse {
        let mut response = json(&self.problem);
        *response.status_mut() = self.status;
        if let Some(allow) = self.allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    }
}

pub(super) fn read_query<Q: DeserializeOwned>(request: &Request<Incoming>) -> Result<Q, Refusal> {
    let text = request.uri().query().unwrap_or_default();
    serde_urlencoded::from_str(text).map_err(|error| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            2,
            format_args!(
                "the query of {} is not understood: {error}",
                request.uri().path()
            ),
        )
    })
}

/// The signature that came with the artifact.
fn signature(request: &Request<Incoming>) -> Result<Option<Signature>, Refusal> {
    let Some(value) = request.headers().get(SIGNATURE) else {
        return Ok(None);
    };
    Signature::from_header(value.as_bytes())
        .map(Some)
        .map_err(|error| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                Outcome::Rejected.exit_code(),
                format_args!("the signature is not understood: {error}; {SIGNATURE} takes the base64 of FILE.so.minisig"),
            )
        })
}

/// What a call is answered with, once its query and its body were read.
type Handling = Pin<Box<dyn Future<Output = Result<ControlResponse, Refusal>> + Send>>;

/// Answers a call.
type Handler<B> = fn(Request<Incoming>, B, Arc<Asked>) -> Handling;

/// One call of the control socket.
pub(super) struct Call<B> {
    pub(super) method: Method,
    /// The path, or what it begins with where it ends with a slash: an id follows.
    pub(super) path: &'static str,
    /// Who may make it.
    pub(super) role: Role,
    handler: Handler<B>,
}

/// What a connection asks of the host as a whole.
pub(crate) struct Asked {
    /// To be asked for when the connection has ended.
    pub(super) shutdown: OnceLock<Shutdown>,
    /// How the host ends.
    pub(super) handle: ShutdownHandle,
    /// The user of the process that calls.
    pub(super) peer: Peer,
    /// The process, where the kernel says which.
    pub(super) pid: Option<i32>,
    /// Where it calls.
    pub(super) source: AuditSource,
}

impl Asked {
    /// Those of a connection of `peer`.
    pub(crate) fn by(
        peer: Peer,
        pid: Option<i32>,
        source: AuditSource,
        handle: ShutdownHandle,
    ) -> Self {
        Self {
            shutdown: OnceLock::new(),
            handle,
            peer,
            pid,
            source,
        }
    }

    /// Has `by` name who calls, where the caller has not.
    async fn name(&self, by: &mut Option<String>) {
        if by.is_none() {
            let uid = self.peer.uid;
            *by = tokio::task::spawn_blocking(move || ownership::user_name(uid))
                .await
                .ok();
        }
    }
}

impl<B: Backend> Call<B> {
    /// Every call. One that is not here does not exist.
    pub(super) const ALL: &[Self] = &[
        Self::get(query::STATUS, |request, backend, _| {
            Box::pin(async move {
                let query::None {} = read_query(&request)?;
                Ok(json(&backend.status()))
            })
        }),
        Self::get(query::HISTORY, |request, backend, _| {
            Box::pin(async move {
                let query::History { app } = read_query(&request)?;
                let history = backend.history(app.as_ref());
                Ok(json(&History { history }))
            })
        }),
        Self::get(query::ARTIFACT, |request, backend, _| {
            Box::pin(async move {
                let asked = read_query(&request)?;
                let found = tokio::task::spawn_blocking(move || backend.artifact(&asked)).await;
                // An error means that the host ends.
                let found = found.unwrap_or_else(|_| Err("the host ends".to_owned()));
                found
                    .map(|report| json(&report))
                    .map_err(|why| Refusal::new(StatusCode::NOT_FOUND, 1, why))
            })
        }),
        Self::read(query::AUDIT, |request, backend, _| {
            Box::pin(async move {
                let asked = read_query(&request)?;
                let log = backend.audit();
                let read = tokio::task::spawn_blocking(move || log.read(&asked)).await;
                // An error means that the host ends.
                let read = read.unwrap_or_else(|_| Err(io::Error::other("the host ends")));
                match read {
                    Ok(entries) => Ok(json(&AuditList { entries })),
                    Err(error) => Err(Refusal::new(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        1,
                        format_args!("the audit log cannot be read: {error}"),
                    )),
                }
            })
        }),
        Self::get(query::EVENTS, |request, backend, asked| {
            Box::pin(async move {
                let query::Events { follow } = read_query(&request)?;
                let following = follow.then(|| asked.handle.clone());
                Ok(events(backend.events(), following))
            })
        }),
        Self::get(query::LOGS, |request, backend, asked| {
            Box::pin(async move {
                let query: query::Logs = read_query(&request)?;
                let following = query.follow.then(|| asked.handle.clone());
                logs::logs(backend.logs(), query, following)
            })
        }),
        Self::post(query::DEPLOY, |request, backend, asked| {
            Box::pin(async move {
                let read = read_query(&request);
                match read.and_then(|query: query::Deploy| Ok((query, signature(&request)?))) {
                    Ok((mut query, signature)) => {
                        asked.name(&mut query.by).await;
                        if let Some(refusal) = unfit(&query) {
                            discard(request.into_body()).await;
                            return Err(refusal);
                        }
                        let key = query.idempotency_key.as_deref();
                        let reserved = match key.map(|key| backend.keyed(key)) {
                            None => None,
                            Some(Keyed::New(reserved)) => Some(reserved),
                            Some(Keyed::Known(operation)) => {
                                discard(request.into_body()).await;
                                return Ok(progress(operation));
                            }
                            Some(Keyed::UnderWay) => {
                                discard(request.into_body()).await;
                                return Err(Refusal::new(
                                    StatusCode::CONFLICT,
                                    Outcome::Conflict.exit_code(),
                                    "somebody sends the artifact of a deploy with this key right now",
                                ));
                            }
                        };
                        deploy(request.into_body(), query, signature, reserved, backend).await
                    }
                    Err(refusal) => {
                        discard(request.into_body()).await;
                        Err(refusal)
                    }
                }
            })
        }),
        Self::post(query::RELOAD, |request, backend, _| {
            Box::pin(async move {
                let query::Reload {
                    app, queue, detach, ..
                } = read_query(&request)?;
                let wait = Wait::from_query(queue, detach);
                Ok(progress(backend.reload(app, wait)))
            })
        }),
        Self::post(query::ROLLBACK, |request, backend, asked| {
            Box::pin(async move {
                let mut query: query::Rollback = read_query(&request)?;
                asked.name(&mut query.by).await;
                Ok(progress(backend.rollback(query)))
            })
        }),
        Self::post(query::PROMOTE, |request, backend, asked| {
            Box::pin(async move {
                let mut query: query::Labelled = read_query(&request)?;
                asked.name(&mut query.by).await;
                Ok(progress(backend.promote(query)))
            })
        }),
        Self::post(query::ABORT, |request, backend, asked| {
            Box::pin(async move {
                let mut query: query::Labelled = read_query(&request)?;
                asked.name(&mut query.by).await;
                Ok(progress(backend.abort(query)))
            })
        }),
        Self::get(query::SHADOW, |request, backend, _| {
            Box::pin(async move {
                let query::OfApp { app } = read_query(&request)?;
                let shadows = backend.shadows(app.as_ref());
                Ok(json(&ShadowList { shadows }))
            })
        }),
        Self::post(query::VERIFY, |request, backend, _| {
            Box::pin(async move {
                let query::OfApp { app } = read_query(&request)?;
                Ok(progress(backend.verify(app)))
            })
        }),
        Self::post(query::STOP, |request, backend, _| {
            Box::pin(async move { Ok(progress(backend.stop(read_query(&request)?))) })
        }),
        Self::post(query::START, |request, backend, asked| {
            Box::pin(async move {
                let mut query: query::Operation = read_query(&request)?;
                asked.name(&mut query.by).await;
                Ok(progress(backend.start(query)))
            })
        }),
        Self::post(query::RESTART, |request, backend, asked| {
            Box::pin(async move {
                let mut query: query::Operation = read_query(&request)?;
                asked.name(&mut query.by).await;
                Ok(progress(backend.restart(query)))
            })
        }),
        Self::post(query::PAUSE, |request, backend, _| {
            Box::pin(async move { Ok(progress(backend.pause(read_query(&request)?))) })
        }),
        Self::post(query::RESUME, |request, backend, _| {
            Box::pin(async move { Ok(progress(backend.resume(read_query(&request)?))) })
        }),
        Self::post(query::CANARY_PAUSE, |request, backend, _| {
            Box::pin(async move {
                let asked = read_query(&request)?;
                Ok(progress(backend.pause_canary(asked, true)))
            })
        }),
        Self::post(query::CANARY_RESUME, |request, backend, _| {
            Box::pin(async move {
                let asked = read_query(&request)?;
                Ok(progress(backend.pause_canary(asked, false)))
            })
        }),
        Self::get(query::TENANTS, |request, backend, _| {
            Box::pin(async move {
                let query::OfApp { app } = read_query(&request)?;
                let tenants = backend.tenants(app.as_ref());
                Ok(json(&TenantList { tenants }))
            })
        }),
        Self::post(query::MOVE, |request, backend, _| {
            Box::pin(async move {
                match backend.move_tenant(&read_query(&request)?) {
                    Ok(message) => Ok(json(&Done { message })),
                    Err(why) => Err(Refusal::new(StatusCode::NOT_FOUND, 1, why)),
                }
            })
        }),
        Self::read(query::SETTINGS, |request, backend, _| {
            Box::pin(async move {
                let list = backend.settings(read_query(&request)?);
                Ok(json(&list.map_err(not_set)?))
            })
        }),
        Self::post(query::SET, |request, backend, asked| {
            Box::pin(async move {
                let mut query: query::Set = read_query(&request)?;
                asked.name(&mut query.by).await;
                let text = text(request.into_body()).await?;
                let value = match query.unset {
                    true => None,
                    false => Some(serde_json::from_str(&text).map_err(|error| {
                        let why = format_args!("the value is no JSON: {error}");
                        Refusal::new(StatusCode::BAD_REQUEST, 2, why)
                    })?),
                };
                let message = backend.set(query, value).await.map_err(not_set)?;
                Ok(json(&Done { message }))
            })
        }),
        Self::post(query::SEND, |request, backend, _| {
            Box::pin(async move {
                let query = read_query(&request)?;
                let text = text(request.into_body()).await?;
                Ok(json(&backend.send(query, text).await.map_err(not_set)?))
            })
        }),
        Self::get(query::HOLDERS, |request, backend, _| {
            Box::pin(async move {
                let holders = backend.holders(&read_query(&request)?);
                Ok(json(&HolderList { holders }))
            })
        }),
        Self::get(query::JOBS, |request, backend, _| {
            Box::pin(async move { work::jobs(backend.work(), read_query(&request)?).await })
        }),
        Self::read(query::JOB, |request, backend, _| {
            Box::pin(async move {
                let path = request.uri().path();
                let id = path.strip_prefix(query::JOB).unwrap_or_default();
                work::job(backend.work(), id).await
            })
        }),
        Self::post(query::CANCEL, |request, backend, _| {
            Box::pin(async move {
                let query::Identity { id, .. } = read_query(&request)?;
                if let Ok(holder) = id.parse() {
                    return cancel_holder(&backend, &id, &holder).await;
                }
                work::cancel(backend.work(), &id).await
            })
        }),
        Self::post(query::RETRY, |request, backend, _| {
            Box::pin(async move {
                let query::Identity { id, .. } = read_query(&request)?;
                work::retry(backend.work(), &id).await
            })
        }),
        Self::get(query::SCHEDULES, |request, backend, _| {
            Box::pin(async move { work::schedules(backend.work(), read_query(&request)?).await })
        }),
        Self::get(query::LEASES, |request, backend, _| {
            Box::pin(async move { work::leases(backend.work(), &read_query(&request)?) })
        }),
        Self::read(query::CONFIG, |request, backend, _| {
            Box::pin(async move {
                let query::None {} = read_query(&request)?;
                Ok(json(&*backend.config()))
            })
        }),
        Self::read(query::CONFIG_PLAN, |request, backend, _| {
            Box::pin(async move {
                let query::None {} = read_query(&request)?;
                reconfigured(move || backend.config_plan()).await
            })
        }),
        Self::post(query::CONFIG_RELOAD, |request, backend, _| {
            Box::pin(async move {
                let query::None {} = read_query(&request)?;
                reconfigured(move || backend.reload_config()).await
            })
        }),
        // Who only observes has a page that only observes.
        Self::new(
            Method::POST,
            query::DASHBOARD,
            Role::Observe,
            |request, backend, asked| {
                Box::pin(async move {
                    let query::None {} = read_query(&request)?;
                    match backend.dashboard(asked.peer).await {
                        Ok(url) => Ok(json(&DashboardLink { url })),
                        Err(why) => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, 1, why)),
                    }
                })
            },
        ),
        Self::post(query::SHUTDOWN, |request, _, asked| {
            Box::pin(async move {
                let query::Shutdown { now } = read_query(&request)?;
                // Takes effect when this connection has ended, which the header makes happen right
                // after the answer.
                let _ = asked
                    .shutdown
                    .set(if now { Shutdown::Now } else { Shutdown::Drain });
                let pid = std::process::id();
                let mut response = json(&ShuttingDown { pid });
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
                Ok(response)
            })
        }),
        Self::post(query::DRAIN_NODE, |request, backend, _| {
            Box::pin(async move {
                let asked = read_query(&request)?;
                Ok(json(&backend.drain_node(asked).await))
            })
        }),
        Self::get(query::METRICS, |request, backend, _| {
            Box::pin(async move {
                let query::None {} = read_query(&request)?;
                metrics(backend.metrics()).await
            })
        }),
        Self::get(query::OPERATIONS, |request, backend, _| {
            Box::pin(async move {
                let path = request.uri().path();
                let id = path.strip_prefix(query::OPERATIONS).unwrap_or_default();
                backend.operation(id).map(progress).ok_or_else(|| {
                    Refusal::new(
                        StatusCode::NOT_FOUND,
                        1,
                        format_args!(
                            "there is no operation `{id}`: it ended too long ago, or before the host was started; `handover history` \
                             shows what became of it"
                        ),
                    )
                })
            })
        }),
    ];

    /// A call that changes nothing, so that observers may make it.
    const fn get(path: &'static str, handler: Handler<B>) -> Self {
        Self::new(Method::GET, path, Role::Observe, handler)
    }

    /// A call that shows what apps keep, which is for those who operate.
    const fn read(path: &'static str, handler: Handler<B>) -> Self {
        Self::new(Method::GET, path, Role::Operate, handler)
    }

    /// A call that changes something.
    const fn post(path: &'static str, handler: Handler<B>) -> Self {
        Self::new(Method::POST, path, Role::Operate, handler)
    }

    const fn new(method: Method, path: &'static str, role: Role, handler: Handler<B>) -> Self {
        Self {
            method,
            path,
            role,
            handler,
        }
    }

    fn is_at(&self, path: &str) -> bool {
        if self.path.ends_with('/') {
            path.strip_prefix(self.path)
                .is_some_and(|id| !id.is_empty())
        } else {
            path == self.path
        }
    }

    /// Returns the call that `request` makes.
    ///
    /// # Errors
    /// 404 and 405, each with what there is.
    fn find(request: &Request<Incoming>) -> Result<&'static Self, Refusal> {
        let (method, path) = (request.method(), request.uri().path());
        let Some(call) = Self::ALL.iter().find(|call| call.is_at(path)) else {
            let calls = Self::ALL.iter().map(|call| {
                let id = if call.path.ends_with('/') { "ID" } else { "" };
                format!("{} {}{id}", call.method, call.path)
            });
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                1,
                format_args!(
                    "there is no call {path}: this host knows {}, and {}APP/… for what apps keep",
                    calls.collect::<Vec<_>>().join(", "),
                    query::STATE
                ),
            ));
        };
        if call.method == method {
            return Ok(call);
        }
        Err(Refusal {
            allow: HeaderValue::from_str(call.method.as_str()).ok(),
            ..Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                1,
                format_args!("{path} takes {}, and this was {method}", call.method),
            )
        })
    }
}

/// Answers a call of somebody whose role `may` tells. What a refused caller still sends is read.
pub(crate) async fn answer<B: Backend>(
    request: Request<Incoming>,
    backend: B,
    may: impl FnOnce(Role) -> Result<(), Refusal>,
    asked: &Arc<Asked>,
) -> Result<ControlResponse, Refusal> {
    let of_state = state::parts(request.uri().path());
    let of_state = of_state.map(|(app, what)| (app.to_owned(), what.to_owned()));
    let call = match of_state {
        // What apps keep is for those who operate.
        Some(_) => Ok((Role::Operate, None)),
        None => Call::<B>::find(&request).map(|call| (call.role, Some(call))),
    };
    // What is no call changes nothing.
    let entry = call
        .as_ref()
        .ok()
        .and_then(|_| audit::entry(&request, asked));
    // Who may not even observe is not told which calls there are.
    let needed = call.as_ref().map_or(Role::Observe, |(role, _)| *role);
    if let Err(refusal) = may(needed) {
        let refused = Err(refusal);
        if let Some(entry) = entry {
            audit::answered(backend.audit().begin(entry), &refused, &backend);
        }
        discard(request.into_body()).await;
        return refused;
    }
    let handling = match (call?.1, of_state) {
        (Some(call), _) => (call.handler)(request, backend.clone(), Arc::clone(asked)),
        (None, of_state) => {
            let (app, what) = of_state.unwrap_or_default();
            let backend = backend.clone();
            Box::pin(async move { app_state(request, &app, &what, backend).await })
        }
    };
    let Some(entry) = entry else {
        return handling.await;
    };
    let begun = backend.audit().begin(entry);
    // On a task of its own: what has begun goes on when the caller leaves, and is taken down.
    let answered = tokio::spawn(async move {
        let answer = handling.await;
        audit::answered(begun, &answer, &backend);
        answer
    });
    answered.await.unwrap_or_else(|_| {
        Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            1,
            "the call broke off inside the host: its log says more",
        ))
    })
}

/// Answers a call for the state of an app.
async fn app_state<B: Backend>(
    request: Request<Incoming>,
    app: &str,
    what: &str,
    backend: B,
) -> Result<ControlResponse, Refusal> {
    let store = app.parse::<AppName>().ok().and_then(|name| {
        let store = backend.state(&name)?;
        Some((name, store))
    });
    let Some((name, store)) = store else {
        discard(request.into_body()).await;
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            1,
            format_args!("this host knows no app `{app}`"),
        ));
    };
    let replaced = {
        let (backend, name) = (backend.clone(), name.clone());
        move || backend.state_replaced(&name)
    };
    let suits = {
        let (backend, name) = (backend.clone(), name.clone());
        move |schema| backend.state_suits(&name, schema)
    };
    let scratch = {
        let name = name.clone();
        move || {
            backend.scratch(&name).map_err(|error| {
                let why = format!("no store can be made to try it: {error}");
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, 1, why)
            })
        }
    };
    state::answer(request, what, name, store, scratch, suits, replaced).await
}

pub(super) fn json(value: &impl Serialize) -> ControlResponse {
    let mut response = Response::new(Either::Left(Full::new(line(value))));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

pub(super) fn line(value: &impl Serialize) -> Bytes {
    // These are our own types of strings and numbers: serialising them cannot fail, and if it ever
    // did, an empty line is what a reader skips.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// Reads the configuration again, which blocks.
async fn reconfigured(
    read: impl FnOnce() -> Result<ConfigPlan, ReconfigureError> + Send + 'static,
) -> Result<ControlResponse, Refusal> {
    let refused = |error: &dyn fmt::Display| Refusal::new(StatusCode::CONFLICT, 1, error);
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(plan)) => Ok(json(&plan)),
        Ok(Err(error)) => Err(refused(&error)),
        Err(error) => Err(refused(&error)),
    }
}

async fn metrics(gather: Gather) -> Result<ControlResponse, Refusal> {
    let text = gather.text().await.map_err(|error| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            1,
            format_args!("the metrics could not be gathered: {error}"),
        )
    })?;
    let mut response = Response::new(Either::Left(Full::new(text.into())));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(exposition::CONTENT_TYPE),
    );
    Ok(response)
}

pub(crate) fn lines(lines: mpsc::Receiver<Result<Bytes, Infallible>>) -> ControlResponse {
    let mut response = Response::new(Either::Right(ChannelBody(lines)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    response
}

/// The lines of an operation until its end. Only one that waits for its turn depends on somebody
/// reading them: with the task its interest is dropped.
fn progress(operation: Operation) -> ControlResponse {
    let Operation {
        id,
        lines: mut said,
        interest,
    } = operation;
    let (tx, rx) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let _interest = interest;
        loop {
            tokio::select! {
                next = said.recv() => match next {
                    Some(next) => if tx.send(Ok(line(&next))).await.is_err() { break },
                    None => break,
                },
                () = tx.closed() => break,
            }
        }
    });
    let mut response = lines(rx);
    response.extensions_mut().insert(audit::OperationId(id));
    response
}

/// The events so far, and those to come until `following` is at its end.
fn events(
    (past, mut coming): (Vec<Event>, broadcast::Receiver<Event>),
    following: Option<ShutdownHandle>,
) -> ControlResponse {
    let (tx, rx) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let mut last = 0;
        for event in past {
            last = event.seq;
            if tx.send(Ok(line(&event))).await.is_err() {
                return;
            }
        }
        let Some(shutdown) = following else { return };
        loop {
            let next = tokio::select! {
                biased;
                next = coming.recv() => next,
                () = tx.closed() => return,
                _ = shutdown.requested(Shutdown::Ended) => return,
            };
            let event = match next {
                Ok(event) if event.seq <= last => continue,
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(missed)) => missed_events(last, missed),
                Err(broadcast::error::RecvError::Closed) => return,
            };
            last = event.seq;
            if tx.send(Ok(line(&event))).await.is_err() {
                return;
            }
        }
    });
    lines(rx)
}

/// Stands for the events that a slow reader missed. It has the number of the last of them.
pub(crate) fn missed_events(last: u64, missed: u64) -> Event {
    Event {
        seq: last.saturating_add(missed),
        at_ms: crate::clock::now_ms(),
        kind: EventKind::Missed,
        app: None,
        generation: None,
        message: format!("{missed} events were missed: this reader is slower than they come"),
        leaked_bytes: None,
        leaked_descriptors: None,
    }
}

/// The body of a call that takes a text.
async fn text(body: Incoming) -> Result<String, Refusal> {
    let limited = Limited::new(body, LONGEST_TEXT).collect().await;
    let bytes = limited.map_err(|error| {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            1,
            format_args!("the text was not taken, at most 1 MiB are: {error}"),
        )
    })?;
    String::from_utf8(bytes.to_bytes().into()).map_err(|error| {
        let why = format_args!("the text is no UTF-8: {error}");
        Refusal::new(StatusCode::BAD_REQUEST, 2, why)
    })
}

fn not_set(error: SettingsError) -> Refusal {
    let (status, code, why) = match error {
        SettingsError::NoApp(why) => (StatusCode::NOT_FOUND, 1, why),
        SettingsError::Invalid(why) => (StatusCode::BAD_REQUEST, 2, why),
        SettingsError::Refused(why) => (StatusCode::CONFLICT, 1, why),
    };
    Refusal::new(status, code, why)
}

async fn cancel_holder<B: Backend>(
    backend: &B,
    text: &str,
    id: &HolderId,
) -> Result<ControlResponse, Refusal> {
    match backend.cancel_holder(id).await {
        Some(message) => Ok(json(&Done { message })),
        None => {
            let why = format!(
                "there is no `{text}`, or not any more: `handover drain` shows what there is"
            );
            Err(Refusal::new(StatusCode::NOT_FOUND, 1, why))
        }
    }
}

/// Why a deploy is refused that is asked for in a way that cannot be.
fn unfit(query: &query::Deploy) -> Option<Refusal> {
    let error = rollout::deploy::unfit(query)?;
    let code = Outcome::Failed.exit_code();
    Some(Refusal::new(StatusCode::BAD_REQUEST, code, error))
}

async fn deploy<B: Backend>(
    body: Incoming,
    query: query::Deploy,
    signature: Option<Signature>,
    reserved: Option<Reserved>,
    backend: B,
) -> Result<ControlResponse, Refusal> {
    let (told, app, name) = (backend.clone(), query.app.clone(), query.name.clone());
    // On a task of its own: when the last byte is in, the deploy happens, even if the client dies
    // in that moment.
    let deploying = tokio::spawn(async move {
        let began = Instant::now();
        let artifact = receive(body, backend.clone()).await?;
        let operation = backend.deploy(artifact, signature, began.elapsed(), query);
        if let Some(reserved) = reserved {
            reserved.is(&operation.id);
        }
        Ok(operation)
    });
    let error = match deploying.await {
        Ok(Ok(operation)) => return Ok(progress(operation)),
        Ok(Err(ReceiveError::Aborted(error))) => {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                1,
                format_args!(
                    "the upload ended before it was whole ({error}): nothing was deployed"
                ),
            ));
        }
        Ok(Err(ReceiveError::Store(error))) => error,
        Err(_) => {
            return Err(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                1,
                "the host failed in taking the upload: nothing was deployed, its log says more",
            ));
        }
    };
    let name = name.as_deref().unwrap_or("the upload");
    Ok(ended(told.not_taken(name, app, &error).await))
}

/// Reads what a refused caller still sends, for a while: closing on it would take the answer away
/// from it.
async fn discard(mut body: Incoming) {
    let read = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(PATIENCE, read).await; // then it has to do without
}

/// An operation that ended before it had an id.
fn ended(result: OperationResult) -> ControlResponse {
    let text = line(&Progress::Result(result.clone()));
    let mut response = Response::new(Either::Left(Full::new(text)));
    response.extensions_mut().insert(result);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    response
}

enum ReceiveError {
    /// The client left, or lied about the length.
    Aborted(hyper::Error),
    Store(StoreError),
}

/// The next piece for the writer, or the word that there are no more: a closed channel alone means
/// the upload was cut.
enum Piece {
    Bytes(Bytes),
    End,
}

/// Streams `body` into the store: never more than a few pieces are in memory.
async fn receive<B: Backend>(mut body: Incoming, backend: B) -> Result<B::Artifact, ReceiveError> {
    let (tx, mut rx) = mpsc::channel(WAITING);
    let writing = tokio::spawn(background::run("upload", move || {
        let mut upload = backend.upload()?;
        loop {
            match rx.blocking_recv() {
                Some(Piece::Bytes(bytes)) => upload.write(&bytes)?,
                Some(Piece::End) => return upload.finish().map(Some),
                None => return Ok(None),
            }
        }
    }));
    while let Some(frame) = body.frame().await {
        // Read to its end even when the writer gave up: a client that still writes could not read
        // why.
        if let Ok(bytes) = frame.map_err(ReceiveError::Aborted)?.into_data() {
            let _ = tx.send(Piece::Bytes(bytes)).await;
        }
    }
    let _ = tx.send(Piece::End).await;
    drop(tx);
    match writing.await {
        Ok(Ok(Ok(Some(artifact)))) => Ok(artifact),
        Ok(Ok(Err(error))) => Err(ReceiveError::Store(error)),
        Ok(Ok(Ok(None)) | Err(_)) | Err(_) => Err(ReceiveError::Store(StoreError::Io {
            path: "the upload".into(),
            source: io::Error::other("the writer of the store failed"),
        })),
    }
}
