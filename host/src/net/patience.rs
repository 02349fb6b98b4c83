//! How long the client of a connection is waited for: one timer a connection, however many requests
//! come.
//!
//! hyper asks for a timer before each head, and drops it after it. Tokio's would go into its wheel
//! and out of it again each time, under a lock that all workers share. What hyper gets here only
//! writes down that it waits, and never runs out. [`Patience`] has the one timer of the connection:
//! it lets it run out, and looks then what the connection has been doing meanwhile.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};

use super::{
    activity::{Activity, Doing},
    ended::Ended,
};
use crate::{config, generation::CloseHandle};

/// How long an idle connection that was asked to leave has for it: HTTP/2 says goodbye, and waits
/// for an answer.
pub(super) const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// How often HTTP/2 is looked at that has something under way: its streams end without a word to
/// the connection.
const GLANCE: Duration = Duration::from_secs(30);

/// What hyper asks for timers. Clones are for one and the same connection.
#[derive(Clone, Debug)]
pub(super) struct HeadTimer(pub(super) Arc<Activity>);

/// The patience with one client.
#[derive(Debug)]
pub(super) struct Patience {
    activity: Arc<Activity>,
    close_handle: Arc<CloseHandle>,
    limits: config::Timeouts,
    timer: Pin<Box<tokio::time::Sleep>>,
    /// Whether the timer was set, and wakes this task when it runs out.
    is_set: bool,
    is_http2: bool,
    /// Since when an app has waited for a body without that anything came, and how often something
    /// had come by then.
    awaits_upload: Option<(u32, tokio::time::Instant)>,
    /// Since when the connection has been asked to leave.
    leaving_since: Option<tokio::time::Instant>,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is asked to leave when it has nothing under way: nothing is.
    Leave(Ended),
    /// It ends.
    End(Option<Ended>),
}

/// A timer that never runs out.
#[derive(Debug)]
struct Never;

impl Future for Never {
    type Output = ();

