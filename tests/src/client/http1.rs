//! One HTTP/1.1 connection, byte by byte.

use std::{net::SocketAddr, path::Path};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{Answer, Fault, PATIENCE};

/// One connection.
#[derive(Debug)]
pub struct Http1<S = TcpStream> {
    io: BufStream<S>,
    framing: Framing,
    closing: bool,
}

/// How much of the body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Nothing,
    Length(u64),
    Chunked,
    UntilClose,
}

impl Http1 {
    /// Connects to a server.
    pub async fn connect(address: SocketAddr) -> Result<Self, Fault> {
        let stream = timeout(PATIENCE, TcpStream::connect(address))
            .await
            .map_err(|_| Fault::Silent)?;
        let stream = stream.map_err(|error| Fault::Connect(error.to_string()))?;
        stream
            .set_nodelay(true)
            .map_err(|error| Fault::Connect(error.to_string()))?;
        Ok(Self::over(stream))
    }

    /// Over a connection that was made.
    pub fn from_stream(stream: TcpStream) -> Self {
        Self::over(stream)
    }
}

impl Http1<UnixStream> {
    /// Connects to a unix socket.
    pub async fn connect_unix(path: &Path) -> Result<Self, Fault> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|error| Fault::Connect(error.to_string()))?;
        Ok(Self::over(stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<S> {
    /// Over bytes that are there.
    pub fn over(stream: S) -> Self {
        Self {
            io: BufStream::with_capacity(64 * 1024, 64 * 1024, stream),
            framing: Framing::Nothing,
            closing: false,
        }
    }

    /// Asks `GET path` and reads the whole answer.
    pub async fn get(&mut self, path: &str) -> Result<Answer, Fault> {
        self.request("GET", path, &[], None).await
    }

    /// Asks `POST path` with a body and reads the whole answer.
    pub async fn post(&mut self, path: &str, body: &[u8]) -> Result<Answer, Fault> {
        self.request("POST", path, &[], Some(body)).await
    }

    /// Asks and reads the whole answer.
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Answer, Fault> {
        let length = body.map(|body| body.len().to_string());
        let mut all = headers.to_vec();
        all.extend(length.as_deref().map(|length| ("content-length", length)));
        self.send_head(method, path, &all).await?;
        self.send(body.unwrap_or_default()).await?;
        self.answer(method).await
    }

    /// Sends the head of a request.
    pub async fn send_head(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(), Fault> {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            head.push_str("host: localhost\r\n");
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes()).await
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let sent = async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        };
        match timeout(PATIENCE, sent).await {
            Err(_) => Err(Fault::Silent),
            Ok(Err(error)) => Err(Fault::Cut(format!("while sending: {error}"))),
            Ok(Ok(())) => Ok(()),
        }
    }

    /// Reads a whole answer to a request of `method`.
    pub async fn answer(&mut self, method: &str) -> Result<Answer, Fault> {
        let mut answer = self.head(method).await?;
        while let Some(chunk) = self.chunk(&mut answer.trailers).await? {
            answer.body.extend_from_slice(&chunk);
        }
        Ok(answer)
    }

    /// Reads the head of an answer to a request of `method`. An informational one (1xx) is an
    /// answer too.
    pub async fn head(&mut self, method: &str) -> Result<Answer, Fault> {
        let status_line = self.line("before the answer").await?;
        let mut parts = status_line.splitn(3, ' ');
        let (Some("HTTP/1.1" | "HTTP/1.0"), Some(status)) = (parts.next(), parts.next()) else {
            return Err(Fault::Malformed(status_line));
        };
        let status: u16 = status
            .parse()
            .map_err(|_| Fault::Malformed(status_line.clone()))?;
        let mut answer = Answer {
            status,
            headers: self.fields("in the head").await?,
            ..Answer::default()
        };
        answer.status = status;
        self.closing = answer
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let chunked = answer
            .header("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let length = answer.header("content-length").map(str::parse);
        self.framing = match length {
            _ if method == "HEAD" || matches!(status, 100..=199 | 204 | 304) => Framing::Nothing,
            _ if chunked => Framing::Chunked,
            Some(Ok(length)) => Framing::Length(length),
            Some(Err(_)) => return Err(Fault::Malformed(format!("{:?}", answer.headers))),
            None => Framing::UntilClose,
        };
        Ok(answer)
    }

    /// Reads the next piece of the body; none at its end, where the trailers are put into
    /// `trailers`.
    pub async fn chunk(
        &mut self,
        trailers: &mut Vec<(String, String)>,
    ) -> Result<Option<Vec<u8>>, Fault> {
        match self.framing {
            Framing::Nothing | Framing::Length(0) => Ok(None),
            Framing::Length(left) => {
                let mut bytes = vec![0; usize::try_from(left.min(64 * 1024)).expect("small")];
                let read = self.read(&mut bytes, "in the body").await?;
                bytes.truncate(read);
                self.framing = Framing::Length(left - read as u64);
                Ok(Some(bytes))
            }
            Framing::UntilClose => {
                let mut bytes = vec![0; 64 * 1024];
                let read = timeout(PATIENCE, self.io.read(&mut bytes))
                    .await
                    .map_err(|_| Fault::Silent)?;
                bytes.truncate(read.map_err(|error| Fault::Cut(format!("in the body: {error}")))?);
                Ok((!bytes.is_empty()).then_some(bytes))
            }
            Framing::Chunked => {
                let size = self.line("between chunks").await?;
                let size = size.split(';').next().unwrap_or_default();
                let size = usize::from_str_radix(size.trim(), 16)
                    .map_err(|_| Fault::Malformed(format!("chunk size {size:?}")))?;
                if size == 0 {
                    trailers.extend(self.fields("in the trailers").await?);
                    self.framing = Framing::Nothing;
                    return Ok(None);
                }
                let mut bytes = vec![0; size];
                let mut filled = 0;
                while filled < size {
                    filled += self.read(&mut bytes[filled..], "in a chunk").await?;
                }
                match self.line("after a chunk").await? {
                    end if end.is_empty() => Ok(Some(bytes)),
                    other => Err(Fault::Malformed(format!("after a chunk: {other:?}"))),
                }
            }
        }
    }

    /// Whether the last answer said that the server closes after it.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Waits for the server to close; bytes that come instead are a fault.
    pub async fn closed(&mut self) -> Result<(), Fault> {
        let mut byte = [0];
        match timeout(PATIENCE, self.io.read(&mut byte)).await {
            Err(_) => Err(Fault::Silent),
            Ok(Ok(0) | Err(_)) => Ok(()),
            Ok(Ok(_)) => Err(Fault::Malformed(
                "bytes after the end of the answer".to_owned(),
            )),
        }
    }

    /// The connection itself, for another protocol.
    pub fn into_io(self) -> BufStream<S> {
        self.io
    }

    async fn read(&mut self, bytes: &mut [u8], place: &str) -> Result<usize, Fault> {
        match timeout(PATIENCE, self.io.read(bytes)).await {
            Err(_) => Err(Fault::Silent),
            Ok(Ok(0)) => Err(Fault::Cut(place.to_owned())),
            Ok(Ok(read)) => Ok(read),
            Ok(Err(error)) => Err(Fault::Cut(format!("{place}: {error}"))),
        }
    }

    async fn line(&mut self, place: &str) -> Result<String, Fault> {
        let mut line = Vec::new();
        match timeout(PATIENCE, self.io.read_until(b'\n', &mut line)).await {
            Err(_) => Err(Fault::Silent),
            Ok(Err(error)) => Err(Fault::Cut(format!("{place}: {error}"))),
            Ok(Ok(_)) => match line.strip_suffix(b"\r\n") {
                Some(line) => String::from_utf8(line.to_vec())
                    .map_err(|error| Fault::Malformed(error.to_string())),
                None => Err(Fault::Cut(place.to_owned())),
            },
        }
    }

    async fn fields(&mut self, place: &str) -> Result<Vec<(String, String)>, Fault> {
        let mut fields = Vec::new();
        loop {
            let line = self.line(place).await?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| Fault::Malformed(line.clone()))?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
}
