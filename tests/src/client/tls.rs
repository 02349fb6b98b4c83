//! TLS as clients speak it, and an authority of our own that issues certificates.

use std::{net::SocketAddr, path::Path, sync::Arc, time::SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer,
    KeyPair,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, HandshakeKind, RootCertStore,
        crypto::ring,
        pki_types::{
            CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, ServerName, pem::PemObject,
        },
    },
};

use super::{Fault, PATIENCE};

/// An authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, in PEM.
    pub pem: String,
}

/// A certificate that an authority has issued, and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub chain: String,
    /// Its key.
    pub key: String,
}

/// A client that trusts one authority and remembers its sessions.
#[derive(Debug, Clone)]
pub struct TlsClient(Arc<ClientConfig>);

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key can be made");
        let pem = params.self_signed(&key).expect("it can sign").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Signs a request in DER. Returns the certificate in PEM.
    pub fn sign(&self, request: &[u8], from: SystemTime, to: SystemTime) -> Result<String, String> {
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request);
        let mut request = request.map_err(|cause| cause.to_string())?;
        request.params.not_before = from.into();
        request.params.not_after = to.into();
        request.params.use_authority_key_identifier_extension = true;
        let signed = request.signed_by(&self.issuer);
        signed
            .map(|signed| signed.pem())
            .map_err(|cause| cause.to_string())
    }

    /// A certificate for these names of hosts; `common` tells it from others.
    pub fn issue(&self, common: &str, names: &[&str]) -> Issued {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("they are names");
        params.distinguished_name.push(DnType::CommonName, common);
        let key = KeyPair::generate().expect("a key can be made");
        let issued = params.signed_by(&key, &self.issuer).expect("it can sign");
        Issued {
            chain: issued.pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Issued {
    /// Puts both into `folder`, as `NAME.pem` and `NAME.key`, each in one step.
    pub fn put(&self, folder: &Path, name: &str) {
        for (ending, pem) in [("key", &self.key), ("pem", &self.chain)] {
            let temporary = folder.join(format!("{name}.new"));
            std::fs::write(&temporary, pem).expect("the folder can be written");
            std::fs::rename(temporary, folder.join(format!("{name}.{ending}")))
                .expect("the folder can be written");
        }
    }
}

impl TlsClient {
    /// Trusts `authority` and shows no certificate.
    pub fn trusting(authority: &Authority) -> Self {
        Self::new(authority, None)
    }

    /// Trusts `authority` and shows the certificate `own`, if there is one.
    pub fn new(authority: &Authority, own: Option<&Issued>) -> Self {
        let mut roots = RootCertStore::empty();
        let pem = authority.pem.as_bytes();
        roots
            .add(CertificateDer::from_pem_slice(pem).expect("it is PEM"))
            .expect("it is an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(Issued { chain, key }) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(chain.as_bytes()).expect("it is PEM")],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("it is PEM"),
                )
                .expect("they go together"),
        };
        Self(Arc::new(config))
    }

    /// Connects to `address`, and makes the handshake with the host `name`.
    pub async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
    ) -> Result<TlsStream<TcpStream>, Fault> {
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(name.to_owned()).expect("it is a name");
            let connector = TlsConnector::from(Arc::clone(&self.0));
            connector.connect(name, stream).await
        };
        timeout(PATIENCE, connect)
            .await
            .map_err(|_| Fault::Silent)?
            .map_err(|error| Fault::Connect(error.to_string()))
    }
}

/// Whether the session of `stream` is one of before.
pub fn is_resumed(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// The certificate that the server has shown, in DER.
pub fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let chain = stream.get_ref().1.peer_certificates();
    chain
        .and_then(|chain| chain.first())
        .expect("a server shows one")
        .to_vec()
}

/// The bytes of a certificate in PEM.
pub fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .expect("it is PEM")
        .to_vec()
}
