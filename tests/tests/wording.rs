//! The words of the project: names that were retired stay out of the code, and comments stay within
//! 100 columns.

use std::{fs, path::PathBuf};

use handover_tests::sources::rust_files;

/// Names that had several meanings or needed explaining, each with what is written instead.
const RETIRED: &[(&str, &str)] = &[
    (
        "Turn",
        "OperationLock, LinkerLock, AcquirePermit or PollCycle",
    ),
    ("Turns", "OperationQueue"),
    ("Cut", "CloseHandle, Truncated or Aborted"),
    ("GoOn", "CloseRequest::None"),
    ("throw", "close_now"),
    ("count_cut", "count_aborted"),
    ("Offer", "HostServices, DroppedArtifact or HeapGrant"),
    ("PluginOffer", "GenerationServices"),
    ("Speaker", "ProgressSender"),
    ("Mouth", "ReportWriter"),
    ("Heard", "ChildReport"),
    ("Held", "RetainReasons"),
    ("Holder", "RetainReason or BlockingThread"),
    ("Hold", "KeepAlive or WriteLease"),
    ("openers", "fd_interposers"),
    ("Attic", "RetainedLibraries"),
    ("put_away", "retain"),
    ("keep_tidy", "sweep_retained"),
    ("see_out", "drain_and_retire"),
    ("take_leave", "depart"),
    ("Tally", "Counters"),
    ("Gone", "RetiredTotals"),
    ("Unstarted", "FailedStart"),
    ("AnswerBody", "ResponseBody or ReceivedBody"),
    ("Crossing", "ReceivedBody"),
    ("Payload", "OwnedBody"),
    ("Seat", "UpgradePermit"),
    ("Expiry", "DrainDeadline"),
    ("Given", "StartupHandoff"),
    ("caught", "catch_panic"),
    ("let_go", "drop_payload"),
    ("people", "human::duration or human::memory"),
];

/// How wide a comment may be.
const WIDTH: usize = 100;

fn sources(folders: &[&str]) -> Vec<PathBuf> {
    let found: Vec<_> = folders
        .iter()
        .flat_map(|folder| rust_files(folder))
        .collect();
    assert!(found.len() > 20, "{} sources were found", found.len());
    found
}

/// The code of a line: without its comment, and without what stands in quotes.
fn code(line: &str) -> String {
    let mut code = String::new();
    let mut quoted = false;
    let mut last = ' ';
    for c in line.chars() {
        match c {
            '"' if last != '\\' => quoted = !quoted,
            '/' if last == '/' && !quoted => return code,
            _ if !quoted => code.push(c),
            _ => {}
        }
        last = c;
    }
    code
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
}

#[test]
fn retired_names_stay_out_of_the_code() {
    let mut found = Vec::new();
    for path in sources(&["host/src", "plugin-api/src"]) {
        let text = fs::read_to_string(&path).expect("a source");
        for (number, line) in text.lines().enumerate() {
            for word in words(&code(line)) {
                if let Some((old, new)) = RETIRED.iter().find(|(old, _)| *old == word) {
                    found.push(format!(
                        "{}:{}: `{old}` is now {new}",
                        path.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn comments_are_at_most_100_columns_wide() {
    let mut found = Vec::new();
    for path in sources(&["host", "plugin-api", "example-plugin", "tests"]) {
        let text = fs::read_to_string(&path).expect("a source");
        let mut fenced = false;
        for (number, line) in text.lines().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix("//") else {
                fenced = false;
                continue;
            };
            let comment = comment.trim_start_matches(['/', '!']).trim_start();
            if comment.starts_with("```") {
                fenced = !fenced;
            }
            let may_be_wide = fenced || comment.starts_with('|');
            if !may_be_wide && line.chars().count() > WIDTH {
                found.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(
        found.is_empty(),
        "comments wider than {WIDTH} columns:\n{}",
        found.join("\n")
    );
}

#[test]
fn code_is_told_from_comments_and_quotes() {
    assert_eq!(code("let cut = \"Cut // it\"; // Cut"), "let cut = ; /");
    assert_eq!(
        words("a.Cut(b_c)").collect::<Vec<_>>(),
        ["a", "Cut", "b_c", ""]
    );
}
