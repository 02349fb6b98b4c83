//! The log of requests: a line for each, as JSON or in the combined format.
//!
//! Whatever a client sends is data here: what is not printable ASCII is escaped, and each text has
//! an end.

use std::{
    fmt::Write,
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;

use super::{
    destination::Destination,
    writer::{Losses, Writer},
};
use crate::{
    config::{self, AccessLogFormat},
    telemetry::exposition::{Exposition, Kind},
};

/// The longest text of a client that is shown whole, in bytes.
const TEXT: usize = 2048;

/// The status of an answer that its client did not wait for, as nginx has it.
const CLIENT_LEFT: u16 = 499;

/// The log of requests. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    writer: Writer,
    format: AccessLogFormat,
    query: bool,
    sampler: Option<Sampler>,
    /// Lines that found no room or could not be written.
    dropped: Arc<AtomicU64>,
    /// Lines beyond those of their second.
    sampled_out: AtomicU64,
}

/// Admits so many lines a second.
#[derive(Debug)]
struct Sampler {
    most: u32,
    began: Instant,
    /// The second in the upper half, and how many lines it had in the lower.
    seen: AtomicU64,
}

/// Lines that were not written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unwritten {
    /// There was no room, or the write failed.
    pub(crate) dropped: u64,
    /// They were more than `sample` in their second.
    pub(crate) sampled_out: u64,
}

/// What is told of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AccessEntry<'a> {
    /// When its head had come.
    pub(crate) at: SystemTime,
    /// None over a unix socket.
    pub(crate) client: Option<IpAddr>,
    pub(crate) method: &'a str,
    /// The path, or the authority of a CONNECT.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    /// `HTTP/1.1`
    pub(crate) protocol: &'a str,
    /// None where the client left before there was one.
    pub(crate) status: Option<u16>,
    /// Of the body, as they were handed to the connection.
    pub(crate) bytes: u64,
    /// Until the last of them.
    pub(crate) took: Duration,
    /// Whether the answer did not come to its end.
    pub(crate) is_aborted: bool,
    pub(crate) app: Option<&'a str>,
    /// The version and the number of the generation that has answered.
    pub(crate) generation: Option<(&'a str, &'a str)>,
    pub(crate) request_id: Option<&'a str>,
    pub(crate) user_agent: Option<&'a [u8]>,
    pub(crate) referer: Option<&'a [u8]>,
    /// `TLSv1.3`
    pub(crate) tls: Option<&'a str>,
}

impl AccessLog {
    /// Opens the log that `settings` want, if they do.
    ///
    /// # Errors
    /// When standard output is closed, or there is no thread to be had. A file that cannot be
    /// opened is no error: lines are lost and counted, and it is tried again.
    pub(crate) fn open(settings: &config::AccessLog) -> io::Result<Option<Self>> {
        let Some(file) = &settings.file else {
            return Ok(None);
        };
        let dropped = Arc::<AtomicU64>::default();
        let destination = Destination::of_requests(settings, file)?;
        let losses = Losses::Counted(Arc::clone(&dropped));
        let sampler = settings.sample.map(|most| Sampler {
            most: u32::try_from(most.get()).unwrap_or(u32::MAX),
            began: Instant::now(),
            seen: AtomicU64::new(0),
        });
        Ok(Some(Self(Arc::new(Inner {
            writer: Writer::start("access-log", destination, losses)?,
            format: settings.format,
            query: settings.query,
            sampler,
            dropped,
            sampled_out: AtomicU64::new(0),
        }))))
    }

