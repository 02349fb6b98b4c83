//! Busy connections that count every answer, to prove that a swap is not noticed.
//!
//! The order is judged by generations, which only grow. A request that is sent after an answer of
//! generation 7 has come may not be answered by generation 6: neither on the same connection, nor
//! on any other.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;

use crate::client::{Answer, Fault, Http1, Http2};

/// What is to be busy.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Connections that are kept, HTTP/1.1.
    pub keep_alive: usize,
    /// Clients that make a connection for each request, HTTP/1.1.
    pub closing: usize,
    /// Concurrent streams on one kept connection, HTTP/2.
    pub streams: usize,
    /// How long each client waits between an answer and its next request.
    pub pause: Duration,
}

impl Load {
    /// A little of everything, for tests in which something else is hard.
    pub const LIGHT: Self = Self {
        keep_alive: 2,
        closing: 1,
        streams: 2,
        pause: Duration::from_millis(5),
    };
}

/// A load that runs.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

/// What was counted.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// Requests that were begun, their connections included.
    pub sent: u64,
    /// Whole and right answers.
    pub ok: u64,
    /// Answers of a status other than 200, or of another body than asked for; why.
    pub failed: Vec<String>,
    /// Requests that got no whole answer; why.
    pub cut: Vec<String>,
    /// Kept connections that the server closed.
    pub closed: u64,
    /// Answers of an older generation than one seen before on the same connection.
    pub out_of_order: Vec<String>,
    /// Answers of an older generation than one seen before by anybody.
    pub stale: Vec<String>,
    /// The versions that answered, by generation. One generation is one version.
    pub versions: BTreeMap<u64, String>,
    /// Generations that answered with two versions.
    pub mixed: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    pause: Duration,
    stop: AtomicBool,
    sent: AtomicU64,
    /// The newest generation seen by anybody.
    newest: AtomicU64,
    report: Mutex<Report>,
}

/// What is asked, in turn: the version alone, a body there and back, and a body that comes in
/// pieces. `probe` answers them all.
#[derive(Clone, Copy)]
enum Ask {
    Version,
    Echo,
    Stream,
}

impl Ask {
    fn nth(n: u64) -> Self {
        match n % 4 {
            1 => Self::Echo,
            3 => Self::Stream,
            _ => Self::Version,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Version => "/version",
            Self::Echo => "/echo",
            Self::Stream => "/stream?n=4&every_ms=1",
        }
    }

    /// The body of the request, if it has one.
    fn body(self) -> Option<Vec<u8>> {
        matches!(self, Self::Echo).then(|| (0..3000u32).map(|n| n.to_le_bytes()[0]).collect())
    }

    /// The version that the plugin named, or what is wrong with the answer.
    fn judge(self, answer: &Answer) -> Result<Option<String>, String> {
        if answer.status != 200 {
            return Err(format!(
                "{} {}: {}",
                answer.status,
                self.path(),
                answer.text()
            ));
        }
        let text = answer.text();
        match self {
            Self::Version => Ok(Some(text)),
            Self::Echo if Some(&answer.body) == self.body().as_ref() => Ok(None),
            Self::Echo => Err(format!("the echo has {} bytes", answer.body.len())),
            Self::Stream => {
                let lines: Vec<_> = text.lines().collect();
                let first = lines.first().copied().unwrap_or_default();
                let whole = lines.len() == 4 && lines.iter().all(|line| *line == first);
                if whole {
                    Ok(Some(first.to_owned()))
                } else {
                    Err(format!("the stream was {text:?}"))
                }
            }
        }
    }
}

impl Load {
    /// Begins. The clients are tasks of the caller's runtime.
    pub fn start(self, address: SocketAddr) -> Running {
        let shared = Arc::new(Shared {
            address,
            pause: self.pause,
            stop: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            newest: AtomicU64::new(0),
            report: Mutex::default(),
        });
        let mut clients = JoinSet::new();
        for _ in 0..self.keep_alive {
            clients.spawn(keep_alive(Arc::clone(&shared)));
        }
        for _ in 0..self.closing {
            clients.spawn(closing(Arc::clone(&shared)));
        }
        if self.streams > 0 {
            clients.spawn(one_h2_connection(Arc::clone(&shared), self.streams));
        }
        Running { shared, clients }
    }
}

