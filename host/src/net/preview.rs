//! What a listener of `dev` answers itself, and adds to pages of the app: how the build goes, and
//! the script that loads a page anew.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::watch::Receiver;

use crate::{
    dispatch::{ResponseBody, ResponseBodyError},
    preview::{Page, Preview, Shown},
};

/// Where the script is.
const SCRIPT: &str = "/.handover-dev/reload.js";
/// Where it listens.
const EVENTS: &str = "/.handover-dev/events";

/// Asks only while its page is seen: a browser has few connections for all its tabs.
const SCRIPT_TEXT: &str = r#"(() => {
  const mine = new URL(document.currentScript.src).search.slice(1);
  let events;
  const listen = () => {
    events?.close();
    events = undefined;
    if (document.hidden) return;
    events = new EventSource("/.handover-dev/events");
    events.onmessage = ({ data }) => {
      if (data !== mine) location.reload();
    };
  };
  document.addEventListener("visibilitychange", listen);
  addEventListener("pagehide", () => events?.close());
  listen();
})();
"#;

const STYLE: &str = "
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 4rem auto; padding: 0 1rem }
pre { overflow-x: auto; padding: 1rem; border: 1px solid; border-radius: 6px; font-size: 14px }
";

/// Returns the answer to `request` where that is not the app's.
pub(super) fn answer<B>(preview: &Preview, request: &Request<B>) -> Option<Response<ResponseBody>> {
    match request.uri().path() {
        SCRIPT => {
            return Some(made(
                "text/javascript",
                ResponseBody::full(Bytes::from(SCRIPT_TEXT)),
            ));
        }
        EVENTS => {
            let events = ResponseBody::made(Events::new(preview.follow()));
            return Some(made("text/event-stream", events));
        }
        _ => {}
    }
    let Shown { token, page } = preview.now();
    let (title, text) = match page {
        Page::Building => (
            "building",
            "<p>This page shows the app when it is built.".to_owned(),
        ),
        Page::Failed(why) => ("build failed", format!("<pre>{}</pre>", escaped(&why))),
        Page::App | Page::Ended => return None,
    };
    let shows_pages = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value.contains("text/html")
    };
    if request.method() != Method::GET
        || !request
            .headers()
            .get_all(header::ACCEPT)
            .iter()
            .any(shows_pages)
    {
        // No browser: the host says that there is nothing yet.
        return None;
    }
    let script = if preview.reloads() {
        script(&token)
    } else {
        String::new()
    };
    let page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{text}{script}\n"
    );
    let mut answer = made(
        "text/html; charset=utf-8",
        ResponseBody::full(Bytes::from(page)),
    );
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    Some(answer)
}

fn made(kind: &'static str, body: ResponseBody) -> Response<ResponseBody> {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Has the app answer with pages that can be added to.
pub(super) fn ask_plainly(preview: &Preview, headers: &mut HeaderMap) {
    if preview.reloads() {
        headers.remove(header::ACCEPT_ENCODING);
    }
}

/// Adds the script to `answer`, if it is a whole page.
pub(super) fn add_script(preview: &Preview, answer: &mut Response<ResponseBody>) {
    let headers = answer.headers();
    let is_page = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    let is_part = answer.status() == StatusCode::PARTIAL_CONTENT
        || headers.contains_key(header::CONTENT_ENCODING);
    if !preview.reloads() || !is_page || is_part || answer.body().is_end_stream() {
        return;
    }
    let tail = Bytes::from(script(&preview.now().token));
    let headers = answer.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    // Else a browser would keep the page with the script of old code, and load it for ever.
    for name in [header::ETAG, header::LAST_MODIFIED, header::EXPIRES] {
        headers.remove(name);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let body = std::mem::replace(answer.body_mut(), ResponseBody::empty());
    *answer.body_mut() = ResponseBody::made(Extended {
        body,
        tail: Some(tail),
        trailers: None,
    });
}

fn script(token: &str) -> String {
    format!("<script src=\"{SCRIPT}?{token}\"></script>")
}

/// `text` as HTML shows it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A body, and more after it.
#[derive(Debug)]
struct Extended {
    body: ResponseBody,
    tail: Option<Bytes>,
    trailers: Option<Frame<Bytes>>,
}

impl Body for Extended {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        if self.tail.is_none() {
            return Poll::Ready(self.trailers.take().map(Ok));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match frame {
            Some(Ok(frame)) if frame.is_trailers() => self.trailers = Some(frame),
            None => {}
            frame => return Poll::Ready(frame),
        }
        Poll::Ready(self.tail.take().map(|tail| Ok(Frame::data(tail))))
    }

    fn size_hint(&self) -> SizeHint {
        let more = self.tail.as_ref().map_or(0, Bytes::len) as u64;
        self.body
            .size_hint()
            .exact()
            .map_or_else(SizeHint::default, |size| SizeHint::with_exact(size + more))
    }

    fn is_end_stream(&self) -> bool {
        self.tail.is_none() && self.trailers.is_none()
    }
}

/// What is to be seen, now and whenever that changes, until the host ends.
struct Events(Option<Pin<Box<dyn Future<Output = NextEvent> + Send>>>);

/// The text of an event, and what the one after it comes from. None at the end.
type NextEvent = Option<(Bytes, Receiver<Shown>)>;

impl Events {
    fn new(mut shown: Receiver<Shown>) -> Self {
        shown.mark_changed();
        Self(Some(Box::pin(next(shown))))
    }
}

async fn next(mut shown: Receiver<Shown>) -> NextEvent {
    shown.changed().await.ok()?;
    let Shown { token, page } = shown.borrow_and_update().clone();
    // Whoever comes back soon asks the next one.
    (page != Page::Ended).then(|| (Bytes::from(format!("retry: 300\ndata: {token}\n\n")), shown))
}

impl Body for Events {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let Some(waiting) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let Some((text, shown)) = ready!(waiting.as_mut().poll(cx)) else {
            self.0 = None;
            return Poll::Ready(None);
        };
        self.0 = Some(Box::pin(next(shown)));
        Poll::Ready(Some(Ok(Frame::data(text))))
    }
}
