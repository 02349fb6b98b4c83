//! What an authority is shown that wants to see that a name is of this host (RFC 8555, RFC 8737):
//! answers at a path of plain listeners, and certificates of their own in handshakes.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, header};
use parking_lot::RwLock;
use tokio_rustls::rustls::{
    self, ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::ClientHello,
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};

/// Where an authority asks.
const PATH: &str = "/.well-known/acme-challenge/";

/// The protocol that it speaks in a handshake.
const PROTOCOL: &[u8] = b"acme-tls/1";

/// The challenges that are pending, of all listeners. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Challenges(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Read by each request and each handshake, so that nothing else is while there are none.
    count: AtomicUsize,
    pending: RwLock<Vec<(u64, Shown)>>,
    next: AtomicUsize,
}

enum Shown {
    Http {
        token: String,
        answer: Bytes,
    },
    Tls {
        name: String,
        config: Arc<ServerConfig>,
    },
}

/// A challenge is pending for as long as this lives.
#[derive(Debug)]
#[must_use = "the challenge ends with it"]
pub(crate) struct PendingChallenge {
    challenges: Challenges,
    id: u64,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { token, .. } => f.debug_tuple("Http").field(token).finish(),
            Self::Tls { name, .. } => f.debug_tuple("Tls").field(name).finish(),
        }
    }
}

impl Challenges {
    fn add(&self, shown: Shown) -> PendingChallenge {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed) as u64;
        let mut pending = self.0.pending.write();
        pending.push((id, shown));
        self.0.count.store(pending.len(), Ordering::Release);
        PendingChallenge {
            challenges: self.clone(),
            id,
        }
    }

    fn is_empty(&self) -> bool {
        self.0.count.load(Ordering::Acquire) == 0
    }

    /// Answers `answer` to whoever asks for `token`.
    pub(crate) fn http(&self, token: &str, answer: &str) -> PendingChallenge {
        self.add(Shown::Http {
            token: token.to_owned(),
            answer: Bytes::copy_from_slice(answer.as_bytes()),
        })
    }

    /// Shows a certificate with `digest` to whoever makes the handshake of the challenge with the
    /// host `name`.
    ///
    /// # Errors
    /// When that certificate cannot be made.
    pub(crate) fn tls(&self, name: &str, digest: &[u8]) -> Result<PendingChallenge, String> {
        let config = challenge_config(name, digest)?;
        Ok(self.add(Shown::Tls {
            name: name.to_ascii_lowercase(),
            config: Arc::new(config),
        }))
    }

    /// Returns the answer to a request, if it asks for a challenge that is pending.
    pub(super) fn answer(&self, method: &Method, path: &str) -> Option<Response<Bytes>> {
        if self.is_empty() || !matches!(*method, Method::GET | Method::HEAD) {
            return None;
        }
        let asked = path.strip_prefix(PATH)?;
        let pending = self.0.pending.read();
        let answer = pending.iter().find_map(|(_, shown)| match shown {
            Shown::Http { token, answer } if token == asked => Some(answer.clone()),
            _ => None,
        })?;
        let mut response = Response::new(answer);
        let kind = HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Some(response)
    }

    /// Returns what a handshake is made with, if it is that of a challenge that is pending.
    pub(super) fn of_hello(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        if !hello.alpn()?.any(|protocol| protocol == PROTOCOL) {
            return None;
        }
        let asked = hello.server_name()?.to_ascii_lowercase();
        let pending = self.0.pending.read();
        pending.iter().find_map(|(_, shown)| match shown {
            Shown::Tls { name, config } if *name == asked => Some(Arc::clone(config)),
            _ => None,
        })
    }

    /// Whether a handshake may be that of a challenge.
    pub(super) fn are_pending(&self) -> bool {
        !self.is_empty()
    }
}

impl Drop for PendingChallenge {
    fn drop(&mut self) {
        let inner = &self.challenges.0;
        let mut pending = inner.pending.write();
        pending.retain(|(id, _)| *id != self.id);
        inner.count.store(pending.len(), Ordering::Release);
    }
}

/// A certificate that signs itself and has `digest` in the extension that the authority looks at.
fn challenge_config(name: &str, digest: &[u8]) -> Result<ServerConfig, String> {
    let made = |cause: rcgen::Error| format!("the certificate of the challenge: {cause}");
    let used = |cause: rustls::Error| format!("the certificate of the challenge: {cause}");
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).map_err(made)?;
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest)];
    let key = rcgen::KeyPair::generate().map_err(made)?;
    let certificate = params.self_signed(&key).map_err(made)?;
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = ring::default_provider();
    let key = provider
        .key_provider
        .load_private_key(private)
        .map_err(used)?;
    // Not looked at by rustls, which refuses the extension, since it is critical and unknown to it.
    let pair = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(used)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn only_what_is_pending_is_answered() {
        let challenges = Challenges::default();
        let answer = |method, path| challenges.answer(&method, path).map(Response::into_body);
        let first = challenges.http("abc", "abc.key");
        let second = challenges.http("def", "def.key");
        let path = "/.well-known/acme-challenge/abc";
        assert_eq!(answer(Method::GET, path).unwrap(), "abc.key");
        assert_eq!(answer(Method::POST, path), None);
        for other in [
            "/.well-known/acme-challenge/",
            "/abc",
            "/.well-known/acme-challenge/x",
        ] {
            assert_eq!(answer(Method::GET, other), None, "{other}");
        }
        drop(first);
        assert_eq!(answer(Method::GET, path), None);
        assert!(challenges.are_pending());
        drop(second);
        assert!(!challenges.are_pending());
    }

    #[test]
    fn a_certificate_with_the_digest_can_be_made() {
        let challenges = Challenges::default();
        let _pending = challenges.tls("example.org", &[7; 32]).unwrap();
        assert!(challenges.are_pending());
    }
}
