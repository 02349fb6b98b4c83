//! What the name of a file says of it: whether it has a hash of its content, of which type it is,
//! and whether it is a path at all.

use std::borrow::Cow;

/// How many characters a hash has at least.
const HASH: usize = 8;

/// Whether the last name in `path` has a hash of the content of its file, as bundlers put it there:
/// `app.3f9c2a17.js`, `index-DiwrgTd4.css`, `index-DiwrgTd4.js.map`.
///
/// A name that only looks like one would be kept by browsers for a year, so words and dates are
/// none: see [`is_hash`].
pub(super) fn has_hash(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let name = name.strip_suffix(".map").unwrap_or(name);
    let Some((stem, extension)) = name.rsplit_once('.') else {
        return false;
    };
    if stem.is_empty() || extension.is_empty() {
        return false;
    }
    let behind = |at: usize| stem.get(at + 1..).is_some_and(is_hash) && at > 0;
    let mut separators = stem.rmatch_indices(['.', '-', '_']);
    // A hash of the alphabet of URLs may have `-` and `_` in it, and has eight characters then.
    let last = separators.clone().next();
    let eighth = separators.find(|(at, _)| stem.len() - at - 1 == HASH);
    let is_all = stem.len() >= 2 * HASH && stem.bytes().all(|b| b.is_ascii_hexdigit());
    is_all
        || [last, eighth]
            .into_iter()
            .flatten()
            .any(|(at, _)| behind(at))
}

/// Whether `text` looks like a hash, in hexadecimal, base32 or base64url: eight characters or more,
/// with a digit and a letter. Where it is more than hexadecimal a letter follows a digit somewhere,
/// which is not so in `component2`, or it has eight characters of which three or more are digits or
/// capital, two of them capital.
fn is_hash(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() < HASH
        || !bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    {
        return false;
    }
    let count = |is: fn(&u8) -> bool| bytes.iter().filter(|b| is(b)).count();
    let (digits, letters) = (count(u8::is_ascii_digit), count(u8::is_ascii_alphabetic));
    let is_hex = bytes.iter().all(u8::is_ascii_hexdigit);
    let has_turn = bytes
        .windows(2)
        .any(|pair| pair[0].is_ascii_digit() && pair[1].is_ascii_alphabetic());
    let capitals = count(u8::is_ascii_uppercase);
    let is_capital = bytes.len() == HASH && capitals >= 2 && capitals + digits >= 3;
    (digits > 0 && letters > 0 && (is_hex || has_turn)) || is_capital
}

/// Whether the file is a document, which is the app's to serve.
pub(super) fn is_document(path: &str) -> bool {
    let extension = extension(path);
    ["html", "htm", "xhtml"]
        .iter()
        .any(|document| extension.eq_ignore_ascii_case(document))
}

/// Returns the whole path of the file at `path` below `prefix`.
///
/// # Errors
/// Why it is none.
pub(super) fn whole(prefix: &str, path: &str) -> Result<(String, String), String> {
    let below = prefix.trim_end_matches('/');
    if !prefix.starts_with('/') {
        return Err(format!(
            "the prefix `{prefix}` does not begin with `/`: write \"/assets\""
        ));
    }
    let path = path.strip_prefix('/').unwrap_or(path);
    let whole = format!("{below}/{path}");
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/".contains(c);
    if let Some(other) = whole.chars().find(|c| !is_allowed(*c)) {
        return Err(format!(
            "there is {other:?} in its path, which is taken as it stands: letters, digits and -._~!$&'()*+,;=:@/ are allowed"
        ));
    }
    let mut parts = whole.split('/').skip(1);
    if parts.any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("a part of its path is empty, `.` or `..`".to_owned());
    }
    Ok((format!("{below}/"), whole))
}

fn extension(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

/// The type of the content of a file, and whether it is worth compressing.
pub(super) fn content_type(path: &str) -> (&'static str, bool) {
    let extension = extension(path);
    let extension = match extension.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(extension.to_ascii_lowercase()),
        false => Cow::Borrowed(extension),
    };
    match &*extension {
        "js" | "mjs" | "cjs" => ("text/javascript; charset=utf-8", true),
        "css" => ("text/css; charset=utf-8", true),
        "json" | "map" => ("application/json", true),
        "webmanifest" => ("application/manifest+json", true),
        "svg" => ("image/svg+xml", true),
        "txt" => ("text/plain; charset=utf-8", true),
        "md" => ("text/markdown; charset=utf-8", true),
        "csv" => ("text/csv; charset=utf-8", true),
        "xml" => ("application/xml", true),
        "wasm" => ("application/wasm", true),
        "ico" => ("image/vnd.microsoft.icon", true),
        "ttf" => ("font/ttf", true),
        "otf" => ("font/otf", true),
        "woff" => ("font/woff", false),
        "woff2" => ("font/woff2", false),
        "png" => ("image/png", false),
        "apng" => ("image/apng", false),
        "jpg" | "jpeg" => ("image/jpeg", false),
        "gif" => ("image/gif", false),
        "webp" => ("image/webp", false),
        "avif" => ("image/avif", false),
        "mp3" => ("audio/mpeg", false),
        "ogg" | "oga" => ("audio/ogg", false),
        "wav" => ("audio/wav", false),
        "mp4" => ("video/mp4", false),
        "webm" => ("video/webm", false),
        "pdf" => ("application/pdf", false),
        "zip" => ("application/zip", false),
        "gz" => ("application/gzip", false),
        _ => ("application/octet-stream", false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_bundlers_have_a_hash_and_words_and_dates_have_none() {
        for name in [
            "app.3f9c2a17.js",
            "js/app.3f9c2a17.js.map",
            "index-DiwrgTd4.css",
            "index-B_x4Yz-1.js", // vite
            "index-DIWrgTda.js",
            "chunk-QZ3ZAB7X.js",
            "chunk-ABCDEFGH.js", // esbuild
            "main.1a2b3c4d5e6f.chunk.3f9c2a17.css",
            "8a9f3c2e11bb77d0.woff2",
            "logo_0cc175b9c0f1b6a831c399e269772661.svg",
        ] {
            assert!(has_hash(name), "{name}");
        }
        for name in [
            "app.js",
            "app.component.js",
            "jquery.validate.js",
            "app-component2.js",
            "app-Version2.js",
            "my-useTranslation.js",
            "bootstrap-5.3.3-dist.css",
            "logo-20240115.png",
            "logo.2024-01-15.png",
            "3f9c2a17",
            "3f9c2a17.js",
            ".3f9c2a17.js",
            "3f9c2a17/app.js",
            "README",
            "",
        ] {
            assert!(!has_hash(name), "{name}");
        }
    }

    #[test]
    fn a_path_is_taken_as_it_stands() {
        let whole = |prefix, path| whole(prefix, path).map(|(_, whole)| whole);
        assert_eq!(whole("/assets", "a.js").as_deref(), Ok("/assets/a.js"));
        assert_eq!(whole("/a/", "/b/c.js").as_deref(), Ok("/a/b/c.js"));
        assert_eq!(whole("/", "a.js").as_deref(), Ok("/a.js"));
        for (prefix, path) in [
            ("assets", "a.js"),
            ("/assets", "../a.js"),
            ("/assets", "b//a.js"),
            ("/assets", "./a.js"),
            ("/assets", ""),
            ("/assets", "a b.js"),
            ("/assets", "a%20b.js"),
            ("/assets", "ä.js"),
            ("/assets", "a.js?x"),
        ] {
            assert!(whole(prefix, path).is_err(), "{prefix} {path}");
        }
    }
}
