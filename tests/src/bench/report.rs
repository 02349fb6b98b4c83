//! `docs/benchmarks`: `results.json`, and the tables in `README.md` between their marks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::server::first_line;
use crate::plugins::workspace;

/// Where the results are.
pub fn folder() -> PathBuf {
    workspace().join("docs").join("benchmarks")
}

/// Writes the results of one bench: `value` under `name` in `results.json`, and each table behind
/// its mark in `README.md`.
///
/// # Panics
/// When the folder cannot be written, or `README.md` lacks the marks of a table.
pub fn write(name: &str, mut value: Value, tables: &[(&str, String)]) {
    fs::create_dir_all(folder()).expect("the workspace can be written");
    value["machine"] = machine();
    let path = folder().join("results.json");
    let known = fs::read_to_string(&path).unwrap_or_default();
    let mut results: Map<String, Value> = serde_json::from_str(&known).unwrap_or_default();
    results.insert(name.to_owned(), value);
    let text = serde_json::to_string_pretty(&results).expect("JSON can be written");
    fs::write(&path, text + "\n").expect("the workspace can be written");

    write_tables(&folder().join("README.md"), tables);
}

/// Writes each table behind its mark in the document at `path`.
///
/// # Panics
/// When the document cannot be written, or lacks the marks of a table.
pub fn write_tables(path: &Path, tables: &[(&str, String)]) {
    let mut text = fs::read_to_string(path).unwrap_or_default();
    for (mark, table) in tables {
        text = replaced(&text, mark, table);
    }
    fs::write(path, text).expect("the workspace can be written");
}

/// `text` with another table between the marks.
fn replaced(text: &str, mark: &str, table: &str) -> String {
    let (begin, end) = (
        format!("<!-- table: {mark} -->\n"),
        format!("<!-- end: {mark} -->"),
    );
    let found = text
        .split_once(&begin)
        .and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = found.unwrap_or_else(|| panic!("the document has no marks of {mark}"));
    format!("{before}{begin}\n{}\n\n{end}{after}", table.trim_end())
}

/// The machine, and what was used on it.
pub fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
    };
    json!({
        "processor": field(&read("/proc/cpuinfo"), "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_average": read("/proc/loadavg").trim(),
        "rustc": first_line("rustc", &["--version"]),
        "commit": first_line("git", &["describe", "--always", "--dirty"]),
        "command": format!("cargo bench -p handover-tests --bench {}", command()),
    })
}

/// How this program was asked for.
fn command() -> String {
    let exe = std::env::current_exe().unwrap_or_default();
    let name = exe
        .file_stem()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let name = name.rsplit_once('-').map_or(name, |(name, _)| name);
    let flags: Vec<_> = std::env::args()
        .skip(1)
        .filter(|flag| flag != "--bench")
        .collect();
    if flags.is_empty() {
        name.to_owned()
    } else {
        format!("{name} -- {}", flags.join(" "))
    }
}

/// A Markdown table.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<_> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rule = head
        .iter()
        .enumerate()
        .map(|(at, _)| if at == 0 { "---" } else { "---:" }.to_owned())
        .collect::<Vec<_>>();
    let mut text = line(&head) + &line(&rule);
    rows.iter().for_each(|row| text += &line(row));
    text
}
