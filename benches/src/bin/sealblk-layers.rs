//! The parts of `make bench` that need no server, one by one: `sealblk-layers engine`,
//! `cipher`. `sealblk-bench` measures the same with everything else; this is for working on one.
#![allow(
    dead_code,
    unused_imports,
    reason = "shares its modules with sealblk-bench, which uses all of them"
)]

#[path = "../layers/mod.rs"]
mod layers;
#[path = "../results.rs"]
mod results;
#[path = "../statistics.rs"]
mod statistics;

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use sealblk_cipher::Implementation;

use crate::layers::cipher;
use crate::layers::engine::{self, Path, Work};
use crate::results::{LayerFigure, Spread};

/// Measures one layer of sealblk by itself.
#[derive(Debug, Parser)]
#[command(name = "sealblk-layers", version)]
enum Command {
    /// Requests per second of the engine, without storage and without a session
    Engine(EngineArgs),
    /// GB/s of every cipher implementation
    Cipher(CipherArgs),
}

/// `cipher`
#[derive(Debug, clap::Args)]
struct CipherArgs {
    /// Rounds: every implementation is measured once in each; the first one doesn't count
    #[arg(long, value_name = "N", default_value_t = 16)]
    rounds: usize,

    /// Length of one sample in seconds
    #[arg(long, value_name = "S", default_value_t = 0.005)]
    seconds: f64,

    /// Don't ask `openssl speed`
    #[arg(long)]
    no_openssl: bool,
}

/// `engine`
#[derive(Debug, clap::Args)]
struct EngineArgs {
    /// Only works whose name contains this, e.g. "4 KiB read, qd 32"; may be given several times
    #[arg(long, value_name = "TEXT")]
    work: Vec<String>,

    /// Only paths whose name contains this: plain, 4096, 512
    #[arg(long, value_name = "TEXT")]
    path: Vec<String>,

    /// Cipher implementations, each a path of its own
    #[arg(long, value_name = "NAME", default_value = "auto")]
    cipher: Vec<Implementation>,

    /// Rounds: every path is measured once in each
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Length of one sample in seconds
    #[arg(long, value_name = "S", default_value_t = 0.1)]
    seconds: f64,

    /// Do so many requests instead, without a warm-up: for callgrind and perf stat
    #[arg(long, value_name = "N")]
    requests: Option<u64>,

    /// List the works and do nothing
    #[arg(long)]
    list: bool,
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Engine(args) => engine(&args),
        Command::Cipher(args) => cipher(&args),
    }
}

fn cipher(args: &CipherArgs) -> Result<()> {
    ensure!(args.rounds > 1, "--rounds must be at least 2");
    ensure!(args.seconds > 0.0 && args.seconds <= 600.0, "--seconds must be in 0..600");
    let plan = cipher::Plan {
        rounds: args.rounds,
        sample: Duration::from_secs_f64(args.seconds),
        openssl: !args.no_openssl,
    };
    let figures = cipher::measure(plan, |_| {})?;
    print(&figures);
    Ok(())
}

fn engine(args: &EngineArgs) -> Result<()> {
    ensure!(args.rounds > 0, "--rounds must be at least 1");
    ensure!(args.seconds > 0.0 && args.seconds <= 600.0, "--seconds must be in 0..600");
    let wanted = |name: &str, filters: &[String]| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let mut works = Work::all();
    works.retain(|work| wanted(&work.name(), &args.work));
    if args.list {
        works.iter().for_each(|work| line(&work.name()));
        return Ok(());
    }
    let mut paths = vec![Path::Plain];
    for which in &args.cipher {
        paths.extend([4096, 512].map(|bytes| Path::Encrypted(bytes, *which)));
    }
    paths.retain(|path| wanted(&path.name(), &args.path));
    ensure!(!works.is_empty() && !paths.is_empty(), "nothing is called so: see --list");
    let plan = engine::Plan {
        works,
        paths,
        rounds: args.rounds,
        sample: Duration::from_secs_f64(args.seconds),
        requests: args.requests,
        queue_processors: [1, 0],
        driver_processor: 0,
    };
    let figures = engine::measure(&plan, |_| {})?;
    print(&figures);
    Ok(())
}

/// A table: a heading per parameters, a line per name, a column per unit.
fn print(figures: &[LayerFigure]) {
    let mut rest = figures;
    while let Some(first) = rest.first() {
        let end = rest.iter().position(|figure| figure.parameters != first.parameters);
        let (group, later) = rest.split_at(end.unwrap_or(rest.len()));
        rest = later;
        let parameters = first.parameters.iter().map(|(name, value)| format!("{name} {value}"));
        let mut units: Vec<&str> = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for figure in group {
            if !units.contains(&figure.unit.as_str()) {
                units.push(&figure.unit);
            }
            if !names.contains(&figure.name.as_str()) {
                names.push(&figure.name);
            }
        }
        let heads: String = units.iter().map(|unit| format!("{unit:>30}")).collect();
        line(&format!("{:<44}{heads}", parameters.collect::<Vec<_>>().join(", ")));
        for name in names {
            let cells: String = units.iter().map(|unit| cell(group, name, unit)).collect();
            line(&format!("  {name:<42}{cells}"));
        }
    }
}

/// `median (min..max)`
fn cell(group: &[LayerFigure], name: &str, unit: &str) -> String {
    let figure = group.iter().find(|figure| figure.name == name && figure.unit == unit);
    let text = figure.map(|figure| {
        let Spread { median, min, max } = figure.value;
        let digits = if max < 10.0 { 3 } else { 0 };
        format!("{median:.digits$} ({min:.digits$}..{max:.digits$})")
    });
    format!("{:>30}", text.unwrap_or_default())
}

fn line(text: &str) {
    // Nobody reads it any more: then nothing is lost.
    let _ = writeln!(std::io::stdout(), "{text}");
}
