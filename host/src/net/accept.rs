//! The accept loop: one for every kind of listener, whatever happens to the process meanwhile.

use std::{
    io,
    time::{Duration, Instant},
};

/// How long the log says nothing more of connections that could not be accepted.
const QUIET: Duration = Duration::from_secs(10);

/// How long nothing is tried when no descriptor can be had.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket.
pub(crate) trait Accept: Send {
    /// An accepted connection.
    type Connection: Send;

    /// Waits for the next connection. May be dropped and called again.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

/// What serves the connections of a listener.
pub(crate) trait Serve<C>: Send {
    /// Waits until one more connection may be accepted. Clients wait in the queue of the socket
    /// until then.
    fn has_room(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Takes a connection over, or says why it was refused.
    fn serve(&mut self, connection: C) -> impl Future<Output = Result<(), String>> + Send;

    /// Ends something that holds a descriptor, and returns whether there was anything.
    fn make_room(&mut self) -> impl Future<Output = bool> + Send {
        std::future::ready(false)
    }

    /// The sentence for the log when `error` keeps connections from being accepted.
    fn not_accepted(&self, error: &io::Error) -> String;
}

/// Accepts connections until `stop` ends, and hands each to `serve`.
pub(crate) async fn accept<L: Accept, S: Serve<L::Connection>>(
    mut listener: L,
    mut serve: S,
    stop: impl Future<Output = ()> + Send,
) -> S {
    let mut stop = std::pin::pin!(stop);
    let mut complaint = Complaint::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => return serve,
            accepted = async {
                serve.has_room().await;
                listener.accept().await
            } => accepted,
        };
        match accepted {
            Ok(connection) => {
                if let Err(why) = serve.serve(connection).await {
                    complaint.log(&why);
                }
            }
            Err(error) => match error.kind() {
                // The client left while it waited in the queue.
                io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionRefused => {}
                // Out of descriptors or memory.
                _ => {
                    complaint.log(&serve.not_accepted(&error));
                    if !serve.make_room().await {
                        // Trying again at once would only burn the processor.
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            },
        }
    }
}

/// A fault that the log is told of once in a while, with how often it happened.
#[derive(Debug, Default)]
struct Complaint {
    logged: Option<Instant>,
    since: u64,
}

impl Complaint {
    fn log(&mut self, what: &str) {
        self.since += 1;
        if self.logged.is_some_and(|logged| logged.elapsed() < QUIET) {
            return;
        }
        tracing::error!(times = self.since, "{what}");
        *self = Self {
            logged: Some(Instant::now()),
            since: 0,
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::collections::VecDeque;

    use super::*;

    /// Gives what it holds, and then waits for ever.
    struct Script(VecDeque<io::Result<u32>>);

    impl Accept for Script {
        type Connection = u32;

        async fn accept(&mut self) -> io::Result<u32> {
            match self.0.pop_front() {
                Some(next) => next,
                None => std::future::pending().await,
            }
        }
    }

    /// Serves up to `most` connections, and notes what it was asked.
    struct Notes {
        served: Vec<u32>,
        made_room: u32,
        is_full: bool,
        done: Option<tokio::sync::oneshot::Sender<()>>,
        last: u32,
    }

    impl Serve<u32> for Notes {
        async fn serve(&mut self, connection: u32) -> Result<(), String> {
            self.served.push(connection);
            if connection == self.last
                && let Some(done) = self.done.take()
            {
                done.send(()).unwrap();
            }
            Ok(())
        }

        async fn make_room(&mut self) -> bool {
            self.made_room += 1;
            !self.is_full
        }

        fn not_accepted(&self, error: &io::Error) -> String {
            error.to_string()
        }
    }

    async fn run(script: Vec<io::Result<u32>>, is_full: bool) -> (Notes, Duration) {
        let (done, stop) = tokio::sync::oneshot::channel();
        let notes = Notes {
            served: Vec::new(),
            made_room: 0,
            is_full,
            done: Some(done),
            last: 9,
        };
        let began = tokio::time::Instant::now();
        let stop = async move {
            stop.await.unwrap();
        };
        let notes = accept(Script(script.into()), notes, stop).await;
        (notes, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_left_in_the_queue_costs_nothing() {
        let left = || Err(io::ErrorKind::ConnectionAborted.into());
        let (notes, took) = run(vec![Ok(1), left(), left(), Ok(9)], true).await;
        assert_eq!((notes.served, notes.made_room), (vec![1, 9], 0));
        assert_eq!(took, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn without_descriptors_it_makes_room_and_pauses_only_where_it_cannot() {
        let none = || Err(io::Error::from_raw_os_error(24));
        let (notes, took) = run(vec![none(), none(), Ok(9)], false).await;
        assert_eq!((notes.served, notes.made_room), (vec![9], 2));
        assert_eq!(took, Duration::ZERO);
        let (notes, took) = run(vec![none(), none(), Ok(9)], true).await;
        assert_eq!((notes.served, notes.made_room), (vec![9], 2));
        assert!(took >= 2 * PAUSE, "{took:?}");
    }
}
