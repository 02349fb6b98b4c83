//! The response to a request for a file.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH,
        CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE, VARY,
        X_CONTENT_TYPE_OPTIONS,
    },
};

use super::file::{Encoding, File};

/// What a range asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// All of it: no range, or one that is not understood.
    All,
    /// From the first to before the second.
    Part(usize, usize),
    /// Nothing that there is.
    Nothing,
}

/// Answers a request for `file`.
pub(crate) fn answer(file: &File, method: &Method, headers: &HeaderMap) -> Response<Bytes> {
    if method != Method::GET && method != Method::HEAD {
        return not_allowed();
    }
    // A part is one of the file as it is: a variant may be another one after the next deploy of the
    // host.
    let range = (method == Method::GET)
        .then(|| headers.get(RANGE))
        .flatten();
    let encoding = match range {
        Some(_) => None,
        None => preferred(file, headers),
    };
    let bytes = encoding
        .and_then(|encoding| file.variant(encoding))
        .unwrap_or(&file.bytes);
    let etag = file.etag(encoding);

    let mut response = Response::new(Bytes::new());
    let fields = response.headers_mut();
    fields.insert(CACHE_CONTROL, HeaderValue::from_static(cache_control(file)));
    fields.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        fields.insert(ETAG, etag);
    }
    if file.is_compressible {
        fields.insert(VARY, HeaderValue::from_static("accept-encoding"));
    }
    if lists(headers, IF_MATCH).is_some_and(|tags| !matches(&tags, &etag, false)) {
        *response.status_mut() = StatusCode::PRECONDITION_FAILED;
        return response;
    }
    if lists(headers, IF_NONE_MATCH).is_some_and(|tags| matches(&tags, &etag, true)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(file.content_type));
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(encoding) = encoding {
        fields.insert(
            CONTENT_ENCODING,
            HeaderValue::from_static(encoding.as_str()),
        );
    }
    let is_current = headers
        .get(IF_RANGE)
        .is_none_or(|tag| tag.as_bytes() == etag.as_bytes());
    let wanted = match range {
        Some(range) if is_current => wanted(range, bytes.len()),
        _ => Wanted::All,
    };
    let body = match wanted {
        Wanted::All => bytes.clone(),
        Wanted::Part(from, to) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let (last, all) = (to - 1, bytes.len());
            insert(
                &mut response,
                CONTENT_RANGE,
                &format!("bytes {from}-{last}/{all}"),
            );
            bytes.slice(from..to)
        }
        Wanted::Nothing => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            insert(
                &mut response,
                CONTENT_RANGE,
                &format!("bytes */{}", bytes.len()),
            );
            response.headers_mut().remove(CONTENT_TYPE);
            Bytes::new()
        }
    };
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, body.len().into());
    if method == Method::GET {
        *response.body_mut() = body;
    }
    response
}

/// Answers a request for a file that no version has.
pub(crate) fn skewed(method: &Method) -> Response<Bytes> {
    let text = Bytes::from_static(b"404 Not Found: no version that is kept has this file\n");
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NOT_FOUND;
    let fields = response.headers_mut();
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    fields.insert(CONTENT_LENGTH, text.len().into());
    if method != Method::HEAD {
        *response.body_mut() = text;
    }
    response
}

fn not_allowed() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn cache_control(file: &File) -> &'static str {
    match file.is_immutable {
        true => "public, max-age=31536000, immutable",
        false => "no-cache",
    }
}

fn insert(response: &mut Response<Bytes>, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        response.headers_mut().insert(name, value);
    }
}

/// The values of a field that is a list, if it is there; one that is no text is an empty one.
fn lists(headers: &HeaderMap, name: HeaderName) -> Option<Vec<&str>> {
    let mut values = headers.get_all(name).into_iter().peekable();
    values.peek()?;
    Some(values.filter_map(|value| value.to_str().ok()).collect())
}

/// Whether one of the entity tags in `lists` is `etag`. There is no comma in our own.
fn matches(lists: &[&str], etag: &str, weakly: bool) -> bool {
    let mut tags = lists.iter().flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|tag| {
        let tag = match weakly {
            true => tag.strip_prefix("W/").unwrap_or(tag),
            false => tag,
        };
        tag == "*" || tag == etag
    })
}

/// The encoding of `file` that the client likes best; none is the file as it is.
fn preferred(file: &File, headers: &HeaderMap) -> Option<Encoding> {
    file.variants.get()?;
    let lists = lists(headers, ACCEPT_ENCODING)?;
    let quality = |name: &str| {
        let mut any = None;
        for item in lists.iter().flat_map(|list| list.split(',')) {
            let mut parts = item.split(';').map(str::trim);
            let coding = parts.next().unwrap_or_default();
            let quality = parts
                .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
                .map_or(Some(1.0), |text| text.trim().parse::<f32>().ok())
                .unwrap_or(0.0);
            let is_gzip = name == "gzip" && coding.eq_ignore_ascii_case("x-gzip");
            if coding.eq_ignore_ascii_case(name) || is_gzip {
                return Some(quality);
            }
            if coding == "*" {
                any = Some(quality);
            }
        }
        any
    };
    // It is acceptable unless somebody says otherwise, and worse than what is asked for.
    let plain = quality("identity").unwrap_or(0.0);
    let mut best = None;
    let mut best_quality = 0.0;
    for encoding in Encoding::ALL {
        let quality = quality(encoding.as_str()).unwrap_or(0.0);
        let is_better = quality > best_quality && quality >= plain;
        if is_better && file.variant(encoding).is_some() {
            (best, best_quality) = (Some(encoding), quality);
        }
    }
    best
}

