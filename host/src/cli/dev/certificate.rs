//! A certificate that signs itself, for `dev --tls`. It is kept over starts, so that a browser has
//! to be told only once.

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use crate::config::{CertificateFiles, ListenTls, TlsVersion};

/// Returns the certificate in `folder`, which is for `localhost` and `address`, and makes it where
/// there is none.
///
/// # Errors
/// The sentence for a person when it cannot be made.
pub(super) fn in_folder(folder: &Path, address: IpAddr) -> Result<ListenTls, String> {
    let names: Vec<String> = ["localhost", "127.0.0.1", "::1"]
        .map(str::to_owned)
        .into_iter()
        .chain(Some(address.to_string()).filter(|_| !address.is_loopback()))
        .collect();
    // For other names it is another one.
    let stem = names[3..].first().map_or("localhost", String::as_str);
    let files = CertificateFiles {
        chain: folder.join(format!("{stem}.pem")),
        key: folder.join(format!("{stem}.key")),
    };
    if !(files.chain.exists() && files.key.exists()) {
        make(names, &files).map_err(|cause| {
            format!(
                "the certificate {} cannot be made: {cause}; see to it that its folder can be written",
                files.chain.display()
            )
        })?;
    }
    Ok(ListenTls {
        certificates: vec![files],
        acme: Vec::new(),
        acme_file: None,
        client_ca: None,
        client_certificate_required: true,
        min_version: TlsVersion::Tls12,
    })
}

fn make(names: Vec<String>, files: &CertificateFiles) -> io::Result<()> {
    let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    if let Some(folder) = files.chain.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&files.key)?
        .write_all(made.signing_key.serialize_pem().as_bytes())?;
    // Last: where it is, the key is.
    fs::write(&files.chain, made.cert.pem())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_made_once_and_its_key_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("dev");
        let tls = in_folder(&folder, IpAddr::from([127, 0, 0, 1])).unwrap();
        let [files] = &tls.certificates[..] else {
            panic!("{tls:?}")
        };
        let chain = fs::read(&files.chain).unwrap();
        assert!(chain.starts_with(b"-----BEGIN CERTIFICATE-----"));
        let mode = fs::metadata(&files.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = in_folder(&folder, IpAddr::from([127, 0, 0, 1])).unwrap();
        assert_eq!(again, tls);
        assert_eq!(fs::read(&files.chain).unwrap(), chain);
        let other = in_folder(&folder, IpAddr::from([192, 0, 2, 1])).unwrap();
        assert_ne!(other, tls);
    }
}
