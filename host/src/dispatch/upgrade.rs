//! The bytes of an upgraded connection, between the client's socket and the plugin.
//!
//! At the drain deadline a WebSocket is closed with code 1012 (service restart), at the end of the
//! frame that is under way, so that its client understands and comes back; anything else, such as
//! the tunnel of a CONNECT, is just closed.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use handover_plugin::abi::upgrade::{IoStream, PollIo};
use http::{Request, header};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{asked::Asked, body::Endable, limits::RequestPermit};
use crate::generation::{HolderKind, InFlight, KeepAlive};

/// A close frame from the server: code 1012, no reason.
const SERVICE_RESTART: [u8; 4] = [0x88, 0x02, 0x03, 0xF4];

/// The place of an upgraded connection among the requests that its app may have at a time. It
/// travels on the response, since the connection is joined before the limits hear of the answer,
/// and lies there until the connection has ended.
#[derive(Clone, Debug, Default)]
pub(super) struct UpgradePermit(Arc<OnceLock<RequestPermit>>);

impl UpgradePermit {
    /// Takes the place.
    pub(super) fn take(&self, permit: RequestPermit) {
        // Taken once: a response has one request.
        let _ = self.0.set(permit);
    }
}

/// How the connection of a request is upgraded, should its app want that.
#[derive(Debug)]
pub(super) struct Upgrade {
    on_upgrade: OnUpgrade,
    is_websocket: bool,
}

impl Upgrade {
    /// That of `request`, if it asks for one: hyper has put down how, then.
    #[inline]
    pub(super) fn of<B>(request: &mut Request<B>) -> Option<Self> {
        let on_upgrade = request.extensions_mut().remove()?;
        let asked = match request.headers().get(header::UPGRADE) {
            Some(asked) => asked.as_bytes(),
            None => protocol(request, true).as_bytes(),
        };
        Some(Self {
            on_upgrade,
            is_websocket: asked.eq_ignore_ascii_case(b"websocket"),
        })
    }
}

/// The `:protocol` of an extended CONNECT, which may be upgraded; empty in any other request.
#[inline]
pub(super) fn protocol<B>(request: &Request<B>, may_be_upgraded: bool) -> &str {
    if !may_be_upgraded {
        return "";
    }
    let protocol = request.extensions().get::<Protocol>();
    protocol.map_or("", Protocol::as_str)
}

/// Joins both ends once hyper has given up the connection, on a task of its own, which is counted
/// as in flight, and gives its place.
pub(super) fn join(
    upgrade: Upgrade,
    io: IoStream,
    in_flight: InFlight,
    asked: Arc<Asked>,
) -> UpgradePermit {
    let permit = UpgradePermit::default();
    let held = permit.clone();
    tokio::spawn(async move {
        let _held = held;
        let plugin = PluginIo {
            io: Some(io),
            hold: in_flight.keep_alive(),
        };
        let client = match upgrade.on_upgrade.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            // The client left between its request and our answer.
            Err(_) => return,
        };
        let shared = in_flight.shared();
        let registration = shared.register(HolderKind::Connection, asked, None);
        let _endable = upgrade.is_websocket.then(|| Endable::new(&in_flight));
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_plugin, mut to_plugin) = tokio::io::split(plugin);
        let up = async {
            let copied = tokio::io::copy(&mut from_client, &mut to_plugin).await;
            // Either end may be gone already; then there is nobody to tell.
            let _ = to_plugin.shutdown().await;
            copied.map(drop)
        };
        let mut frames = Frames::default();
        // How long after the deadline it is closed: a WebSocket when it is its turn.
        let delay = OnceLock::new();
        let time_to_close = async || {
            poll_fn(|cx| match shared.has_to_end(&registration, cx) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
            .await;
            if upgrade.is_websocket && !registration.is_cancelled() {
                tokio::time::sleep(*delay.get_or_init(|| shared.end_after())).await;
            }
        };
        let mut closing = pin!(time_to_close());
        let down = async {
            let mut buffer = vec![0; 16 * 1024];
            // Whether its time to be closed has come.
            let mut expired = false;
            loop {
                if expired && !upgrade.is_websocket {
                    shared.count_aborted();
                    return to_client.shutdown().await;
                }
                if expired && frames.between() {
                    shared.count_aborted();
                    to_client.write_all(&SERVICE_RESTART).await?;
                    return to_client.shutdown().await;
                }
                let read = tokio::select! {
                    read = from_plugin.read(&mut buffer) => read?,
                    () = &mut closing, if !expired => {
                        expired = true;
                        continue;
                    }
                };
                if read == 0 {
                    return to_client.shutdown().await;
                }
                if upgrade.is_websocket {
                    frames.pass(&buffer[..read]);
                }
                to_client.write_all(&buffer[..read]).await?;
            }
        };
        let both = async { tokio::join!(up, down) };
        let give_up = async {
            // Also where its app has gone, and the client has not.
            time_to_close().await;
            // A frame that is under way, and a client that answers the close, have this long.
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        };
        tokio::select! {
            _ = both => {}
            () = give_up => {}
        }
    });
    permit
}

