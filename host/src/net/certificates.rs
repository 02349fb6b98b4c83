//! The certificates of a listener: read from their files, and chosen by the name that a client asks
//! for.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::rustls::{
    self, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use webpki::EndEntityCert;

use crate::config::{CertificateFiles, ListenTls};

/// Why a certificate is not used, and what to do. The place in the configuration comes before it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {cause}; {}", advice(.cause), path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// There is nothing of the kind in it.
    #[error("{path} holds no {what}: it is to be a PEM file with {begins}", path = path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// How that begins.
        begins: &'static str,
    },
    /// The key is that of another certificate, or of a kind that is not known.
    #[error(
        "the key {key} does not go with the certificate {chain}: {cause}; name the two that were issued together",
        key = key.display(), chain = chain.display()
    )]
    Pair {
        /// The file of the certificate.
        chain: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// The cause.
        cause: rustls::Error,
    },
    /// Something is wrong with what is in it.
    #[error("{path} cannot be used: {cause}", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
}

fn advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound => "there is no such file: correct the path, or put it there",
        io::ErrorKind::PermissionDenied => "let the user of the host read it",
        _ => "see to it that the host can read it",
    }
}

/// The certificates of a listener by the names that they are for.
#[derive(Debug)]
pub(super) struct Certificates {
    by_name: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// The first one, for clients that name no host or one that nothing is for. None: there is
    /// none yet, and no handshake succeeds.
    default: Option<Arc<CertifiedKey>>,
}

/// A certificate and the names that it is for.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    certificate: Arc<CertifiedKey>,
    names: Vec<Box<str>>,
}

/// What tells one state of a set of files from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileStates(Vec<Option<FileState>>);

/// What tells one state of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileState {
    /// Its device and inode.
    identity: (u64, u64),
    size: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl FileStates {
    /// Looks at the files of `tls`. A link counts as what it leads to.
    pub(super) fn of(tls: &ListenTls) -> Self {
        let state = |path: &Path| {
            let facts = fs::metadata(path).ok()?;
            Some(FileState {
                identity: (facts.dev(), facts.ino()),
                size: facts.size(),
                changed: (facts.mtime(), facts.mtime_nsec()),
            })
        };
        Self(tls.files().map(state).collect())
    }
}

impl Certificates {
    /// Reads all pairs, and adds the one that was ordered, if there is one.
    ///
    /// # Errors
    /// The first one that cannot be used.
    pub(super) fn read(
        files: &[CertificateFiles],
        ordered: Option<&Pair>,
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateError> {
        let mut all = Self {
            by_name: HashMap::new(),
            default: None,
        };
        for files in files {
            all.add(&Pair::read(files, provider)?);
        }
        if let Some(pair) = ordered {
            all.add(pair);
        }
        Ok(all)
    }

    fn add(&mut self, Pair { certificate, names }: &Pair) {
        for name in names {
            // The first one that is for a name counts.
            self.by_name
                .entry(name.clone())
                .or_insert_with(|| Arc::clone(certificate));
        }
        self.default.get_or_insert_with(|| Arc::clone(certificate));
    }

    /// Returns the one for `name`: that of the very name, else that of the wildcard above it.
    fn by_name(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let exact = || self.by_name.get(name);
        let wildcard = || {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(format!("*.{parent}").as_str())
        };
        exact().or_else(wildcard).or(self.default.as_ref())
    }

    /// How many names there are certificates for.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.by_name.keys().map(|name| &**name).collect();
        names.sort_unstable();
        names
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = match hello.server_name() {
            Some(name) => self.by_name(&name.to_ascii_lowercase()),
            None => self.default.as_ref(),
        };
        found.map(Arc::clone)
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|cause| CertificateError::Read {
        path: path.to_owned(),
        cause,
    })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let pem = read_file(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(CertificateError::Nothing {
            path: path.to_owned(),
            what: "certificate",
            begins: "-----BEGIN CERTIFICATE-----",
        }),
    }
}

impl Pair {
    /// Reads one from its files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn read(
        CertificateFiles { chain, key }: &CertificateFiles,
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateError> {
        let certificates = read_certificates(chain)?;
        let private = PrivateKeyDer::from_pem_slice(&read_file(key)?).map_err(|_| {
            CertificateError::Nothing {
                path: key.clone(),
                what: "private key",
                begins: "-----BEGIN PRIVATE KEY----- (or RSA, or EC), without a password",
            }
        })?;
        let names = match certificates.first().map(EndEntityCert::try_from) {
            Some(Ok(certificate)) => certificate
                .valid_dns_names()
                .map(|name| name.to_ascii_lowercase().into())
                .collect(),
            Some(Err(cause)) => {
                return Err(CertificateError::Unusable {
                    path: chain.clone(),
                    cause: cause.to_string(),
                });
            }
            None => Vec::new(),
        };
        let certified =
            CertifiedKey::from_der(certificates, private, provider).map_err(|cause| {
                CertificateError::Pair {
                    chain: chain.clone(),
                    key: key.clone(),
                    cause,
                }
            })?;
        Ok(Self {
            certificate: Arc::new(certified),
            names,
        })
    }
}

/// Reads the authorities whose clients are let in.
///
/// # Errors
/// When the file cannot be read, or there is none in it.
pub(super) fn read_authorities(path: &Path) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots
            .add(certificate)
            .map_err(|cause| CertificateError::Unusable {
                path: path.to_owned(),
                cause: cause.to_string(),
            })?;
    }
    Ok(roots)
}
