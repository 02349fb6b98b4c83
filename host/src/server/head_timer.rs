//! How long a client may take for the head of a request: one timer a connection, however many requests come.
//!
//! hyper asks for a timer before each head, and drops it after it. Tokio's would go into its wheel and out of it again each time, under a lock
//! that all workers share. What hyper gets here only writes down until when it waits. [`HeadWatch`] has the one timer of the connection: it
//! lets it run out, and sees then whether something later was written down meanwhile.

use std::{
    cell::Cell,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};

thread_local! {
    /// Whether this thread polls a connection whose time has run out.
    static RAN_OUT: Cell<bool> = const { Cell::new(false) };
}

/// What hyper asks for timers. Clones are for one and the same connection.
#[derive(Clone, Debug)]
pub(super) struct HeadTimer(Arc<Waits>);

/// Polls a connection, and ends its wait for a head in time.
#[derive(Debug)]
pub(super) struct HeadWatch {
    waits: Arc<Waits>,
    timer: Pin<Box<tokio::time::Sleep>>,
    /// Whether the timer was set, and wakes this task when it runs out.
    is_set: bool,
}

#[derive(Debug)]
struct Waits {
    since: Instant,
    /// Until when, in nanoseconds from there; 0 for not at all. Only the task of the connection writes and reads it.
    until: AtomicU64,
}

/// The wait for one head.
#[derive(Debug)]
struct Wait;

impl Future for Wait {
    type Output = ();

    #[inline]
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if RAN_OUT.get() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Sleep for Wait {}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let until = deadline.saturating_duration_since(self.0.since).as_nanos();
        let until = u64::try_from(until).unwrap_or(u64::MAX).max(1);
        self.0.until.store(until, Ordering::Relaxed);
        // What begins now has not run out, though this poll was made for one that had.
        RAN_OUT.set(false);
        // It has no size, so this allocates nothing.
        Box::pin(Wait)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

impl HeadWatch {
    /// The watch over a new connection, and the timer to give to hyper.
    pub(super) fn new() -> (HeadTimer, Self) {
        let now = tokio::time::Instant::now();
        let waits = Arc::new(Waits {
            since: now.into_std(),
            until: AtomicU64::new(0),
        });
        let watch = Self {
            waits: Arc::clone(&waits),
            timer: Box::pin(tokio::time::sleep_until(now)),
            is_set: false,
        };
        (HeadTimer(waits), watch)
    }

    /// Polls `connection`, which the timer was given to.
    #[inline]
    pub(super) fn poll<F: Future>(
        &mut self,
        mut connection: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let mut polled = connection.as_mut().poll(cx);
        while polled.is_pending() && (!self.is_set || self.timer.is_elapsed()) {
            ready!(self.poll_timer(cx));
            let _inside = RanOut::new();
            polled = connection.as_mut().poll(cx);
        }
        polled
    }

    /// Sets the timer as long as the wait goes further than it does; ready when the wait has run out.
    #[cold]
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let until = self.waits.until.load(Ordering::Relaxed);
            if until == 0 {
                self.is_set = false;
                return Poll::Pending;
            }
            let until = self.waits.since + Duration::from_nanos(until);
            if self.is_set && tokio::time::Instant::now().into_std() >= until {
                // A head that came in time has left this behind, and nothing waits; or something does, and ends now.
                self.waits.until.store(0, Ordering::Relaxed);
                self.is_set = false;
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(until.into());
            self.is_set = true;
            // A task that has used up its share of a turn would be told to come back, and this timer to wake nobody.
            let timer = std::pin::pin!(tokio::task::unconstrained(self.timer.as_mut()));
            ready!(timer.poll(cx));
        }
    }
}

/// Says that the time has run out, until it is dropped.
struct RanOut;

impl RanOut {
    fn new() -> Self {
        RAN_OUT.set(true);
        Self
    }
}

impl Drop for RanOut {
    fn drop(&mut self) {
        RAN_OUT.set(false);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::{convert::Infallible, future::poll_fn};

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

    /// hyper's own, which we leave as it is.
    const TIMEOUT: Duration = Duration::from_secs(30);

    /// A client, and what its connection comes to. An answer takes `answering`; if that is as long as a
    /// head has, then one poll more, for which nobody wakes.
    fn connected(answering: Duration) -> (DuplexStream, JoinHandle<hyper::Result<()>>) {
        let (client, server) = tokio::io::duplex(4096);
        let (timer, mut watch) = HeadWatch::new();
        let service = service_fn(move |_: Request<Incoming>| async move {
            sleep(answering).await;
            if answering == TIMEOUT {
                let mut polls = 0..1;
                poll_fn(|_| polls.next().map_or(Poll::Ready(()), |_| Poll::Pending)).await;
            }
            Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
        });
        let connection = tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(timer)
                .serve_connection(TokioIo::new(server), service);
            let mut connection = std::pin::pin!(connection);
            poll_fn(|cx| watch.poll(connection.as_mut(), cx)).await
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

    /// How long after `began` the connection ended, in seconds, and whether it was for the head that did not come.
    async fn ended(began: Instant, connection: JoinHandle<hyper::Result<()>>) -> (u64, bool) {
        let ended = connection.await.unwrap();
        let timed_out = ended.is_err_and(|error| error.is_timeout());
        (began.elapsed().as_secs(), timed_out)
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_is_waited_for_as_long_as_hyper_says() {
        let (began, (mut client, connection)) = (Instant::now(), connected(Duration::ZERO));
        client.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
        assert_eq!(ended(began, connection).await, (TIMEOUT.as_secs(), true));
    }

    #[tokio::test(start_paused = true)]
    async fn each_head_has_the_whole_time_though_the_timer_was_set_for_another() {
        let (began, (mut client, connection)) = (Instant::now(), connected(Duration::ZERO));
        for _ in 0..4 {
            sleep(Duration::from_secs(29)).await;
            ask(&mut client).await;
        }
        let (seconds, timed_out) = ended(began, connection).await;
        assert_eq!((seconds, timed_out), (4 * 29 + TIMEOUT.as_secs(), true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_is_waited_for_just_when_the_time_of_the_last_one_is_over_has_its_own() {
        let (began, (mut client, connection)) = (Instant::now(), connected(TIMEOUT));
        ask(&mut client).await;
        let (seconds, timed_out) = ended(began, connection).await;
        assert_eq!((seconds, timed_out), (2 * TIMEOUT.as_secs(), true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_used_up_its_share_of_a_turn_is_woken_as_well() {
        let (began, (timer, mut watch)) = (Instant::now(), HeadWatch::new());
        let mut wait = None;
        let mut connection = std::pin::pin!(poll_fn(|cx| {
            let wait = wait.get_or_insert_with(|| {
                while std::pin::pin!(tokio::task::consume_budget())
                    .poll(cx)
                    .is_ready()
                {}
                timer.sleep_until(timer.now() + TIMEOUT)
            });
            wait.as_mut().poll(cx)
        }));
        let ended = poll_fn(|cx| watch.poll(connection.as_mut(), cx));
        tokio::time::timeout(2 * TIMEOUT, ended).await.unwrap();
        assert_eq!(began.elapsed().as_secs(), TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_longer_than_a_head() {
        let (began, (mut client, connection)) =
            (Instant::now(), connected(Duration::from_secs(100)));
        ask(&mut client).await;
        ask(&mut client).await;
        let (seconds, timed_out) = ended(began, connection).await;
        assert_eq!((seconds, timed_out), (200 + TIMEOUT.as_secs(), true));
    }
}
