//! The calls under `/v1/state/APP/`: what an operator does with the state of an app, while it
//! serves.
//!
//! Everything that is long streams: nothing of a store is in memory as a whole.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use handover_api::{AppName, StateDone, StateKey, StateProblem, query::STATE};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{runtime::Handle, sync::mpsc, task::spawn_blocking};

use super::calls::{ControlResponse, Refusal, json, lines, read_query};
use crate::state::{
    Commit, DumpError, Footer, Mutation, Namespace, Place, Query, Schema, StateError, Store,
    read_dump, restore_entries, text_or_base64, verify_dump, write_dump,
};

/// The namespace that is meant when none is named.
const DEFAULT: &str = "default";
/// How many pieces may wait for a slow other side.
const WAITING: usize = 32;
/// The longest value.
const MAX_VALUE: usize = 16 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeQuery {
    namespace: Option<String>,
    prefix: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    reverse: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyQuery {
    namespace: Option<String>,
    key: Option<String>,
    key_base64: Option<String>,
    ttl_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportQuery {
    namespace: Option<String>,
    after: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoQuery {}

/// The app and what is asked for in a path of these calls.
pub(super) fn parts(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix(STATE)?.split_once('/')
}

fn refused(error: &StateError) -> Refusal {
    let status = match error {
        StateError::Unavailable(_) | StateError::Busy | StateError::Ended => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        StateError::Quota { .. } => StatusCode::INSUFFICIENT_STORAGE,
        StateError::Conflict => StatusCode::CONFLICT,
        StateError::LongValue(_) | StateError::LargeCommit => StatusCode::PAYLOAD_TOO_LARGE,
        StateError::Place(_) | StateError::MixedCommit | StateError::NoCounter => {
            StatusCode::BAD_REQUEST
        }
    };
    Refusal::new(status, 1, error)
}

fn bad(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, 1, error)
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, 1, error)
}

fn namespace(named: Option<&str>) -> Result<Namespace, Refusal> {
    named.unwrap_or(DEFAULT).parse().map_err(bad)
}

impl KeyQuery {
    /// The place, and whether it is kept in memory.
    fn place(&self) -> Result<(bool, Place), Refusal> {
        let namespace = namespace(self.namespace.as_deref())?;
        let place = match (&self.key, &self.key_base64) {
            (Some(key), None) => namespace.place(key.as_bytes()),
            (None, Some(key)) => {
                let key = STANDARD.decode(key).map_err(bad)?;
                namespace.place(&key)
            }
            _ => return Err(bad("name one of `key` and `key_base64`")),
        };
        Ok((namespace.is_memory(), place.map_err(bad)?))
    }
}

/// Answers a call. `store` is that of the app in its path, `scratch` makes one that is forgotten,
/// `suits` says why what is live cannot run with a state of a schema, and `replaced` is told when
/// the state is another one.
pub(super) async fn answer(
    request: Request<Incoming>,
    what: &str,
    app: AppName,
    store: Arc<Store>,
    scratch: impl FnOnce() -> Result<Store, Refusal> + Send + 'static,
    suits: impl FnOnce(Schema) -> Result<(), String> + Send + 'static,
    replaced: impl FnOnce() -> Result<(), StateError> + Send + 'static,
) -> Result<ControlResponse, Refusal> {
    let method = request.method().clone();
    match (what, &method) {
        ("keys", &Method::GET) => keys(read_query(&request)?, store),
        ("value", &Method::GET) => get(&asked(&request)?, store).await,
        ("value", &Method::PUT) => put(&asked(&request)?, request.into_body(), store).await,
        ("value", &Method::DELETE) => delete(&asked(&request)?, store).await,
        ("export", &Method::GET) => export(&read_query(&request)?, store),
        ("backup", &Method::GET) => {
            let NoQuery {} = read_query(&request)?;
            Ok(backup(app, store))
        }
        ("import", &Method::POST) => {
            let NoQuery {} = read_query(&request)?;
            import(request.into_body(), store).await
        }
        ("restore", &Method::POST) => {
            let NoQuery {} = read_query(&request)?;
            restore(request.into_body(), store, suits, replaced).await
        }
        ("verify", &Method::POST) => {
            let NoQuery {} = read_query(&request)?;
            verify(request.into_body(), app, store, scratch).await
        }
        ("stats", &Method::GET) => {
            let NoQuery {} = read_query(&request)?;
            let stats = blocking(move || store.stats()).await?;
            Ok(json(&stats.map_err(|error| refused(&error))?))
        }
        _ => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            1,
            format_args!(
                "there is no call {method} {STATE}APP/{what}: this host knows GET keys, GET, PUT and DELETE value, GET export, \
                 POST import, GET backup, POST restore, POST verify, GET stats"
            ),
        )),
    }
}

