//! The documents: the operator's guide lists the words, keys, calls, commands, codes and metrics of
//! the program; and what any document has of commands, configuration, links and sentences of the
//! program exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use handover_api::{AppState, Cause, EventKind, GenerationState, Outcome};
use handover_tests::{host::handover, plugins::workspace, sources::rust_files};

fn read(path: impl AsRef<Path>) -> String {
    let path = workspace().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn guide() -> String {
    read("docs/operator-guide.md")
}

/// What stands below a heading, without the sections beside it.
fn section<'g>(guide: &'g str, heading: &str) -> &'g str {
    let level = heading.split(' ').next().expect("a heading").len();
    let mut in_block = false;
    let mut start = None;
    let mut offset = 0;
    for line in guide.split_inclusive('\n') {
        if line.starts_with("```") {
            in_block = !in_block;
        }
        let hashes = line.bytes().take_while(|byte| *byte == b'#').count();
        if !in_block && (1..=level).contains(&hashes) {
            match start {
                Some(start) => return &guide[start..offset],
                None if line.trim_end() == heading => start = Some(offset + line.len()),
                None => {}
            }
        }
        offset += line.len();
    }
    let start = start.unwrap_or_else(|| panic!("the guide has no section {heading:?}"));
    &guide[start..]
}

/// What stands in backticks, outside blocks of code.
fn quoted(text: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

/// The first cells of the rows of the tables.
fn first_cells(text: &str) -> String {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    cells.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn assert_same(what: &str, program: &BTreeSet<String>, guide: &BTreeSet<String>) {
    let missing: Vec<_> = program.difference(guide).collect();
    let stale: Vec<_> = guide.difference(program).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "{what}: not in the guide {missing:?}, only in the guide {stale:?}"
    );
}

fn words<T: Copy>(all: &[T], word: impl Fn(T) -> String) -> BTreeSet<String> {
    let words = all.iter().map(|one| word(*one));
    words.filter(|word| word != "unknown").collect()
}

#[test]
fn the_guide_has_every_kind_of_event() {
    let guide = guide();
    let events = section(&guide, "## Events");
    let start = events.find("The kinds are").expect("a list of kinds");
    let end = events[start..].find("\n\n").unwrap_or(events.len() - start);
    let list = quoted(&events[start..start + end]);
    // The words of the sentence that are no kinds.
    let list = list
        .into_iter()
        .filter(|word| !["exit", "kind"].contains(&word.as_str()));
    let kinds = words(EventKind::ALL, |kind| kind.as_str().to_owned());
    assert_same("kinds of events", &kinds, &list.collect());
}

#[test]
fn the_guide_has_every_state_cause_and_outcome() {
    let guide = guide();
    let has = quoted(&guide);
    let states = words(AppState::ALL, |state| state.as_str().to_owned());
    let generations = words(GenerationState::ALL, |state| state.as_str().to_owned());
    let causes = words(Cause::ALL, |cause| cause.as_str().to_owned());
    let outcomes = words(&Outcome::ALL, |outcome| outcome.as_str().to_owned());
    for (what, words) in [
        ("states of apps", states),
        ("states of generations", generations),
        ("causes", causes),
        ("outcomes", outcomes),
    ] {
        let missing: Vec<_> = words.difference(&has).collect();
        assert!(missing.is_empty(), "{what}: not in the guide {missing:?}");
    }
}

#[test]
fn the_guide_has_every_exit_code() {
    let guide = guide();
    let table = section(&guide, "## Commands");
    let listed: BTreeSet<u8> = first_cells(table)
        .lines()
        .filter_map(|cell| cell.parse().ok())
        .collect();
    let mut codes: BTreeSet<u8> = Outcome::ALL.iter().map(|one| one.exit_code()).collect();
    // Those of no outcome: usage, no host, Ctrl-C.
    codes.extend([2, 3, 130]);
    assert_eq!(listed, codes);
}

#[test]
fn the_guide_has_every_metric() {
    let guide = guide();
    let listed = quoted(&first_cells(section(&guide, "## Metrics")));
    let sources: String = rust_files("host/src").iter().map(read).collect();
    let literals = sources.split('"').map(str::to_owned);
    let metrics = literals.filter(|text| {
        ["handover_", "process_", "http_server_"]
            .iter()
            .any(|start| text.starts_with(start))
            && text.bytes().all(|b| b == b'_' || b.is_ascii_lowercase())
            && text != "handover_api"
            && text != "handover_plugin"
    });
    assert_same("metrics", &metrics.collect(), &listed);
}

/// What the program says of a configuration file of this text.
async fn checked(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("handover.toml");
    fs::write(&file, text).expect("a file");
    let said = handover(["config", "check", &file.to_string_lossy()]).await;
    said.stderr
}

/// The keys that the program knows in a table: those that an error about an unknown one offers.
/// None where there is no such table.
async fn keys_in(table: &str) -> Option<Vec<String>> {
    let table = table.replace("NAME", "shop");
    let header = match table.strip_prefix("listen") {
        _ if table.is_empty() => String::new(),
        Some("") => "[[listen]]".to_owned(),
        Some(part) => format!("[[listen]]\n[listen{part}]"),
        None => format!("[{table}]"),
    };
    // Two of them: a table of one is what a choice of words could be written as, too.
    let said = checked(&format!("{header}\nzzzzzzzz = 1\nzzzzzzzzz = 1\n")).await;
    let (_, known) = said.split_once("there is no `zzzzzzzz` here: use one of ")?;
    Some(known.trim().split(", ").map(str::to_owned).collect())
}

/// The keys of the configuration, as `section.key`.
async fn keys() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut open = vec![(String::new(), keys_in("").await.expect("sections"))];
    while let Some((prefix, names)) = open.pop() {
        for name in names {
            let key = format!("{prefix}{name}");
            // A table, or a table of tables with names of the operator's.
            let of_names = match name.as_str() {
                "app" => "app.NAME".to_owned(),
                other => format!("{key}.{}", other.to_uppercase()),
            };
            let mut is_table = false;
            for table in [key.clone(), of_names] {
                if let Some(names) = keys_in(&table).await {
                    open.push((format!("{table}."), names));
                    is_table = true;
                    break;
                }
            }
            if !is_table {
                keys.insert(key);
            }
        }
    }
    keys
}

