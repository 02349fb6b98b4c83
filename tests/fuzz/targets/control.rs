//! What somebody may send to the control socket: bytes of a connection, to a whole host but for its
//! plugins.
//!
//! The host's clock stands still as long as anything happens and jumps when nothing does, so nobody
//! waits for what does not come; but for the store, which waits on a thread of its own for the rest
//! of an upload, and for that there is a little patience. A preflight child is this program again,
//! and ends at once, so artifacts that are sound are rejected there. Every so many inputs the host
//! is a new one.
#![no_main]

use std::{
    cell::RefCell,
    path::PathBuf,
    process,
    sync::{Arc, OnceLock},
    time::Duration,
};

use handover::testing::{
    self, Config, Connections, ControlSocket, Gather, Orchestrator, Routes, ShutdownHandle,
    Store,
};
use libfuzzer_sys::{Corpus, fuzz_target};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// What is asked after each input.
const STATUS: &[u8] = b"GET /v1/status HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
/// Longer than the host waits for anything that a caller sends.
const GIVES_UP: Duration = Duration::from_secs(15);
/// How long an answer is waited for that may never come, in ticks of a clock that does not stand
/// still.
const PATIENCE: u32 = 5;
/// The same of an answer that has to come.
const LONG_PATIENCE: u32 = 2_000;
/// How many inputs one host is given.
const INPUTS: u32 = 500;

struct Host {
    runtime: Runtime,
    path: PathBuf,
    inputs: u32,
    ticks: watch::Receiver<u32>,
    _folder: tempfile::TempDir,
}

impl Host {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control.sock");
        runtime.block_on(async {
            // Else whoever writes to a connection that was closed ends this program, whose `main`
            // is not Rust's.
            let _ = signal(SignalKind::pipe()).expect("a handler of SIGPIPE");
            let mut config = Config::without_file();
            config.server.state = folder.path().to_owned();
            config.server.plugins = folder.path().join("plugins");
            let store = Store::open(&folder.path().join("artifacts")).expect("a store");
            let routes = Arc::new(Routes::default());
            let connections = Connections::new(&config.server.clients());
            let plugins = config.server.plugins.clone();
            let listeners = testing::ClientListeners::new(
                Arc::clone(&routes),
                connections.clone(),
                testing::Health::new(|| None),
            );
            let apps = Orchestrator::open(config, folder.path(), store.clone(), routes, None);
            let orchestrator = apps.expect("apps");
            let (gathered, reread) = (orchestrator.clone(), orchestrator.clone());
            let gather = Gather::new(move |to| gathered.write_metrics(to));
            let socket = ControlSocket::bind(&path, None).expect("a socket");
            tokio::spawn(testing::serve(
                socket,
                Arc::default(),
                testing::Host {
                    watcher: orchestrator.watch_drop_folders(plugins),
                    orchestrator,
                    store,
                    metrics: gather,
                    connections,
                    dashboard: testing::DashboardDoor::default(),
                    reconfigurer: testing::Reconfigurer::without_file(reread, listeners.clone()),
                    listeners,
                    health: testing::Health::new(|| None),
                    metrics_at: None,
                },
                ShutdownHandle::new(),
            ));
        });
        Self {
            runtime,
            path,
            inputs: 0,
            ticks: ticks(),
            _folder: folder,
        }
    }

    /// Sends `input`, and gives what came back until nothing more did.
    fn send(&self, input: &[u8], patience: u32) -> Vec<u8> {
        self.runtime.block_on(async {
            let (mut from, mut to) = UnixStream::connect(&self.path)
                .await
                .expect("the host listens")
                .into_split();
            let mut answer = Vec::new();
            let talk = async {
                let writing = async {
                    // It may stop reading what it has refused.
                    let _ = to.write_all(input).await;
                };
                // An answer that breaks off is told by what came of it.
                let reading = async { from.read_to_end(&mut answer).await };
                let (_, _) = tokio::join!(writing, reading);
            };
            let mut ticks = self.ticks.clone();
            let no_more = async {
                let from = *ticks.borrow_and_update();
                let _ = ticks.wait_for(|now| *now > from + patience).await;
            };
            tokio::select! {
                () = talk => {}
                () = tokio::time::sleep(GIVES_UP) => {}
                () = no_more => {}
            }
            answer
        })
    }
}

/// A clock that does not stand still, with a tick each ten milliseconds.
fn ticks() -> watch::Receiver<u32> {
    static TICKS: OnceLock<watch::Receiver<u32>> = OnceLock::new();
    let ticks = TICKS.get_or_init(|| {
        let (tick, ticks) = watch::channel(0);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(10));
                tick.send_modify(|now| *now += 1);
            }
        });
        ticks
    });
    ticks.clone()
}

thread_local! {
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

fuzz_target!(
    init: {
        if std::env::args().nth(1).as_deref() == Some("preflight-child") {
            process::exit(1);
        }
    },
    |input: &[u8]| -> Corpus {
        HOST.with_borrow_mut(|slot| {
            let host = slot.get_or_insert_with(Host::start);
            let answer = host.send(input, PATIENCE);
            if !answer.is_empty() {
                let text = String::from_utf8_lossy(&answer);
                assert!(text.starts_with("HTTP/1."), "{text}");
                assert!(!text.contains("HTTP/1.1 500"), "{text}");
            }
            let status = host.send(STATUS, LONG_PATIENCE);
            let json = status.splitn(2, |byte| *byte == b'{').nth(1).expect("a status");
            let json = [b"{", json].concat();
            serde_json::from_slice::<handover_api::Status>(&json).expect("a status");
            host.inputs += 1;
            if host.inputs == INPUTS {
                *slot = None;
            }
        });
        Corpus::Keep
    }
);