fn asked<Q: DeserializeOwned>(request: &Request<Incoming>) -> Result<Q, Refusal> {
    read_query(request)
}

/// Runs what blocks on the disk.
async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Refusal> {
    spawn_blocking(work)
        .await
        .map_err(|error| failed(format_args!("the host failed: {error}")))
}

/// Lines that `write` makes, as fast as they are read. Its error becomes the last one.
fn stream(
    write: impl FnOnce(&mut dyn FnMut(Vec<u8>) -> bool) -> Result<(), StateError> + Send + 'static,
) -> ControlResponse {
    let (tx, rx) = mpsc::channel::<Result<Bytes, Infallible>>(WAITING);
    spawn_blocking(move || {
        let written = write(&mut |text| tx.blocking_send(Ok(text.into())).is_ok());
        if let Err(error) = written {
            let _ = tx.blocking_send(Ok(line(&StateProblem {
                error: error.to_string(),
            })));
        }
    });
    lines(rx)
}

fn line(value: &impl Serialize) -> Bytes {
    // Our own types of strings and numbers: this cannot fail.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

fn keys(ask: RangeQuery, store: Arc<Store>) -> Result<ControlResponse, Refusal> {
    let namespace = namespace(ask.namespace.as_deref())?;
    let mut bounds = namespace.prefix(ask.prefix.as_deref().unwrap_or_default().as_bytes());
    if let Some(after) = &ask.after {
        let after = namespace.place(after.as_bytes()).map_err(bad)?;
        bounds.resume_behind(after.as_bytes(), ask.reverse);
    }
    let memory = namespace.is_memory();
    let snapshot = store.snapshot(memory).map_err(|error| refused(&error))?;
    let mut left = ask.limit.unwrap_or(usize::MAX);
    Ok(stream(move |take| {
        loop {
            let mut text = Vec::new();
            let mut last = Vec::new();
            let query = Query {
                bounds: bounds.clone(),
                reverse: ask.reverse,
                limit: left,
            };
            let page = snapshot.scan(&query, |place, record| {
                let (key, key_base64) = text_or_base64(Place::key_of(place));
                text.extend_from_slice(&line(&StateKey {
                    key,
                    key_base64,
                    size: record.value.len() as u64,
                    version: record.version,
                    expires_at_ms: (record.expires_ms != 0).then_some(record.expires_ms),
                }));
                last = place.to_vec();
                left -= 1;
            })?;
            if !text.is_empty() && !take(text) || !page.more || left == 0 {
                return Ok(());
            }
            bounds.resume_behind(&last, ask.reverse);
        }
    }))
}

fn no_key() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, 1, "there is no such key")
}

async fn get(ask: &KeyQuery, store: Arc<Store>) -> Result<ControlResponse, Refusal> {
    let (memory, place) = ask.place()?;
    let found = blocking(move || {
        let mut found = None;
        store
            .get(memory, &place, |record| {
                found = Some((Bytes::copy_from_slice(record.value), record.version));
            })
            .map(|()| found)
    });
    let (value, version) = found
        .await?
        .map_err(|error| refused(&error))?
        .ok_or_else(no_key)?;
    let mut response = Response::new(Either::Left(Full::new(value)));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert("handover-state-version", HeaderValue::from(version));
    Ok(response)
}

