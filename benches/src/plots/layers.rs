//! Plots of the layers: a plot per unit, a group per parameters, a bar per name.

use super::bars::{Bar, Bars};
use super::text::{escape, number};
use crate::results::{LayerFigure, Layers};

/// What of the layers was measured.
pub(crate) fn section(layers: &Layers) -> String {
    let cipher = plot(&layers.cipher, "GB/s", "Cipher: gigabytes (10⁹) per second");
    let mut engine = String::new();
    for (unit, title) in [
        ("requests/s", "Engine without storage: requests per second"),
        ("ns CPU/request", "Engine without storage: processor time per request"),
        ("ns CPU/request over plain", "Engine without storage: what encryption adds per request"),
    ] {
        engine += &plot(&layers.engine, unit, title);
    }
    if cipher.is_empty() && engine.is_empty() {
        return String::new();
    }
    format!("<h2>Layers</h2>\n{cipher}{engine}")
}

fn plot(figures: &[LayerFigure], unit: &str, title: &str) -> String {
    let mut groups: Vec<(String, Vec<Bar>)> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for figure in figures.iter().filter(|figure| figure.unit == unit) {
        let parameters = figure.parameters.iter().map(|(name, value)| format!("{name} {value}"));
        let head = parameters.collect::<Vec<_>>().join(", ");
        let colour = names.iter().position(|name| *name == figure.name).unwrap_or_else(|| {
            names.push(&figure.name);
            names.len() - 1
        });
        let value = figure.value;
        let bar = Bar {
            label: figure.name.clone(),
            parts: vec![(value.median, colour % 9)],
            spread: Some((value.min, value.max)),
            text: number(value.median),
            goal: None,
        };
        match groups.iter_mut().find(|group| group.0 == head) {
            Some(group) => group.1.push(bar),
            None => groups.push((head, vec![bar])),
        }
    }
    if groups.is_empty() {
        return String::new();
    }
    let (title, unit) = (title.to_owned(), unit.to_owned());
    let heading = format!("<h3>{}</h3>\n", escape(&title));
    heading + &Bars { title, unit, groups, legend: Vec::new() }.svg()
}
