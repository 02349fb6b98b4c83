//! A version that gets copies of requests: what it answers is compared with what clients were
//! given, and thrown away.
//!
//! Only what is safe by the words of HTTP is copied: GET and HEAD without a body.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use handover_api::{Percent, ShadowDifference};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::{
    body::{ResponseBody, ResponseBodyError},
    call::Dispatched,
    connection::ConnectionInfo,
};
use crate::{clock::now_ms, config, generation::Generation, shown};

/// Header fields that say when, for whom or by whom, and so differ from answer to answer.
pub(crate) const VOLATILE: [&str; 9] = [
    "age",
    "date",
    "expires",
    "handover-generation",
    "handover-version",
    "server-timing",
    "set-cookie",
    "traceresponse",
    "x-request-id",
];

/// Header fields that follow from the body.
const OF_BODY: [HeaderName; 2] = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// The longest body that is compared, in bytes.
const LONGEST: usize = 256 << 10;

/// How many copies are under way at once.
const AT_ONCE: usize = 32;

/// How long the answer to a copy may take.
const WITHIN: Duration = Duration::from_secs(30);

/// How many differences are remembered.
const KEPT: usize = 100;

/// How many differences of one answer are told.
const TOLD: usize = 8;

/// The longest target that is told, in bytes.
const TARGET: usize = 512;

/// What tells an app that nobody gets its answer.
const MARK: HeaderName = HeaderName::from_static("handover-shadow");

/// A version that gets copies of a share of the requests.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) generation: Arc<Generation>,
    pub(crate) share: Percent,
    settings: Arc<config::Shadow>,
    seed: RandomState,
    seen: AtomicU64,
    running: AtomicUsize,
    counts: [AtomicU64; 4],
    differences: Mutex<VecDeque<ShadowDifference>>,
}

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Both answers are the same.
    Same,
    /// They differ.
    Differs,
    /// There was no answer to it.
    Failed,
    /// It was not made, because so many are under way.
    Skipped,
}

impl Mirror {
    /// Returns one whose copies begin when it is put behind a route.
    pub(crate) fn new(
        generation: &Arc<Generation>,
        share: Percent,
        settings: Arc<config::Shadow>,
    ) -> Arc<Self> {
        Arc::new(Self {
            generation: Arc::clone(generation),
            share,
            settings,
            seed: RandomState::new(),
            seen: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            counts: Default::default(),
            differences: Mutex::default(),
        })
    }

    /// Returns how many copies ended so.
    pub(crate) fn count(&self, outcome: Outcome) -> u64 {
        self.counts[outcome as usize].load(Ordering::Relaxed)
    }

    /// Returns the differences that are remembered, oldest first.
    pub(crate) fn differences(&self) -> Vec<ShadowDifference> {
        self.differences.lock().iter().cloned().collect()
    }