#[tokio::test]
async fn the_guide_has_every_key_of_the_configuration() {
    let guide = guide();
    let mut listed: BTreeSet<String> = quoted(&first_cells(section(&guide, "## Configuration")));
    let mut keys = keys().await;
    // Written as a table in one cell, whose own keys stand in the cell beside it.
    assert!(listed.remove("server.leak_budget"));
    let before = keys.len();
    keys.retain(|key| !key.starts_with("server.leak_budget."));
    assert!(keys.len() < before, "it has no keys");
    assert_same("keys", &keys, &listed);
}

#[tokio::test]
async fn the_guide_has_every_command() {
    let guide = guide();
    let help = handover(["--help"]).await.expect_code(0).text();
    let listed = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .filter(|name| *name != "help");
    let commands: BTreeSet<String> = listed.map(str::to_owned).collect();
    assert!(commands.len() > 5, "{help}");
    let cells = quoted(&first_cells(section(&guide, "## Commands")));
    let described: BTreeSet<String> = cells
        .iter()
        .filter_map(|cell| cell.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    assert_same("commands", &commands, &described);
}

/// Every document, as a path from the root of the project.
fn documents() -> Vec<PathBuf> {
    let mut documents = vec![
        PathBuf::from("README.md"),
        "docs/benchmarks/README.md".into(),
    ];
    for folder in ["docs", ".github"] {
        for entry in fs::read_dir(workspace().join(folder)).expect("a folder") {
            let name = PathBuf::from(entry.expect("an entry").file_name());
            if name.extension().is_some_and(|extension| extension == "md") {
                documents.push(Path::new(folder).join(name));
            }
        }
    }
    assert!(documents.len() > 10, "{documents:?}");
    documents
}

/// A block of code.
struct Block {
    /// The word behind its fence.
    language: String,
    /// The number of its first line.
    line: usize,
    text: String,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in text.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), open.as_mut()) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => {
                open = Some(Block {
                    language: language.trim().to_owned(),
                    line: number + 2,
                    text: String::new(),
                });
            }
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block of code is not closed");
    blocks
}

/// The lines of a block that a shell would be given: those behind a prompt, where there is any.
fn commands(block: &Block) -> Vec<String> {
    let text = block.text.replace("\\\n", " ");
    let has_prompt = text.lines().any(|line| line.starts_with("$ "));
    let lines = text.lines().map(str::trim_start).filter_map(|line| {
        let line = match line.strip_prefix("$ ") {
            None if has_prompt => return None,
            behind => behind.unwrap_or(line),
        };
        let line = line.split(" # ").next().unwrap_or_default();
        (!line.starts_with('#')).then(|| line.to_owned())
    });
    lines.collect()
}

