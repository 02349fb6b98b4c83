//! A certificate that was ordered, as it lies in the state directory: its chain and its key in one
//! file, so that both are replaced at once.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use instant_acme::CertificateIdentifier;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use crate::replace::replace;

/// What is known of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    names: BTreeSet<String>,
    /// In seconds since 1970.
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    /// What the authority calls it; none where it does not say who it is.
    pub(super) id: Option<CertificateIdentifier<'static>>,
}

impl Stored {
    /// Reads the one at `path`, if there is one that can be used.
    pub(super) fn read(path: &Path) -> Option<Self> {
        Self::of_pem(&fs::read(path).ok()?)
    }

    /// Reads what is in a file: a chain, and a key.
    pub(super) fn of_pem(pem: &[u8]) -> Option<Self> {
        PrivateKeyDer::from_pem_slice(pem).ok()?;
        let certificate = CertificateDer::from_pem_slice(pem).ok()?;
        let (_, parsed) = parse_x509_certificate(&certificate).ok()?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|names| &names.value.general_names[..]);
        let names = names.unwrap_or_default().iter();
        let names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        let validity = parsed.validity();
        let id = CertificateIdentifier::try_from(&certificate).ok();
        Some(Self {
            names: names.collect(),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            id: id.map(CertificateIdentifier::into_owned),
        })
    }

    #[cfg(test)]
    pub(super) fn between(not_before: i64, not_after: i64) -> Self {
        Self {
            names: BTreeSet::new(),
            not_before,
            not_after,
            id: None,
        }
    }

    /// Whether it is for these names, and no others.
    pub(super) fn is_for(&self, names: &[String]) -> bool {
        self.names == names.iter().cloned().collect()
    }

    /// Whether it is valid then.
    pub(super) fn is_valid_at(&self, second: i64) -> bool {
        // The clocks of authorities are not that of this machine.
        const TOLERATED: i64 = 60;
        self.not_before <= second + TOLERATED && second < self.not_after
    }
}

/// Writes `bytes` to `path`, whose folder is made where it is not there, for the user of the host
/// alone. Blocks on the disk.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700).create(folder)?;
    }
    replace(path, bytes, Permissions::from_mode(0o600))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn what_is_written_is_read_and_nobody_else_may() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acme/ca/example.org.pem");
        let names = ["example.org".to_owned(), "www.example.org".to_owned()];
        let made = rcgen::generate_simple_self_signed(names.to_vec()).unwrap();
        let pem = format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem());
        assert_eq!(Stored::read(&path), None);
        write(&path, pem.as_bytes()).unwrap();
        let stored = Stored::read(&path).unwrap();
        assert!(stored.is_for(&names) && !stored.is_for(&names[..1]));
        assert!(stored.not_before < stored.not_after);
        for (path, mode) in [(&*path, 0o600), (path.parent().unwrap(), 0o700)] {
            let is = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(is & 0o777, mode, "{}", path.display());
        }
        fs::write(&path, made.cert.pem()).unwrap();
        assert_eq!(Stored::read(&path), None);
    }
}
