//! Connections that ask as fast as they are answered, or at a pace, and miss nothing.
//!
//! The generator runs on one thread of its own, with requests that are written down once and
//! answers that are measured, not kept: so it takes little from the server beside it. Its own
//! processor time is nobody's figure.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked, all the time.
#[derive(Debug, Clone)]
pub struct Ask {
    method: &'static str,
    path: &'static str,
    headers: Vec<(String, String)>,
    body: Bytes,
    /// How long the body of the answer has to be, when that is known.
    answer: Option<usize>,
}

/// How it is asked.
#[derive(Debug, Clone)]
pub struct Load {
    /// What.
    pub ask: Ask,
    /// Connections that are kept; with `h2`, streams of one connection.
    pub kept: usize,
    /// Clients that make a connection for each request.
    pub closing: usize,
    /// By HTTP/2 with prior knowledge.
    pub h2: bool,
    /// How long a client waits between an answer and its next request.
    pub pause: Duration,
    /// How many requests all in all; none = until it is stopped.
    pub requests: Option<u64>,
    /// Whether each answer is noted down.
    pub samples: bool,
    /// Whether its thread goes before others, where the system lets it: what it waits for is the
    /// server then, not its turn.
    pub urgent: bool,
}

/// A load that runs.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    thread: JoinHandle<Tally>,
}

/// What came of it.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// Whole answers of status 200 and the right length.
    pub answered: u64,
    /// Connections that could not be made.
    pub refused: u64,
    /// Requests on a new connection without a whole answer.
    pub cut_new: u64,
    /// Requests on a kept connection without a whole answer: the server closed it while the request
    /// was on its way.
    pub cut_kept: u64,
    /// Whole answers that were wrong.
    pub wrong: u64,
    /// Kept connections that the server closed between two requests, or said it would: the client
    /// has to make a new one.
    pub closed: u64,
    /// What was wrong first.
    pub first_fault: Option<String>,
    /// Each answer, if that was asked for.
    pub samples: Vec<Sample>,
}

/// One answer.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When it was whole.
    pub at: Instant,
    /// Microseconds from the first byte of the request to the last byte of the answer.
    pub took: u32,
    /// The seventh byte of the body: the version's first digit in a greeting.
    pub mark: u8,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    load: Load,
    /// The request as it goes out.
    request: Vec<u8>,
    stop: AtomicBool,
    /// Whole answers so far.
    answered: AtomicU64,
    /// Requests begun, of [`Load::requests`].
    begun: AtomicU64,
}

/// Why there is no whole answer.
#[derive(Debug)]
enum Fault {
    Cut(String),
    Wrong(String),
}

/// What is known of a whole answer.
struct Whole {
    mark: u8,
    /// The server said that it closes the connection.
    closes: bool,
}

impl Ask {
    /// `GET path` with two headers, Host among them, as the smallest clients send.
    pub fn get(path: &'static str) -> Self {
        let headers = [("user-agent", "bench")];
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            method: "GET",
            path,
            headers: headers.map(own).into(),
            body: Bytes::new(),
            answer: None,
        }
    }

    /// `POST path`.
    pub fn post(path: &'static str, content_type: &str, body: impl Into<Bytes>) -> Self {
        let mut ask = Self::get(path);
        ask.method = "POST";
        ask.body = body.into();
        let length = ask.body.len().to_string();
        ask.headers
            .push(("content-type".to_owned(), content_type.to_owned()));
        ask.headers.push(("content-length".to_owned(), length));
        ask
    }

    /// With headers up to so many.
    pub fn headers(mut self, number: usize) -> Self {
        // Names that no table of standard headers knows are the dearer half of what browsers and
        // proxies send.
        const STANDARD: [(&str, &str); 8] = [
            ("accept-encoding", "gzip, deflate, br, zstd"),
            ("accept-language", "en-GB,en;q=0.9,de;q=0.8"),
            ("cache-control", "no-cache"),
            (
                "cookie",
                "session=0123456789abcdef0123456789abcdef; theme=dark",
            ),
            ("referer", "http://localhost/another/page?with=query"),
            ("origin", "http://localhost"),
            ("dnt", "1"),
            ("x-forwarded-for", "203.0.113.7"),
        ];
        let standard = STANDARD.map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.headers.extend(standard);
        for n in self.headers.len()..number {
            self.headers
                .push((format!("x-bench-header-{n}"), format!("value number {n}")));
        }
        self.headers.truncate(number);
        self
    }

    /// Answers must have a body of so many bytes.
    pub fn answered_with(mut self, bytes: usize) -> Self {
        self.answer = Some(bytes);
        self
    }

    fn bytes(&self, address: SocketAddr, close: bool) -> Vec<u8> {
        let mut text = format!(
            "{} {} HTTP/1.1\r\nhost: {address}\r\n",
            self.method, self.path
        );
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if close {
            text += "connection: close\r\n";
        }
        let mut bytes = (text + "\r\n").into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    fn judge(&self, status_is_ok: bool, length: usize) -> Result<(), Fault> {
        if !status_is_ok {
            return Err(Fault::Wrong("its status is not 200".to_owned()));
        }
        match self.answer {
            Some(right) if right != length => Err(Fault::Wrong(format!(
                "its body has {length} bytes, not {right}"
            ))),
            _ => Ok(()),
        }
    }
}