    #[inline]
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Sleep for Never {}

impl HeadTimer {
    /// How long hyper is to wait for a head: what it gives as the end of the wait is its beginning
    /// then.
    pub(super) const SPAN: Duration = Duration::ZERO;
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, now: Instant) -> Pin<Box<dyn Sleep>> {
        self.0.waits(now.into());
        // It has no size, so this allocates nothing.
        Box::pin(Never)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

impl Patience {
    /// With the client of a new connection.
    pub(super) fn new(
        activity: Arc<Activity>,
        close_handle: Arc<CloseHandle>,
        limits: config::Timeouts,
    ) -> Self {
        Self {
            activity,
            close_handle,
            limits,
            timer: Box::pin(tokio::time::sleep_until(tokio::time::Instant::now())),
            is_set: false,
            is_http2: false,
            awaits_upload: None,
            leaving_since: None,
        }
    }

    /// The client speaks HTTP/2.
    pub(super) fn is_http2(&mut self) {
        self.is_http2 = true;
    }

    /// It was asked to leave.
    pub(super) fn leaves(&mut self) {
        if self.leaving_since.is_none() {
            self.leaving_since = Some(tokio::time::Instant::now());
            self.is_set = false;
        }
    }

    /// Looks whether it ends, after a turn in which the connection did what it could. Wakes the
    /// task of `cx` when it is to be asked again.
    #[inline]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        let doing = self.activity.doing();
        let is_new = doing == Doing::NewHead
            || (self.limits.body.is_some() && self.close_handle.has_uploads())
            || (self.limits.write.is_some() && self.activity.blocked_since().is_some());
        if !is_new && (doing == Doing::Request || (self.is_set && !self.timer.is_elapsed())) {
            return Poll::Pending;
        }
        self.look(cx)
    }

    #[cold]
    fn look(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        if self.activity.doing() == Doing::NewHead {
            self.activity.head_is_late(tokio::time::Instant::now());
        }
        loop {
            let now = tokio::time::Instant::now();
            let upload = self.upload_due(now);
            let due = match self.due().or(upload) {
                Some((due, verdict)) if due <= now => return Poll::Ready(verdict),
                Some((due, _)) => due,
                None if self.is_http2 => now + GLANCE,
                // Its app may ask for more on a thread of its own, without a word to the
                // connection.
                None if self.close_handle.has_uploads() => {
                    now + self.limits.body.unwrap_or(GLANCE).min(GLANCE)
                }
                None => {
                    self.is_set = false;
                    return Poll::Pending;
                }
            };
            if !self.is_set || self.timer.deadline() > due || self.timer.is_elapsed() {
                self.timer.as_mut().reset(due);
                self.is_set = true;
            }
            // A task that has used up its share of a turn would be told to come back, and this
            // timer to wake nobody.
            let timer = std::pin::pin!(tokio::task::unconstrained(self.timer.as_mut()));
            if timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Until when an app waits for more of a body, and what comes then. None while it waits for
    /// none.
    fn upload_due(&mut self, now: tokio::time::Instant) -> Option<(tokio::time::Instant, Verdict)> {
        let limit = self.limits.body?;
        self.awaits_upload =
            self.close_handle
                .awaits_upload()
                .map(|came| match self.awaits_upload {
                    Some((known, since)) if known == came => (known, since),
                    _ => (came, now),
                });
        let (_, since) = self.awaits_upload?;
        Some((since.checked_add(limit)?, Verdict::End(Some(Ended::NoBody))))
    }

    /// Until when it goes on as it does, and what comes then. None while nothing is waited for, or
    /// for as long as it takes.
    fn due(&self) -> Option<(tokio::time::Instant, Verdict)> {
        let Self {
            activity, limits, ..
        } = self;
        let after = |since: tokio::time::Instant, limit: Option<Duration>, verdict| {
            // What lies beyond the clock never comes.
            Some((since.checked_add(limit?)?, verdict))
        };
        if let Some(since) = activity.blocked_since() {
            return after(since, limits.write, Verdict::End(Some(Ended::NotRead)));
        }
        let since = activity.since();
        match activity.doing() {
            _ if activity.is_busy() => None,
            Doing::NewHead | Doing::Head => {
                after(since, limits.head, Verdict::End(Some(Ended::NoHead)))
            }
            Doing::Opening => after(since, limits.first_byte, Verdict::End(Some(Ended::NoByte))),
            Doing::Request | Doing::Idle => match self.leaving_since {
                Some(asked) => after(asked.max(since), Some(LEAVE_WITHIN), Verdict::End(None)),
                None => after(since, limits.idle, Verdict::Leave(Ended::Idle)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::{convert::Infallible, future::poll_fn, task::ready};

    use http::{Request, Response};
    use http_body_util::Empty;
    use hyper::{body::Incoming, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        task::JoinHandle,
        time::{Instant, sleep},
    };

    use super::*;
    use crate::net::stream::{PollCycle, Stream};

    const LIMITS: config::Timeouts = config::Timeouts {
        first_byte: Some(Duration::from_secs(10)),
        head: Some(Duration::from_secs(20)),
        body: Some(Duration::from_secs(15)),
        idle: Some(Duration::from_secs(30)),
        write: None,
        http2_ping: None,
        http2_pong: Duration::from_secs(20),
    };

    /// A client, and what its connection comes to: none when hyper ended it. An answer takes
    /// `answering`.
    fn connected(answering: Duration) -> (DuplexStream, JoinHandle<Option<Verdict>>) {
        let (client, server) = tokio::io::duplex(4096);
        let connection = tokio::spawn(async move {
            let activity = Activity::new();
            let cycle = PollCycle::default();
            let bytes = TokioIo::new(server);
            let stream = Stream::new(bytes, cycle.clone(), Arc::clone(&activity), None);
            let mut patience = Patience::new(Arc::clone(&activity), Arc::default(), LIMITS);
            let of_requests = Arc::clone(&activity);
            let service = service_fn(move |_: Request<Incoming>| {
                of_requests.begins();
                async move {
                    sleep(answering).await;
                    Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
                }
            });
            let connection = http1::Builder::new()
                .timer(HeadTimer(activity))
                .header_read_timeout(HeadTimer::SPAN)
                .serve_connection(stream, service);
            let mut connection = std::pin::pin!(connection);
            poll_fn(|cx| {
                if cycle.take(cx, |cx| connection.as_mut().poll(cx)).is_ready() {
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(ready!(patience.poll(cx))))
            })
            .await
        });
        (client, connection)
    }

    async fn ask(client: &mut DuplexStream) {
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 1024];
        let read = client.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
    }

    /// How long after `began` the connection ended, in seconds, and why.
    async fn ended(
        began: Instant,
        connection: JoinHandle<Option<Verdict>>,
    ) -> (u64, Option<Verdict>) {
        let verdict = connection.await.unwrap();
        (began.elapsed().as_secs(), verdict)
    }

    #[tokio::test(start_paused = true)]
    async fn each_stage_has_its_own_time() {
        let (began, (client, connection)) = (Instant::now(), connected(Duration::ZERO));
        let no_byte = Some(Verdict::End(Some(Ended::NoByte)));
        assert_eq!(ended(began, connection).await, (10, no_byte));
        drop(client);

        let (began, (mut client, connection)) = (Instant::now(), connected(Duration::ZERO));
        sleep(Duration::from_secs(9)).await;
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        // A byte now and then makes no head.
        sleep(Duration::from_secs(15)).await;
        client.write_all(b"host:").await.unwrap();
        let no_head = Some(Verdict::End(Some(Ended::NoHead)));
        assert_eq!(ended(began, connection).await, (9 + 20, no_head));
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_after_a_request_has_the_time_of_a_head() {
        let (began, (mut client, connection)) = (Instant::now(), connected(Duration::ZERO));
        ask(&mut client).await;
        sleep(Duration::from_secs(25)).await;
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let no_head = Some(Verdict::End(Some(Ended::NoHead)));
        assert_eq!(ended(began, connection).await, (25 + 20, no_head));
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_has_the_whole_time_though_the_timer_was_set_for_another() {
        let (began, (mut client, connection)) = (Instant::now(), connected(Duration::ZERO));
        for _ in 0..4 {
            ask(&mut client).await;
            sleep(Duration::from_secs(29)).await;
        }
        ask(&mut client).await;
        let idle = Some(Verdict::Leave(Ended::Idle));
        assert_eq!(ended(began, connection).await, (4 * 29 + 30, idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_begins_just_when_the_time_of_the_last_one_is_over_has_its_own() {
        let (began, (mut client, connection)) = (Instant::now(), connected(LIMITS.idle.unwrap()));
        ask(&mut client).await;
        let idle = Some(Verdict::Leave(Ended::Idle));
        assert_eq!(ended(began, connection).await, (2 * 30, idle));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_as_long_as_it_likes() {
        let (began, (mut client, connection)) =
            (Instant::now(), connected(Duration::from_secs(100)));
        ask(&mut client).await;
        ask(&mut client).await;
        let idle = Some(Verdict::Leave(Ended::Idle));
        assert_eq!(ended(began, connection).await, (200 + 30, idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_used_up_its_share_of_a_turn_is_woken_as_well() {
        let began = Instant::now();
        let mut patience = Patience::new(Activity::new(), Arc::default(), LIMITS);
        let mut is_first = true;
        let ended = poll_fn(|cx| {
            while is_first
                && std::pin::pin!(tokio::task::consume_budget())
                    .poll(cx)
                    .is_ready()
            {}
            is_first = false;
            patience.poll(cx)
        });
        tokio::time::timeout(Duration::from_secs(60), ended)
            .await
            .unwrap();
        assert_eq!(began.elapsed().as_secs(), 10);
    }
}
