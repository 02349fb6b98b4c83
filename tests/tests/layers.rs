//! The rooms of the host and who may know whom: each imports only rooms below it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use handover_tests::{plugins::workspace, sources::rust_files};

/// The rooms, from the lowest to the highest. docs/ARCHITECTURE.md says what each is for.
const LAYERS: &[&str] = &[
    // Of the process and its machine; they know nothing of plugins.
    "background",
    "canary",
    "clock",
    "health",
    "human",
    "notify",
    "origin",
    "ownership",
    "process",
    "process_group",
    "open_files",
    "preview",
    "replace",
    "spill",
    "shortage",
    "shown",
    "signals",
    "hooks",
    "values",
    "writers",
    // Artifacts at rest, and the configuration.
    "artifact",
    "assets",
    "wakers",
    "state",
    "work",
    "config",
    "access",
    "telemetry",
    // Plugins in the process.
    "ledger",
    "loader",
    "memory",
    "workers",
    "generation",
    // Requests.
    "dispatch",
    "net",
    "acme",
    // What is deployed.
    "preflight",
    "records",
    "operations",
    "apps",
    "watchdog",
    "report",
    "watch",
    "rollout",
    "orchestrator",
    "reconfigure",
    // The program.
    "control",
    "dashboard",
    "supervisor",
    "daemon",
    "embed",
    "cli",
];

/// What imports nothing else of the crate, for a reason that docs/ARCHITECTURE.md gives.
const ALONE: &[&str] = &[
    "canary",
    "clock",
    "health",
    "human",
    "ledger",
    "notify",
    "origin",
    "process",
    "process_group",
    "replace",
    "signals",
    "values",
    "writers",
];

fn host() -> PathBuf {
    workspace().join("host/src")
}

/// The sources of a room: a file, a folder, or both.
fn sources(room: &str) -> Vec<PathBuf> {
    let file = host().join(format!("{room}.rs"));
    let mut found = rust_files(&format!("host/src/{room}"));
    found.extend(Some(file).filter(|file| file.exists()));
    found
}

/// The code of a source without its comments and its unit tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source");
    let text = text
        .split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The first names behind `crate::`, in paths and in lists.
fn imported(code: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        let word = text
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_');
        word.collect()
    };
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && c.is_alphabetic() => {
                    found.insert(word(&list[at..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn every_room_has_its_layer() {
    let rooms: BTreeSet<String> = fs::read_dir(host())
        .expect("the sources of the host")
        .map(|entry| {
            let name = entry.expect("an entry").file_name();
            let name = name.to_string_lossy().into_owned();
            name.trim_end_matches(".rs").to_owned()
        })
        .filter(|room| room != "lib" && room != "main")
        .collect();
    let listed: BTreeSet<String> = LAYERS.iter().map(|room| (*room).to_owned()).collect();
    assert_eq!(rooms, listed);
}

#[test]
fn a_room_imports_only_rooms_below_it() {
    let mut wrong = Vec::new();
    for (layer, room) in LAYERS.iter().enumerate() {
        for path in sources(room) {
            for name in imported(&code(&path)) {
                let is_above = LAYERS
                    .iter()
                    .position(|other| *other == name)
                    .is_some_and(|other| other > layer);
                let is_known = ALONE.contains(room) && LAYERS.contains(&&*name) && name != **room;
                if is_above || is_known {
                    wrong.push(format!("{} imports {name}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_found_in_paths_and_lists() {
    let code = "use crate::{a::{b, c}, d,\n    e::F};\nlet x = crate::g::h();";
    let found = imported(code);
    assert_eq!(
        found.iter().map(String::as_str).collect::<Vec<_>>(),
        ["a", "d", "e", "g"]
    );
}
