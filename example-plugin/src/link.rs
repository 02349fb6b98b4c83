//! What a link is made of, checked where it enters: [`Slug`] and [`Target`].

use std::fmt;
use std::hash::{BuildHasher, RandomState};

use axum::http::Uri;
use serde::{Deserialize, Serialize};

/// The first segments of paths that the app itself answers, and those that people expect to mean
/// something.
const RESERVED: [&str; 14] = [
    "about", "admin", "api", "assets", "events", "healthz", "help", "links", "login", "metrics",
    "slow", "static", "stream", "version",
];

/// The short name of a link: 2 to 32 of `a-z A-Z 0-9 - _`, starting with a letter or digit, and not
/// reserved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub(crate) struct Slug(String);

impl Slug {
    /// The length, in characters, that a slug may have.
    pub(crate) const LENGTH: std::ops::RangeInclusive<usize> = 2..=32;

    /// Takes a slug as a person typed it, without the blanks around it.
    ///
    /// # Errors
    /// Says which of the rules it breaks.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        let refuse = |why: String| Err(Invalid { field: "slug", why });
        if let Some(c) = text
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')))
        {
            return refuse(format!(
                "A slug has only letters a–z, digits, “-” and “_”: take out “{}”.",
                c.escape_debug()
            ));
        }
        if !Self::LENGTH.contains(&text.len()) {
            return refuse(format!(
                "A slug has {} to {} characters, this one has {}.",
                Self::LENGTH.start(),
                Self::LENGTH.end(),
                text.len()
            ));
        }
        if text.starts_with(['-', '_']) {
            return refuse("A slug starts with a letter or a digit.".to_owned());
        }
        if RESERVED.iter().any(|word| word.eq_ignore_ascii_case(text)) {
            return refuse(format!(
                "“{text}” is reserved for the app itself: choose another slug."
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// Six characters nobody can guess the order of, without those that are easily misread.
    pub(crate) fn random() -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        // Each RandomState has its own key, so the hash of nothing is a random number, and no crate
        // is needed.
        let bits = RandomState::new().hash_one(());
        let letters = (0..6).map(|n| char::from(ALPHABET[(bits >> (5 * n)) as usize % 32]));
        Self(letters.collect())
    }

    /// The slug as it stands in a path.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a link leads: an absolute `http` or `https` address of at most 2048 bytes, all of them
/// ASCII.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Target(String);

impl Target {
    /// The longest address, in bytes, once its letters outside ASCII are percent-encoded.
    pub(crate) const MAX_BYTES: usize = 2048;

    /// Takes an address as a person pasted it, without the blanks around it; letters outside ASCII
    /// in its path are percent-encoded, as browsers do.
    ///
    /// # Errors
    /// Says what is wrong with it and how an address has to look.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        let refuse = |why: &str| {
            Err(Invalid {
                field: "url",
                why: why.to_owned(),
            })
        };
        if text.is_empty() {
            return refuse("Give the address that the link should lead to.");
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return refuse("Start the address with https:// or http://.");
        };
        if !(scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http")) {
            return refuse("Only https:// and http:// addresses can be shortened.");
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            // https://bank.example@evil.example leads to evil.example.
            return refuse("Leave the user name before the “@” out: it hides where a link leads.");
        }
        if !authority.is_ascii() {
            return refuse("Write the host name in its ASCII form (xn--…).");
        }
        let mut ascii = String::with_capacity(text.len());
        for c in text.chars() {
            if c.is_ascii_control() || matches!(c, ' ' | '"' | '<' | '>' | '\\') {
                return refuse(
                    "Take blanks, quotes and the like out of the address, or percent-encode them.",
                );
            } else if c.is_ascii() {
                ascii.push(c);
            } else {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    ascii.push_str(&format!("%{byte:02X}"));
                }
            }
        }
        if ascii.len() > Self::MAX_BYTES {
            return Err(Invalid {
                field: "url",
                why: format!(
                    "The address has {} bytes, at most {} can be kept.",
                    ascii.len(),
                    Self::MAX_BYTES
                ),
            });
        }
        match ascii.parse::<Uri>() {
            Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(Self(ascii)),
            _ => refuse("That is no address. It should look like https://example.org/page."),
        }
    }

    /// The address; always fit for a `location` header.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A link that somebody asks for, as it came in: from the form and from the API alike.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    /// Where it should lead.
    pub(crate) url: String,
    /// Its short name; empty or left out means: any free one.
    #[serde(default)]
    pub(crate) slug: Option<String>,
}

impl Wish {
    /// Checks both fields; the slug stays `None` where any free one will do.
    ///
    /// # Errors
    /// The first field that cannot be taken, and why.
    pub(crate) fn check(&self) -> Result<(Target, Option<Slug>), Invalid> {
        let target = Target::parse(&self.url)?;
        let slug = match self.slug.as_deref().map(str::trim) {
            None | Some("") => None,
            Some(text) => Some(Slug::parse(text)?),
        };
        Ok((target, slug))
    }
}

/// A field that cannot be taken, and a sentence for the person who filled it in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    /// `slug` or `url`.
    pub(crate) field: &'static str,
    /// What is wrong and what to do.
    pub(crate) why: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn slugs_are_short_plain_and_not_reserved() {
        for good in ["docs", "a1", "Rust-2024", "x_y", &"z".repeat(32)] {
            assert_eq!(Slug::parse(good).unwrap().as_str(), good);
        }
        assert_eq!(Slug::parse("  docs ").unwrap().as_str(), "docs");
        for (bad, because) in [
            ("a", "2 to 32"),
            (&*"z".repeat(33), "2 to 32"),
            ("no/slash", "take out"),
            ("no space", "take out"),
            ("naïve", "take out"),
            ("<script>", "take out"),
            ("..", "take out"),
            ("-dash", "starts with"),
            ("api", "reserved"),
            ("API", "reserved"),
            ("healthz", "reserved"),
        ] {
            let why = Slug::parse(bad).unwrap_err().why;
            assert!(why.contains(because), "{bad}: {why}");
        }
    }

    #[test]
    fn a_random_slug_is_a_good_slug() {
        for _ in 0..100 {
            let slug = Slug::random();
            assert_eq!(Slug::parse(slug.as_str()).unwrap(), slug);
        }
    }

    #[test]
    fn only_web_addresses_are_taken() {
        for good in [
            "https://example.org",
            "http://127.0.0.1:8080/a?b=c#d",
            "HTTPS://example.org/",
        ] {
            assert_eq!(Target::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "example.org",
            "javascript:alert(1)",
            "javascript://example.org/%0Aalert(1)",
            "ftp://example.org/",
            "https://",
            "https:///path",
            "https://bank.example@evil.example/",
            "https://exämple.org/",
            "https://example.org/a b",
            "https://example.org/\r\nset-cookie: a=b",
            &format!("https://example.org/{}", "a".repeat(2048)),
        ] {
            assert_eq!(Target::parse(bad).unwrap_err().field, "url", "{bad}");
        }
    }

    #[test]
    fn letters_outside_ascii_are_percent_encoded_in_the_path() {
        let target = Target::parse("https://de.wikipedia.org/wiki/Äpfel").unwrap();
        assert_eq!(target.as_str(), "https://de.wikipedia.org/wiki/%C3%84pfel");
    }
}
