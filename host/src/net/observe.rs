//! What is told of each request when its answer has ended: how long it took, and a line in the
//! access log.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::{Body, Frame, SizeHint};

use crate::{
    dispatch::{ConnectionInfo, Durations, RequestKind, ResponseBody, ResponseBodyError, Routes},
    generation::AnsweredBy,
    telemetry::{AccessEntry, AccessLog},
};

/// How much of an answer is handed to the connection at a time, so that what an aborted one was
/// sent is known about so exactly.
const PIECE: usize = 64 << 10;

/// What requests are told to.
#[derive(Clone, Debug)]
pub(crate) struct Observer {
    pub(crate) routes: Arc<Routes>,
    pub(crate) log: Option<AccessLog>,
    /// Whether durations are counted.
    pub(crate) measures: bool,
}

/// A request that is told of when it is dropped.
#[derive(Debug)]
pub(super) struct Observed {
    began: Instant,
    method: Method,
    /// Those of its app, or of requests for none.
    durations: Arc<Durations>,
    measures: bool,
    line: Option<Box<Line>>,
    /// None as long as there is no answer.
    status: Option<StatusCode>,
    answered_by: Option<AnsweredBy>,
    bytes: u64,
    is_whole: bool,
}

/// What only the log needs.
#[derive(Debug)]
struct Line {
    log: AccessLog,
    at: SystemTime,
    client: Option<IpAddr>,
    uri: Uri,
    version: Version,
    request_id: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    tls: Option<&'static str>,
}

impl Observer {
    /// Returns it, if it does anything.
    pub(crate) fn if_any(self) -> Option<Self> {
        (self.log.is_some() || self.measures).then_some(self)
    }

    /// Begins to observe `request`, of the client of `connection`.
    pub(super) fn begin<B>(
        &self,
        request: &Request<B>,
        connection: &ConnectionInfo,
        request_id: Option<&HeaderValue>,
    ) -> Observed {
        let field = |name| request.headers().get(name).cloned();
        let line = self.log.as_ref().map(|log| {
            Box::new(Line {
                log: log.clone(),
                at: SystemTime::now(),
                client: connection.client.map(|address| address.ip()),
                uri: request.uri().clone(),
                version: request.version(),
                request_id: request_id.cloned(),
                user_agent: field(header::USER_AGENT),
                referer: field(header::REFERER),
                tls: connection.tls_version(),
            })
        });
        Observed {
            began: Instant::now(),
            method: request.method().clone(),
            durations: self.routes.durations(request.uri(), request.headers()),
            measures: self.measures,
            line,
            status: None,
            answered_by: None,
            bytes: 0,
            is_whole: false,
        }
    }
}

impl Observed {
    /// Goes on with the answer: it is told of when that has ended.
    pub(super) fn answered(mut self, answer: &mut Response<ResponseBody>) {
        let status = answer.status();
        self.status = Some(status);
        self.answered_by = answer.extensions_mut().remove();
        let has_none = self.method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || self.method == Method::CONNECT && status.is_success();
        if has_none || answer.body().is_end_stream() {
            // Whatever body there is goes nowhere.
            self.is_whole = true;
            return;
        }
        let length = answer.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let body = std::mem::replace(answer.body_mut(), ResponseBody::empty());
        *answer.body_mut() = ResponseBody::made(ObservedBody {
            body,
            rest: Bytes::new(),
            length,
            observed: self,
        });
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let role = self.answered_by.as_ref().map(|by| by.role);
        if self.measures
            && let Some(status) = self.status
        {
            let kind = RequestKind::new(role, &self.method, status);
            self.durations.record(kind, took);
        }
        let Some(line) = &self.line else { return };
        let text = |bytes: &'_ Bytes| String::from_utf8_lossy(bytes).into_owned();
        let generation = self.answered_by.as_ref();
        let generation = generation.map(|by| (text(&by.label.version), text(&by.label.number)));
        let authority = line
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let path = match line.uri.path() {
            "" => authority,
            path => path,
        };
        line.log.write(&AccessEntry {
            at: line.at,
            client: line.client,
            method: self.method.as_str(),
            path,
            query: line.uri.query(),
            protocol: protocol(line.version),
            status: self.status.map(|status| status.as_u16()),
            bytes: self.bytes,
            took,
            is_aborted: !self.is_whole,
            app: self.durations.app.as_ref().map(|app| app.as_str()),
            generation: generation
                .as_ref()
                .map(|(version, number)| (version.as_str(), number.as_str())),
            request_id: line.request_id.as_ref().and_then(|id| id.to_str().ok()),
            user_agent: line.user_agent.as_ref().map(HeaderValue::as_bytes),
            referer: line.referer.as_ref().map(HeaderValue::as_bytes),
            tls: line.tls,
        });
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/3.0",
    }
}

/// The body of an answer, counted on its way to the connection.
#[derive(Debug)]
struct ObservedBody {
    body: ResponseBody,
    /// What is left of a frame that goes in pieces.
    rest: Bytes,
    /// How long it is said to be.
    length: Option<u64>,
    observed: Observed,
}

impl Body for ObservedBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let this = &mut *self;
        let frame = if this.rest.is_empty() {
            ready!(Pin::new(&mut this.body).poll_frame(cx))
        } else {
            Some(Ok(Frame::data(std::mem::take(&mut this.rest))))
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(match frame.into_data() {
                Ok(mut data) => {
                    if data.len() > PIECE {
                        this.rest = data.split_off(PIECE);
                    }
                    this.observed.bytes += data.len() as u64;
                    Frame::data(data)
                }
                Err(trailers) => trailers,
            })),
            Some(Err(error)) => Some(Err(error)),
            None => {
                this.observed.is_whole = true;
                None
            }
        })
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}

impl Drop for ObservedBody {
    fn drop(&mut self) {
        // Who has as many bytes as there are asks for no more.
        let has_all = self
            .length
            .is_some_and(|length| self.observed.bytes >= length);
        self.observed.is_whole |= has_all || self.is_end_stream();
    }
}
