//! An app as people write it, whose `main` is that of a program and the constructor of a plugin.
//! Only the attribute and `serve` differ.

use std::{
    convert::Infallible, error::Error, future::IntoFuture, net::SocketAddr, rc::Rc, sync::OnceLock,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{
        ConnectInfo, Query, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    response::{Response, Sse, sse::Event},
    routing::{any, get, post},
};
use futures_util::{Stream, stream};

/// Compiled in, so that an answer proves which code made it.
const VERSION: &str = match option_env!("HANDOVER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// Set by `main` before it serves.
static WARM: OnceLock<&'static str> = OnceLock::new();

#[handover_plugin::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // What makes the future of many a `main` one that no other thread may run.
    let address: Rc<str> = std::env::var("PROGRAM_LISTEN")
        .unwrap_or_else(|_| "127.0.0.1:0".to_owned())
        .into();
    if let Ok(reason) = std::env::var("PROGRAM_FAILS") {
        return Err(reason.into());
    }
    let listener = tokio::net::TcpListener::bind(&*address).await?;
    tokio::time::sleep(Duration::from_millis(1)).await;
    WARM.get_or_init(|| VERSION);
    let app = Router::new()
        .route("/version", get(async || *WARM.get().unwrap_or(&"cold")))
        .route("/client", get(client))
        .route("/echo", post(async |body: Bytes| body))
        .route("/stream", get(lines))
        .route("/ws", any(websocket))
        .route("/events", get(events));
    if let Ok(admin) = std::env::var("PROGRAM_ADMIN") {
        let listener = tokio::net::TcpListener::bind(admin).await?;
        let admin = Router::new().route("/admin", get(async || VERSION));
        let serving = handover_plugin::serve(listener, admin).with_own_port();
        tokio::spawn(serving.into_future());
    }
    println!("listening on {}", listener.local_addr()?);
    handover_plugin::serve(
        listener,
        app.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown(asked_to_end())
    .await?;
    println!("program {VERSION} said good-bye to {address}");
    if let Ok(file) = std::env::var("PROGRAM_ENDED") {
        std::fs::write(file, VERSION)?;
    }
    Ok(())
}

/// As axum's own example has it.
async fn asked_to_end() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Who asks.
async fn client(ConnectInfo(address): ConnectInfo<SocketAddr>) -> String {
    address.ip().to_string()
}

/// `n` lines that name the version.
async fn lines(Query(wanted): Query<Vec<(String, u64)>>) -> Body {
    let number = |name| wanted.iter().find(|(key, _)| key == name).map(|(_, n)| *n);
    let (n, every) = (number("n").unwrap_or(1), number("every_ms").unwrap_or(0));
    Body::from_stream(stream::unfold(0, move |at| async move {
        tokio::time::sleep(Duration::from_millis(every)).await;
        (at < n).then(|| (Ok::<_, Infallible>(format!("{VERSION}\n")), at + 1))
    }))
}

/// `n` events.
async fn events(
    Query(wanted): Query<Vec<(String, usize)>>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let n = wanted.first().map_or(1, |(_, n)| *n);
    Sse::new(stream::iter(
        (0..n).map(|at| Ok(Event::default().data(format!("{VERSION} {at}")))),
    ))
}

async fn websocket(upgrade: WebSocketUpgrade, ConnectInfo(_): ConnectInfo<SocketAddr>) -> Response {
    upgrade.on_upgrade(async |mut socket: WebSocket| {
        while let Some(Ok(Message::Text(text))) = socket.recv().await {
            let answer = Message::text(format!("{VERSION} {text}"));
            if socket.send(answer).await.is_err() {
                return;
            }
        }
    })
}
