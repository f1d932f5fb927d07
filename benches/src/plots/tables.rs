//! What is no plot: the machine, verdicts on targets, the guest, idle daemons.

use std::fmt::Write as _;

use super::text::{escape, number};
use super::whole::times;
use crate::results::{GuestWork, IdleDaemons, Quantity, Results, RotationCase, Spread, Verdict};

/// Where the figures come from and how they were taken.
pub(crate) fn machine(results: &Results) -> String {
    let (machine, plan) = (&results.machine, &results.plan);
    let client = if plan.client_polls { "polling" } else { "sleeping" };
    let how = format!(
        "{} rounds of {} s (up to {} more where noisy) after {} s of warm-up; client {client} on \
         processor {}, server on processor {}",
        plan.rounds,
        plan.seconds,
        plan.extra_rounds,
        plan.warm_up_seconds,
        plan.client_processor,
        plan.server_processor
    );
    let rows = [
        ("date", machine.date.clone()),
        ("sealblk", machine.sealblk.clone()),
        ("processor", format!("{} × {}", machine.processors, machine.processor)),
        ("instructions", machine.instructions.clone()),
        ("kernel", machine.kernel.clone()),
        ("QEMU", machine.qemu.clone()),
        ("method", how),
    ];
    let mut html = "<div class=\"box\"><dl>\n".to_owned();
    for (name, value) in rows {
        let _ = writeln!(html, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    html + "</dl></div>\n"
}

/// Every target and what became of it.
pub(crate) fn verdicts(results: &Results) -> String {
    let mut rows = String::new();
    for class in &results.classes {
        for work in &class.works {
            for ratio in &work.ratios {
                let Some(target) = ratio.target else { continue };
                let (style, mark, word) = match target.verdict {
                    Verdict::Ok => ("ok", '✓', "reached"),
                    Verdict::Missed => ("missed", '✗', "missed"),
                    Verdict::Undecided => ("undecided", '?', "undecided"),
                };
                let what = match ratio.quantity {
                    Quantity::Iops => "requests/s",
                    Quantity::Latency => "latency",
                    Quantity::CpuUs => "µs CPU more",
                    Quantity::Scaling => "second queue",
                };
                let sign = if target.at_least { '≥' } else { '≤' };
                let spread = ratio.spread;
                let _ = writeln!(
                    rows,
                    "<tr><td>{}</td><td class=\"w\">{}</td><td>{} / {}</td><td>{what}</td>\
                     <td class=\"n\">{sign} {}</td><td class=\"n\">{} ({}..{})</td><td class=\"{style} w\">{mark} \
                     {word}</td></tr>",
                    escape(&class.class),
                    escape(&work.name),
                    escape(&ratio.server),
                    escape(&ratio.other),
                    number(target.limit),
                    number(spread.median),
                    number(spread.min),
                    number(spread.max)
                );
            }
        }
    }
    let heads = ["storage", "work", "what", "quantity", "!target", "!measured", "verdict"];
    table("Targets", "", &heads, &rows)
}

/// fio inside a guest.
pub(crate) fn guest(works: &[GuestWork]) -> String {
    let mut rows = String::new();
    for work in works {
        let iops = work.iops;
        let ratio = work.over_plain.map_or_else(String::new, |ratio| number(ratio.median));
        let _ = writeln!(
            rows,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{:.0} ({:.0}..{:.0})</td><td \
             class=\"n\">{ratio}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            escape(&work.work),
            escape(&work.server),
            iops.median,
            iops.min,
            iops.max,
            times(work.p50_ns),
            times(work.p99_ns),
            escape(&work.accelerator)
        );
    }
    let note =
        "Under TCG the guest itself is the bottleneck: servers differ less here than they do.";
    let heads =
        ["work", "server", "!requests/s", "!/ sealblk-plain", "!median", "!p99", "accelerator"];
    table("fio inside a guest", note, &heads, &rows)
}

/// Rotations of keys.
pub(crate) fn rotations(cases: &[RotationCase]) -> String {
    let mut rows = String::new();
    for case in cases {
        for figure in &case.figures {
            let Spread { median, min, max } = figure.value;
            let noise = figure.noise.map_or_else(String::new, |noise| number(noise * 100.0));
            let target = figure.target.as_ref().map(crate::report::target).unwrap_or_default();
            let _ = writeln!(
                rows,
                "<tr><td>{}, {}-byte sectors, {}</td><td>{}</td><td class=\"n\">{} ({}..{})</td><td \
                 class=\"n\">{noise}</td><td>{}</td></tr>",
                escape(&case.class),
                case.sector_bytes,
                escape(&case.resilience),
                escape(&figure.name),
                number(median),
                number(min),
                number(max),
                escape(&target)
            );
        }
    }
    let heads = ["volume", "figure", "!median (lowest..highest)", "!A/A %", "target"];
    table("Rotation of a volume's key", "", &heads, &rows)
}

/// Many idle daemons.
pub(crate) fn idle_daemons(idle: Option<&IdleDaemons>) -> String {
    let Some(idle) = idle else { return String::new() };
    let mib = |bytes: f64| number(bytes / f64::from(1 << 20));
    format!(
        "<h2>Idle daemons</h2>\n<p>{} at once took {} % of a processor; each {} MiB resident, {} \
         MiB of it its share of what they have in common.</p>\n",
        idle.count,
        number(100.0 * idle.cpu_ns as f64 / idle.window_ns.max(1) as f64),
        mib(idle.rss_bytes.median),
        mib(idle.pss_bytes.median)
    )
}

/// Nothing without rows. A heading that starts with `!` stands over numbers.
fn table(title: &str, note: &str, heads: &[&str], rows: &str) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let heads = heads.iter().map(|head| match head.strip_prefix('!') {
        Some(head) => format!("<th class=\"n\">{head}</th>"),
        None => format!("<th>{head}</th>"),
    });
    let heads: String = heads.collect();
    let note =
        if note.is_empty() { String::new() } else { format!("<p class=\"note\">{note}</p>") };
    format!(
        "<h2>{title}</h2>\n{note}<div class=\"scroll\"><table><thead><tr>{heads}</tr></thead>\
         <tbody>\n{rows}</tbody></table></div>\n"
    )
}