async fn put(
    ask: &KeyQuery,
    body: Incoming,
    store: Arc<Store>,
) -> Result<ControlResponse, Refusal> {
    let (memory, place) = ask.place()?;
    let value = Limited::new(body, MAX_VALUE)
        .collect()
        .await
        .map_err(|error| {
            Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                1,
                format_args!("the value was not taken, at most 16 MiB are: {error}"),
            )
        })?
        .to_bytes();
    let commit = Commit::of(Mutation::Put {
        place,
        value,
        ttl_ms: ask.ttl_ms.filter(|ttl| *ttl > 0),
    });
    done(memory, commit, store).await
}

async fn delete(ask: &KeyQuery, store: Arc<Store>) -> Result<ControlResponse, Refusal> {
    let (memory, place) = ask.place()?;
    let mut is_there = false;
    store
        .get(memory, &place, |_| is_there = true)
        .map_err(|error| refused(&error))?;
    if !is_there {
        return Err(no_key());
    }
    done(memory, Commit::of(Mutation::Delete { place }), store).await
}

async fn done(memory: bool, commit: Commit, store: Arc<Store>) -> Result<ControlResponse, Refusal> {
    let pending = blocking(move || store.commit(memory, commit)).await?;
    let committed = pending.await.map_err(|error| refused(&error))?;
    Ok(json(&StateDone {
        entries: 1,
        version: Some(committed.version),
        sha256: None,
    }))
}

fn export(ask: &ExportQuery, store: Arc<Store>) -> Result<ControlResponse, Refusal> {
    let namespace = match &ask.namespace {
        Some(named) => Some(namespace(Some(named))?),
        None => None,
    };
    let memory = namespace.as_ref().is_some_and(Namespace::is_memory);
    let mut bounds = match &namespace {
        Some(namespace) => namespace.prefix(&[]),
        None => crate::state::Bounds::all(),
    };
    if let Some(after) = &ask.after {
        let namespace = namespace
            .as_ref()
            .ok_or_else(|| bad("`after` needs the namespace that it is a key of"))?;
        let after = namespace.place(after.as_bytes()).map_err(bad)?;
        bounds.resume_behind(after.as_bytes(), false);
    }
    let snapshot = store.snapshot(memory).map_err(|error| refused(&error))?;
    Ok(stream(move |take| {
        write_dump(&snapshot, memory, bounds, None, take).map(drop)
    }))
}

fn backup(app: AppName, store: Arc<Store>) -> ControlResponse {
    stream(move |take| {
        let snapshot = store.snapshot(false)?;
        let all = crate::state::Bounds::all();
        write_dump(&snapshot, false, all, Some(app.as_str()), take).map(drop)
    })
}

/// The next piece of an upload, or the word that there are no more: a closed channel alone means
/// that it was cut.
enum Piece {
    Bytes(Bytes),
    End,
}

/// An upload, read by a thread that may block.
struct UploadReader {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
    ended: bool,
}

impl Read for UploadReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.piece = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::other("the upload ended before it was whole")),
            }
        }
        let length = self.piece.len().min(into.len());
        into[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// Gives the bytes of `body` to `read`, a thread that may block, and gives what comes of it.
async fn upload<R: Send + 'static>(
    mut body: Incoming,
    read: impl FnOnce(UploadReader) -> R + Send + 'static,
) -> Result<R, Refusal> {
    let (tx, pieces) = mpsc::channel(WAITING);
    let reading = spawn_blocking(move || {
        read(UploadReader {
            pieces,
            piece: Bytes::new(),
            ended: false,
        })
    });
    let mut whole = true;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            whole = false;
            break;
        };
        // Read to its end even when the reader gave up: a client that still writes could not read
        // why.
        if let Ok(bytes) = frame.into_data() {
            let _ = tx.send(Piece::Bytes(bytes)).await;
        }
    }
    if whole {
        let _ = tx.send(Piece::End).await;
    }
    drop(tx);
    reading
        .await
        .map_err(|error| failed(format_args!("the host failed: {error}")))
}

