//! `[acme]`: the authority that certificates are ordered from.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::values;

/// `[acme]`
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Acme {
    /// The directory of the authority. Default that of Let's Encrypt.
    pub(crate) directory: AcmeDirectory,
    /// Whom the authority may write to, as addresses of mail or URIs. Default nobody.
    pub(crate) contact: Vec<String>,
    /// How names are shown to be of this host. Default by what listeners there are.
    pub(crate) challenge: Option<AcmeChallenge>,
    /// The name of the account that the authority has for its customer. Default none.
    pub(crate) eab_key_id: Option<String>,
    /// The file with the key of that, in base64url.
    pub(crate) eab_key_file: Option<PathBuf>,
    /// The profile of the certificates. Default that of the authority.
    pub(crate) profile: Option<String>,
    /// The authorities, in PEM, whose certificate the directory has. Default those that the machine
    /// trusts.
    pub(crate) ca_file: Option<PathBuf>,
    /// How long before its end a certificate is renewed, where the authority does not say. None: a
    /// third of its life.
    #[serde(with = "values::limit")]
    pub(crate) renew_before: Option<Duration>,
}

/// Where the directory of an authority is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum AcmeDirectory {
    /// Let's Encrypt.
    #[default]
    Production,
    /// Its environment for tests, whose certificates nobody trusts.
    Staging,
    /// Another one, or another authority.
    At(String),
}

/// How a name is shown to be of this host.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum AcmeChallenge {
    /// By an answer at port 80.
    #[serde(rename = "http-01")]
    Http01,
    /// By a certificate at port 443.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

/// A name that a certificate can be ordered for, in small letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DomainName(String);

values::as_text!(AcmeDirectory);
values::as_text!(DomainName);

impl AcmeDirectory {
    /// Its URL.
    pub(crate) fn url(&self) -> &str {
        match self {
            Self::Production => instant_acme::LetsEncrypt::Production.url(),
            Self::Staging => instant_acme::LetsEncrypt::Staging.url(),
            Self::At(url) => url,
        }
    }
}

impl FromStr for AcmeDirectory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "production" => return Ok(Self::Production),
            "staging" => return Ok(Self::Staging),
            _ => {}
        }
        let uri = text.parse::<http::Uri>().ok();
        let is_https = uri.is_some_and(|uri| {
            uri.scheme() == Some(&http::uri::Scheme::HTTPS) && uri.authority().is_some()
        });
        if !is_https {
            return Err(format!(
                "`{text}` is no directory of an authority: write \"production\" or \"staging\" for those of Let's Encrypt, \
                 or the URL of another, e.g. \"https://ca.example.org/acme/directory\""
            ));
        }
        Ok(Self::At(text.to_owned()))
    }
}

impl fmt::Display for AcmeDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Production => "production",
            Self::Staging => "staging",
            Self::At(url) => url,
        })
    }
}

impl FromStr for DomainName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("*.") {
            return Err(format!(
                "`{text}` is a wildcard, which an authority gives only to whom the DNS vouches for: name each host, or get \
                 that one by another tool and name its files in `certificates`"
            ));
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let is_address = text.parse::<std::net::IpAddr>().is_ok();
        if is_address || text.len() > 253 || !text.split('.').all(is_label) {
            return Err(format!(
                "`{text}` is no name that a certificate can be for: write e.g. \"example.org\", without a port, and in \
                 punycode (xn--…) where it has other letters than those of ASCII"
            ));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<DomainName> for String {
    fn from(DomainName(name): DomainName) -> Self {
        name
    }
}

impl Acme {
    /// Makes its paths those of `folder`.
    pub(super) fn resolve(&mut self, folder: &Path) {
        for path in [&mut self.eab_key_file, &mut self.ca_file] {
            *path = path.take().map(|path| folder.join(path));
        }
    }

    /// Returns the key that is missing beside another one, if one is.
    pub(super) fn incomplete(&self) -> Option<(&'static str, &'static str)> {
        match (&self.eab_key_id, &self.eab_key_file) {
            (Some(_), None) => Some((
                "eab_key_id",
                "it takes an `eab_key_file`, the file with the key that belongs to it",
            )),
            (None, Some(_)) => Some((
                "eab_key_file",
                "it takes an `eab_key_id`, the name that the authority gave with the key",
            )),
            _ => None,
        }
    }

    /// Returns the folder of what is kept of this authority. What another one has issued is not
    /// taken for its own.
    pub(crate) fn folder(&self, state: &Path) -> PathBuf {
        let url = self.directory.url();
        let name = url.trim_start_matches("https://");
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
        state.join("acme").join(name)
    }

    /// Returns the file of the certificate whose first name is `name`: key and certificate in one,
    /// so that both are replaced at once.
    pub(crate) fn file(&self, state: &Path, name: &str) -> PathBuf {
        self.folder(state).join(format!("{name}.pem"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn only_names_that_the_challenges_can_show_are_taken() {
        for name in ["example.org", "a-1.xn--bcher-kva.example", "localhost"] {
            assert_eq!(name.parse::<DomainName>().unwrap().to_string(), name);
        }
        assert_eq!(
            "Example.ORG".parse::<DomainName>().unwrap().0,
            "example.org"
        );
        for wrong in [
            "",
            "a..b",
            "*.example.org",
            "192.0.2.1",
            "::1",
            "a_b",
            "-a",
            "a:443",
            "ü.org",
        ] {
            wrong.parse::<DomainName>().unwrap_err();
        }
    }

    #[test]
    fn each_authority_has_a_folder_of_its_own() {
        let folder = |directory: &str| {
            let directory = directory.parse().unwrap();
            Acme {
                directory,
                ..Acme::default()
            }
            .folder(Path::new("/s"))
        };
        assert_eq!(
            folder("production"),
            Path::new("/s/acme/acme-v02.api.letsencrypt.org-directory")
        );
        assert_ne!(folder("production"), folder("staging"));
        assert_eq!(
            folder("https://[::1]:14000/../dir"),
            Path::new("/s/acme/---1--14000-..-dir")
        );
        for wrong in [
            "http://ca.example.org/dir",
            "ca.example.org",
            "https://",
            "Staging",
        ] {
            wrong.parse::<AcmeDirectory>().unwrap_err();
        }
    }
}
