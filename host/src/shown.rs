//! Text from elsewhere as people are shown it: of bounded length, and without what steers a
//! terminal or forges a line.

use std::{fmt::Write, path::Path};

/// The longest sentence of a plugin's that goes into reasons, events and the history, in bytes.
pub(crate) const SENTENCE: usize = 4 * 1024;

/// `text` with its control characters escaped, but for tabs; lines after the first are indented, so
/// none looks like one of ours.
pub(crate) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    push_harmless(text, &mut shown);
    shown
}

/// Appends `text` to `to`, as [`harmless`] shows it.
pub(crate) fn push_harmless(text: &str, to: &mut String) {
    for letter in text.chars() {
        match letter {
            '\n' => to.push_str("\n    "),
            '\t' => to.push('\t'),
            letter => push_escaped(letter, to),
        }
    }
}

fn push_escaped(letter: char, to: &mut String) {
    if letter.is_control() {
        to.extend(letter.escape_default());
    } else {
        to.push(letter);
    }
}

/// A path in one line: control characters and bytes that are no text are escaped.
pub(crate) fn path(path: &Path) -> String {
    let mut shown = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        for letter in chunk.valid().chars() {
            push_escaped(letter, &mut shown);
        }
        for byte in chunk.invalid() {
            let _ = write!(shown, "\\x{byte:02x}"); // writing to a string does not fail
        }
    }
    shown
}

/// `text`, or its beginning of at most `limit` bytes and how much was left out.
pub(crate) fn truncate(text: String, limit: usize) -> String {
    if text.len() <= limit {
        return text;
    }
    let begin = &text[..text.floor_char_boundary(limit)];
    format!("{begin}… ({} more bytes)", text.len() - begin.len())
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use super::*;

    #[test]
    fn no_text_forges_a_line_or_steers_a_terminal() {
        assert_eq!(
            harmless("a\tb\n2026 x\x1b[31m\r"),
            "a\tb\n    2026 x\\u{1b}[31m\\r"
        );
    }

    #[test]
    fn a_path_is_one_line_whatever_its_bytes() {
        let odd = Path::new(OsStr::from_bytes(b"/a b/\xc3\xa9\n\x1b[31m\xff.so"));
        assert_eq!(path(odd), "/a b/é\\n\\u{1b}[31m\\xff.so");
    }

    #[test]
    fn what_is_cut_says_how_much() {
        assert_eq!(truncate("short".to_owned(), 5), "short");
        assert_eq!(truncate("ééé".to_owned(), 3), "é… (4 more bytes)");
    }
}