fn not_taken(error: DumpError) -> Refusal {
    match error {
        DumpError::State(error) => refused(&error),
        error => bad(format_args!("it was not taken: {error}")),
    }
}

async fn import(body: Incoming, store: Arc<Store>) -> Result<ControlResponse, Refusal> {
    let runtime = Handle::current();
    let read = upload(body, move |from| {
        restore_entries(&store, &runtime, BufReader::new(from))
    });
    let entries = read.await?.map_err(not_taken)?;
    Ok(json(&StateDone {
        entries,
        version: None,
        sha256: None,
    }))
}

/// A backup in a file of its own, checked as a whole before anything is done with it.
struct Spooled {
    file: File,
    footer: Footer,
    /// The schema of the state in it.
    schema: Schema,
}

fn spooled(mut from: impl Read) -> Result<Spooled, DumpError> {
    let mut file = tempfile::tempfile()?;
    {
        let mut to = BufWriter::new(&mut file);
        io::copy(&mut from, &mut to)?;
        to.flush()?;
    }
    file.seek(SeekFrom::Start(0))?;
    let mut schema = Schema::UNSAID;
    let footer = read_dump(BufReader::new(&mut file), |_, place, value, _| {
        schema = Schema::in_backup(&place, &value)?.unwrap_or(schema);
        Ok(())
    })?;
    file.seek(SeekFrom::Start(0))?;
    Ok(Spooled {
        file,
        footer,
        schema,
    })
}

async fn restore(
    body: Incoming,
    store: Arc<Store>,
    suits: impl FnOnce(Schema) -> Result<(), String> + Send + 'static,
    replaced: impl FnOnce() -> Result<(), StateError> + Send + 'static,
) -> Result<ControlResponse, Refusal> {
    let runtime = Handle::current();
    let restored = upload(body, move |from| -> Result<StateDone, DumpError> {
        let Spooled {
            file,
            footer,
            schema,
        } = spooled(from)?;
        if footer.entries > 0 {
            suits(schema).map_err(DumpError::NoBackup)?;
        }
        let pending = store.replace_by(file);
        let committed = runtime.block_on(pending)?;
        replaced()?;
        Ok(StateDone {
            entries: footer.entries,
            version: Some(committed.version),
            sha256: Some(footer.sha256),
        })
    });
    Ok(json(&restored.await?.map_err(not_taken)?))
}

async fn verify(
    body: Incoming,
    app: AppName,
    store: Arc<Store>,
    scratch: impl FnOnce() -> Result<Store, Refusal> + Send + 'static,
) -> Result<ControlResponse, Refusal> {
    let runtime = Handle::current();
    let verified = upload(body, move |mut from| -> Result<StateDone, Refusal> {
        let mut first = [0; 1];
        let length = from
            .read(&mut first)
            .map_err(|error| not_taken(error.into()))?;
        let Spooled {
            mut file, footer, ..
        } = if length == 0 {
            // None was sent: one is made now, as `backup` does.
            let snapshot = store.snapshot(false).map_err(|error| refused(&error))?;
            let mut file = tempfile::tempfile().map_err(failed)?;
            let mut to = BufWriter::new(&mut file);
            let mut written = Ok(());
            let all = crate::state::Bounds::all();
            write_dump(&snapshot, false, all, Some(app.as_str()), |text| {
                written = to.write_all(&text);
                written.is_ok()
            })
            .map_err(|error| refused(&error))?;
            written.and_then(|()| to.flush()).map_err(failed)?;
            drop(to);
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
            spooled(file).map_err(not_taken)?
        } else {
            spooled(first.chain(from)).map_err(not_taken)?
        };
        let scratch = scratch()?;
        let copy = file.try_clone().map_err(failed)?;
        let restored = runtime.block_on(scratch.replace_by(copy));
        restored.map_err(|error| refused(&error))?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let entries = verify_dump(&scratch, BufReader::new(file)).map_err(not_taken)?;
        Ok(StateDone {
            entries,
            version: None,
            sha256: Some(footer.sha256),
        })
    });
    Ok(json(&verified.await??))
}