impl Load {
    /// As fast as `kept` connections are answered.
    pub fn kept(ask: Ask, kept: usize) -> Self {
        Self {
            ask,
            kept,
            closing: 0,
            h2: false,
            pause: Duration::ZERO,
            requests: None,
            samples: false,
            urgent: false,
        }
    }

    /// Begins.
    ///
    /// # Panics
    /// When no thread can be started.
    pub fn start(self, address: SocketAddr) -> Running {
        let request = self.ask.bytes(address, false);
        let shared = Arc::new(Shared {
            address,
            load: self,
            request,
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            begun: AtomicU64::new(0),
        });
        let ours = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("generator".to_owned())
            .spawn(|| {
                if ours.load.urgent {
                    // It takes a right that not everybody has; without it the figures are only
                    // noisier.
                    let _ = rustix::process::setpriority_process(None, -15);
                }
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime.expect("there is a poller").block_on(run(ours))
            });
        Running {
            shared,
            thread: thread.expect("a thread can be started"),
        }
    }

    /// Runs until all [`Load::requests`] are answered.
    pub fn run(self, address: SocketAddr) -> Tally {
        self.start(address).wait()
    }
}

impl Running {
    /// Whole answers so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Ends it: each client gets the answer it waits for first.
    pub fn stop(self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wait()
    }

    fn wait(self) -> Tally {
        self.thread.join().expect("the generator does not panic")
    }
}

impl Tally {
    /// Requests that were sent, or could not be sent, and got no right answer.
    pub fn lost(&self) -> u64 {
        self.refused + self.cut_new + self.cut_kept + self.wrong
    }

    /// # Panics
    /// When anything was lost.
    #[track_caller]
    pub fn expect_all_answered(self) -> Self {
        assert!(
            self.lost() == 0 && self.answered > 0,
            "{} answered, {} lost: {:?}",
            self.answered,
            self.lost(),
            self.first_fault
        );
        self
    }

    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.cut_new += other.cut_new;
        self.cut_kept += other.cut_kept;
        self.wrong += other.wrong;
        self.closed += other.closed;
        self.samples.extend(other.samples);
        self.first_fault = self.first_fault.take().or(other.first_fault);
    }

    fn fault(&mut self, fault: Fault, kept: bool) {
        let text = match fault {
            Fault::Wrong(text) => {
                self.wrong += 1;
                text
            }
            Fault::Cut(text) if kept => {
                self.cut_kept += 1;
                text
            }
            Fault::Cut(text) => {
                self.cut_new += 1;
                text
            }
        };
        self.first_fault.get_or_insert(text);
    }
}

impl Shared {
    /// Whether there is one more request to send.
    fn next(&self) -> bool {
        if self.stop.load(Ordering::Relaxed) {
            return false;
        }
        match self.load.requests {
            Some(all) => self.begun.fetch_add(1, Ordering::Relaxed) < all,
            None => true,
        }
    }

    fn count(&self, tally: &mut Tally, began: Instant, mark: u8) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        tally.answered += 1;
        if self.load.samples {
            let at = Instant::now();
            let took = u32::try_from((at - began).as_micros()).unwrap_or(u32::MAX);
            tally.samples.push(Sample { at, took, mark });
        }
    }

    async fn pause(&self) {
        if !self.load.pause.is_zero() {
            tokio::time::sleep(self.load.pause).await;
        }
    }
}

async fn run(shared: Arc<Shared>) -> Tally {
    let mut clients = JoinSet::new();
    if shared.load.h2 {
        clients.spawn(one_h2_connection(Arc::clone(&shared)));
    } else {
        for _ in 0..shared.load.kept {
            clients.spawn(kept(Arc::clone(&shared)));
        }
    }
    for _ in 0..shared.load.closing {
        clients.spawn(closing(Arc::clone(&shared)));
    }
    let mut all = Tally::default();
    while let Some(tally) = clients.join_next().await {
        all.add(tally.expect("a client does not panic"));
    }
    all
}

