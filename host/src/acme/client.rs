//! The connection to an authority: each request over one of its own, so that nothing is kept open
//! for the months between two orders.

use std::{
    error::Error as StdError,
    path::Path,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
        version::{TLS12, TLS13},
    },
};

/// How long an answer may take.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// The largest answer that is read.
const LARGEST: usize = 1 << 20;

type Cause = Box<dyn StdError + Send + Sync>;

/// A client of an authority. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    connector: TlsConnector,
    retry_after: RetryAfter,
}

/// After how many seconds the authority wants to be asked again, as it said when it refused a
/// request.
#[derive(Clone, Debug, Default)]
pub(super) struct RetryAfter(Arc<Mutex<Option<i64>>>);

impl RetryAfter {
    /// What was said last.
    pub(super) fn get(&self) -> Option<i64> {
        *self.0.lock()
    }
}

impl Client {
    /// Trusts the authorities in the file `ca`, or those that the machine trusts. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// When there are none.
    pub(super) fn new(ca: Option<&Path>, retry_after: RetryAfter) -> Result<Self, String> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|cause| cause.to_string())?
            .with_root_certificates(roots(ca)?)
            .with_no_client_auth();
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            retry_after,
        })
    }

    async fn ask(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Cause> {
        let (mut parts, body) = request.into_parts();
        let authority = parts.uri.authority().cloned();
        let authority = authority.ok_or("the authority gave a URL without a host")?;
        if parts.uri.scheme() != Some(&http::uri::Scheme::HTTPS) {
            return Err(format!("{} is not https", parts.uri).into());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(443);
        let name = ServerName::try_from(host.clone())?;
        let stream = TcpStream::connect((&*host, port)).await?;
        let stream = self.connector.connect(name, stream).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        parts.headers.insert(
            header::HOST,
            HeaderValue::try_from(authority.as_str().to_owned())?,
        );
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
        let answer = async {
            let response = sender
                .send_request(Request::from_parts(parts, body))
                .await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LARGEST).collect().await?.to_bytes();
            Ok::<_, Cause>((head, body))
        }
        .await;
        connection.abort();
        let (parts, body) = answer?;
        if matches!(
            parts.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            let said = parts.headers.get(header::RETRY_AFTER);
            let said = said.and_then(|said| said.to_str().ok()).and_then(seconds);
            *self.retry_after.0.lock() = said;
        }
        let is_refused = parts.status.is_client_error() || parts.status.is_server_error();
        if is_refused && serde_json::from_slice::<serde_json::Value>(&body).is_err() {
            // What stands before an authority answers with pages for people.
            return Err(format!("it answered {}", parts.status).into());
        }
        Ok(BytesResponse {
            parts,
            body: Box::new(body),
        })
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            let at = request.uri().clone();
            let failed = |cause: String| {
                let host = at.host().unwrap_or_default();
                Error::Other(format!("the authority at {host} gave no answer: {cause}").into())
            };
            match tokio::time::timeout(ANSWERED_WITHIN, client.ask(request)).await {
                Ok(answer) => answer.map_err(|cause| failed(cause.to_string())),
                Err(_) => Err(failed(format!(
                    "none came within {}",
                    humantime::format_duration(ANSWERED_WITHIN)
                ))),
            }
        })
    }
}

/// What `Retry-After` says, in seconds from now.
fn seconds(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(seconds);
    }
    let time = jiff::fmt::rfc2822::parse(text).ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = i64::try_from(now.ok()?.as_secs()).ok()?;
    Some(time.timestamp().as_second() - now)
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(
                "this machine trusts no authority, so that none can be asked: install ca-certificates, or set acme.ca_file"
                    .to_owned(),
            );
        }
        return Ok(roots);
    };
    let unusable = |cause: String| {
        format!(
            "acme.ca_file {} cannot be used: {cause}; it is to be a PEM file with the authorities of the directory",
            path.display()
        )
    };
    let pem = std::fs::read(path).map_err(|cause| unusable(cause.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|cause| unusable(cause.to_string()))?;
        roots
            .add(certificate)
            .map_err(|cause| unusable(cause.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("there is no certificate in it".to_owned()));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn both_forms_of_retry_after_are_read() {
        assert_eq!(seconds("120"), Some(120));
        assert!(seconds("Fri, 31 Dec 1999 23:59:59 GMT").unwrap() < 0);
        assert!(seconds("Thu, 31 Dec 2099 23:59:59 GMT").unwrap() > 0);
        assert_eq!(seconds("soon"), None);
    }

    #[test]
    fn a_file_of_authorities_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let error = roots(Some(&path)).unwrap_err();
        assert!(
            error.contains("ca.pem") && error.contains("No such file"),
            "{error}"
        );
        std::fs::write(&path, "nothing").unwrap();
        assert!(roots(Some(&path)).unwrap_err().contains("no certificate"));
    }
}