/// What `--help` says of a command.
struct Help {
    flags: BTreeSet<String>,
    commands: BTreeSet<String>,
}

/// The help of every command that was asked for.
#[derive(Default)]
struct Helps(BTreeMap<Vec<String>, Help>);

impl Helps {
    async fn of(&mut self, command: &[String]) -> &Help {
        if !self.0.contains_key(command) {
            let line = command.iter().map(String::as_str).chain(["--help"]);
            let text = handover(line).await.expect_code(0).text();
            let listed = text
                .lines()
                .filter(|line| line.trim_start().starts_with('-'));
            let words = listed.flat_map(|line| line.split([' ', ',', '[', '=']));
            let flags = words
                .filter(|word| word.starts_with('-'))
                .map(str::to_owned);
            let below = text
                .lines()
                .skip_while(|line| !line.starts_with("Commands:"));
            let below = below.skip(1).take_while(|line| !line.is_empty());
            let names = below.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
            let help = Help {
                flags: flags.collect(),
                commands: names
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned)
                    .collect(),
            };
            self.0.insert(command.to_vec(), help);
        }
        &self.0[command]
    }

    /// What is wrong with the words behind `handover`, if anything is. `must` is whether they have
    /// to be a command.
    async fn wrong(&mut self, words: &[&str], must: bool) -> Result<bool, String> {
        let mut command = Vec::new();
        let mut is_value = false;
        for word in words {
            let help = self.of(&command).await;
            let flag = word.split('=').next().unwrap_or_default();
            let is_flag = flag.starts_with("--") && flag.len() > 2
                || flag.len() == 2 && flag.starts_with('-') && flag != "--";
            if is_flag {
                if command.is_empty() && !must && !["--control", "--host"].contains(word) {
                    return Ok(false);
                }
                if !help.flags.contains(flag) && !["--help", "--version"].contains(&flag) {
                    return Err(format!("`handover {}` has no {flag}", command.join(" ")));
                }
                is_value = ["--control", "--host"].contains(word);
                continue;
            }
            let is_placeholder =
                word.starts_with(|first: char| first.is_uppercase() || first == '…');
            if help.commands.contains(*word) {
                command.push((*word).to_owned());
            } else if command.is_empty() && !is_value && !is_placeholder {
                return if must {
                    Err(format!("there is no `handover {word}`"))
                } else {
                    Ok(false)
                };
            }
            is_value = false;
        }
        Ok(true)
    }
}

/// The words of a line of a shell, or of a list in JSON, without what only groups them.
fn shell_words(text: &str) -> Vec<&str> {
    text.split(|c: char| c.is_whitespace() || "\"'[](),{}".contains(c))
        .filter(|word| !word.is_empty())
        .collect()
}