/// One connection after another, each kept for as long as the server lets it be.
async fn kept(shared: Arc<Shared>) -> Tally {
    let mut tally = Tally::default();
    let mut buffer = Vec::with_capacity(256 * 1024);
    let mut connection: Option<TcpStream> = None;
    let mut asked_before = false;
    while shared.next() {
        let mut stream = match connection.take() {
            // Closed while it was idle: nothing is lost by that.
            Some(stream) if matches!(stream.try_read(&mut [0]), Ok(0)) => {
                tally.closed += 1;
                asked_before = false;
                match connect(&shared, &mut tally).await {
                    Some(stream) => stream,
                    None => continue,
                }
            }
            Some(stream) => stream,
            None => {
                asked_before = false;
                match connect(&shared, &mut tally).await {
                    Some(stream) => stream,
                    None => continue,
                }
            }
        };
        let began = Instant::now();
        match exchange(&mut stream, &shared.request, &shared.load.ask, &mut buffer).await {
            Ok(whole) => {
                shared.count(&mut tally, began, whole.mark);
                asked_before = true;
                if whole.closes {
                    tally.closed += 1;
                } else {
                    connection = Some(stream);
                }
            }
            Err(fault) => tally.fault(fault, asked_before),
        }
        shared.pause().await;
    }
    tally
}

/// A connection for each request.
async fn closing(shared: Arc<Shared>) -> Tally {
    let mut tally = Tally::default();
    let mut buffer = Vec::with_capacity(256 * 1024);
    let request = shared.load.ask.bytes(shared.address, true);
    while shared.next() {
        if let Some(mut stream) = connect(&shared, &mut tally).await {
            let began = Instant::now();
            match exchange(&mut stream, &request, &shared.load.ask, &mut buffer).await {
                Ok(whole) => shared.count(&mut tally, began, whole.mark),
                Err(fault) => tally.fault(fault, false),
            }
        }
        // Each leaves a port in TIME_WAIT: not as fast as the machine can.
        tokio::time::sleep(shared.load.pause.max(Duration::from_millis(2))).await;
    }
    tally
}

async fn connect(shared: &Shared, tally: &mut Tally) -> Option<TcpStream> {
    match TcpStream::connect(shared.address).await {
        Ok(stream) => {
            // It would only be slower without.
            let _ = stream.set_nodelay(true);
            Some(stream)
        }
        Err(error) => {
            tally.refused += 1;
            tally
                .first_fault
                .get_or_insert(format!("no connection: {error}"));
            // Nobody listens: asking at once again would only count the same moment many times.
            tokio::time::sleep(Duration::from_millis(1)).await;
            None
        }
    }
}

async fn exchange(
    stream: &mut TcpStream,
    request: &[u8],
    ask: &Ask,
    buffer: &mut Vec<u8>,
) -> Result<Whole, Fault> {
    let both = async {
        stream
            .write_all(request)
            .await
            .map_err(|error| Fault::Cut(format!("while sending: {error}")))?;
        buffer.clear();
        let mut answer = Reading::Head;
        loop {
            match stream.read_buf(buffer).await {
                Ok(0) => return Err(Fault::Cut(format!("after {} bytes", buffer.len()))),
                Ok(_) => {}
                Err(error) => {
                    return Err(Fault::Cut(format!("after {} bytes: {error}", buffer.len())));
                }
            }
            if let Some((head, length)) = answer.advance(buffer)? {
                ask.judge(head.ok, length)?;
                let mark = buffer.get(head.end + 6).copied().unwrap_or_default();
                return Ok(Whole {
                    mark,
                    closes: head.closes,
                });
            }
        }
    };
    match tokio::time::timeout(PATIENCE, both).await {
        Ok(done) => done,
        Err(_) => Err(Fault::Cut(format!("nothing came for {PATIENCE:?}"))),
    }
}

/// How far an answer has been read.
enum Reading {
    Head,
    Length(Head, usize),
    /// Where the next chunk begins, and how many bytes of body were before it.
    Chunks(Head, usize, usize),
}

#[derive(Clone, Copy)]
struct Head {
    ok: bool,
    /// Where the body begins.
    end: usize,
    closes: bool,
}

impl Reading {
    /// The head and the length of the body, once both are there.
    fn advance(&mut self, buffer: &[u8]) -> Result<Option<(Head, usize)>, Fault> {
        loop {
            match self {
                Self::Head => {
                    let Some(end) = find(buffer, b"\r\n\r\n") else {
                        return Ok(None);
                    };
                    *self = Self::of_head(&buffer[..end], end + 4)?;
                }
                Self::Length(head, length) => {
                    let here = buffer.len() - head.end;
                    return match here.cmp(length) {
                        std::cmp::Ordering::Less => Ok(None),
                        std::cmp::Ordering::Equal => Ok(Some((*head, *length))),
                        std::cmp::Ordering::Greater => {
                            Err(Fault::Wrong("more came than was announced".to_owned()))
                        }
                    };
                }
                Self::Chunks(head, at, length) => {
                    let Some(line) = find(&buffer[*at..], b"\r\n") else {
                        return Ok(None);
                    };
                    let size = std::str::from_utf8(&buffer[*at..*at + line])
                        .ok()
                        .and_then(|text| usize::from_str_radix(text, 16).ok())
                        .ok_or_else(|| Fault::Wrong("a chunk has no length".to_owned()))?;
                    let next = *at + line + 2 + size + 2;
                    if buffer.len() < next {
                        return Ok(None);
                    }
                    if size == 0 {
                        return Ok(Some((*head, *length)));
                    }
                    *length += size;
                    *at = next;
                }
            }
        }
    }

