//! Clients that ask all day, remember what went wrong, and what was acknowledged to them.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use handover_tests::{
    client::{Answer, Fault, Http1},
    host::DEADLINE,
};
use tokio::task::JoinSet;

/// How long a client waits between an answer and its next request.
const PAUSE: Duration = Duration::from_millis(25);

/// How many answers each client has had before it counts as answered.
const PROOF: u64 = 2;

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
enum Ask {
    /// The version of a `probe` below this path, a body there and back, and a stream, in turn.
    Probe(&'static str),
    Hello,
    Service,
    /// Commits a row. What was answered with 200 must be there for ever.
    Write,
    /// An app that does wrong: it has to have clients, which expect nothing.
    Misfit,
}

const ASKS: [(&str, Ask); 6] = [
    ("front", Ask::Probe("")),
    ("shop", Ask::Probe("/shop")),
    ("hello", Ask::Hello),
    ("service", Ask::Service),
    ("sqlite", Ask::Write),
    ("misfit", Ask::Misfit),
];

/// The clients, while they run.
pub(crate) struct Clients {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    address: Mutex<SocketAddr>,
    stop: AtomicBool,
    clients: Vec<Client>,
    /// Since it was looked at last.
    faults: Mutex<Vec<String>>,
    acknowledged: Mutex<BTreeSet<i64>>,
    next_row: AtomicI64,
}

struct Client {
    name: String,
    ask: Ask,
    /// Whether it keeps its connection.
    keeps: bool,
    answered: AtomicU64,
}

impl Clients {
    /// Begins: for each app two clients that keep their connections, and one that does not.
    pub(crate) fn start(address: SocketAddr) -> Self {
        let mut clients = Vec::new();
        for (app, ask) in ASKS {
            for number in 1..=3 {
                clients.push(Client {
                    name: format!("client {number} of {app}"),
                    ask,
                    keeps: number < 3,
                    answered: AtomicU64::new(0),
                });
            }
        }
        let number = clients.len();
        let shared = Arc::new(Shared {
            address: Mutex::new(address),
            stop: AtomicBool::new(false),
            clients,
            faults: Mutex::default(),
            acknowledged: Mutex::default(),
            next_row: AtomicI64::new(0),
        });
        let mut tasks = JoinSet::new();
        for at in 0..number {
            tasks.spawn(run(Arc::clone(&shared), at));
        }
        Self { shared, tasks }
    }

    /// A host that was started anew has another address.
    pub(crate) fn ask_at(&self, address: SocketAddr) {
        *self.shared.address.lock().expect("nobody panics with it") = address;
    }

    /// How many answers there were.
    pub(crate) fn answered(&self) -> u64 {
        let clients = self.shared.clients.iter();
        clients
            .map(|client| client.answered.load(Ordering::Relaxed))
            .sum()
    }

    /// Waits until each client of a healthy app has had some answers more, and returns what went
    /// wrong since this was called last.
    ///
    /// # Errors
    /// Who has had none for too long.
    pub(crate) async fn all_answered(&self) -> Result<Vec<String>, String> {
        let judged = || {
            let clients = self.shared.clients.iter();
            clients.filter(|client| !matches!(client.ask, Ask::Misfit))
        };
        let answered = |client: &Client| client.answered.load(Ordering::Relaxed);
        let before: Vec<_> = judged().map(answered).collect();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let late = judged()
                .zip(&before)
                .find(|(client, before)| answered(client) < *before + PROOF);
            let Some((late, _)) = late else { break };
            if Instant::now() > deadline {
                let faults = self.take_faults();
                return Err(format!(
                    "{} has had no answer for {DEADLINE:?}; of {} faults the last: {:#?}",
                    late.name,
                    faults.len(),
                    faults.iter().rev().take(10).collect::<Vec<_>>()
                ));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(self.take_faults())
    }

    fn take_faults(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.faults.lock().expect("nobody panics with it"))
    }

    /// What was acknowledged so far and is not among `rows`.
    pub(crate) fn missing_in(
        &self,
        acknowledged: &BTreeSet<i64>,
        rows: &BTreeSet<i64>,
    ) -> Vec<i64> {
        acknowledged.difference(rows).copied().collect()
    }

    /// The rows that were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> BTreeSet<i64> {
        self.shared
            .acknowledged
            .lock()
            .expect("nobody panics with it")
            .clone()
    }

    /// Ends them, each with the answer that it waits for.
    pub(crate) async fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no client panics");
        }
    }
}

async fn run(shared: Arc<Shared>, at: usize) {
    let client = &shared.clients[at];
    let mut connection: Option<(SocketAddr, Http1)> = None;
    for turn in 0_u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let address = *shared.address.lock().expect("nobody panics with it");
        let kept = connection.take().filter(|(to, _)| *to == address);
        let asked = async {
            let mut http = match kept {
                Some((_, http)) => http,
                None => Http1::connect(address).await?,
            };
            let judged = client.ask.ask(&mut http, turn, &shared).await?;
            Ok::<_, Fault>((http, judged))
        };
        let wrong = match asked.await {
            Ok((http, judged)) => {
                if client.keeps && !http.is_closing() {
                    connection = Some((address, http));
                }
                judged.err()
            }
            Err(fault) => Some(fault.to_string()),
        };
        match wrong {
            None => {
                client.answered.fetch_add(1, Ordering::Relaxed);
            }
            Some(_) if matches!(client.ask, Ask::Misfit) => {}
            Some(why) => shared
                .faults
                .lock()
                .expect("nobody panics with it")
                .push(format!("{}: {why}", client.name)),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Ask {
    /// Asks once, and says what is wrong with the answer.
    async fn ask(
        self,
        http: &mut Http1,
        turn: u64,
        shared: &Shared,
    ) -> Result<Result<(), String>, Fault> {
        let is = |answer: Answer, right: fn(&str) -> bool| {
            if answer.status == 200 && right(&answer.text()) {
                Ok(())
            } else {
                Err(format!("{}: {:.300}", answer.status, answer.text()))
            }
        };
        Ok(match self {
            Self::Probe(at) => match turn % 3 {
                0 => is(http.get(&format!("{at}/version")).await?, is_version),
                1 => {
                    let body: Vec<u8> = (0..3000_u32).map(|n| b'a' + (n % 26) as u8).collect();
                    let answer = http.post(&format!("{at}/echo"), &body).await?;
                    if answer.status == 200 && answer.body == body {
                        Ok(())
                    } else {
                        Err(format!(
                            "{}: an echo of {} bytes",
                            answer.status,
                            answer.body.len()
                        ))
                    }
                }
                _ => {
                    let path = format!("{at}/stream?n=4&every_ms=2");
                    is(http.get(&path).await?, |text| {
                        text.lines().count() == 4 && text.lines().all(is_version)
                    })
                }
            },
            Self::Hello => is(http.get("/hello/").await?, |text| {
                text.starts_with("hello ")
            }),
            Self::Service => is(http.get("/service/x").await?, |text| {
                text.starts_with("GET /")
            }),
            Self::Write => {
                let id = shared.next_row.fetch_add(1, Ordering::Relaxed);
                let answer = http.post(&format!("/sqlite/write?id={id}"), b"").await?;
                if answer.status == 200 {
                    let mut all = shared.acknowledged.lock().expect("nobody panics with it");
                    all.insert(id);
                }
                is(answer, |_| true)
            }
            Self::Misfit => is(http.get("/misfit/").await?, |_| true),
        })
    }
}

fn is_version(text: &str) -> bool {
    matches!(text, "1.0.0" | "2.0.0")
}
