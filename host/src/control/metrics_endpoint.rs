//! `GET /metrics` over TCP, for a Prometheus that cannot reach the control socket, and `/livez` and
//! `/readyz` for balancers. It knows these paths and takes no command.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    health::Health,
    net::{
        accept::{Serve, accept},
        transport::{Accepted, Listener, Transport},
    },
    telemetry::{Gather, exposition::CONTENT_TYPE},
};

/// How many connections there may be; who comes then waits to be accepted.
const CONNECTIONS: usize = 16;

/// How long a connection may take to send a request's head, or lie idle before the next one.
const PATIENCE: Duration = Duration::from_secs(90);

/// Answers scrapes.
struct Scrapes {
    gather: Gather,
    health: Health,
    places: Arc<Semaphore>,
    /// The place of the next connection.
    place: Option<OwnedSemaphorePermit>,
}

/// Answers for as long as the future lives.
pub(crate) async fn serve(listener: Listener, gather: Gather, health: Health) {
    let scrapes = Scrapes {
        gather,
        health,
        places: Arc::new(Semaphore::new(CONNECTIONS)),
        place: None,
    };
    accept(listener, scrapes, std::future::pending()).await;
}

impl Serve<Accepted> for Scrapes {
    async fn has_room(&mut self) {
        if self.place.is_none() {
            // An error would mean that the semaphore is closed, and nobody closes it.
            self.place = Arc::clone(&self.places).acquire_owned().await.ok();
        }
    }

    async fn serve(&mut self, accepted: Accepted) -> Result<(), String> {
        let (gather, health) = (self.gather.clone(), self.health.clone());
        let place = self.place.take();
        tokio::spawn(async move {
            connection(accepted.transport, gather, health).await;
            drop(place);
        });
        Ok(())
    }

    fn not_accepted(&self, error: &io::Error) -> String {
        format!("the metrics cannot be asked for: {error}")
    }
}

async fn connection(stream: Transport, gather: Gather, health: Health) {
    let service = service_fn(|request| {
        let (gather, health) = (gather.clone(), health.clone());
        async move { Ok::<_, Infallible>(answer(&request, &gather, &health).await) }
    });
    // A client that leaves is its own affair.
    let _: Result<(), hyper::Error> = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer<B>(
    request: &Request<B>,
    gather: &Gather,
    health: &Health,
) -> Response<Full<Bytes>> {
    if let Some(answer) = health.answer(request.method(), request.uri().path()) {
        return answer.map(Full::new);
    }
    let refused = |status, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return refused(
            StatusCode::NOT_FOUND,
            "there are /metrics, /livez and /readyz here, and nothing else\n",
        );
    }
    // hyper leaves the body out for HEAD.
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, "/metrics takes GET\n");
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match gather.text().await {
        Ok(text) => {
            let mut response = Response::new(Full::new(text.into()));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
            response
        }
        Err(error) => {
            tracing::error!("the metrics could not be gathered: {error}");
            refused(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the metrics could not be gathered: the log of the host says why\n",
            )
        }
    }
}
