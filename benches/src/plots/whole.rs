//! Plots of one kind of storage: overhead, latency, processor time.

use super::bars::{Bar, Bars};
use super::lines::{Line, Panels};
use super::text::{escape, number, time};
use crate::results::{Class, Noise, Quantity, Ratio, Sample, ServerSamples, Spread, Work};

/// Colours of the known servers; others share the last.
const COLOURS: [&str; 9] = [
    "sealblk-4096",
    "sealblk-512",
    "sealblk-plain",
    "qemu-plain-io_uring",
    "qemu-plain-native",
    "qemu-luks-io_uring",
    "qemu-luks-native",
    "textbook-4096",
    "raw",
];

/// One kind of storage.
pub(crate) fn class(class: &Class) -> String {
    let title = format!("{} storage", class.class);
    let mut html = format!("<h2>{}</h2>\n", escape(&title));
    html += &format!("<p class=\"note\">{}</p>\n", escape(&class.storage));
    html += &noise(&class.noise);
    html += "<h3>Requests per second, relative to others in the same round</h3>\n\
             <p class=\"note\">Median; the line spans the rounds; dashed: the target.</p>\n";
    html += &overhead(class, &title).svg();
    for (queues, pattern) in families(class) {
        html += &latency(class, queues, &pattern);
    }
    html += "<h3>Processor time per request</h3>\n\
             <p class=\"note\">The server's process with its io_uring workers, and the kernel's own \
             threads.</p>\n";
    html + &processor(class, &title).svg()
}

/// How far figures of the same thing differ.
pub(crate) fn noise(noise: &Noise) -> String {
    let (mark, word) = if noise.noisy { (" noisy", "<b>Noisy machine</b>: t") } else { ("", "T") };
    format!(
        "<div class=\"box{mark}\">{word}he same server differs from itself by {:.1} % (median; \
         worst {:.1} %). The hypervisor gave {:.1} % of the time to others, other programs took \
         {:.1} %.</div>\n",
        noise.median * 100.0,
        noise.worst * 100.0,
        noise.steal * 100.0,
        noise.foreign * 100.0
    )
}

fn overhead(class: &Class, title: &str) -> Bars {
    let group = |work: &Work| {
        let ratios = work.ratios.iter().filter(|ratio| ratio.quantity == Quantity::Iops);
        (work.name.clone(), ratios.map(ratio_bar).collect::<Vec<_>>())
    };
    let groups = class.works.iter().map(group).filter(|group| !group.1.is_empty());
    Bars {
        title: format!("Requests per second relative to others, {title}"),
        unit: "times the requests per second of the other".to_owned(),
        groups: groups.collect(),
        legend: Vec::new(),
    }
}

fn ratio_bar(ratio: &Ratio) -> Bar {
    let Spread { median, min, max } = ratio.spread;
    Bar {
        label: format!("{} / {}", ratio.server, ratio.other),
        parts: vec![(median, colour(&ratio.server))],
        spread: Some((min, max)),
        text: format!("{} ({}..{})", number(median), number(min), number(max)),
        goal: ratio.target.map(|target| target.limit),
    }
}

/// Works that differ by depth alone: the same queues, and the same name up to the depth.
fn families(class: &Class) -> Vec<(usize, String)> {
    let mut all: Vec<(usize, String)> = Vec::new();
    for work in &class.works {
        let family = (work.queues, family(work).to_owned());
        if !all.contains(&family) {
            all.push(family);
        }
    }
    all
}

fn family(work: &Work) -> &str {
    work.name.split(", qd").next().unwrap_or(&work.name)
}

fn latency(class: &Class, queues: usize, name: &str) -> String {
    let is_one = |work: &&Work| work.queues == queues && family(work) == name;
    let mut works: Vec<&Work> = class.works.iter().filter(is_one).collect();
    works.sort_by_key(|work| work.depth);
    if works.len() < 2 {
        return String::new();
    }
    type Figure = fn(&Sample) -> f64;
    let quantiles: [(&str, Figure); 3] = [
        ("median", |sample| sample.p50_ns as f64),
        ("p99", |sample| sample.p99_ns as f64),
        ("p99.9", |sample| sample.p999_ns as f64),
    ];
    let panels = quantiles.into_iter().map(|(head, figure)| {
        let lines = class.servers.iter().filter_map(|server| {
            let points: Vec<(usize, f64)> = works
                .iter()
                .enumerate()
                .filter_map(|(place, work)| {
                    let of = work.servers.iter().find(|samples| samples.server == server.id)?;
                    Some((place, median(of, figure)?))
                })
                .collect();
            let line = Line { name: server.name.clone(), colour: colour(&server.id), points };
            (!line.points.is_empty()).then_some(line)
        });
        (head.to_owned(), lines.collect())
    });
    let queue = if queues > 1 { format!(", {queues} queues") } else { String::new() };
    let title = format!("Latency: {name}{queue}");
    let panels = Panels {
        title: title.clone(),
        places: works.iter().map(|work| format!("qd {}", work.depth)).collect(),
        panels: panels.collect(),
    };
    format!("<h3>{}</h3>\n{}", escape(&title), panels.svg())
}

fn processor(class: &Class, title: &str) -> Bars {
    let group = |work: &Work| {
        let bars = work.servers.iter().filter_map(|samples| {
            let per = |ns: u64, requests: u64| ns as f64 / 1e3 / requests.max(1) as f64;
            let server = median(samples, |one| per(one.cpu.server, one.requests))?;
            let workers = median(samples, |one| per(one.cpu.workers, one.requests))?;
            let found = class.servers.iter().find(|server| server.id == samples.server);
            Some(Bar {
                label: found.map_or(&samples.server, |server| &server.name).clone(),
                parts: vec![(server, 0), (workers, 3)],
                spread: None,
                text: format!("{} + {} µs", number(server), number(workers)),
                goal: None,
            })
        });
        (work.name.clone(), bars.collect())
    };
    Bars {
        title: format!("Processor time per request, {title}"),
        unit: "microseconds per request".to_owned(),
        groups: class.works.iter().map(group).collect(),
        legend: vec![("server".to_owned(), 0), ("kernel's threads".to_owned(), 3)],
    }
}

/// Of the rounds; none without a round.
fn median(samples: &ServerSamples, figure: impl Fn(&Sample) -> f64) -> Option<f64> {
    let figures: Vec<f64> = samples.samples.iter().map(figure).collect();
    Spread::of(&figures).map(|spread| spread.median)
}

pub(crate) fn colour(server: &str) -> usize {
    COLOURS.iter().position(|known| *known == server).unwrap_or(COLOURS.len())
}

/// `median (min..max)` of times in nanoseconds.
pub(crate) fn times(spread: Spread) -> String {
    format!("{} ({}..{})", time(spread.median), time(spread.min), time(spread.max))
}
