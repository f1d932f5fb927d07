//! Writes the manual pages and shell completions of all programs from their own command lines:
//! `cargo xtask man DIR`, `cargo xtask completions DIR`.
//!
//! Contract: what is written depends on the definitions alone (no date, no host), so that packages
//! can be built again byte for byte. A program of its own, so that those that serve carry none of it.
//! Deliberately absent: pages of file formats; those are written by hand, in dist/man.

mod completions;
#[cfg(test)]
mod formats;
mod pages;
mod programs;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["man", directory] => write(Path::new(directory), pages::all()),
        ["completions", directory] => write(Path::new(directory), completions::all()),
        _ => Err(anyhow::anyhow!("usage: sealblk-manual man|completions DIR")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("sealblk-manual: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A file to be written: its name and what it holds.
type File = (String, Vec<u8>);

fn write(directory: &Path, files: Result<Vec<File>>) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    for (name, text) in files? {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a command speaks to the person who ran it")]
fn say(line: &str) {
    eprintln!("{line}");
}
