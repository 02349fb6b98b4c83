//! TLS of a listener. What is read from files is swapped as one value, so that connections go on
//! and new ones find the new certificates; what sessions are resumed with stays over each swap.

use std::{io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio_rustls::{
    LazyConfigAcceptor, TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig, SupportedProtocolVersion,
        crypto::{CryptoProvider, ring},
        server::{
            Acceptor, ProducesTickets, ServerSessionMemoryCache, StoresServerSessions,
            WebPkiClientVerifier, danger::ClientCertVerifier,
        },
        version::{TLS12, TLS13},
    },
    server::TlsStream,
};

use super::{
    certificates::{CertificateError, Certificates, FileStates, Pair, read_authorities},
    challenges::Challenges,
    transport::Transport,
};
use crate::{
    config::{CertificateFiles, ListenTls, Protocols, TlsVersion},
    dispatch::Tls,
};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How many sessions of TLS 1.2 are remembered for clients that take no tickets.
const SESSIONS: usize = 4096;

/// The TLS of one listener.
#[derive(Debug)]
pub(crate) struct TlsListener {
    /// Where it is written, for what is found wrong later.
    place: String,
    tls: ListenTls,
    alpn: Vec<Vec<u8>>,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<ServerConfig>,
    sessions: Mutex<Sessions>,
    files: Mutex<FileStates>,
    /// The one that was ordered, as it was read last. It goes on when its file cannot be used.
    ordered: Mutex<Option<Pair>>,
}

/// What sessions are resumed with. It stays when certificates change, and goes when the authorities
/// of clients do: a resumed session would let in whoever they let in.
#[derive(Clone, Debug)]
struct Sessions {
    tickets: Arc<dyn ProducesTickets>,
    storage: Arc<dyn StoresServerSessions>,
    authorities: Vec<rustls::pki_types::TrustAnchor<'static>>,
}

/// What became of changed files.
#[derive(Debug)]
pub(crate) enum Reloaded {
    /// New connections find what is in them.
    Loaded(String),
    /// What was there before goes on.
    Kept(String),
}

impl Sessions {
    fn new(authorities: &RootCertStore) -> Result<Self, rustls::Error> {
        Ok(Self {
            tickets: ring::Ticketer::new()?,
            storage: ServerSessionMemoryCache::new(SESSIONS),
            authorities: authorities.roots.clone(),
        })
    }
}

impl TlsListener {
    /// Reads the files that `tls` names, which is written at `place`, in the place of `before`.
    ///
    /// # Errors
    /// What is wrong with one of them, with its place and what to do.
    pub(crate) fn open(
        place: &str,
        tls: ListenTls,
        protocols: Protocols,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let alpn = [
            protocols.http2.then(|| b"h2".to_vec()),
            protocols.http1.then(|| b"http/1.1".to_vec()),
        ];
        let alpn: Vec<_> = alpn.into_iter().flatten().collect();
        let provider = Arc::new(ring::default_provider());
        let failed = |cause: &dyn std::fmt::Display| format!("{place}.tls: {cause}");
        let authorities = Self::authorities(&tls).map_err(|cause| failed(&cause))?;
        let sessions = Sessions::new(&authorities).map_err(|cause| failed(&cause))?;
        // Looked at first: what changes while they are read is found changed.
        let files = FileStates::of(&tls);
        // Another authority may be asked from now on: what the one before issued goes on until it
        // has answered.
        let ordered = Self::ordered(&tls, &provider).or_else(|| {
            let before = before.filter(|before| before.tls.acme == tls.acme);
            before.and_then(|before| before.ordered.lock().clone())
        });
        let (config, _) = Self::configure(
            &tls,
            ordered.as_ref(),
            &alpn,
            &provider,
            authorities,
            &sessions,
        )
        .map_err(|cause| failed(&cause))?;
        Ok(Self {
            place: place.to_owned(),
            current: ArcSwap::from_pointee(config),
            sessions: Mutex::new(sessions),
            files: Mutex::new(files),
            ordered: Mutex::new(ordered),
            tls,
            alpn,
            provider,
        })
    }

    fn authorities(tls: &ListenTls) -> Result<RootCertStore, CertificateError> {
        let file = tls.client_ca.as_deref();
        file.map_or_else(|| Ok(RootCertStore::empty()), read_authorities)
    }

    /// Reads the pair that was ordered. None when there is none that can be used: who orders them
    /// tells of that and gets another one.
    fn ordered(tls: &ListenTls, provider: &CryptoProvider) -> Option<Pair> {
        let file = tls.acme_file.clone()?;
        let files = CertificateFiles {
            chain: file.clone(),
            key: file,
        };
        Pair::read(&files, provider).ok()
    }