/// Follows the frames of a WebSocket from the server, only as far as to know where one ends.
#[derive(Debug, Default)]
struct Frames {
    header: Vec<u8>,
    /// Bytes of payload that are still to come.
    payload: u64,
}

impl Frames {
    fn between(&self) -> bool {
        self.header.is_empty() && self.payload == 0
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let taken = usize::try_from(self.payload)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                self.payload -= taken as u64;
                bytes = &bytes[taken..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            let (mask, length) = match self.header.get(1) {
                Some(second) => (usize::from(second >> 7) * 4, second & 0x7F),
                None => continue,
            };
            let extended = match length {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            if self.header.len() == 2 + extended + mask {
                self.payload = match extended {
                    0 => length.into(),
                    _ => self.header[2..2 + extended]
                        .iter()
                        .fold(0, |value, byte| value << 8 | u64::from(*byte)),
                };
                self.header.clear();
            }
        }
    }
}

/// The plugin's end as a tokio stream.
struct PluginIo {
    /// None only while it is dropped, before the hold that keeps its code mapped.
    io: Option<IoStream>,
    hold: KeepAlive,
}

/// What it is to the watchdog.
const CONNECTION: &str = "an upgraded connection";

impl PluginIo {
    /// Polls the plugin's end.
    fn poll<R>(
        &mut self,
        poll: impl FnOnce(&mut IoStream) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        match &mut self.io {
            Some(io) => self.hold.shared().inside(CONNECTION, || poll(io)),
            None => Poll::Pending, // it is not polled while it is dropped
        }
    }
}

impl Drop for PluginIo {
    fn drop(&mut self) {
        let io = self.io.take();
        self.hold.shared().dropping(CONNECTION, || drop(io));
    }
}

impl AsyncRead for PluginIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.poll(|io| io.poll_read(cx, buffer.initialize_unfilled()));
        read.map_ok(|read| buffer.advance(read))
    }
}

impl AsyncWrite for PluginIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(|io| io.poll_write(cx, buffer))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|io| io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|io| io.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_frame_is_found_wherever_the_bytes_are_cut() {
        let mut stream = vec![0x81, 0x03, b'a', b'b', b'c', 0x82, 126, 0x01, 0x00];
        stream.extend([7; 256]);
        stream.extend([0x82, 127, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 0x8A, 0x00]);
        let ends = [0, 5, 265, 277, 279];
        for step in 1..5 {
            let mut frames = Frames::default();
            let mut passed = 0;
            for piece in stream.chunks(step) {
                frames.pass(piece);
                passed += piece.len();
                if frames.between() {
                    assert!(ends.contains(&passed), "no frame ends at {passed}");
                }
            }
            assert!(frames.between());
        }
    }
}