    fn ended(&self, outcome: Outcome) {
        self.counts[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a request is to be copied, by chance.
    pub(super) fn draws(&self) -> bool {
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        // The upper bits of a keyed hash of a counter are as good as chance.
        let chance = (self.seed.hash_one(number) >> 11) as f64 / (1_u64 << 53) as f64;
        chance < self.share.part()
    }

    /// Begins to ask for the same as `request`, of which the app does not see `strip` bytes of the
    /// path.
    pub(super) fn copy<B: Body>(
        self: &Arc<Self>,
        request: &Request<B>,
        strip: usize,
        connection: &ConnectionInfo,
    ) -> Option<Copy> {
        let is_safe = matches!(*request.method(), Method::GET | Method::HEAD);
        let is_plain = !request.headers().contains_key(header::UPGRADE);
        if !is_safe || !is_plain || !request.body().is_end_stream() {
            return None;
        }
        if self.running.fetch_add(1, Ordering::Relaxed) >= AT_ONCE {
            self.running.fetch_sub(1, Ordering::Relaxed);
            self.ended(Outcome::Skipped);
            return None;
        }
        let slot = Arc::new(Slot(Arc::clone(self)));
        let in_flight = self.generation.enter()?;
        let mut copy = Request::new(Empty::<Bytes>::new());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        copy.headers_mut()
            .insert(MARK, HeaderValue::from_static("1"));
        let target = request
            .uri()
            .path_and_query()
            .map_or("*", |target| target.as_str());
        let asked = format!("{} {target}", request.method());
        let dispatched = Dispatched::copied(copy, strip, in_flight, connection.quiet());
        let is_head = request.method() == Method::HEAD;
        let of_answer = Arc::clone(&slot);
        let answer = tokio::spawn(async move {
            // It goes on when the client has left, and what waits to be compared is kept as well.
            let _under_way = of_answer;
            tokio::time::timeout(WITHIN, captured(dispatched, is_head))
                .await
                .ok()
        });
        Some(Copy {
            slot,
            asked: shown::truncate(asked, TARGET),
            is_head,
            answer,
        })
    }

    /// Compares the answer to a copy with what the client was given, as soon as both are there.
    fn compare(copy: Copy, given: Captured) {
        tokio::spawn(async move {
            let Copy {
                slot,
                asked,
                answer,
                ..
            } = copy;
            let mirror = &slot.0;
            let found = match answer.await {
                Ok(Some(Some(answer))) => differences(&given, &answer, &mirror.settings),
                // It broke off, or the time was over; or the host ends.
                _ => {
                    mirror.ended(Outcome::Failed);
                    vec!["it was not answered, or not to the end".to_owned()]
                }
            };
            if found.is_empty() {
                return mirror.ended(Outcome::Same);
            }
            mirror.ended(Outcome::Differs);
            let mut kept = mirror.differences.lock();
            if kept.len() >= KEPT {
                kept.pop_front();
            }
            kept.push_back(ShadowDifference {
                at_ms: now_ms(),
                request: asked,
                differences: found,
            });
        });
    }
}

/// A copy under way.
#[derive(Debug)]
struct Slot(Arc<Mirror>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that was copied.
#[derive(Debug)]
pub(super) struct Copy {
    slot: Arc<Slot>,
    /// For people: `GET /a?b=c`.
    asked: String,
    is_head: bool,
    answer: JoinHandle<Option<Option<Captured>>>,
}

/// An answer, as far as it is compared.
#[derive(Debug)]
struct Captured {
    status: StatusCode,
    headers: HeaderMap,
    /// None where it is longer than what is compared.
    body: Option<Bytes>,
}

/// The answer to a copy; none when it breaks off.
async fn captured(dispatched: Dispatched<Empty<Bytes>>, is_head: bool) -> Option<Captured> {
    let (head, mut body) = dispatched.await.into_parts();
    let has_body = !is_head && may_have_body(head.status);
    let mut bytes = BytesMut::new();
    while has_body && let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            if bytes.len() + data.len() > LONGEST {
                return Some(Captured {
                    status: head.status,
                    headers: head.headers,
                    body: None,
                });
            }
            bytes.extend_from_slice(&data);
        }
    }
    Some(Captured {
        status: head.status,
        headers: head.headers,
        body: Some(bytes.freeze()),
    })
}

/// Whether a body is sent with this status, where there is one.
fn may_have_body(status: StatusCode) -> bool {
    !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// A request whose answer is compared with that to its copy. One that is dropped is not.
#[derive(Debug)]
pub(super) struct Mirrored<B> {
    dispatched: Dispatched<B>,
    copy: Option<Copy>,
}

impl<B> Mirrored<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    pub(super) fn new(dispatched: Dispatched<B>, copy: Copy) -> Self {
        Self {
            dispatched,
            copy: Some(copy),
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response<ResponseBody>> {
        let response = ready!(Pin::new(&mut self.dispatched).poll(cx));
        let Some(copy) = self.copy.take() else {
            return Poll::Ready(response);
        };
        let captured = Captured {
            status: response.status(),
            headers: response.headers().clone(),
            body: None,
        };
        let (head, body) = response.into_parts();
        // No body is asked for where none is sent, nor beyond what was said to come.
        let is_empty = copy.is_head || !may_have_body(head.status);
        let length = head.headers.get(header::CONTENT_LENGTH);
        let mut capturing = Capturing {
            body,
            bytes: BytesMut::new(),
            length: length.and_then(|length| length.to_str().ok()?.parse().ok()),
            given: Some((copy, captured)),
        };
        let body = if is_empty || capturing.body.is_end_stream() {
            capturing.end();
            capturing.body
        } else {
            ResponseBody::made(capturing)
        };
        Poll::Ready(Response::from_parts(head, body))
    }
}

/// The body that a client gets, kept until it has ended.
#[derive(Debug)]
struct Capturing {
    body: ResponseBody,
    bytes: BytesMut,
    /// How many come, where that was said.
    length: Option<usize>,
    /// None once there is nothing to compare any more.
    given: Option<(Copy, Captured)>,
}

impl Capturing {
    fn end(&mut self) {
        if let Some((copy, mut given)) = self.given.take() {
            given.body = Some(std::mem::take(&mut self.bytes).freeze());
            Mirror::compare(copy, given);
        }
    }
}

impl Body for Capturing {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref()
                    && this.given.is_some()
                {
                    if this.bytes.len() + data.len() <= LONGEST {
                        this.bytes.extend_from_slice(data);
                    } else if let Some((copy, given)) = this.given.take() {
                        // It is as much as is compared of it.
                        this.bytes = BytesMut::new();
                        Mirror::compare(copy, given);
                    }
                }
                if this.length == Some(this.bytes.len()) || this.body.is_end_stream() {
                    this.end();
                }
            }
            None => this.end(),
            // What the client did not get whole is nothing to compare with.
            Some(Err(_)) => this.given = None,
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Says how `answer` differs from what was `given`, each difference a sentence.
fn differences(given: &Captured, answer: &Captured, settings: &config::Shadow) -> Vec<String> {
    let mut found = Vec::new();
    if given.status != answer.status {
        found.push(format!(
            "status {}, then {}",
            given.status.as_u16(),
            answer.status.as_u16()
        ));
    }
    let is_ignored = |name: &HeaderName| {
        OF_BODY.contains(name)
            || VOLATILE.contains(&name.as_str())
            || settings
                .ignore_headers
                .iter()
                .any(|one| one.eq_ignore_ascii_case(name.as_str()))
    };
    let mut names: Vec<_> = given.headers.keys().chain(answer.headers.keys()).collect();
    names.sort_by_key(|name| name.as_str());
    names.dedup();
    for name in names.into_iter().filter(|name| !is_ignored(name)) {
        let values = |of: &Captured| {
            let all = of.headers.get_all(name).iter();
            let texts: Vec<_> = all
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                .collect();
            texts.join(", ")
        };
        let (one, two) = (values(given), values(answer));
        if one != two {
            found.push(format!("`{name}`: {}, then {}", quoted(&one), quoted(&two)));
        }
    }
    if let (Some(one), Some(two)) = (&given.body, &answer.body)
        && one != two
    {
        match (json(given, one), json(answer, two)) {
            (Some(one), Some(two)) => compare(String::new(), &one, &two, settings, &mut found),
            _ => found.push(format!(
                "{} bytes of body, then {} others",
                one.len(),
                two.len()
            )),
        }
    }
    if found.len() > TOLD {
        let more = found.len() - TOLD;
        found.truncate(TOLD);
        found.push(format!("{more} more"));
    }
    found
}

fn quoted(text: &str) -> String {
    match text {
        "" => "none".to_owned(),
        text => format!("`{}`", shown::truncate(shown::harmless(text), 80)),
    }
}

/// The JSON of an answer that says that it is that.
fn json(of: &Captured, body: &Bytes) -> Option<Value> {
    let kind = of.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let kind = kind.split(';').next()?.trim();
    let is_json = kind == "application/json" || kind.ends_with("+json");
    is_json.then(|| serde_json::from_slice(body).ok())?
}

/// Adds how two values at `path` differ.
fn compare(
    path: String,
    one: &Value,
    two: &Value,
    settings: &config::Shadow,
    to: &mut Vec<String>,
) {
    match (one, two) {
        (Value::Object(one), Value::Object(two)) => {
            let mut keys: Vec<_> = one.keys().chain(two.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                if settings.ignore_fields.iter().any(|ignored| ignored == key) {
                    continue;
                }
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(key).cloned().unwrap_or(Value::Null)
                };
                compare(format!("{path}/{key}"), &of(one), &of(two), settings, to);
            }
        }
        (Value::Array(one), Value::Array(two)) if one.len() == two.len() => {
            for (at, (one, two)) in one.iter().zip(two).enumerate() {
                compare(format!("{path}/{at}"), one, two, settings, to);
            }
        }
        (one, two) if one == two => {}
        (one, two) => to.push(format!(
            "{}: {}, then {}",
            if path.is_empty() { "the JSON" } else { &path },
            quoted(&one.to_string()),
            quoted(&two.to_string())
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn answer(
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: &'static str,
    ) -> Captured {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        Captured {
            status: StatusCode::from_u16(status).unwrap(),
            headers: map,
            body: Some(Bytes::from_static(body.as_bytes())),
        }
    }

    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

    fn told(given: &Captured, answer: &Captured) -> Vec<String> {
        let settings = config::Shadow {
            ignore_headers: vec!["X-Served-By".to_owned()],
            ignore_fields: vec!["at".to_owned()],
        };
        differences(given, answer, &settings)
    }

    #[test]
    fn what_is_the_same_but_for_its_time_has_no_difference() {
        let one = answer(
            200,
            &[JSON, ("date", "1"), ("x-served-by", "a")],
            r#"{"a":1,"at":7}"#,
        );
        let two = answer(
            200,
            &[("date", "2"), JSON, ("x-served-by", "b")],
            r#"{"at":8, "a":1}"#,
        );
        assert_eq!(told(&one, &two), Vec::<String>::new());
    }

    #[test]
    fn each_difference_is_told_with_its_place() {
        let one = answer(
            200,
            &[JSON, ("x-a", "1")],
            r#"{"items":[{"price":1},{"price":2}]}"#,
        );
        let two = answer(
            404,
            &[JSON],
            r#"{"items":[{"price":1},{"price":3}],"new":true}"#,
        );
        assert_eq!(
            told(&one, &two),
            [
                "status 200, then 404",
                "`x-a`: `1`, then none",
                "/items/1/price: `2`, then `3`",
                "/new: `null`, then `true`",
            ]
        );
        let text = told(&answer(200, &[], "abc"), &answer(200, &[], "abd"));
        assert_eq!(text, ["3 bytes of body, then 3 others"]);
    }

    #[test]
    fn what_is_longer_than_is_compared_is_no_difference() {
        let mut one = answer(200, &[], "abc");
        one.body = None;
        assert_eq!(told(&one, &answer(200, &[], "abd")), Vec::<String>::new());
    }
}
