//! `make bench`: what encryption costs, with one client for every server.
//!
//! Every server is pinned to one processor and the client to another; servers take turns within a
//! round, and ratios compare samples of the same round. docs/benchmarks.md tells the method, its
//! limits and the last results. Absent so far: layers below the whole system, a ceiling without a
//! server, the textbook baseline, other people's servers by command line, plots.

mod campaign;
mod load;
mod machine;
mod report;
mod servers;
mod statistics;
mod store;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use crate::store::Class;

/// Measures sealblk, encrypted and plain, beside qemu-storage-daemon, plain and LUKS.
#[derive(Debug, Parser)]
#[command(name = "sealblk-bench", version)]
struct Args {
    /// Storage to measure on: `disk` is a file with O_DIRECT, `memory` a loop device in RAM
    #[arg(long, value_enum, value_name = "CLASS", default_value = "both")]
    class: Classes,

    /// Rounds: every server is measured once in each
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,

    /// Length of one sample in seconds
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    seconds: f64,

    /// Depth 128, 1 MiB requests and 512-byte encryption sectors too; takes about three times as long
    #[arg(long)]
    full: bool,

    /// Where the results go as JSON [default: bench/result.json in cargo's target directory]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// `--class`
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Classes {
    Disk,
    Memory,
    Both,
}

impl Classes {
    fn list(self) -> &'static [Class] {
        match self {
            Self::Disk => &[Class::Disk],
            Self::Memory => &[Class::Memory],
            Self::Both => &[Class::Disk, Class::Memory],
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.rounds > 0, "--rounds must be at least 1");
    ensure!(args.seconds > 0.0 && args.seconds <= 600.0, "--seconds must be in 0..600");
    let plan = campaign::Plan {
        rounds: args.rounds,
        sample: Duration::from_secs_f64(args.seconds),
        full: args.full,
    };
    let machine = machine::Machine::look()?;
    let mut results = Vec::new();
    for &class in args.class.list() {
        results.push(campaign::measure(class, &plan)?);
    }
    report::print(&machine, &plan, &results);
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../target").into(), PathBuf::from);
    let path = args.output.unwrap_or_else(|| target.join("bench/result.json"));
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut text = serde_json::to_string_pretty(&report::json(&machine, &plan, &results))?;
    text.push('\n');
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    report::line(format!("All figures: {}", path.display()));
    Ok(())
}
