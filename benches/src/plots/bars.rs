//! Horizontal bars in groups, each of one or more parts, with the spread as a line.

use std::fmt::Write as _;

use super::scale::Scale;
use super::text::{escape, number};

const WIDTH: f64 = 920.0;
const LABEL: f64 = 300.0;
const VALUE: f64 = 150.0;
const ROW: f64 = 22.0;
const HEAD: f64 = 26.0;
const LEGEND: f64 = 26.0;
const AXIS: f64 = 40.0;

/// One bar.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    pub(crate) label: String,
    /// Length and colour of each part, from the left.
    pub(crate) parts: Vec<(f64, usize)>,
    /// Least and most.
    pub(crate) spread: Option<(f64, f64)>,
    /// Behind the bar.
    pub(crate) text: String,
    /// Where it should end.
    pub(crate) goal: Option<f64>,
}

impl Bar {
    fn end(&self) -> f64 {
        let sum: f64 = self.parts.iter().map(|part| part.0).sum();
        sum.max(self.spread.map_or(0.0, |spread| spread.1)).max(self.goal.unwrap_or(0.0))
    }
}

/// A plot.
#[derive(Debug, Clone)]
pub(crate) struct Bars {
    pub(crate) title: String,
    /// What the axis counts.
    pub(crate) unit: String,
    pub(crate) groups: Vec<(String, Vec<Bar>)>,
    /// Names of the parts' colours; empty where the labels say it.
    pub(crate) legend: Vec<(String, usize)>,
}

impl Bars {
    /// The figure; nothing if there are no bars.
    pub(crate) fn svg(&self) -> String {
        let bars = || self.groups.iter().flat_map(|group| &group.1);
        if bars().next().is_none() {
            return String::new();
        }
        let scale = Scale::linear(bars().map(Bar::end).fold(0.0, f64::max));
        let x = |value: f64| LABEL + (WIDTH - LABEL - VALUE) * scale.at(value);
        let top = if self.legend.is_empty() { 4.0 } else { LEGEND };
        let rows = bars().count() as f64 * ROW + self.groups.len() as f64 * HEAD;
        let bottom = top + rows + 4.0;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\"><title>{}</title><desc>{}</desc>\n",
            bottom + AXIS,
            escape(&self.title),
            escape(&self.description())
        );
        for tick in &scale.ticks {
            let x = x(*tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\
                 <text class=\"soft mid\" x=\"{x:.1}\" y=\"{:.0}\">{}</text>",
                bottom + 15.0,
                number(*tick)
            );
        }
        let middle = f64::midpoint(LABEL, WIDTH - VALUE);
        let below = bottom + 33.0;
        let unit = escape(&self.unit);
        let _ =
            writeln!(svg, "<text class=\"soft mid\" x=\"{middle}\" y=\"{below}\">{unit}</text>");
        svg += &legend(&self.legend, LABEL, 14.0);
        let mut y = top;
        for (head, bars) in &self.groups {
            let base = y + 18.0;
            let _ =
                writeln!(svg, "<text class=\"head\" x=\"0\" y=\"{base}\">{}</text>", escape(head));
            y += HEAD;
            for bar in bars {
                draw(&mut svg, bar, y, x);
                y += ROW;
            }
        }
        svg + "</svg>\n"
    }

    /// The same in words.
    fn description(&self) -> String {
        let mut words = format!("{}. ", self.unit);
        for (head, bars) in &self.groups {
            let bars: Vec<String> =
                bars.iter().map(|bar| format!("{} {}", bar.label, bar.text)).collect();
            let _ = write!(words, "{head}: {}. ", bars.join("; "));
        }
        words
    }
}

fn draw(svg: &mut String, bar: &Bar, y: f64, x: impl Fn(f64) -> f64) {
    let base = y + 15.0;
    let label = escape(&bar.label);
    let _ = write!(svg, "<text class=\"end\" x=\"{}\" y=\"{base}\">{label}</text>", LABEL - 8.0);
    let mut from = 0.0;
    for &(length, colour) in &bar.parts {
        let (left, right) = (x(from), x(from + length));
        let _ = write!(
            svg,
            "<rect class=\"f{colour}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"15\"/>",
            y + 3.0,
            (right - left).max(0.0)
        );
        from += length;
    }
    let mut end = x(from);
    if let Some((least, most)) = bar.spread {
        let (left, right, middle) = (x(least), x(most), y + 10.5);
        let _ = write!(
            svg,
            "<path class=\"spread\" fill=\"none\" d=\"M{left:.1} {middle}H{right:.1}M{left:.1} {}v8\
             M{right:.1} {}v8\"/>",
            middle - 4.0,
            middle - 4.0
        );
        end = end.max(right);
    }
    if let Some(goal) = bar.goal {
        let x = x(goal);
        let (from, to) = (y + 0.5, y + ROW - 1.5);
        let _ = write!(
            svg,
            "<line class=\"goal\" x1=\"{x:.1}\" y1=\"{from}\" x2=\"{x:.1}\" y2=\"{to}\"/>"
        );
        end = end.max(x);
    }
    let text = escape(&bar.text);
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{base}\">{text}</text>", end + 7.0);
}

/// Squares with names, in a row from `x`; the width of a name is estimated.
pub(crate) fn legend(entries: &[(String, usize)], mut x: f64, base: f64) -> String {
    let mut svg = String::new();
    for (name, colour) in entries {
        let _ = writeln!(
            svg,
            "<rect class=\"f{colour}\" x=\"{x:.0}\" y=\"{:.0}\" width=\"12\" height=\"12\"/>\
             <text x=\"{:.0}\" y=\"{base:.0}\">{}</text>",
            base - 11.0,
            x + 17.0,
            escape(name)
        );
        x += 36.0 + 7.2 * name.chars().count() as f64;
    }
    svg
}