    /// Writes the line of `entry`, unless its second has had enough. Never blocks.
    pub(crate) fn write(&self, entry: &AccessEntry<'_>) {
        if let Some(sampler) = &self.0.sampler
            && !sampler.admits(Instant::now())
        {
            self.0.sampled_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let line = match self.0.format {
            AccessLogFormat::Json => entry.json(self.0.query),
            AccessLogFormat::Combined => entry.combined(self.0.query),
        };
        self.0.writer.write(line.into_bytes());
    }

    /// Returns how many lines were not written.
    pub(crate) fn unwritten(&self) -> Unwritten {
        Unwritten {
            dropped: self.0.dropped.load(Ordering::Relaxed),
            sampled_out: self.0.sampled_out.load(Ordering::Relaxed),
        }
    }

    /// Writes the metrics.
    pub(crate) fn write_metrics(&self, to: &mut Exposition) {
        let unwritten = self.unwritten();
        let mut family = to.family(
            "handover_access_log_unwritten_total",
            Kind::Counter,
            "Requests that the access log has no line of, by why.",
        );
        family.sample(&[("reason", &"dropped")], unwritten.dropped);
        family.sample(&[("reason", &"sample")], unwritten.sampled_out);
    }

    /// Tells the log of the host every `interval` what was not written, for as long as it is
    /// polled.
    pub(crate) async fn tell_unwritten(self, interval: Duration) {
        let mut told = Unwritten::default();
        loop {
            tokio::time::sleep(interval).await;
            let now = self.unwritten();
            if now.dropped > told.dropped {
                tracing::warn!(
                    "{} lines of the access log could not be written, and are lost",
                    now.dropped - told.dropped
                );
            }
            if now.sampled_out > told.sampled_out {
                tracing::warn!(
                    "{} requests have no line in the access log: they were more than access_log.sample in a second",
                    now.sampled_out - told.sampled_out
                );
            }
            told = now;
        }
    }

    /// Waits until everything is written, for `deadline` at the longest. Blocks.
    pub(crate) fn flush(&self, deadline: Duration) {
        self.0.writer.flush(deadline);
    }

    /// Opens its file again: it was renamed.
    pub(crate) fn reopen(&self) {
        self.0.writer.reopen();
    }
}

impl Sampler {
    fn admits(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.began).as_secs() << 32;
        let seen = self
            .seen
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |seen| {
                // One that was late counts in the newer second.
                let is_newer = second > seen & !u64::from(u32::MAX);
                let number = seen as u32;
                match is_newer {
                    true => Some(second | 1),
                    false => (number < self.most).then_some(seen + 1),
                }
            });
        seen.is_ok()
    }
}

impl AccessEntry<'_> {
    fn status(&self) -> u16 {
        self.status.unwrap_or(CLIENT_LEFT)
    }

    fn json(&self, with_query: bool) -> String {
        let mut line = String::with_capacity(384);
        let at = humantime::format_rfc3339_micros(self.at);
        // Writing to a string does not fail, here and below.
        let _ = write!(line, "{{\"time\":\"{at}\"");
        match self.client {
            Some(client) => {
                let _ = write!(line, ",\"client\":\"{}\"", client.to_canonical());
            }
            None => line.push_str(",\"client\":null"),
        }
        let mut text = |name: &str, value: Option<&[u8]>| {
            let Some(value) = value else { return };
            let _ = write!(line, ",\"{name}\":\"");
            push_json(value, &mut line);
            line.push('"');
        };
        text("method", Some(self.method.as_bytes()));
        text("path", Some(self.path.as_bytes()));
        if with_query {
            text("query", self.query.map(str::as_bytes));
        }
        text("protocol", Some(self.protocol.as_bytes()));
        text("app", self.app.map(str::as_bytes));
        if let Some((version, _)) = self.generation {
            text("version", Some(version.as_bytes()));
        }
        text("request_id", self.request_id.map(str::as_bytes));
        text("user_agent", self.user_agent);
        text("referer", self.referer(with_query));
        text("tls", self.tls.map(str::as_bytes));
        if let Some((_, number)) = self.generation {
            // Digits.
            let _ = write!(line, ",\"generation\":{number}");
        }
        let _ = write!(
            line,
            ",\"status\":{},\"bytes\":{},\"duration\":{:.6},\"aborted\":{}",
            self.status(),
            self.bytes,
            self.took.as_secs_f64(),
            self.is_aborted
        );
        line.push_str("}\n");
        line
    }

    fn combined(&self, with_query: bool) -> String {
        let mut line = String::with_capacity(256);
        let _ = match self.client {
            Some(client) => write!(line, "{}", client.to_canonical()),
            None => write!(line, "-"),
        };
        let at = Timestamp::try_from(self.at).unwrap_or_default();
        let _ = write!(line, " - - [{}] \"", at.strftime("%d/%b/%Y:%H:%M:%S +0000"));
        push_quoted(self.method.as_bytes(), &mut line);
        line.push(' ');
        push_quoted(self.path.as_bytes(), &mut line);
        if let Some(query) = self.query.filter(|_| with_query) {
            line.push('?');
            push_quoted(query.as_bytes(), &mut line);
        }
        let _ = write!(
            line,
            " {}\" {} {}",
            self.protocol,
            self.status(),
            self.bytes
        );
        for value in [self.referer(with_query), self.user_agent] {
            line.push_str(" \"");
            push_quoted(value.unwrap_or(b"-"), &mut line);
            line.push('"');
        }
        line.push('\n');
        line
    }

    /// What the client came from: without its query, where queries are not shown.
    fn referer(&self, with_query: bool) -> Option<&[u8]> {
        let referer = self.referer?;
        let end = referer.iter().position(|b| matches!(b, b'?' | b'#'));
        Some(match end {
            Some(end) if !with_query => &referer[..end],
            _ => referer,
        })
    }
}

