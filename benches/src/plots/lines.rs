//! Curves over a few depths, on a logarithmic axis.

use std::fmt::Write as _;

use super::bars::legend;
use super::scale::Scale;
use super::text::{escape, time};

const WIDTH: f64 = 920.0;
const LEFT: f64 = 70.0;
const PANEL_GAP: f64 = 30.0;
const TOP: f64 = 24.0;
const HEIGHT: f64 = 230.0;
const LEGEND_ROW: f64 = 20.0;
const LEGEND_COLUMNS: usize = 3;

/// A curve: (place on the horizontal axis, nanoseconds).
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) colour: usize,
    pub(crate) points: Vec<(usize, f64)>,
}

/// Panels side by side with one vertical axis, times in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Panels {
    pub(crate) title: String,
    /// Names of the places on the horizontal axis.
    pub(crate) places: Vec<String>,
    /// Heading and curves; the same curves in each.
    pub(crate) panels: Vec<(String, Vec<Line>)>,
}

impl Panels {
    /// The figure; nothing if there is no curve.
    pub(crate) fn svg(&self) -> String {
        let lines = || self.panels.iter().flat_map(|panel| &panel.1);
        let values = || lines().flat_map(|line| line.points.iter().map(|point| point.1));
        let Some(least) = values().reduce(f64::min) else { return String::new() };
        let scale = Scale::log(least, values().fold(least, f64::max));
        let y = |ns: f64| TOP + HEIGHT * (1.0 - scale.at(ns));
        let names = self.panels.first().map_or(&[][..], |panel| &panel.1[..]);
        let below = TOP + HEIGHT + 48.0;
        let height = below + LEGEND_ROW * names.len().div_ceil(LEGEND_COLUMNS) as f64;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\"><title>{}</title>\
             <desc>{}</desc>\n",
            escape(&self.title),
            escape(&self.description())
        );
        for tick in &scale.ticks {
            let y = y(*tick);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{WIDTH}\" y2=\"{y:.1}\"/>\
                 <text class=\"soft end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                time(*tick)
            );
        }
        let count = self.panels.len().max(1) as f64;
        let width = (WIDTH - LEFT - PANEL_GAP * (count - 1.0)) / count;
        for (index, (head, lines)) in self.panels.iter().enumerate() {
            let left = LEFT + index as f64 * (width + PANEL_GAP);
            self.panel(&mut svg, head, lines, left, width, y);
        }
        for (index, line) in names.iter().enumerate() {
            let column = (index % LEGEND_COLUMNS) as f64;
            let row = (index / LEGEND_COLUMNS) as f64;
            let entry = [(line.name.clone(), line.colour)];
            svg +=
                &legend(&entry, column * WIDTH / LEGEND_COLUMNS as f64, below + row * LEGEND_ROW);
        }
        svg + "</svg>\n"
    }

    fn panel(
        &self,
        svg: &mut String,
        head: &str,
        lines: &[Line],
        left: f64,
        width: f64,
        y: impl Fn(f64) -> f64,
    ) {
        let _ =
            writeln!(svg, "<text class=\"head\" x=\"{left:.0}\" y=\"14\">{}</text>", escape(head));
        let step = width / self.places.len().max(1) as f64;
        let x = |place: usize| left + step * (place as f64 + 0.5);
        for (place, name) in self.places.iter().enumerate() {
            let base = TOP + HEIGHT + 17.0;
            let name = escape(name);
            let x = x(place);
            let _ =
                writeln!(svg, "<text class=\"soft mid\" x=\"{x:.1}\" y=\"{base}\">{name}</text>");
        }
        for line in lines {
            let colour = line.colour;
            let mut path = String::new();
            for (index, &(place, ns)) in line.points.iter().enumerate() {
                let command = if index == 0 { 'M' } else { 'L' };
                let _ = write!(path, "{command}{:.1} {:.1}", x(place), y(ns));
            }
            let _ = write!(svg, "<path class=\"k k{colour}\" d=\"{path}\"/>");
            for &(place, ns) in &line.points {
                let (x, y, name) = (x(place), y(ns), escape(&line.name));
                let _ = writeln!(
                    svg,
                    "<circle class=\"f{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\">\
                     <title>{name}: {}</title></circle>",
                    time(ns)
                );
            }
        }
    }

    /// The same in words.
    fn description(&self) -> String {
        let mut words = String::new();
        for (head, lines) in &self.panels {
            for line in lines {
                let points = line.points.iter().filter_map(|(place, ns)| {
                    Some(format!("{} {}", self.places.get(*place)?, time(*ns)))
                });
                let points = points.collect::<Vec<_>>().join(", ");
                let _ = write!(words, "{head}, {}: {points}. ", line.name);
            }
        }
        words
    }
}
