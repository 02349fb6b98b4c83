//! The text format that Prometheus reads, version 0.0.4: families of samples, each announced once.
//!
//! Written here and not by a library because what is told is gathered at the moment of asking:
//! there is no registry to keep in step, and nothing is counted twice.

use std::fmt::{Display, Write};

/// The content type of the text.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family is to those who read it.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Only grows, from the start of the host. Its name ends in `_total`.
    Counter,
    /// Comes and goes.
    Gauge,
    /// Counts of what was no longer than each bound.
    Histogram,
}

/// The text so far.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// A family that takes its samples.
#[derive(Debug)]
pub struct Family<'e> {
    text: &'e mut String,
    name: &'static str,
}

/// A label: its name and its value.
pub(crate) type Label<'l> = (&'static str, &'l dyn Display);

impl Exposition {
    /// Begins a family. All of its samples are written before the next one begins, which the borrow
    /// sees to.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family {
            text: &mut self.0,
            name,
        }
    }

    /// A family of one sample without labels.
    pub fn one(&mut self, name: &'static str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// The whole text.
    pub fn into_text(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Writes one sample. `value` is a number.
    pub fn sample(&mut self, labels: &[Label<'_>], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// Writes a histogram: how many were no longer than each of `bounds` but longer than the one
    /// before, how many there were, and their sum.
    pub fn histogram(
        &mut self,
        labels: &[Label<'_>],
        bounds: &[f64],
        within: &[u64],
        count: u64,
        sum: f64,
    ) {
        let mut so_far = 0;
        for (bound, within) in bounds.iter().zip(within) {
            so_far += within;
            self.line("_bucket", labels, Some(("le", bound)), so_far);
        }
        self.line("_bucket", labels, Some(("le", &"+Inf")), count);
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, count);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[Label<'_>],
        last: Option<Label<'_>>,
        value: impl Display,
    ) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        for (at, (name, value)) in labels.iter().chain(&last).enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{name}=\"");
            for c in value.to_string().chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() || last.is_some() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_announced_once_and_labels_are_escaped() {
        let mut text = Exposition::default();
        text.one("up_seconds", Kind::Gauge, "Since the start.", 1.5);
        let mut family = text.family("requests_total", Kind::Counter, "Requests.");
        family.sample(&[("app", &"a\"b\\c\nd"), ("generation", &7)], 3);
        family.sample(&[], 0);
        assert_eq!(
            text.into_text(),
            "# HELP up_seconds Since the start.\n# TYPE up_seconds gauge\nup_seconds 1.5\n\
             # HELP requests_total Requests.\n# TYPE requests_total counter\n\
             requests_total{app=\"a\\\"b\\\\c\\nd\",generation=\"7\"} 3\nrequests_total 0\n"
        );
    }

    #[test]
    fn buckets_hold_those_below_them_as_well() {
        let mut text = Exposition::default();
        text.family("step_seconds", Kind::Histogram, "Steps.")
            .histogram(&[("step", &"load")], &[0.01, 1.0], &[2, 1], 4, 6.25);
        let text = text.into_text();
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "step_seconds_bucket{step=\"load\",le=\"0.01\"} 2",
                "step_seconds_bucket{step=\"load\",le=\"1\"} 3",
                "step_seconds_bucket{step=\"load\",le=\"+Inf\"} 4",
                "step_seconds_sum{step=\"load\"} 6.25",
                "step_seconds_count{step=\"load\"} 4",
            ]
        );
    }
}
