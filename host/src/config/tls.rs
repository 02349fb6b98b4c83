//! TLS of a listener.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::acme::DomainName;
use crate::values;

/// `tls` of a `[[listen]]` as it is written.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TlsTable {
    certificates: Vec<CertificateFiles>,
    #[serde(deserialize_with = "values::each::<DomainName, _>")]
    acme: Vec<String>,
    client_ca: Option<PathBuf>,
    client_auth: Option<ClientAuth>,
    min_version: Option<TlsVersion>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ClientAuth {
    Required,
    Optional,
}

/// `tls` of a `[[listen]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenTls {
    /// `certificates`: at least one, unless there is `acme`; the first is for clients that name no
    /// host, or one that nothing is for.
    pub certificates: Vec<CertificateFiles>,
    /// `acme`: the names that a certificate is ordered for. Default none: none is.
    pub acme: Vec<String>,
    /// The file of that one. No key: the host keeps it in its state directory.
    pub(crate) acme_file: Option<PathBuf>,
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
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate and those between it and its authority, in PEM.
    pub chain: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub enum TlsVersion {
    /// 1.2, with the suites that have forward secrecy.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// 1.3.
    #[serde(rename = "1.3")]
    Tls13,
}

impl From<ListenTls> for TlsTable {
    fn from(tls: ListenTls) -> Self {
        let auth = match tls.client_certificate_required {
            true => ClientAuth::Required,
            false => ClientAuth::Optional,
        };
        Self {
            certificates: tls.certificates,
            acme: tls.acme,
            client_auth: tls.client_ca.is_some().then_some(auth),
            client_ca: tls.client_ca,
            min_version: Some(tls.min_version),
        }
    }
}

impl ListenTls {
    /// What `table` says, its paths those of `folder`.
    ///
    /// # Errors
    /// What does not go together, and what to do.
    pub(super) fn of_table(table: TlsTable, folder: &Path) -> Result<Self, &'static str> {
        if table.certificates.is_empty() && table.acme.is_empty() {
            return Err(
                "tls: no certificate is named: write `certificates = [{ chain = \"fullchain.pem\", key = \
                 \"privkey.pem\" }]`, or `acme = [\"example.org\"]` to have one ordered",
            );
        }
        if table.client_auth.is_some() && table.client_ca.is_none() {
            return Err(
                "tls: `client_auth` takes a `client_ca`, the file of the authorities whose clients are \
                 let in",
            );
        }
        Ok(Self {
            certificates: table
                .certificates
                .into_iter()
                .map(|pair| CertificateFiles {
                    chain: folder.join(pair.chain),
                    key: folder.join(pair.key),
                })
                .collect(),
            acme: table.acme,
            acme_file: None,
            client_certificate_required: table.client_auth != Some(ClientAuth::Optional),
            client_ca: table.client_ca.map(|path| folder.join(path)),
            min_version: table.min_version.unwrap_or_default(),
        })
    }

    /// All files that it is made of.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.certificates
            .iter()
            .flat_map(|pair| [pair.chain.as_path(), pair.key.as_path()])
            .chain(self.acme_file.as_deref())
            .chain(self.client_ca.as_deref())
    }
}
