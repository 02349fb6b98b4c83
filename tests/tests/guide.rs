//! The operator's guide: its lists of words, keys, calls, commands, codes and metrics are those of
//! the program.

use std::{collections::BTreeSet, fs, path::Path};

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
