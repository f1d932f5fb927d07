//! The report: one HTML file with plots in it, made from the result file alone.
//!
//! Contract: self-contained (no script, no font, no link to load), readable in light and in dark,
//! every plot with a title and a description for those who can't see it. Whatever wasn't measured
//! has no section. Deliberately absent: figures that the result file doesn't hold.

mod bars;
mod layers;
mod lines;
mod scale;
mod tables;
mod text;
mod whole;

use std::path::Path;

use anyhow::{Context, Result};

use self::text::escape;
use crate::results::Results;

/// Writes the report.
pub(crate) fn write_html(results: &Results, path: &Path) -> Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, html(results)).with_context(|| path.display().to_string())
}

/// The report of a result file.
pub(crate) fn from_file(json: &Path, html: &Path) -> Result<()> {
    let text = std::fs::read_to_string(json).with_context(|| json.display().to_string())?;
    let results: Results =
        serde_json::from_str(&text).with_context(|| format!("{}: not of ours", json.display()))?;
    write_html(&results, html)
}

fn html(results: &Results) -> String {
    let mut body = tables::machine(results);
    body += &tables::verdicts(results);
    for class in &results.classes {
        body += &whole::class(class);
    }
    body += &layers::section(&results.layers);
    body += &tables::guest(&results.guest);
    body += &tables::rotations(&results.rotations);
    body += &tables::idle_daemons(results.idle_daemons.as_ref());
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>sealblk benchmark, {date}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>What encryption costs</h1>\n{body}</body>\n</html>\n",
        date = escape(&results.machine.date)
    )
}

/// Colours of the series are Okabe and Ito's, which colour-blind people can tell apart; lighter in
/// the dark.
const STYLE: &str = include_str!("style.css");

#[cfg(test)]
mod tests;
