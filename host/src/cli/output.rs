//! What people see: tables, times, sizes, colour.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
};

use handover_api::Note;

use super::args::Global;
use crate::shown::harmless;

/// Writes one line to standard output. Where that cannot be written the line is lost: what a
/// command ends with is what happened, not who read of it.
pub(super) fn line(text: &str) {
    is_read(text);
}

/// [`line`] for a command that goes on until nobody reads it any more: whether somebody still does.
pub(super) fn is_read(text: &str) -> bool {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// Whether `stream` gets colour: a terminal whose user did not say no.
pub(super) fn colour(stream: &impl IsTerminal, global: &Global) -> bool {
    let said_no =
        global.no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !said_no && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// How many columns the terminal has that is standard output; none when it is no terminal.
pub(super) fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    // Some terminals do not know, and nothing fits into very few.
    (size.ws_col >= 40).then_some(usize::from(size.ws_col))
}

/// Sentences in lines of at most `width` columns, the second and further ones behind `indent`.
/// Words that are longer stay whole.
pub(super) fn wrapped(text: &str, width: Option<usize>, indent: &str) -> String {
    let Some(width) = width else {
        return text.to_owned();
    };
    let words = text.trim_start_matches(' ');
    let mut column = text.len() - words.len();
    let mut out = text[..column].to_owned();
    for (at, word) in words.split(' ').enumerate() {
        let long = word.chars().count();
        if at > 0 && column + 1 + long > width {
            let _ = write!(out, "\n{indent}");
            column = indent.chars().count();
        } else if at > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += long;
    }
    out
}

/// A line about something that ended well: with a mark on a terminal, as it is elsewhere.
pub(super) fn done(text: &str, colour: bool) -> String {
    if io::stdout().is_terminal() {
        format!("{} {text}", paint(colour, Paint::Green, "✓"))
    } else {
        text.to_owned()
    }
}

/// A note of preflight, under what it is about.
pub(super) fn noted(note: &Note, colour: bool) -> String {
    let how = if note.warning {
        Paint::Yellow
    } else {
        Paint::Dim
    };
    paint(colour, how, &harmless(&note.to_string()))
}

/// The colours in use.
#[derive(Clone, Copy, Debug)]
pub(super) enum Paint {
    /// Good.
    Green,
    /// On its way, or worth a look.
    Yellow,
    /// Bad.
    Red,
    /// Less important.
    Dim,
    /// More important.
    Bold,
}

/// `text` in colour, or as it is.
pub(super) fn paint(colour: bool, paint: Paint, text: &str) -> String {
    if !colour || text.is_empty() {
        return text.to_owned();
    }
    let code = match paint {
        Paint::Green => 32,
        Paint::Yellow => 33,
        Paint::Red => 31,
        Paint::Dim => 2,
        Paint::Bold => 1,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// One cell of a table.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    paint: Option<Paint>,
}

impl Cell {
    /// In `paint`.
    pub(super) fn painted(text: impl Into<String>, paint: Paint) -> Self {
        Self {
            text: harmless(&text.into()),
            paint: Some(paint),
        }
    }

    fn shown(&self, colour: bool) -> String {
        self.paint
            .map_or_else(|| self.text.clone(), |how| paint(colour, how, &self.text))
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: harmless(&text.into()),
            paint: None,
        }
    }
}

/// A row of a table: cells, or a sentence that goes over all columns.
#[derive(Clone, Debug)]
pub(super) enum Row {
    /// One cell for each column.
    Cells(Vec<Cell>),
    /// A sentence, indented.
    Note(Cell),
}

/// Lines in columns that are as wide as their content. A heading that ends with `>` makes a column
/// of numbers, to the right. Sentences are wrapped to `width`.
pub(super) fn table(headings: &[&str], rows: &[Row], colour: bool, width: Option<usize>) -> String {
    let right: Vec<bool> = headings
        .iter()
        .map(|heading| heading.ends_with('>'))
        .collect();
    let headings: Vec<&str> = headings
        .iter()
        .map(|heading| heading.trim_end_matches('>'))
        .collect();
    let mut widths: Vec<usize> = headings
        .iter()
        .map(|heading| heading.chars().count())
        .collect();
    for row in rows {
        if let Row::Cells(cells) = row {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
    }
    let line = |cells: &[Cell]| {
        let mut text = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let space = " ".repeat(widths[column].saturating_sub(cell.text.chars().count()));
            let gap = if column == 0 { "" } else { "  " };
            let shown = cell.shown(colour);
            let _ = if right[column] {
                write!(text, "{gap}{space}{shown}")
            } else {
                write!(text, "{gap}{shown}{space}")
            };
        }
        text.trim_end().to_owned()
    };
    let titles: Vec<_> = headings
        .iter()
        .map(|heading| Cell::painted(*heading, Paint::Dim))
        .collect();
    let mut out = line(&titles);
    for row in rows {
        out.push('\n');
        match row {
            Row::Cells(cells) => out.push_str(&line(cells)),
            Row::Note(note) => {
                let text = wrapped(&format!("  {}", note.text), width, "    ");
                let wrapped = Cell {
                    text,
                    paint: note.paint,
                };
                out.push_str(&wrapped.shown(colour));
            }
        }
    }
    out
}

/// The first 12 digits of a hash: enough to tell artifacts apart.
pub(super) fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// A listener of the status as an address that people open: one that says no scheme is plain HTTP.
pub(super) fn url(listen: &str) -> String {
    if listen.starts_with("unix:") || listen.contains("://") {
        return listen.to_owned();
    }
    format!("http://{listen}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_wrapped_between_words() {
        let text = "  kept mapped: 3 threads that it started still live";
        assert_eq!(wrapped(text, None, "    "), text);
        assert_eq!(
            wrapped(text, Some(26), "    "),
            "  kept mapped: 3 threads\n    that it started still\n    live"
        );
        assert_eq!(
            wrapped("a-very-long-word b", Some(5), " "),
            "a-very-long-word\n b"
        );
    }

    #[test]
    fn a_table_is_as_wide_as_its_content_and_colour_does_not_move_it() {
        let rows = [
            Row::Cells(vec![
                Cell::painted("shop", Paint::Bold),
                "12".into(),
                "live".into(),
            ]),
            Row::Note("a note".into()),
            Row::Cells(vec!["a-long-name".into(), "3".into(), "".into()]),
        ];
        let plain = table(&["APP", "GEN>", "STATE"], &rows, false, None);
        assert_eq!(
            plain,
            "APP          GEN  STATE\nshop          12  live\n  a note\na-long-name    3"
        );
        let painted = table(&["APP", "GEN>", "STATE"], &rows, true, Some(80));
        let stripped = painted
            .replace("\x1b[0m", "")
            .replace("\x1b[1m", "")
            .replace("\x1b[2m", "");
        let lines: Vec<_> = stripped.lines().map(str::trim_end).collect();
        assert_eq!(lines.join("\n"), plain);
    }
}