    fn of_head(text: &[u8], end: usize) -> Result<Self, Fault> {
        let text = std::str::from_utf8(text)
            .map_err(|_| Fault::Wrong("its head is not text".to_owned()))?;
        let mut lines = text.split("\r\n");
        let status = lines.next().unwrap_or_default();
        let mut head = Head {
            ok: status.split(' ').nth(1) == Some("200"),
            end,
            closes: status.starts_with("HTTP/1.0"),
        };
        let (mut length, mut chunked) = (0, false);
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                length = value
                    .parse()
                    .map_err(|_| Fault::Wrong(format!("its length is {value}")))?;
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.eq_ignore_ascii_case("chunked");
            } else if name.eq_ignore_ascii_case("connection") {
                head.closes = value.eq_ignore_ascii_case("close");
            }
        }
        Ok(if chunked {
            Self::Chunks(head, end, 0)
        } else {
            Self::Length(head, length)
        })
    }
}

fn find(buffer: &[u8], pattern: &[u8]) -> Option<usize> {
    buffer
        .windows(pattern.len())
        .position(|window| window == pattern)
}

/// Many streams at a time on one connection.
async fn one_h2_connection(shared: Arc<Shared>) -> Tally {
    let mut all = Tally::default();
    let Some(stream) = connect(&shared, &mut all).await else {
        return all;
    };
    let (sender, connection) = match h2::client::handshake(stream).await {
        Ok(both) => both,
        Err(error) => {
            all.fault(Fault::Cut(error.to_string()), false);
            return all;
        }
    };
    let connection = tokio::spawn(connection);
    let mut clients = JoinSet::new();
    for _ in 0..shared.load.kept {
        let (shared, sender) = (Arc::clone(&shared), sender.clone());
        clients.spawn(async move {
            let mut tally = Tally::default();
            while shared.next() {
                let began = Instant::now();
                match h2_exchange(&shared, sender.clone()).await {
                    Ok(mark) => shared.count(&mut tally, began, mark),
                    Err(fault) => {
                        tally.fault(fault, true);
                        break;
                    }
                }
                shared.pause().await;
            }
            tally
        });
    }
    while let Some(tally) = clients.join_next().await {
        all.add(tally.expect("a client does not panic"));
    }
    connection.abort();
    all
}

async fn h2_exchange(shared: &Shared, sender: h2::client::SendRequest<Bytes>) -> Result<u8, Fault> {
    let cut = |error: h2::Error| Fault::Cut(error.to_string());
    let ask = &shared.load.ask;
    let mut request = http::Request::builder()
        .method(ask.method)
        .uri(format!("http://{}{}", shared.address, ask.path));
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    let request = request
        .body(())
        .map_err(|error| Fault::Wrong(error.to_string()))?;
    let mut sender = sender.ready().await.map_err(cut)?;
    let (answer, mut body) = sender
        .send_request(request, ask.body.is_empty())
        .map_err(cut)?;
    if !ask.body.is_empty() {
        body.send_data(ask.body.clone(), true).map_err(cut)?;
    }
    let answer = answer.await.map_err(cut)?;
    let ok = answer.status() == http::StatusCode::OK;
    let mut body = answer.into_body();
    let (mut length, mut mark) = (0, 0);
    while let Some(data) = body.data().await {
        let data = data.map_err(cut)?;
        if length == 0 {
            mark = data.get(6).copied().unwrap_or_default();
        }
        length += data.len();
        body.flow_control()
            .release_capacity(data.len())
            .map_err(cut)?;
    }
    ask.judge(ok, length)?;
    Ok(mark)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    /// The length of the body as it is known after each byte.
    fn fed(answer: &[u8]) -> Vec<Option<usize>> {
        let mut reading = Reading::Head;
        (1..=answer.len())
            .map(|n| {
                let whole = reading.advance(&answer[..n]).unwrap();
                whole.map(|(_, length)| length)
            })
            .collect()
    }

    #[test]
    fn an_answer_is_whole_at_its_last_byte() {
        for (answer, length) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"[..], 5),
            (b"HTTP/1.1 204 No Content\r\n\r\n", 0),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
                13,
            ),
        ] {
            let lengths = fed(answer);
            let (last, before) = lengths.split_last().unwrap();
            assert_eq!(*last, Some(length));
            assert!(before.iter().all(Option::is_none));
        }
    }
}
