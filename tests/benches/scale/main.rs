//! What much of everything costs: connections, apps, workers, bytes, and generations that take
//! their time to leave.
//!
//! ```text
//! cargo bench -p handover-tests --bench scale                       # all, writes docs/benchmarks
//! cargo bench -p handover-tests --bench scale -- --case apps        # one of them; writes nothing
//! cargo bench -p handover-tests --bench scale -- --quick            # the same with less of everything; writes nothing
//! ```

mod apps;
mod connections;
mod draining;
mod large;
mod workers;

use handover_tests::bench::{
    self,
    builds::{Builds, Profile},
    crowd, report,
    server::Footprint,
};
use serde_json::{Map, Value, json};

/// What came of one case.
struct Section {
    text: String,
    json: Value,
}

type Case = fn(&Builds, bool) -> Section;

const CASES: [(&str, Case); 5] = [
    ("connections", connections::run),
    ("apps", apps::run),
    ("workers", workers::run),
    ("large", large::run),
    ("draining", draining::run),
];

fn main() {
    if !bench::asked_for(&["--quick", "--case NAME"]) {
        return;
    }
    let quick = bench::flag("--quick");
    let wanted = bench::one_of("--case", &CASES.map(|(name, _)| name));
    let open_files = crowd::raise_open_files();
    let builds = Builds::new(Profile::Dist);
    let (mut text, mut json) = (String::new(), Map::new());
    for (name, run) in CASES {
        if wanted.as_deref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let section = run(&builds, quick);
        println!("{}", section.text);
        text += &format!("{}\n\n", section.text.trim_end());
        json.insert(name.to_owned(), section.json);
    }
    if wanted.is_none() && !quick {
        json.insert("max_open_files".to_owned(), open_files.into());
        report::write("scale", Value::Object(json), &[("scale", text)]);
    }
}

/// What is held more than before, by each of so many.
#[derive(Clone, Copy)]
struct Each {
    /// KiB of resident memory.
    resident: f64,
    /// KiB of that which is of no file.
    anonymous: f64,
    /// KiB of copies of libraries.
    copies: f64,
    threads: f64,
    descriptors: f64,
    mappings: f64,
}

impl Each {
    fn of(before: Footprint, after: Footprint, number: usize) -> Self {
        let each = |before: u64, after: u64| (after as f64 - before as f64) / number as f64;
        let count = |before: usize, after: usize| (after as f64 - before as f64) / number as f64;
        Self {
            resident: each(before.resident, after.resident) / 1024.0,
            anonymous: each(before.anonymous, after.anonymous) / 1024.0,
            copies: each(before.copies, after.copies) / 1024.0,
            threads: count(before.threads, after.threads),
            descriptors: count(before.descriptors, after.descriptors),
            mappings: count(before.mappings, after.mappings),
        }
    }

    const HEAD: [&str; 6] = [
        "resident, KiB",
        "of no file, KiB",
        "copy of the library, KiB",
        "threads",
        "descriptors",
        "mappings",
    ];

    fn cells(&self) -> [String; 6] {
        [
            format!("{:.1}", self.resident),
            format!("{:.1}", self.anonymous),
            format!("{:.1}", self.copies),
            format!("{:.2}", self.threads),
            format!("{:.2}", self.descriptors),
            format!("{:.2}", self.mappings),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "resident_kib": self.resident,
            "anonymous_kib": self.anonymous,
            "copy_kib": self.copies,
            "threads": self.threads,
            "descriptors": self.descriptors,
            "mappings": self.mappings,
        })
    }
}
