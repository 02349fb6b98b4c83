//! Frames over a connection that was upgraded: RFC 6455 as far as the tests need it.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream},
    net::TcpStream,
    time::timeout,
};

use super::{Answer, Fault, Http1, PATIENCE};

/// An open websocket.
#[derive(Debug)]
pub struct WebSocket<S = TcpStream> {
    io: BufStream<S>,
    /// The answer that opened it.
    pub answer: Answer,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A text.
    Text(String),
    /// The peer closes, with this code (1005 when it named none).
    Close(u16),
}

impl WebSocket {
    /// Connects and upgrades.
    pub async fn connect(address: SocketAddr, path: &str) -> Result<Self, Fault> {
        Self::upgrade(Http1::connect(address).await?, path).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Upgrades a connection.
    pub async fn upgrade(mut http: Http1<S>, path: &str) -> Result<Self, Fault> {
        // The key and its answer are the example of RFC 6455, section 1.3.
        let headers = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        http.send_head("GET", path, &headers).await?;
        let answer = http.head("GET").await?;
        if answer.status != 101
            || answer.header("sec-websocket-accept") != Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        {
            return Err(Fault::Malformed(format!("{answer:?}")));
        }
        Ok(Self {
            io: http.into_io(),
            answer,
        })
    }

    /// Sends a text of at most 64 KiB.
    pub async fn send(&mut self, text: &str) -> Result<(), Fault> {
        self.frame(0x1, text.as_bytes()).await
    }

    /// Sends a close.
    pub async fn close(&mut self, code: u16) -> Result<(), Fault> {
        self.frame(0x8, &code.to_be_bytes()).await
    }

    /// Waits for the next text or close.
    pub async fn receive(&mut self) -> Result<Message, Fault> {
        timeout(PATIENCE, self.read())
            .await
            .map_err(|_| Fault::Silent)?
            .map_err(|error| Fault::Cut(format!("in a websocket: {error}")))
    }

    async fn read(&mut self) -> std::io::Result<Message> {
        loop {
            let opcode = self.io.read_u8().await? & 0x0f;
            let length = match self.io.read_u8().await? & 0x7f {
                126 => usize::from(self.io.read_u16().await?),
                127 => usize::try_from(self.io.read_u64().await?).expect("a test sends less"),
                length => usize::from(length),
            };
            let mut bytes = vec![0; length];
            self.io.read_exact(&mut bytes).await?;
            match opcode {
                0x1 => return Ok(Message::Text(String::from_utf8_lossy(&bytes).into_owned())),
                0x8 => {
                    return Ok(Message::Close(
                        bytes
                            .first_chunk()
                            .map_or(1005, |code| u16::from_be_bytes(*code)),
                    ));
                }
                _ => {}
            }
        }
    }

    async fn frame(&mut self, opcode: u8, bytes: &[u8]) -> Result<(), Fault> {
        // A mask of zeroes is a mask: the bytes go as they are.
        let length = u16::try_from(bytes.len()).expect("short");
        let mut frame = vec![0x80 | opcode];
        match u8::try_from(length) {
            Ok(short @ ..126) => frame.push(0x80 | short),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend_from_slice(bytes);
        let sent = async {
            self.io.write_all(&frame).await?;
            self.io.flush().await
        };
        sent.await
            .map_err(|error| Fault::Cut(format!("in a websocket: {error}")))
    }
}
