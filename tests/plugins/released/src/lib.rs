//! A plugin by the bare ABI, without the SDK: what was built for a released minor has no more than
//! this.
//!
//! It uses what the minor has: it logs, counts work, reads its settings, the head and the body of a
//! request, and answers with each kind of body.

use std::{
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll},
    time::Duration,
};

use abi_stable::library::LibHeader;
use bytes::Bytes;
use handover_plugin::abi::{
    body::{BodyStream, Imported},
    call::{OwnedBody, Responder},
    export::{Answering, Entry, FirstPoll, HostHandle, Plugin, Polled, header},
    head::RequestHead,
    host::{Event, Pair, TASK, Work},
    lent::{Lent, Size},
    manifest::Facts,
    poll::PollState,
    root::Settings,
    version::ABI,
};
use http::{HeaderMap, Response, response};
use http_body::{Body, Frame};

struct Released {
    host: HostHandle,
    settings: String,
    /// Tasks that were begun and not ended.
    tasks: Mutex<Vec<u64>>,
}

impl Released {
    fn log(&self, level: u8, message: &str) {
        self.host.log(Lent::of(&Event {
            size: Size::of::<Event<'_>>(),
            level,
            line: 7,
            target: "released".into(),
            message: message.into(),
            fields: (&[Pair {
                name: "field".into(),
                value: "its value".into(),
            }][..])
                .into(),
            file: "released.rs".into(),
        }));
    }
}

impl Entry for Released {
    fn start(
        host: HostHandle,
        settings: Lent<'_, Settings<'_>>,
    ) -> Result<Box<dyn Plugin>, String> {
        let env: Vec<_> = settings.env.iter().map(|pair| pair.name.as_str()).collect();
        let app = Self {
            host,
            settings: format!(
                "{} {} of {} with {} and {env:?}",
                settings.app, settings.version, settings.host.major, settings.config
            ),
            tasks: Mutex::default(),
        };
        // The default hook prints a backtrace if the environment wants it, for which std maps the
        // file of the plugin and never unmaps it.
        std::panic::set_hook(Box::new(move |_| {
            host.panicked("the released plugin says so")
        }));
        app.log(3, "the released plugin starts");
        Ok(Box::new(app))
    }
}

impl Plugin for Released {
    fn enter(&self) {}

    fn call(
        &self,
        head: Lent<'_, RequestHead<'_>>,
        body: Option<BodyStream>,
        _upgrade: bool,
        first: FirstPoll<'_>,
    ) -> Option<Polled> {
        let mut request = http::Request::new(());
        head.fill(&mut request).ok()?;
        let answer = match request.uri().path() {
            "/settings" => Answer::Text(self.settings.clone()),
            "/head" => Answer::Text(format!(
                "{} {:?} {:?} from {}",
                request.method(),
                request.version(),
                request.headers().get("x-custom"),
                head.peer().is_some()
            )),
            "/log" => {
                self.log(2, "the released plugin was asked to log");
                Answer::Text(self.host.log_enabled(1).to_string())
            }
            "/begin" => {
                let number = self.host.work_began(&Work {
                    size: Size::of::<Work<'_>>(),
                    kind: TASK,
                    name: "released work".into(),
                    tenant: "tenant".into(),
                });
                self.tasks.lock().ok()?.push(number);
                Answer::Text("began".to_owned())
            }
            "/end" => {
                let ended = std::mem::take(&mut *self.tasks.lock().ok()?);
                ended
                    .iter()
                    .for_each(|number| self.host.work_ended(*number));
                Answer::Text(format!("ended {}", ended.len()))
            }
            "/large" => Answer::Text("large".repeat(10_000)),
            "/stream" => Answer::Stream,
            "/nothing" => Answer::Nothing,
            "/panic" => Answer::Panic,
            _ => Answer::Echo,
        };
        Some(first.poll(|| Working {
            answer,
            body: body.map(|body| body.import(())),
            read: Vec::new(),
        }))
    }

    fn drain(&self) {
        self.log(3, "the released plugin drains");
    }

    fn expire(&self, _jobs: bool) -> u64 {
        let left = std::mem::take(&mut *self.tasks.lock().expect("nobody panics with it"));
        left.iter().for_each(|number| self.host.work_ended(*number));
        left.len() as u64
    }

    fn stop(self: Box<Self>, _deadline: Duration) {
        self.log(3, "the released plugin stops");
    }
}

enum Answer {
    Text(String),
    Echo,
    Stream,
    Nothing,
    Panic,
}

struct Working {
    answer: Answer,
    body: Option<Imported<()>>,
    read: Vec<u8>,
}

impl Answering for Working {
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &Responder<'_>) -> PollState {
        let this = self.get_mut();
        while let Some(body) = &mut this.body {
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => return PollState::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    this.read.extend(frame.into_data().unwrap_or_default());
                }
                Poll::Ready(Some(Err(_))) => return PollState::Failed,
                Poll::Ready(None) => this.body = None,
            }
        }
        let body = match &mut this.answer {
            Answer::Text(text) => OwnedBody::Full(std::mem::take(text).into()),
            Answer::Echo => OwnedBody::Full(std::mem::take(&mut this.read).into()),
            Answer::Stream => OwnedBody::Stream(BodyStream::new(Parts(0))),
            Answer::Nothing => OwnedBody::Empty,
            Answer::Panic => panic!("the released plugin panics"),
        };
        to.respond(parts(), b"", body);
        PollState::Ready
    }
}

fn parts() -> response::Parts {
    Response::builder()
        .header("content-type", "text/plain")
        .header("x-released", "yes")
        .body(())
        .expect("a head")
        .into_parts()
        .0
}

/// Three frames, the second one large, and trailers.
struct Parts(u8);

impl Body for Parts {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0 += 1;
        Poll::Ready(match self.0 {
            1 => Some(Ok(Frame::data(Bytes::from_static(b"one ")))),
            2 => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            3 => Some(Ok(Frame::data(Bytes::from(vec![b'2'; 20_000])))),
            4 => Some(Ok(Frame::data(Bytes::from_static(b" three")))),
            5 => {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-trailer", http::HeaderValue::from_static("end"));
                Some(Ok(Frame::trailers(trailers)))
            }
            _ => None,
        })
    }
}

// SAFETY: abi_stable's name for the header of a root module, which no other symbol has.
#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
static HEADER: LibHeader = header::<Released>();

/// As a text, so that the version is that of the ABI.
const VERSION: &str = match ABI.minor {
    1 => "1.1.0",
    2 => "1.2.0",
    3 => "1.3.0",
    4 => "1.4.0",
    _ => panic!("name the minor here"),
};

const FACTS: Facts = Facts {
    app: "released",
    version: VERSION,
    schema: 0,
    profile: "release",
    panic: "unwind",
    commit: "",
    dirty: false,
    lockfile: "",
};

/// What it says of itself.
#[used]
// SAFETY: the section holds plain bytes that nobody executes, and no other symbol has this name.
#[unsafe(no_mangle)]
// SAFETY: as above.
#[unsafe(link_section = ".handover.manifest")]
pub static HANDOVER_MANIFEST: [u8; FACTS.length()] = FACTS.section();