impl Running {
    /// How many whole answers have come so far.
    pub fn answered(&self) -> u64 {
        self.shared.report.lock().expect("nobody panics with it").ok
    }

    /// Waits for that many whole answers more, so that what was just done has been seen by the
    /// load.
    pub async fn more(&self, answers: u64) {
        let goal = self.answered() + answers;
        let deadline = tokio::time::Instant::now() + crate::host::DEADLINE;
        while self.answered() < goal {
            assert!(
                tokio::time::Instant::now() < deadline,
                "the load stands still: {:?}",
                self.shared.report.lock()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it: every client gets the answer it waits for first.
    ///
    /// # Panics
    /// When a request was neither answered nor lost, which would be a fault of this load.
    pub async fn stop(self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
        let report = self.shared.report.lock().expect("nobody panics with it");
        let report = Report {
            sent: self.shared.sent.load(Ordering::Relaxed),
            ..report.clone()
        };
        let ended = report.ok + (report.failed.len() + report.cut.len()) as u64;
        assert_eq!(report.sent, ended, "{report:?}");
        report
    }
}

impl Report {
    /// # Panics
    /// When anybody could have noticed anything.
    #[track_caller]
    pub fn expect_unnoticed(&self) {
        let some = |list: &[String]| list.iter().take(5).cloned().collect::<Vec<_>>();
        assert!(
            self.failed.is_empty()
                && self.cut.is_empty()
                && self.closed == 0
                && self.out_of_order.is_empty()
                && self.stale.is_empty()
                && self.mixed.is_empty(),
            "{} ok, {} failed {:?}, {} cut {:?}, {} closed, {} out of order {:?}, {} stale {:?}, mixed {:?}",
            self.ok,
            self.failed.len(),
            some(&self.failed),
            self.cut.len(),
            some(&self.cut),
            self.closed,
            self.out_of_order.len(),
            some(&self.out_of_order),
            self.stale.len(),
            some(&self.stale),
            some(&self.mixed),
        );
        self.tell();
    }

    /// # Panics
    /// When a request was lost: it got no answer, half of one, or another than it asked for. Order
    /// and versions do not matter.
    #[track_caller]
    pub fn expect_none_lost(&self) {
        assert!(self.failed.is_empty() && self.cut.is_empty(), "{self:?}");
        self.tell();
    }

    /// Says what was counted, beside the name of the test.
    fn tell(&self) {
        let thread = std::thread::current();
        println!(
            "{}: {} sent, {} answered, {} lost",
            thread.name().unwrap_or_default(),
            self.sent,
            self.ok,
            self.failed.len() + self.cut.len()
        );
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn newest(&self) -> u64 {
        self.newest.load(Ordering::SeqCst)
    }

    /// Counts the answer to a request before which the connection had seen `own` and anybody
    /// `newest`.
    fn count(
        &self,
        ask: Ask,
        own: &AtomicU64,
        own_before: u64,
        newest_before: u64,
        answer: Result<Answer, Fault>,
    ) {
        let mut report = self.report.lock().expect("nobody panics with it");
        let answer = match answer {
            Err(fault) => return report.cut.push(format!("{}: {fault}", ask.path())),
            Ok(answer) => answer,
        };
        let version = match ask.judge(&answer) {
            Err(why) => return report.failed.push(why),
            Ok(version) => version,
        };
        let Some(generation) = answer.generation() else {
            return report
                .failed
                .push(format!("no generation in {:?}", answer.headers));
        };
        own.fetch_max(generation, Ordering::SeqCst);
        self.newest.fetch_max(generation, Ordering::SeqCst);
        if generation < own_before {
            report
                .out_of_order
                .push(format!("{generation} after {own_before}"));
        }
        if generation < newest_before {
            report
                .stale
                .push(format!("{generation} after {newest_before}"));
        }
        if let Some(version) = version {
            let known = report
                .versions
                .entry(generation)
                .or_insert_with(|| version.clone())
                .clone();
            if known != version || answer.version() != Some(&*version) {
                report.mixed.push(format!(
                    "generation {generation} is {known}, {version} and {:?}",
                    answer.version()
                ));
            }
        }
        report.ok += 1;
    }

    /// A request is begun.
    fn send(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    fn cut(&self, fault: Fault) {
        self.report
            .lock()
            .expect("nobody panics with it")
            .cut
            .push(fault.to_string());
    }
}

async fn keep_alive(shared: Arc<Shared>) {
    let own = AtomicU64::new(0);
    let mut connection = None;
    for n in 0.. {
        if shared.stopped() {
            return;
        }
        shared.send();
        let mut http = match connection.take() {
            Some(http) => http,
            None => match Http1::connect(shared.address).await {
                Ok(http) => http,
                Err(fault) => {
                    shared.cut(fault);
                    continue;
                }
            },
        };
        let ask = Ask::nth(n);
        let (own_before, newest_before) = (own.load(Ordering::SeqCst), shared.newest());
        let answer = exchange(&mut http, ask, &[]).await;
        let whole = answer.is_ok();
        shared.count(ask, &own, own_before, newest_before, answer);
        if http.is_closing() {
            shared.report.lock().expect("nobody panics with it").closed += 1;
        } else if whole {
            connection = Some(http);
        }
        tokio::time::sleep(shared.pause).await;
    }
}

async fn closing(shared: Arc<Shared>) {
    for n in 0.. {
        if shared.stopped() {
            return;
        }
        let ask = Ask::nth(n);
        let newest_before = shared.newest();
        shared.send();
        let asked = async {
            let mut http = Http1::connect(shared.address).await?;
            let answer = exchange(&mut http, ask, &[("connection", "close")]).await?;
            http.closed().await?;
            Ok(answer)
        };
        shared.count(ask, &AtomicU64::new(0), 0, newest_before, asked.await);
        // Each leaves a port in TIME_WAIT: not as fast as the machine can.
        tokio::time::sleep(shared.pause.max(Duration::from_millis(2))).await;
    }
}

async fn exchange(http: &mut Http1, ask: Ask, headers: &[(&str, &str)]) -> Result<Answer, Fault> {
    match ask.body() {
        Some(body) => http.request("POST", ask.path(), headers, Some(&body)).await,
        None => http.request("GET", ask.path(), headers, None).await,
    }
}

async fn one_h2_connection(shared: Arc<Shared>, streams: usize) {
    let (http, connection) = match Http2::connect(shared.address).await {
        Ok(connected) => connected,
        Err(fault) => {
            shared.send();
            return shared.cut(fault);
        }
    };
    let own = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..streams {
        let (shared, http, own) = (Arc::clone(&shared), http.clone(), Arc::clone(&own));
        clients.spawn(async move {
            for n in 0.. {
                if shared.stopped() {
                    return;
                }
                let ask = Ask::nth(n);
                let (own_before, newest_before) = (own.load(Ordering::SeqCst), shared.newest());
                shared.send();
                let answer = match ask.body() {
                    Some(body) => http.post(ask.path(), &body).await,
                    None => http.get(ask.path()).await,
                };
                let whole = answer.is_ok();
                shared.count(ask, &own, own_before, newest_before, answer);
                if !whole {
                    // The one connection is gone, and was counted as cut.
                    return;
                }
                tokio::time::sleep(shared.pause).await;
            }
        });
    }
    clients.join_all().await;
    if connection.is_finished() {
        shared.report.lock().expect("nobody panics with it").closed += 1;
    }
    connection.abort();
}
