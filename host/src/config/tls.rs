//! TLS of a listener.

use std::path::{Path, PathBuf};

/// `tls` of a `[[listen]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenTls {
    /// `certificates`: at least one; the first is for clients that name no host, or one that
    /// nothing is for.
    pub certificates: Vec<CertificateFiles>,
    /// `client_ca`: the authorities whose clients are let in. Default none: nobody is asked for a
    /// certificate.
    pub client_ca: Option<PathBuf>,
    /// `client_auth`: whether a client must have a certificate. Default `required`, where there is
    /// a `client_ca`.
    pub client_certificate_required: bool,
    /// `min_version`. Default 1.2.
    pub min_version: TlsVersion,
}

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate and those between it and its authority, in PEM.
    pub chain: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2, with the suites that have forward secrecy.
    Tls12,
    /// 1.3.
    Tls13,
}

impl ListenTls {
    /// All files that it is made of.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.certificates
            .iter()
            .flat_map(|pair| [pair.chain.as_path(), pair.key.as_path()])
            .chain(self.client_ca.as_deref())
    }
}
