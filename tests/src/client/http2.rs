//! One HTTP/2 connection with prior knowledge, by the `h2` crate.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Method, Request};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

use super::{Answer, Fault, PATIENCE};

/// One connection; clones share it.
#[derive(Debug, Clone)]
pub struct Http2 {
    requests: SendRequest<Bytes>,
    authority: String,
}

/// An answer whose head is there and whose body is on its way.
#[derive(Debug)]
pub struct Stream {
    /// The head; no body and no trailers yet.
    pub answer: Answer,
    body: RecvStream,
}

impl Http2 {
    /// Connects, and gives the task that drives the connection as well: it ends with the
    /// connection, and says how.
    pub async fn connect(
        address: SocketAddr,
    ) -> Result<(Self, JoinHandle<Result<(), h2::Error>>), Fault> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| Fault::Connect(error.to_string()))?;
        stream
            .set_nodelay(true)
            .map_err(|error| Fault::Connect(error.to_string()))?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(64 << 20);
        let (requests, connection) = builder
            .handshake(stream)
            .await
            .map_err(|error| Fault::Connect(error.to_string()))?;
        Ok((
            Self {
                requests,
                authority: address.to_string(),
            },
            tokio::spawn(connection),
        ))
    }

    /// Asks `GET path` and reads the whole answer.
    pub async fn get(&self, path: &str) -> Result<Answer, Fault> {
        self.open(Method::GET, path, true).await?.0.finish().await
    }

    /// Asks `POST path` with a body and reads the whole answer.
    pub async fn post(&self, path: &str, body: &[u8]) -> Result<Answer, Fault> {
        let (answer, mut sender) = self.start(Method::POST, path, false).await?;
        send(&mut sender, body, true).await?;
        head(answer).await?.finish().await
    }

    /// Asks and waits for the head of the answer. With `end` false the request's body is still to
    /// be sent.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        end: bool,
    ) -> Result<(Stream, SendStream<Bytes>), Fault> {
        let (answer, sender) = self.start(method, path, end).await?;
        Ok((head(answer).await?, sender))
    }

    /// Asks without waiting for anything.
    pub async fn start(
        &self,
        method: Method,
        path: &str,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), Fault> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.authority))
            .header("te", "trailers");
        self.send(request, end).await
    }

    /// Asks for a tunnel to `authority`.
    pub async fn connect_to(
        &self,
        authority: &str,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), Fault> {
        let request = Request::builder().method(Method::CONNECT).uri(authority);
        self.send(request, false).await
    }

    /// Asks for `protocol` on a stream (RFC 8441), which the server must have offered.
    pub async fn extended_connect(
        &self,
        protocol: &'static str,
        path: &str,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), Fault> {
        if !self.requests.is_extended_connect_protocol_enabled() {
            return Err(Fault::Malformed("extended CONNECT is not offered".into()));
        }
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("http://{}{path}", self.authority))
            .header("sec-websocket-version", "13")
            .extension(h2::ext::Protocol::from_static(protocol));
        self.send(request, false).await
    }

    /// Asks `request` as it is.
    pub async fn send(
        &self,
        request: http::request::Builder,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), Fault> {
        let mut ready = timeout(PATIENCE, self.requests.clone().ready())
            .await
            .map_err(|_| Fault::Silent)?
            .map_err(cut("before the request"))?;
        let request = request
            .body(())
            .map_err(|error| Fault::Malformed(error.to_string()))?;
        ready
            .send_request(request, end)
            .map_err(cut("at the request"))
    }
}

/// Waits for the head of an answer.
pub async fn head(answer: h2::client::ResponseFuture) -> Result<Stream, Fault> {
    let answer = timeout(PATIENCE, answer)
        .await
        .map_err(|_| Fault::Silent)?
        .map_err(cut("before the answer"))?;
    let (parts, body) = answer.into_parts();
    let answer = Answer {
        status: parts.status.as_u16(),
        headers: fields(&parts.headers),
        ..Answer::default()
    };
    Ok(Stream { answer, body })
}

/// Sends a piece of a request's body, waiting for room.
pub async fn send(
    sender: &mut SendStream<Bytes>,
    mut bytes: &[u8],
    end: bool,
) -> Result<(), Fault> {
    while !bytes.is_empty() {
        sender.reserve_capacity(bytes.len());
        let room = timeout(
            PATIENCE,
            std::future::poll_fn(|cx| sender.poll_capacity(cx)),
        )
        .await
        .map_err(|_| Fault::Silent)?;
        let room = room
            .ok_or_else(|| Fault::Cut("while sending".to_owned()))?
            .map_err(cut("while sending"))?;
        let (now, later) = bytes.split_at(room.min(bytes.len()));
        bytes = later;
        sender
            .send_data(Bytes::copy_from_slice(now), end && bytes.is_empty())
            .map_err(cut("while sending"))?;
    }
    Ok(())
}

impl Stream {
    /// Whether it ended with what came so far.
    pub fn has_ended(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Reads the next piece of the body; none at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        let Some(bytes) = timeout(PATIENCE, self.body.data())
            .await
            .map_err(|_| Fault::Silent)?
        else {
            let trailers = timeout(PATIENCE, self.body.trailers())
                .await
                .map_err(|_| Fault::Silent)?;
            self.answer.trailers = trailers
                .map_err(cut("in the trailers"))?
                .as_ref()
                .map(fields)
                .unwrap_or_default();
            return Ok(None);
        };
        let bytes = bytes.map_err(cut("in the body"))?;
        self.body
            .flow_control()
            .release_capacity(bytes.len())
            .map_err(cut("in the body"))?;
        Ok(Some(bytes))
    }

    /// Reads to the end.
    pub async fn finish(mut self) -> Result<Answer, Fault> {
        while let Some(bytes) = self.chunk().await? {
            self.answer.body.extend_from_slice(&bytes);
        }
        Ok(self.answer)
    }
}

fn cut(place: &'static str) -> impl Fn(h2::Error) -> Fault {
    move |error| Fault::Cut(format!("{place}: {error}"))
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect()
}
