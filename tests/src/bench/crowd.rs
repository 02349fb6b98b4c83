//! Many clients that mostly wait: kept connections without a request, and streams that hardly ever
//! say a word.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    runtime::Runtime,
};

/// How many connections come from one address: fewer than there are ports for one, with those that
/// still linger from the contender before.
const FROM_ONE: usize = 5_000;

/// A stream that says nothing for so long is cut, and so is a connection that does not answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The clients.
#[derive(Debug)]
pub struct Crowd {
    runtime: Runtime,
    server: SocketAddr,
    /// The last byte of the address that the next ones come from.
    from: u8,
    connections: Vec<TcpStream>,
    streams: Vec<TcpStream>,
}

/// What became of clients that were asked how they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roll {
    /// Those that got what they wait for.
    pub well: usize,
    /// Those whose connection was closed or broken, or that got something else.
    pub lost: usize,
    /// How long that took, all together.
    pub took: Duration,
}

/// Lets this process and those that it starts have as many files open as the system grants; gives
/// how many.
pub fn raise_open_files() -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // What cannot be raised shows when a connection is refused.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

impl Crowd {
    /// Nobody yet.
    ///
    /// # Panics
    /// When there is no poller.
    pub fn of(server: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        Self {
            runtime: runtime.expect("there is a poller"),
            server,
            from: 1,
            connections: Vec::new(),
            streams: Vec::new(),
        }
    }

    /// Makes `number` connections, each of which asks once and is kept.
    ///
    /// # Panics
    /// When one cannot be made or is not answered.
    pub fn connect(&mut self, number: usize) {
        let mut made = self.open(number);
        let lost = self.runtime.block_on(async {
            let mut lost = 0;
            for stream in &mut made {
                lost += usize::from(!greeted(stream, b"hello").await);
            }
            lost
        });
        assert_eq!(lost, 0, "of {number} new connections");
        self.connections.append(&mut made);
    }

    /// Opens `number` streams at `/ticks`, and waits until each has begun.
    ///
    /// # Panics
    /// When one cannot be opened.
    pub fn stream(&mut self, number: usize) {
        let mut made = self.open(number);
        let lost = self.runtime.block_on(async {
            let mut lost = 0;
            for stream in &mut made {
                let asked = stream.write_all(b"GET /ticks HTTP/1.1\r\nhost: localhost\r\n\r\n");
                lost += usize::from(asked.await.is_err());
            }
            for stream in &mut made {
                lost += usize::from(!ticks(stream).await);
            }
            lost
        });
        assert_eq!(lost, 0, "of {number} new streams");
        self.streams.append(&mut made);
    }

    /// Asks on every connection for a greeting that begins with `greeting`.
    pub fn ask(&mut self, greeting: &str) -> Roll {
        let connections = &mut self.connections;
        self.runtime.block_on(async {
            let began = Instant::now();
            let mut well = 0;
            for stream in &mut *connections {
                well += usize::from(greeted(stream, greeting.as_bytes()).await);
            }
            Roll {
                well,
                lost: connections.len() - well,
                took: began.elapsed(),
            }
        })
    }

    /// Waits for a word on every stream, one that is said from now on.
    pub fn listen(&mut self) -> Roll {
        let streams = &mut self.streams;
        self.runtime.block_on(async {
            let began = Instant::now();
            let open: Vec<_> = streams
                .iter_mut()
                .filter(|stream| is_open(stream))
                .collect();
            let mut well = 0;
            for stream in open {
                well += usize::from(ticks(stream).await);
            }
            Roll {
                well,
                lost: streams.len() - well,
                took: began.elapsed(),
            }
        })
    }

    /// Closes all streams.
    pub fn leave_streams(&mut self) {
        self.streams.clear();
    }

    fn open(&mut self, number: usize) -> Vec<TcpStream> {
        let mut made = Vec::with_capacity(number);
        while made.len() < number {
            self.from += 1;
            let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, self.from), 0));
            let some = FROM_ONE.min(number - made.len());
            let server = self.server;
            let opened: io::Result<Vec<_>> = self.runtime.block_on(async {
                let mut opened = Vec::with_capacity(some);
                for _ in 0..some {
                    let socket = TcpSocket::new_v4()?;
                    socket.bind(address)?;
                    opened.push(socket.connect(server).await?);
                }
                Ok(opened)
            });
            made.extend(opened.unwrap_or_else(|error| {
                panic!("connection {} from {address}: {error}", made.len())
            }));
        }
        made
    }
}

/// Reads away what was said before. Whether the stream goes on.
fn is_open(stream: &TcpStream) -> bool {
    let mut old = [0; 4096];
    loop {
        match stream.try_read(&mut old) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

async fn greeted(stream: &mut TcpStream, greeting: &[u8]) -> bool {
    let asked = async {
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await?;
        read_until(stream, |answer| {
            answer.starts_with(b"HTTP/1.1 200")
                && answer
                    .windows(4)
                    .position(|four| four == b"\r\n\r\n")
                    .is_some_and(|head| {
                        answer[head + 4..].starts_with(greeting) && answer.len() >= head + 4 + 11
                    })
        })
        .await
    };
    matches!(tokio::time::timeout(PATIENCE, asked).await, Ok(Ok(())))
}

async fn ticks(stream: &mut TcpStream) -> bool {
    let tick = read_until(stream, |said| said.windows(4).any(|word| word == b"tick"));
    matches!(tokio::time::timeout(PATIENCE, tick).await, Ok(Ok(())))
}

async fn read_until(stream: &mut TcpStream, enough: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    let (mut buffer, mut length) = ([0; 4096], 0);
    while !enough(&buffer[..length]) {
        match stream.read(&mut buffer[length..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => length += more,
        }
    }
    Ok(())
}
