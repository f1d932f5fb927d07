//! The results: a table for people, JSON for programs.

use serde_json::{Value, json};

use crate::campaign::{Cell, ClassResult, Plan, WorkResult};
use crate::machine::{CLIENT, Machine, SERVER};
use crate::statistics::Spread;

/// From here on the same server differs too much from itself.
const NOISY: f64 = 0.05;

/// A line of the result.
#[expect(clippy::print_stdout, reason = "that is what the program is for")]
pub(crate) fn line(text: impl std::fmt::Display) {
    println!("{text}");
}

/// The table.
pub(crate) fn print(machine: &Machine, plan: &Plan, results: &[ClassResult]) {
    line(format!("{}, sealblk {}", machine.date, machine.commit));
    line(format!("{}; {}", machine.processor, machine.instructions));
    line(format!("{} processors, Linux {}; {}", machine.processors, machine.kernel, machine.qemu));
    line(format!(
        "One queue; client on processor {CLIENT}, server on processor {SERVER}; {} rounds of \
         {:.1} s; median (min..max)",
        plan.rounds,
        plan.sample.as_secs_f64()
    ));
    for result in results {
        line(format!("\n{} storage: {}", result.class.name(), result.class.description()));
        line(noise(result));
        for work in &result.works {
            print_work(work);
        }
    }
    line("");
}

fn noise(result: &ClassResult) -> String {
    let Some(noise) = result.noise() else { return "A/A: not measured".into() };
    let text = format!(
        "A/A: the same server differs from itself by {:.1} % (median; worst {:.1} %)",
        noise.median * 100.0,
        noise.max * 100.0
    );
    if is_noisy(&noise) {
        format!("{text}\nNOISY MACHINE: over {:.0} %, trust no small difference", NOISY * 100.0)
    } else {
        text
    }
}

fn is_noisy(noise: &Spread) -> bool {
    noise.median > NOISY
}

fn print_work(result: &WorkResult) {
    line(format!("\n  {}", result.work.name()));
    line(format!(
        "    {:<40} {:>24} {:>9} {:>9} {:>8}",
        "", "1000 requests/s", "p50 us", "p99 us", "CPU us"
    ));
    for cell in &result.cells {
        let median = |figure: fn(&Cell) -> Option<Spread>| figure(cell).map_or(0.0, |s| s.median);
        let iops = cell.spread(|sample| sample.iops / 1e3).map_or_else(String::new, |iops| {
            format!("{:.1} ({:.1}..{:.1})", iops.median, iops.min, iops.max)
        });
        line(format!(
            "    {:<40} {iops:>24} {:>9.1} {:>9.1} {:>8.2}",
            cell.kind.name(),
            median(|cell| cell.spread(|sample| f64::from(sample.p50) / 1e3)),
            median(|cell| cell.spread(|sample| f64::from(sample.p99) / 1e3)),
            cell.cpu_us()
        ));
    }
    for (name, ratio) in result.ratios() {
        let Spread { median, min, max } = ratio;
        line(format!("      {median:5.2} ({min:.2}..{max:.2})  {name}"));
    }
    if let Some(Spread { median, min, max }) = Spread::of(&result.noise()) {
        line(format!("      {median:5.2} ({min:.2}..{max:.2})  A/A: the first server, twice"));
    }
}

/// Everything measured, every sample included.
pub(crate) fn json(machine: &Machine, plan: &Plan, results: &[ClassResult]) -> Value {
    json!({
        "machine": {
            "date": machine.date,
            "processor": machine.processor,
            "processors": machine.processors,
            "instructions": machine.instructions,
            "kernel": machine.kernel,
            "qemu": machine.qemu,
            "sealblk": machine.commit,
        },
        "plan": {
            "rounds": plan.rounds,
            "seconds": plan.sample.as_secs_f64(),
            "queues": 1,
            "client_processor": CLIENT,
            "server_processor": SERVER,
        },
        "classes": results.iter().map(class_json).collect::<Vec<_>>(),
    })
}

fn class_json(result: &ClassResult) -> Value {
    json!({
        "class": result.class.name(),
        "storage": result.class.description(),
        "noise": result.noise().map(|noise| json!({
            "median": noise.median, "worst": noise.max, "noisy": is_noisy(&noise),
        })),
        "works": result.works.iter().map(|work| json!({
            "name": work.work.name(),
            "write": work.work.write,
            "random": work.work.random,
            "block_bytes": work.work.block_bytes,
            "depth": work.work.depth,
            "servers": work.cells.iter().map(cell_json).collect::<Vec<_>>(),
            "again": cell_json(&work.again),
            "ratios": work.ratios().into_iter().map(|(name, spread)| json!({
                "name": name, "median": spread.median, "min": spread.min, "max": spread.max,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn cell_json(cell: &Cell) -> Value {
    json!({
        "server": cell.kind.name(),
        "cpu_us_per_request": cell.cpu_us(),
        "samples": cell.samples.iter().map(|sample| json!({
            "requests_per_second": sample.iops,
            "requests": sample.requests,
            "p50_ns": sample.p50,
            "p99_ns": sample.p99,
            "cpu_ns": u64::try_from(sample.cpu.as_nanos()).unwrap_or(u64::MAX),
        })).collect::<Vec<_>>(),
    })
}
