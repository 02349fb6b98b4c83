//! A strict reader of what Prometheus scrapes: whatever it would only warn of is an error here.

use std::collections::{BTreeMap, BTreeSet};

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// What one scrape gave.
#[derive(Debug, Default)]
pub struct Metrics {
    samples: Vec<(String, Labels, f64)>,
}

/// One family while it is read.
struct Family {
    name: String,
    kind: String,
    seen: BTreeSet<(String, Labels)>,
    samples: Vec<(String, Labels, f64)>,
}

impl Metrics {
    /// Reads a scrape.
    ///
    /// # Panics
    /// When anything of it is not as the format says, or not as the conventions do.
    pub fn read(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let mut metrics = Self::default();
        let (mut names, mut help): (BTreeSet<String>, Option<String>) = Default::default();
        let mut family: Option<Family> = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                metrics.take(family.take());
                let (name, text) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(!text.trim().is_empty(), "{line}");
                assert!(names.insert(name.to_owned()), "{name} is announced twice");
                help = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert_eq!(help.take().as_deref(), Some(name), "no HELP before {line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(is_name(name), "{line}");
                family = Some(Family {
                    name: name.to_owned(),
                    kind: kind.to_owned(),
                    seen: BTreeSet::new(),
                    samples: Vec::new(),
                });
            } else {
                let family = family
                    .as_mut()
                    .unwrap_or_else(|| panic!("no TYPE before {line}"));
                family.take(line);
            }
        }
        metrics.take(family);
        metrics
    }

    fn take(&mut self, family: Option<Family>) {
        let Some(family) = family else { return };
        if family.kind == "histogram" {
            family.check_histograms();
        }
        self.samples.extend(family.samples);
    }

    /// The value of the one sample called `name` that has these labels, and perhaps more.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let found = self.all(name, labels);
        assert!(found.len() <= 1, "{name} {labels:?}: {found:?}");
        found.first().map(|(_, value)| *value)
    }

    /// All samples called `name` that have these labels, and perhaps more.
    pub fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(Labels, f64)> {
        let wanted = |has: &Labels| {
            labels
                .iter()
                .all(|(label, value)| has.get(*label).is_some_and(|is| is == value))
        };
        self.samples
            .iter()
            .filter(|(is, has, _)| is == name && wanted(has))
            .map(|(_, has, value)| (has.clone(), *value))
            .collect()
    }
}

impl Family {
    fn take(&mut self, line: &str) {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(value.is_finite(), "{line}");
        let (name, labels) = match series.split_once('{') {
            None => (series, Labels::new()),
            Some((name, rest)) => (name, read_labels(rest, line)),
        };
        let of_family = match name.strip_prefix(self.name.as_str()) {
            Some("") => self.kind != "histogram",
            Some("_bucket" | "_sum" | "_count") => self.kind == "histogram",
            _ => false,
        };
        assert!(of_family, "{line} is no sample of {}", self.name);
        assert!(
            self.kind != "counter" || value >= 0.0,
            "{line}: a counter below zero"
        );
        assert!(
            self.seen.insert((name.to_owned(), labels.clone())),
            "{series} is there twice"
        );
        self.samples.push((name.to_owned(), labels, value));
    }

    fn check_histograms(&self) {
        let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for (name, labels, value) in &self.samples {
            if name.ends_with("_bucket") {
                let mut labels = labels.clone();
                let bound = labels.remove("le").expect("a bucket has a bound");
                let bound = bound.parse().unwrap_or_else(|_| panic!("le={bound}"));
                series.entry(labels).or_default().push((bound, *value));
            }
        }
        for (labels, buckets) in series {
            assert!(
                buckets
                    .windows(2)
                    .all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1),
                "{labels:?}: {buckets:?}"
            );
            let (last, count) = buckets.last().copied().expect("it has buckets");
            assert!(last.is_infinite(), "{labels:?} has no bucket for all");
            let of = |suffix: &str| {
                let name = format!("{}{suffix}", self.name);
                self.samples
                    .iter()
                    .find(|(is, has, _)| *is == name && *has == labels)
                    .map(|(_, _, value)| *value)
            };
            assert_eq!(of("_count"), Some(count), "{labels:?}");
            assert!(of("_sum").is_some_and(|sum| sum >= 0.0), "{labels:?}");
        }
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The labels after the brace that opens them.
fn read_labels(text: &str, line: &str) -> Labels {
    let mut labels = Labels::new();
    let mut rest = text;
    loop {
        let (name, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
        assert!(is_name(name), "{line}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().unwrap_or_else(|| panic!("{line}")) {
                (at, '"') => break at,
                (_, '\\') => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, c @ ('"' | '\\'))) => value.push(c),
                    _ => panic!("{line}"),
                },
                (_, c) => value.push(c),
            }
        };
        assert!(labels.insert(name.to_owned(), value).is_none(), "{line}");
        rest = &after[end + 1..];
        if rest == "}" {
            return labels;
        }
        rest = rest.strip_prefix(',').unwrap_or_else(|| panic!("{line}"));
    }
}
