//! The table for the terminal.

use crate::guest::table;
use crate::results::{
    Class, Idle, Noise, Quantity, Ratio, Results, Sample, ServerSamples, Spread, Target, Verdict,
    Work,
};
use crate::rotation;
use crate::targets::{READY_AFTER_KEY_MS, RESIDENT_BYTES};

/// From this part of all processors' time on, others are worth a line.
const OTHERS: f64 = 0.02;

/// A line of the result.
#[expect(clippy::print_stdout, reason = "that is what the program is for")]
pub(crate) fn line(text: impl std::fmt::Display) {
    println!("{text}");
}

/// Everything.
pub(crate) fn print(results: &Results) {
    let (machine, plan) = (&results.machine, &results.plan);
    line(format!("{}, sealblk {}", machine.date, machine.sealblk));
    line(format!("{}; {}", machine.processor, machine.instructions));
    line(format!("{} processors, Linux {}; {}", machine.processors, machine.kernel, machine.qemu));
    line(format!(
        "Client on processor {}, {}; server on processor {}; {} rounds of {:.2} s (up to {} more \
         where noisy); median (min..max)",
        plan.client_processor,
        if plan.client_polls { "polling" } else { "sleeping" },
        plan.server_processor,
        plan.rounds,
        plan.seconds,
        plan.extra_rounds,
    ));
    for class in &results.classes {
        print_class(class, plan.noise_limit);
    }
    table::print(&results.guest, plan.noise_limit);
    rotation::print(&results.rotations);
    if let Some(idle) = &results.idle_daemons {
        line(format!(
            "\n{} idle daemons: {:.4} % of a processor all together; each {:.1} MiB resident, \
             {:.1} MiB of it its share (Pss)",
            idle.count,
            100.0 * idle.cpu_ns as f64 / idle.window_ns as f64,
            mib(idle.rss_bytes.median),
            mib(idle.pss_bytes.median),
        ));
    }
    line("");
}

fn print_class(class: &Class, limit: f64) {
    line(format!("\n=== {} storage: {}", class.class, class.storage));
    line(format!("A/A: the same server differs from itself by {}", noise(&class.noise)));
    if class.noise.noisy {
        line(format!("NOISY MACHINE: over {:.0} %, trust no small difference", limit * 100.0));
    }
    for work in &class.works {
        print_work(class, work);
    }
    print_idle(class);
}

fn noise(noise: &Noise) -> String {
    let mut text =
        format!("{:.1} % (median; worst {:.1} %)", noise.median * 100.0, noise.worst * 100.0);
    if noise.steal > OTHERS || noise.foreign > OTHERS {
        text += &format!(
            "; others had the processors: {:.0} % stolen by the hypervisor, {:.0} % other programs",
            noise.steal * 100.0,
            noise.foreign * 100.0
        );
    }
    text
}

fn print_work(class: &Class, work: &Work) {
    let mark = if work.noise.noisy { "   NOISY" } else { "" };
    line(format!("\n  {}   [A/A {}]{mark}", work.name, noise(&work.noise)));
    let has_service =
        work.servers.iter().flat_map(|one| &one.samples).any(|one| one.cpu.service > 0);
    line(format!(
        "    {:<36} {:>22} {:>8} {:>8} {:>8} {:>7} {:>7}{}",
        "",
        "1000 requests/s",
        "p50 us",
        "p99 us",
        "p99.9",
        "CPU us",
        "kernel",
        if has_service { "  storage" } else { "" },
    ));
    for samples in work.servers.iter().filter(|one| !one.samples.is_empty()) {
        let server = class.servers.iter().find(|server| server.id == samples.server);
        let name = server.map_or(samples.server.as_str(), |server| server.name.as_str());
        print_samples(name, samples, has_service);
    }
    for ratio in &work.ratios {
        print_ratio(ratio);
    }
}

fn print_samples(name: &str, samples: &ServerSamples, has_service: bool) {
    let median =
        |figure: fn(&Sample) -> f64| samples.spread(figure).map_or(0.0, |spread| spread.median);
    let iops = samples.spread(|sample| sample.iops / 1e3).map_or_else(String::new, |iops| {
        format!("{:.1} ({:.1}..{:.1})", iops.median, iops.min, iops.max)
    });
    let time = |figure: fn(&Sample) -> f64| match median(figure) {
        0.0 => "-".into(),
        ns => format!("{:.1}", ns / 1e3),
    };
    let service =
        if has_service { format!(" {:>8.2}", median(Sample::service_us)) } else { String::new() };
    line(format!(
        "    {name:<36} {iops:>22} {:>8} {:>8} {:>8} {:>7.2} {:>7.2}{service}",
        time(|sample| sample.p50_ns as f64),
        time(|sample| sample.p99_ns as f64),
        time(|sample| sample.p999_ns as f64),
        median(Sample::server_us),
        median(Sample::workers_us),
    ));
}

fn print_ratio(ratio: &Ratio) {
    let Spread { median, min, max } = ratio.spread;
    let sign = if ratio.quantity == Quantity::CpuUs { "+" } else { "" };
    let figure = if sign.is_empty() {
        format!("{median:.2} ({min:.2}..{max:.2})")
    } else {
        format!("{median:+.2} ({min:+.2}..{max:+.2})")
    };
    let target = ratio.target.as_ref().map(target).unwrap_or_default();
    line(format!("      {figure:<22} {:<74}{target}", ratio.name));
}

/// A target in words.
pub(crate) fn target(target: &Target) -> String {
    let sign = if target.at_least { ">=" } else { "<=" };
    format!(" {sign} {:.2} {}", target.limit, verdict(target.verdict))
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Missed => "MISSED",
        Verdict::Undecided => "undecided (noise)",
    }
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

fn print_idle(class: &Class) {
    if class.servers.iter().all(|server| server.idle.is_none()) {
        return;
    }
    line("\n  Idle after load, client connected; start");
    line(format!(
        "    {:<36} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "", "CPU us/s", "own MiB", "of files", "start ms", "after key"
    ));
    // Issue 5's limits are for a file; the libraries of other storage take more by themselves.
    let is_local = !matches!(class.class.as_str(), "rbd" | "iscsi");
    for server in &class.servers {
        let Some(idle) = &server.idle else { continue };
        let has_limits = is_local && server.id == "sealblk-4096";
        line(format!(
            "    {:<36} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10}{}",
            server.name,
            idle.cpu_ns as f64 * 1e6 / idle.window_ns as f64,
            mib(idle.own_bytes() as f64),
            mib(idle.file_bytes as f64),
            idle.start_ms,
            idle.ready_after_key_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.2}")),
            if has_limits { idle_verdict(idle) } else { String::new() },
        ));
    }
}

/// Issue 5: 24 MiB, 50 ms, no processor time.
fn idle_verdict(idle: &Idle) -> String {
    let say = |met: bool| verdict(if met { Verdict::Ok } else { Verdict::Missed });
    let ready = idle.ready_after_key_ms.unwrap_or(idle.start_ms);
    format!(
        "  CPU 0: {}; <= {} MiB: {}; <= {READY_AFTER_KEY_MS:.0} ms: {}",
        say(idle.cpu_ns == 0),
        RESIDENT_BYTES >> 20,
        say(idle.own_bytes() <= RESIDENT_BYTES),
        say(ready <= READY_AFTER_KEY_MS),
    )
}