    fn configure(
        tls: &ListenTls,
        ordered: Option<&Pair>,
        alpn: &[Vec<u8>],
        provider: &Arc<CryptoProvider>,
        authorities: RootCertStore,
        sessions: &Sessions,
    ) -> Result<(ServerConfig, usize), CertificateError> {
        let unusable = |cause: String| CertificateError::Unusable {
            path: tls.client_ca.clone().unwrap_or_default(),
            cause,
        };
        let certificates = Certificates::read(&tls.certificates, ordered, provider)?;
        let names = certificates.names().len();
        let versions: &[&SupportedProtocolVersion] = match tls.min_version {
            TlsVersion::Tls12 => &[&TLS13, &TLS12],
            TlsVersion::Tls13 => &[&TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(versions)
            .map_err(|cause| unusable(cause.to_string()))?;
        let builder = if tls.client_ca.is_some() {
            let verifier = WebPkiClientVerifier::builder_with_provider(
                Arc::new(authorities),
                Arc::clone(provider),
            );
            let verifier = if tls.client_certificate_required {
                verifier
            } else {
                verifier.allow_unauthenticated()
            };
            let verifier: Arc<dyn ClientCertVerifier> = verifier
                .build()
                .map_err(|cause| unusable(cause.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(Arc::new(certificates));
        config.alpn_protocols = alpn.to_vec();
        config.ticketer = Arc::clone(&sessions.tickets);
        config.session_storage = Arc::clone(&sessions.storage);
        Ok((config, names))
    }

    /// Makes the handshake over `transport`. Gives nothing where it was that of an authority, which
    /// has seen what it wanted of `challenges`.
    ///
    /// # Errors
    /// When the client breaks it off, or speaks no TLS that is spoken here.
    pub(super) async fn accept(
        &self,
        transport: Transport,
        challenges: Option<&Challenges>,
    ) -> io::Result<Option<(Transport, Tls)>> {
        let stream = match challenges.filter(|challenges| challenges.are_pending()) {
            None => {
                let acceptor = TlsAcceptor::from(self.current.load_full());
                acceptor.accept(transport).await?
            }
            Some(challenges) => {
                let start = LazyConfigAcceptor::new(Acceptor::default(), transport).await?;
                if let Some(config) = challenges.of_hello(&start.client_hello()) {
                    start.into_stream(config).await?.shutdown().await?;
                    return Ok(None);
                }
                start.into_stream(self.current.load_full()).await?
            }
        };
        let known = known(&stream);
        Ok(Some((Transport::Tls(Box::new(stream)), known)))
    }

    /// Reads the files again if they have changed. Blocks on the disk. None when they have not.
    pub(crate) fn reload(&self) -> Option<Reloaded> {
        let now = FileStates::of(&self.tls);
        {
            let mut files = self.files.lock();
            if *files == now {
                return None;
            }
            *files = now;
        }
        Some(match self.load() {
            Ok(names) => Reloaded::Loaded(format!(
                "{}.tls: the certificates were read again, for {}",
                self.place,
                crate::human::pluralize(names as u64, "name")
            )),
            Err(cause) => Reloaded::Kept(format!(
                "{}.tls: the files have changed, and what was there before goes on: {cause}",
                self.place
            )),
        })
    }

    fn load(&self) -> Result<usize, String> {
        let authorities = Self::authorities(&self.tls).map_err(|cause| cause.to_string())?;
        let mut sessions = self.sessions.lock().clone();
        if sessions.authorities != authorities.roots {
            sessions = Sessions::new(&authorities).map_err(|cause| cause.to_string())?;
        }
        let fresh = Self::ordered(&self.tls, &self.provider);
        let ordered = fresh.or_else(|| self.ordered.lock().clone());
        let (config, names) = Self::configure(
            &self.tls,
            ordered.as_ref(),
            &self.alpn,
            &self.provider,
            authorities,
            &sessions,
        )
        .map_err(|cause| cause.to_string())?;
        *self.sessions.lock() = sessions;
        *self.ordered.lock() = ordered;
        self.current.store(Arc::new(config));
        Ok(names)
    }
}

/// What the app is told of a connection.
fn known(stream: &TlsStream<Transport>) -> Tls {
    let (_, connection) = stream.get_ref();
    Tls {
        version: connection.protocol_version().map_or(0, u16::from),
        server_name: connection.server_name().map(Into::into),
        client_certificate: connection
            .peer_certificates()
            .and_then(|chain| chain.first())
            .map(|certificate| Arc::from(certificate.as_ref())),
    }
}

/// Looks at the files of what `listeners` gives for as long as the future lives, and gives what
/// became of those that have changed to `tell`.
pub(crate) async fn watch(listeners: impl Fn() -> Vec<Arc<TlsListener>>, tell: impl Fn(Reloaded)) {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        for listener in listeners() {
            let reloaded = tokio::task::spawn_blocking(move || listener.reload()).await;
            if let Ok(Some(reloaded)) = reloaded {
                tell(reloaded);
            }
        }
    }
}
