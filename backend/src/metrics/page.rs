//! Prometheus' text format (version 0.0.4), as much of it as we need.
//!
//! Contract: whoever writes keeps a family's samples together and each sample once; labels may have
//! any value.

use std::fmt::{Display, Write};

use sealblk_engine::HistogramCounts;

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A page of families; samples belong to the last one.
#[derive(Default)]
pub(super) struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    pub(super) fn text(self) -> String {
        self.text
    }

    /// Begins a family. `help` has no backslash and no line break.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.family = name;
        // Nothing fails when a string is written to.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, value);
    }

    /// One histogram; its bounds and its sum are divided by `unit`.
    pub(super) fn histogram(
        &mut self,
        labels: &[(&str, &str)],
        counts: &HistogramCounts,
        unit: f64,
    ) {
        let mut so_far = 0;
        for (index, count) in counts.counts.iter().enumerate() {
            so_far += count;
            let bound = counts.bounds.get(index);
            let text = bound.map_or("+Inf".to_owned(), |&bound| (bound as f64 / unit).to_string());
            let labels = [labels, &[("le", text.as_str())]].concat();
            self.line("_bucket", &labels, so_far);
        }
        self.line("_sum", labels, counts.sum as f64 / unit);
        self.line("_count", labels, so_far);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.text, "{}{suffix}", self.family);
        for (index, (name, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{name}=\"{}\"", escaped(text));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{after} {value}");
    }
}

/// A label's value as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}
