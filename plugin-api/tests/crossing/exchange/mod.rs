//! One exchange made of bytes, run through both halves of the ABI, and what must hold of it.

mod app;
mod head;
mod script;

use std::{
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use handover_plugin::abi::{
    body::{BodyError, BodyStream, Guard},
    bytes::{Chunk, KeepAlive},
    call::{ReceiveResponse, ReceivedBody},
    head::{RequestHead, ResponseHead},
    host::{Event, Work},
    import::{AppHandle, HostServices},
    lent::{Lent, Size},
    poll::PollState,
    root::Settings,
    upgrade::IoStream,
    version::ABI,
};
use http_body::Body;

use self::{
    app::{Seen, Task},
    script::{Answer, Ending, Frames, Part},
};

/// Runs the exchange that `bytes` are.
///
/// # Errors
/// When they are none.
///
/// # Panics
/// When something crossed that came out as something else, was not freed, or was not woken.
pub(crate) fn run(bytes: &[u8]) -> Result<()> {
    let u = &mut Unstructured::new(bytes);
    let request = head::request(u)?;
    let body = match u.arbitrary()? {
        true => Some(Frames::make(u)?),
        false => None,
    };
    let task = Task::make(u)?;
    let upgrade = matches!(task.answer, Answer::Upgrade(..));

    let bell = Arc::new(Bell(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&bell));
    let seen = task.give();
    let mut slot = Slot::default();
    let handle = app();
    let (mut state, mut running) = RequestHead::lend(
        &request.whole,
        &request.target,
        request.protocol,
        request.peer.into(),
        &request.connection(),
        |head| {
            let body = body
                .as_ref()
                .map(|body| BodyStream::new(body.play(Arc::clone(&slot.guards))));
            handle.call(head, body, upgrade, &waker, &mut slot)
        },
    );
    while state == PollState::Pending {
        bell.rang();
        state = running
            .as_mut()
            .expect("what is pending can be polled")
            .poll(&waker, &mut slot);
    }
    drop(running);

    let Seen {
        request: came,
        body: frames,
    } = seen.lock().unwrap().take().expect("the app was called");
    request.came_as(&came);
    match (&body, &frames) {
        (None, None) => {}
        (Some(_), Some(came)) if !task.reads => assert!(came.is_empty()),
        (Some(sent), Some(came)) => sent.came_as(came),
        (sent, came) => panic!("{sent:?} was sent, and {came:?} came"),
    }
    drop(frames);

    let response = slot.response.take();
    match (&task.answer, state) {
        (Answer::Failed, PollState::Failed) | (Answer::Panicked, PollState::Panicked) => {
            assert!(response.is_none());
        }
        (answer, PollState::Ready) => {
            let (parts, got) = response.expect("it is ready").into_parts();
            answered(answer, &parts, got, &waker, &bell);
        }
        (answer, state) => panic!("{answer:?} became {state:?}"),
    }
    drop(waker);
    assert_eq!(Arc::strong_count(&bell), 1, "a waker was left behind");
    assert_eq!(
        Arc::strong_count(&slot.guards),
        1,
        "a guard was left behind"
    );
    Ok(())
}

fn answered(answer: &Answer, parts: &http::response::Parts, got: Got, waker: &Waker, bell: &Bell) {
    match (answer, got) {
        (Answer::Empty(head), Got::Empty) => head.came_as(parts),
        (Answer::Full(head, sent), Got::Full(came)) => {
            head.came_with(sent.len(), parts);
            assert_eq!(*sent, came);
        }
        (Answer::Stream(head, sent), Got::Stream(mut came)) => {
            head.came_as(parts);
            let came = drained(&mut came, waker, bell);
            sent.came_as(&came);
        }
        (Answer::Upgrade(head, sent), Got::Upgrade(mut came)) => {
            head.came_as(parts);
            sent.is_played_by(&mut came, waker, || bell.rang());
        }
        (answer, got) => panic!("{answer:?} was answered, and {got:?} came"),
    }
}

/// All that a body gives, until its end.
fn drained<B>(body: &mut B, waker: &Waker, bell: &Bell) -> Vec<Part>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    let mut parts = Vec::new();
    loop {
        let hint = body.size_hint();
        match Pin::new(&mut *body).poll_frame(&mut Context::from_waker(waker)) {
            Poll::Pending => bell.rang(),
            Poll::Ready(Some(Ok(frame))) => parts.push(Part::of(frame, &hint)),
            Poll::Ready(Some(Err(error))) => {
                parts.push(Part::End(match error {
                    BodyError::Failed(message) => Ending::Failed(message),
                    BodyError::Panicked => Ending::Panicked,
                }));
                break;
            }
            Poll::Ready(None) => {
                parts.push(Part::End(Ending::Whole));
                break;
            }
        }
    }
    assert!(body.is_end_stream());
    assert!(matches!(
        Pin::new(body).poll_frame(&mut Context::from_waker(waker)),
        Poll::Ready(None)
    ));
    parts
}