/// The beginning of `text` that is shown, and whether that is not all.
fn begin(text: &[u8]) -> (&[u8], bool) {
    match text.split_at_checked(TEXT) {
        Some((begin, rest)) => (begin, !rest.is_empty()),
        None => (text, false),
    }
}

/// Appends `text` as it stands between the quotes of JSON, in ASCII. Bytes that are no text become
/// U+FFFD.
fn push_json(text: &[u8], to: &mut String) {
    let (text, is_cut) = begin(text);
    for letter in String::from_utf8_lossy(text).chars() {
        match letter {
            '"' => to.push_str("\\\""),
            '\\' => to.push_str("\\\\"),
            ' '..='~' => to.push(letter),
            letter => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    let _ = write!(to, "\\u{unit:04x}");
                }
            }
        }
    }
    if is_cut {
        to.push_str("...");
    }
}

/// Appends `text` as it stands between the quotes of the combined format, which nginx and Apache
/// escape alike: what is no printable ASCII as `\xHH`.
fn push_quoted(text: &[u8], to: &mut String) {
    let (text, is_cut) = begin(text);
    for byte in text {
        match byte {
            b'"' => to.push_str("\\\""),
            b'\\' => to.push_str("\\\\"),
            b' '..=b'~' => to.push(char::from(*byte)),
            byte => {
                let _ = write!(to, "\\x{byte:02X}");
            }
        }
    }
    if is_cut {
        to.push_str("...");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    const HOSTILE: &[u8] = b"a\"b\\c\r\nGET /forged HTTP/1.1\x1b[31m\xff\xe2\x80\xae";

    fn entry<'a>() -> AccessEntry<'a> {
        AccessEntry {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_000_123),
            client: Some([192, 0, 2, 7].into()),
            method: "GET",
            path: "/a",
            query: Some("token=secret"),
            protocol: "HTTP/1.1",
            status: Some(200),
            bytes: 11,
            took: Duration::from_micros(1500),
            is_aborted: false,
            app: Some("shop"),
            generation: Some(("1.2.0", "7")),
            request_id: Some("abc"),
            user_agent: Some(HOSTILE),
            referer: Some(b"https://example.org/from?token=secret"),
            tls: Some("TLSv1.3"),
        }
    }

    #[test]
    fn a_line_of_json_is_one_object_whatever_a_client_sends() {
        let line = entry().json(false);
        assert!(line.is_ascii() && line.matches('\n').count() == 1);
        assert!(!line.contains(char::from(27)) && !line.contains("secret"));
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["time"], "2001-09-09T01:46:40.123000Z");
        assert_eq!(object["client"], "192.0.2.7");
        assert_eq!(object["generation"], 7);
        assert_eq!(object["duration"], 0.0015);
        assert_eq!(object["referer"], "https://example.org/from");
        let agent = String::from_utf8_lossy(HOSTILE);
        assert_eq!(object["user_agent"], agent.as_ref());
        let object: serde_json::Value = serde_json::from_str(&entry().json(true)).unwrap();
        assert_eq!(object["query"], "token=secret");
    }

    #[test]
    fn a_combined_line_is_one_line_whatever_a_client_sends() {
        assert_eq!(
            entry().combined(false),
            "192.0.2.7 - - [09/Sep/2001:01:46:40 +0000] \"GET /a HTTP/1.1\" 200 11 \
             \"https://example.org/from\" \
             \"a\\\"b\\\\c\\x0D\\x0AGET /forged HTTP/1.1\\x1B[31m\\xFF\\xE2\\x80\\xAE\"\n"
        );
        let bare = AccessEntry {
            client: None,
            status: None,
            user_agent: None,
            referer: None,
            ..entry()
        };
        let line = bare.combined(true);
        assert!(line.starts_with("- - - ["), "{line}");
        assert!(
            line.ends_with("\"GET /a?token=secret HTTP/1.1\" 499 11 \"-\" \"-\"\n"),
            "{line}"
        );
    }

    #[test]
    fn a_text_has_an_end() {
        let long = "x".repeat(TEXT + 1);
        let entry = AccessEntry {
            path: &long,
            ..entry()
        };
        let line = entry.json(false);
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["path"].as_str().unwrap().len(), TEXT + 3);
    }

    #[test]
    fn so_many_lines_a_second_are_admitted() {
        let began = Instant::now();
        let sampler = Sampler {
            most: 3,
            began,
            seen: AtomicU64::new(0),
        };
        let admitted = |millis| {
            let now = began + Duration::from_millis(millis);
            (0..5).filter(|_| sampler.admits(now)).count()
        };
        assert_eq!([admitted(0), admitted(999), admitted(1000)], [3, 0, 3]);
        // Late ones count in the newer second, which is full.
        assert_eq!([admitted(500), admitted(7000)], [0, 3]);
    }
}
