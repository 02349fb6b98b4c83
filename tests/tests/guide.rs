//! The operator's guide: its lists of words, keys, calls, commands, codes and metrics are those of
//! the program.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
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
        (text.starts_with("handover_") || text.starts_with("process_"))
            && text.bytes().all(|b| b == b'_' || b.is_ascii_lowercase())
            && text != "handover_api"
            && text != "handover_plugin"
    });
    assert_same("metrics", &metrics.collect(), &listed);
}

/// The keys that `handover` reads, as `section.key`: those of the structures of its file.
fn keys() -> BTreeSet<String> {
    let source = read("host/src/config/file.rs");
    let mut structures: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for part in source.split("\nstruct ").skip(1) {
        let Some((name, rest)) = part.split_once(" {\n") else {
            continue;
        };
        let body = rest.split("\n}").next().unwrap_or_default();
        let fields = body.lines().filter_map(|line| {
            let (name, kind) = line.trim().strip_suffix(',')?.split_once(": ")?;
            (!name.starts_with("//")).then_some((name.trim_start_matches("pub(super) "), kind))
        });
        structures.insert(name, fields.collect());
    }
    let mut keys = BTreeSet::new();
    let mut open = vec![(String::new(), "ConfigFile")];
    while let Some((prefix, structure)) = open.pop() {
        for (name, kind) in &structures[structure] {
            let table = structures.keys().find(|table| {
                table.ends_with("Table")
                    && kind
                        .split(|c: char| !c.is_alphanumeric())
                        .any(|word| word == **table)
            });
            let named = if kind.starts_with("BTreeMap<AppName") {
                format!("{prefix}{name}.NAME")
            } else if kind.starts_with("BTreeMap<String") && table.is_some() {
                format!("{prefix}{name}.{}", name.to_uppercase())
            } else {
                format!("{prefix}{name}")
            };
            match table {
                Some(table) => open.push((format!("{named}."), table)),
                None => drop(keys.insert(named)),
            }
        }
    }
    keys
}

#[test]
fn the_guide_has_every_key_of_the_configuration() {
    let guide = guide();
    let mut listed: BTreeSet<String> = quoted(&first_cells(section(&guide, "## Configuration")));
    let mut keys = keys();
    // Written as tables in one cell, whose own keys stand in the cell beside it.
    for table in ["server.leak_budget", "listen.tls.certificates"] {
        assert!(listed.remove(table), "{table} is not in the guide");
        let of_it = format!("{table}.");
        let before = keys.len();
        keys.retain(|key| !key.starts_with(&of_it));
        assert!(keys.len() < before, "{table} has no keys");
    }
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
