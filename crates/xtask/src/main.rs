//! `cargo xtask check`: keeps the promises that compiler and clippy can't see.
//! `cargo xtask man DIR`, `cargo xtask completions DIR`: runs `sealblk-manual`, which knows the programs'
//! command lines; so this crate needn't be built on all the others.
//!
//! Which crate may use which ([`arrows`]), how manifests are written ([`manifests`]), where
//! `unsafe` may stand and how long a file may be ([`sources`]). Every check is a function from text
//! to complaints; only this file reads anything.

mod arrows;
mod manifests;
mod sources;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

/// What is wrong, and whether that is a reason to fail.
#[derive(Debug, PartialEq, Eq)]
enum Complaint {
    Error(String),
    Warning(String),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["check"] => check(),
        [what @ ("man" | "completions"), directory] => manual(what, directory),
        _ => Err(anyhow::anyhow!("usage: cargo xtask check | man DIR | completions DIR")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("no root")
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn manual(what: &str, directory: &str) -> Result<()> {
    let directory = std::path::absolute(directory).context("the directory")?;
    let status = cargo()
        .args(["run", "--locked", "--quiet", "-p", "sealblk-manual", "--", what])
        .arg(directory)
        .current_dir(root()?)
        .status()
        .context("can't run cargo")?;
    ensure!(status.success(), "sealblk-manual failed");
    Ok(())
}

fn check() -> Result<()> {
    let root = root()?;
    let output = cargo()
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("can't run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let packages = arrows::packages(&serde_json::from_slice(&output.stdout)?)?;
    let mut complaints = arrows::check(&packages);
    for package in &packages {
        let path = &package.manifest;
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        complaints.extend(manifests::check(&name(root, path), &text));
        for file in rust_files(path.parent().context("no directory")?)? {
            let text = std::fs::read_to_string(&file)?;
            complaints.extend(sources::check(&name(root, &file), &text));
        }
    }
    let mut errors = 0;
    for complaint in &complaints {
        match complaint {
            Complaint::Error(what) => {
                errors += 1;
                say(&format!("error: {what}"));
            }
            Complaint::Warning(what) => say(&format!("warning: {what}")),
        }
    }
    if errors > 0 {
        bail!("{errors} broken promises");
    }
    Ok(())
}

fn name(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// Rust sources below a package's directory, without those of packages inside it.
fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            let other = path.join("Cargo.toml").exists() || path.ends_with("target");
            if !other {
                found.extend(rust_files(&path)?);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[expect(clippy::print_stderr, reason = "a command speaks to the person who ran it")]
fn say(line: &str) {
    eprintln!("{line}");
}