#[tokio::test]
async fn every_command_in_the_documents_exists_with_its_flags() {
    let mut helps = Helps::default();
    let mut found = Vec::new();
    let mut checked = 0;
    for document in documents() {
        let text = read(&document);
        let mut lines = Vec::new();
        for block in blocks(&text) {
            if !["rust", "toml", "json", "ini"].contains(&block.language.as_str()) {
                lines.extend(commands(&block));
            }
        }
        let inline = quoted(&text).into_iter();
        lines.extend(inline.filter(|code| code.starts_with("handover ")));
        for line in lines {
            for part in line.replace("\\|", " ").split(['|', ';', '&']) {
                let words = shell_words(part);
                let Some(at) = words
                    .iter()
                    .position(|word| ["handover", "./handover"].contains(word))
                else {
                    continue;
                };
                // Behind other words it may be a user or a file.
                let is_first = words[..at].iter().all(|word| word.contains('='));
                match helps.wrong(&words[at + 1..], is_first).await {
                    Ok(is_command) => checked += usize::from(is_command),
                    Err(wrong) => found.push(format!("{}: {wrong}: {line}", document.display())),
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(checked > 150, "{checked} commands were found");
}

#[tokio::test]
async fn every_configuration_in_the_documents_is_one() {
    let mut wrong = Vec::new();
    let mut number = 0;
    for document in documents() {
        for block in blocks(&read(&document)) {
            let of_cargo = [
                "[package]",
                "[lib]",
                "[dependencies",
                "[dev-dependencies",
                "[profile.",
            ];
            let is_of_cargo = block.text.lines().any(|line| {
                of_cargo.iter().any(|table| line.starts_with(table))
                    || line.starts_with("handover-plugin =")
            });
            if block.language != "toml" || is_of_cargo {
                continue;
            }
            number += 1;
            let said = checked(&block.text).await;
            if !said.is_empty() {
                wrong.push(format!("{}:{}: {said}", document.display(), block.line));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(number > 15, "{number} were found");
}

/// The names by which the headings of a document are linked.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut in_block = false;
    for line in text.lines() {
        in_block ^= line.trim_start().starts_with("```");
        if in_block || !line.starts_with('#') {
            continue;
        }
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let name: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let mut numbered = name.clone();
        for number in 1.. {
            if anchors.insert(numbered) {
                break;
            }
            numbered = format!("{name}-{number}");
        }
    }
    anchors
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut broken = Vec::new();
    let mut number = 0;
    for document in documents() {
        let text = read(&document);
        let folder = document.parent().unwrap_or(Path::new(""));
        let mut in_block = false;
        for line in text.lines() {
            in_block ^= line.trim_start().starts_with("```");
            if in_block {
                continue;
            }
            for link in line.split("](").skip(1) {
                let target = link.split(')').next().unwrap_or_default();
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                number += 1;
                let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
                let to = if path.is_empty() {
                    document.clone()
                } else {
                    folder.join(path)
                };
                let leads = workspace().join(&to).exists()
                    && (anchor.is_empty() || anchors(&read(&to)).contains(anchor));
                if !leads {
                    broken.push(format!("{}: {target}", document.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(number > 100, "{number} links were found");
}

/// Sentences of the page on troubleshooting that others print: the C library, the dynamic linker,
/// rustc.
const OF_OTHERS: &[&str] = &[
    "Address already in use",
    "Permission denied",
    "version 'GLIBC_",
    "cannot define multiple global allocators",
];

#[test]
fn the_page_on_troubleshooting_has_the_sentences_of_the_program() {
    let folders = ["host/src", "host/api/src", "plugin-api/src"];
    let sources: String = folders.into_iter().flat_map(rust_files).map(read).collect();
    // As they are printed: a text that goes on in the next line of the source is one line.
    let mut printed = String::with_capacity(sources.len());
    let mut rest = sources.as_str();
    while let Some((before, behind)) = rest.split_once("\\\n") {
        printed.push_str(before);
        rest = behind.trim_start();
    }
    printed.push_str(rest);
    let printed = printed.replace('`', "").replace("\\\"", "\"");
    let page = read("docs/troubleshooting.md");
    let mut missing = Vec::new();
    let mut number = 0;
    let mut in_block = false;
    for line in page.lines() {
        in_block ^= line.starts_with("```");
        // What is said stands in the first cell of a table, or in a line of a list.
        let said = line
            .strip_prefix("| ")
            .map_or(line, |row| row.split(" | ").next().unwrap_or(row));
        let codes = said.split('`').skip(1).step_by(2);
        for sentence in codes.filter(|code| !in_block && code.contains(' ')) {
            number += 1;
            for part in sentence.split('…') {
                let part = part.trim_matches(|c: char| c == ' ' || ",;:.()'".contains(c));
                let is_told = part.len() < 8
                    || printed.contains(part)
                    || OF_OTHERS.iter().any(|other| other.contains(part));
                if !is_told && !part.starts_with("handover ") {
                    missing.push(format!("{part:?} of {sentence:?}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "nothing prints\n{}", missing.join("\n"));
    assert!(number > 80, "{number} sentences were found");
}

#[test]
fn every_test_that_a_promise_or_a_fault_names_exists() {
    let folders = ["host", "plugin-api", "tests", "example-plugin"];
    let sources: String = folders.into_iter().flat_map(rust_files).map(read).collect();
    let functions: BTreeSet<&str> = sources
        .split("fn ")
        .skip(1)
        .filter_map(|behind| behind.split(['(', '<']).next())
        .collect();
    let mut missing = Vec::new();
    let mut number = 0;
    for document in ["README.md", "docs/faults.md"] {
        for line in read(document).lines().filter(|line| line.starts_with("| ")) {
            // Names of tests are sentences; some are cut with `…`.
            for name in line.split('`').skip(1).step_by(2) {
                let part = name.trim_matches('…');
                let is_name = |c: char| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit();
                if part.matches('_').count() < 3 || !part.chars().all(is_name) {
                    continue;
                }
                number += 1;
                let is_there = match (name.starts_with('…'), name.ends_with('…')) {
                    (false, false) => functions.contains(name),
                    (false, true) => functions.iter().any(|one| one.starts_with(part)),
                    (true, _) => functions.iter().any(|one| one.contains(part)),
                };
                if !is_there {
                    missing.push(format!("{document}: {name}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(number > 100, "{number} tests were found");
}