/// What `range` asks for of so many bytes. More than one range is as good as none.
fn wanted(range: &HeaderValue, length: usize) -> Wanted {
    let parse = || {
        let (unit, range) = range.to_str().ok()?.split_once('=')?;
        let (from, to) = range.trim().split_once('-')?;
        let number = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            // What is too large for a number is beyond the end.
            is_number.then(|| text.parse::<usize>().unwrap_or(usize::MAX))
        };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        Some(match (from.trim(), to.trim()) {
            ("", last) => {
                let last = number(last)?.min(length);
                (length - last, length)
            }
            (from, "") => (number(from)?, length),
            (from, to) => {
                let (from, to) = (number(from)?, number(to)?);
                if to < from {
                    return None;
                }
                (from, to.saturating_add(1).min(length))
            }
        })
    };
    match parse() {
        None => Wanted::All,
        Some((from, to)) if from < to && from < length => Wanted::Part(from, to),
        Some(_) => Wanted::Nothing,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use crate::artifact::Sha256;

    fn file() -> File {
        let bytes = Bytes::from("let x = 1;\n".repeat(1000));
        let sha256 = Sha256::of(&bytes);
        let file = File::new("/assets/app.3f9c2a17.js", sha256, bytes, true);
        file.compress(|_| None, |_, _| {});
        file
    }

    fn ask(file: &File, fields: &[(HeaderName, &'static str)]) -> Response<Bytes> {
        let fields = fields.iter().cloned();
        let headers = fields
            .map(|(name, value)| (name, HeaderValue::from_static(value)))
            .collect();
        answer(file, &Method::GET, &headers)
    }

    #[test]
    fn the_encoding_is_the_one_that_the_client_likes_best() {
        let file = file();
        for (accepted, encoding) in [
            ("gzip, deflate, br, zstd", Some("br")),
            ("gzip", Some("gzip")),
            ("GZIP", Some("gzip")),
            ("x-gzip", Some("gzip")),
            ("br;q=0.5, gzip;q=0.8", Some("gzip")),
            ("br;q=0, gzip", Some("gzip")),
            ("br;q=0, *", Some("gzip")),
            ("*", Some("br")),
            ("br;q=0.2, identity;q=0.5", None),
            ("identity", None),
            ("br;q=nonsense", None),
            ("*;q=0", None),
            ("", None),
        ] {
            let response = ask(&file, &[(ACCEPT_ENCODING, accepted)]);
            let found = response.headers().get(CONTENT_ENCODING);
            let found = found.map(|found| found.to_str().unwrap());
            assert_eq!(found, encoding, "{accepted}");
            assert_eq!(response.headers()[VARY], "accept-encoding");
        }
        let plain = ask(&file, &[]);
        assert_eq!(plain.body(), &file.bytes);
        let zipped = ask(&file, &[(ACCEPT_ENCODING, "gzip")]);
        assert_ne!(plain.headers()[ETAG], zipped.headers()[ETAG]);
    }

    #[test]
    fn a_range_is_a_part_of_the_file_as_it_is() {
        let file = file();
        let length = file.bytes.len();
        for (range, status, said) in [
            ("bytes=0-9", 206, "bytes 0-9/11000"),
            ("bytes=10990-", 206, "bytes 10990-10999/11000"),
            ("bytes=-5", 206, "bytes 10995-10999/11000"),
            ("bytes=-99999", 206, "bytes 0-10999/11000"),
            (
                "bytes=5-99999999999999999999999",
                206,
                "bytes 5-10999/11000",
            ),
            ("bytes=11000-", 416, "bytes */11000"),
            ("bytes=-0", 416, "bytes */11000"),
            ("bytes=9-0", 200, ""),
            ("bytes=0-1,4-5", 200, ""),
            ("lines=0-1", 200, ""),
            ("bytes=+1-2", 200, ""),
        ] {
            let response = ask(&file, &[(RANGE, range), (ACCEPT_ENCODING, "br")]);
            let found = response.headers().get(CONTENT_RANGE);
            let found = found.map_or("", |found| found.to_str().unwrap());
            assert_eq!(
                (response.status().as_u16(), found),
                (status, said),
                "{range}"
            );
            assert_eq!(response.headers().get(CONTENT_ENCODING), None);
            let expected = response.body().len().to_string();
            assert_eq!(response.headers()[CONTENT_LENGTH], expected.as_str());
        }
        assert_eq!(length, 11000);
        let other = ask(&file, &[(RANGE, "bytes=0-9"), (IF_RANGE, "\"other\"")]);
        assert_eq!(other.status(), 200);
    }

    #[test]
    fn a_condition_is_about_what_would_be_sent() {
        let file = file();
        let etag = file.etag(None).leak();
        let lists: &'static str = format!("\"x\", W/{etag}").leak();
        for (name, value, status) in [
            (IF_NONE_MATCH, &*etag, 304),
            (IF_NONE_MATCH, lists, 304),
            (IF_NONE_MATCH, "*", 304),
            (IF_NONE_MATCH, "\"x\"", 200),
            (IF_MATCH, etag, 200),
            (IF_MATCH, "\"x\"", 412),
        ] {
            assert_eq!(ask(&file, &[(name, value)]).status(), status, "{value}");
        }
        let fields = [(IF_NONE_MATCH, &*etag), (ACCEPT_ENCODING, "br")];
        assert_eq!(ask(&file, &fields).status(), 200);
        let put = answer(&file, &Method::PUT, &HeaderMap::new());
        assert_eq!(
            (put.status().as_u16(), &put.headers()[ALLOW]),
            (405, &HeaderValue::from_static("GET, HEAD"))
        );
    }
}