/// Counts how often it was woken.
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bell {
    /// Whoever is pending has to wake.
    fn rang(&self) {
        assert!(
            self.0.swap(0, Ordering::Relaxed) > 0,
            "pending, and nobody will wake it"
        );
    }
}

/// What came as an answer.
#[derive(Debug)]
enum Got {
    Empty,
    Full(Bytes),
    Stream(handover_plugin::abi::body::Imported<Counted>),
    Upgrade(IoStream),
}

/// A guard whose references are counted.
#[derive(Clone, Debug)]
struct Counted(#[expect(dead_code, reason = "held for its count")] Arc<()>);

impl KeepAlive for Counted {}

impl Guard for Counted {
    type KeepAlive = Self;

    fn keep_alive(&self) -> Self {
        self.clone()
    }
}

#[derive(Default)]
struct Slot {
    response: Option<http::Response<Got>>,
    guards: Arc<()>,
}

impl ReceiveResponse for Slot {
    fn take(&mut self, head: Lent<'_, ResponseHead<'_>>, body: ReceivedBody<'_>) {
        let guard = Counted(Arc::clone(&self.guards));
        assert!(self.response.is_none(), "it answers twice");
        let response = self.response.insert(http::Response::new(Got::Empty));
        let borrowed = match &body {
            ReceivedBody::Full(Chunk::Borrowed(bytes)) => bytes.as_slice(),
            _ => &[],
        };
        let copied = head.fill(response, borrowed);
        *response.body_mut() = match body {
            ReceivedBody::Full(Chunk::Borrowed(_)) => Got::Full(copied),
            ReceivedBody::Full(owned) => Got::Full(owned.into_bytes(|| guard)),
            ReceivedBody::Empty => Got::Empty,
            ReceivedBody::Stream(stream) => Got::Stream(stream.import(guard)),
            ReceivedBody::Upgrade(io) => Got::Upgrade(io),
        };
    }
}

struct Nothing;

impl HostServices for Nothing {
    fn log_enabled(&self, _level: u8) -> bool {
        false
    }

    fn log(&self, _event: Lent<'_, Event<'_>>) {}

    fn panicked(&self, _message: &str) {}

    fn work_began(&self, _work: Lent<'_, Work<'_>>) -> u64 {
        0
    }

    fn work_ended(&self, _number: u64) {}
    fn figure(&self, _number: u32, _value: u64) {}
}

static OFFER: LazyLock<Arc<Nothing>> = LazyLock::new(|| Arc::new(Nothing));

/// The app, started; stopped when it is dropped.
fn app() -> Stopped {
    let settings = Settings {
        size: Size::of::<Settings<'_>>(),
        host: ABI,
        app: "crossing".into(),
        version: "1.0.0".into(),
        generation: 1,
        config: "{}".into(),
        env: (&[][..]).into(),
        runtime_threads: 1,
        preflight: false,
    };
    // SAFETY: the table is of the same source, its code is part of this program, and the offer is
    // never dropped.
    let handle = unsafe { AppHandle::start(app::root(), Arc::clone(&OFFER), Lent::of(&settings)) };
    Stopped(handle.expect("it starts"))
}

struct Stopped(AppHandle<Nothing>);

impl std::ops::Deref for Stopped {
    type Target = AppHandle<Nothing>;

    fn deref(&self) -> &AppHandle<Nothing> {
        &self.0
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.stop(1_000);
    }
}
