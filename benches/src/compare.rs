//! One server beside another: ratios and differences within the same round, and the noise.

use crate::results::{
    CipherClass, Noise, Quantity, Ratio, Sample, Server, ServerSamples, Spread, Work,
};
use crate::statistics::per_round;
use crate::targets::target;

impl ServerSamples {
    /// A figure of each round.
    pub(crate) fn figures(&self, figure: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().map(figure).collect()
    }

    /// Median and extremes of a figure over the rounds.
    pub(crate) fn spread(&self, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(&self.figures(figure))
    }
}

impl Sample {
    /// Microseconds of the server's processor per request.
    pub(crate) fn server_us(&self) -> f64 {
        self.cpu.server as f64 / 1e3 / self.requests as f64
    }

    /// Microseconds per request of the process that keeps the data.
    pub(crate) fn service_us(&self) -> f64 {
        self.cpu.service as f64 / 1e3 / self.requests as f64
    }

    /// Part of one processor that the server had.
    pub(crate) fn busy(&self) -> f64 {
        self.server_us() * self.iops / 1e6
    }

    /// Microseconds of the kernel's threads per request.
    pub(crate) fn workers_us(&self) -> f64 {
        self.cpu.workers as f64 / 1e3 / self.requests as f64
    }
}

/// qemu-storage-daemon has two ways to do I/O; the better one of each round counts.
const PAIRS: &[(&str, &str)] = &[
    ("qemu-plain", "qemu-storage-daemon plain, the better aio"),
    ("qemu-luks", "qemu-storage-daemon LUKS, the better aio"),
];

/// Who is compared with whom by requests per second.
fn opponents(server: &str, servers: &[Server]) -> Vec<String> {
    let fixed: &[&str] = match server {
        "sealblk-4096" => &[
            "sealblk-plain",
            "raw",
            "fio-rbd",
            "iscsi-perf",
            "qemu-plain",
            "qemu-luks",
            "qemu-librbd-luks",
            "textbook-4096",
        ],
        // Peers with sectors of 512 bytes, and what smaller sectors cost.
        "sealblk-512" => &["sealblk-plain", "sealblk-4096", "qemu-luks"],
        "sealblk-plain" => &["raw", "fio-rbd", "iscsi-perf", "qemu-plain"],
        _ => &[],
    };
    let known = ["sealblk-", "qemu-", "textbook-", "raw", "fio-rbd", "iscsi-perf"];
    let is_other = |id: &&Server| !known.iter().any(|known| id.id.starts_with(known));
    let others = servers.iter().filter(is_other).map(|server| server.id.clone());
    let others = others.filter(|_| server == "sealblk-4096");
    fixed.iter().map(|&id| id.to_owned()).chain(others).collect()
}

/// A figure of each round of a server, or the better one of a pair's.
fn figures(
    work: &Work,
    id: &str,
    figure: fn(&Sample) -> f64,
    better: fn(f64, f64) -> f64,
) -> Option<Vec<f64>> {
    let exactly = |id: &str| {
        let samples = work.servers.iter().find(|one| one.server == id)?;
        Some(samples.figures(figure))
    };
    if !PAIRS.iter().any(|(pair, _)| *pair == id) {
        return exactly(id);
    }
    match (exactly(&format!("{id}-io_uring")), exactly(&format!("{id}-native"))) {
        (Some(one), Some(other)) => Some(per_round(&one, &other, better)),
        (one, other) => one.or(other).or_else(|| exactly(id)),
    }
}

/// All comparisons of a work.
pub(crate) fn ratios(
    class: &str,
    cipher: CipherClass,
    work: &Work,
    servers: &[Server],
) -> Vec<Ratio> {
    let name = |id: &str| {
        let pair = PAIRS.iter().find(|(pair, _)| *pair == id).map(|(_, name)| (*name).to_owned());
        let server = servers.iter().find(|server| server.id == id);
        server.map(|server| server.name.clone()).or(pair).unwrap_or_else(|| id.into())
    };
    let mut all = Vec::new();
    let mut add = |server: &str, other: &str, quantity: Quantity, rounds: Option<Vec<f64>>| {
        let Some(rounds) = rounds else { return };
        let Some(spread) = Spread::of(&rounds) else { return };
        let what = match quantity {
            Quantity::Iops => format!("{} / {}", name(server), name(other)),
            Quantity::Latency => format!("p50 of {} / {}", name(server), name(other)),
            Quantity::CpuUs => format!("us CPU: {} - {}", name(server), name(other)),
            Quantity::Scaling => format!("two queues / one: {}", name(server)),
        };
        let target = target(class, cipher, work, (server, other), quantity, &rounds);
        all.push(Ratio {
            name: what,
            server: server.into(),
            other: other.into(),
            quantity,
            spread,
            rounds,
            target,
        });
    };
    for server in ["sealblk-4096", "sealblk-512", "sealblk-plain"] {
        let Some(iops) = figures(work, server, |sample| sample.iops, f64::max) else { continue };
        for other in opponents(server, servers) {
            let theirs = figures(work, &other, |sample| sample.iops, f64::max);
            let ratio = theirs.map(|theirs| per_round(&iops, &theirs, |a, b| a / b));
            add(server, &other, Quantity::Iops, ratio);
        }
        if server != "sealblk-plain" {
            let other = "sealblk-plain";
            let cpu = |id| figures(work, id, Sample::server_us, f64::min);
            let more = cpu(server).zip(cpu(other)).map(|(a, b)| per_round(&a, &b, |a, b| a - b));
            add(server, other, Quantity::CpuUs, more);
        }
        if server == "sealblk-4096" && work.depth == 1 {
            let other = "qemu-plain";
            let p50 = |id| figures(work, id, |sample| sample.p50_ns as f64, f64::min);
            let ratio = p50(server).zip(p50(other)).map(|(a, b)| per_round(&a, &b, |a, b| a / b));
            add(server, other, Quantity::Latency, ratio);
        }
    }
    all
}

/// What a second queue brings: `two` beside `one`, measured in the same rounds.
pub(crate) fn scaling(
    class: &str,
    cipher: CipherClass,
    one: &Work,
    two: &mut Work,
    names: &[Server],
) {
    let mut added = Vec::new();
    for samples in &two.servers {
        let iops = |sample: &Sample| sample.iops;
        let Some(single) = one.servers.iter().find(|one| one.server == samples.server) else {
            continue;
        };
        let rounds = per_round(&samples.figures(iops), &single.figures(iops), |a, b| a / b);
        let Some(spread) = Spread::of(&rounds) else { continue };
        let id = samples.server.clone();
        let server = names.iter().find(|server| server.id == id);
        let name = server.map_or_else(|| id.clone(), |server| server.name.clone());
        let target = target(class, cipher, two, (&id, &id), Quantity::Scaling, &rounds);
        added.push(Ratio {
            name: format!("two queues / one: {name}"),
            server: id.clone(),
            other: id,
            quantity: Quantity::Scaling,
            spread,
            rounds,
            target,
        });
    }
    two.ratios.extend(added);
}

/// How far the first server differed from itself, per round: |ratio - 1|.
pub(crate) fn differences(work: &Work) -> Vec<f64> {
    let iops = |sample: &Sample| sample.iops;
    let first = work.servers.first().map(|first| first.figures(iops)).unwrap_or_default();
    per_round(&work.again.figures(iops), &first, |again, first| (again / first - 1.0).abs())
}

/// The noise from differences of a server with itself.
pub(crate) fn noise(differences: &[f64], limit: f64, steal: f64, foreign: f64) -> Noise {
    let spread = Spread::of(differences).unwrap_or(Spread { median: 0.0, min: 0.0, max: 0.0 });
    Noise { median: spread.median, worst: spread.max, noisy: spread.median > limit, steal, foreign }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{CpuNs, Pattern, Verdict};

    fn samples(server: &str, iops: &[f64], cpu_us: u64) -> ServerSamples {
        let sample = |&iops: &f64| Sample {
            iops,
            p50_ns: (1e9 / iops) as u64,
            p99_ns: 2,
            p999_ns: 3,
            requests: 1000,
            cpu: CpuNs { server: cpu_us * 1_000_000, ..CpuNs::default() },
        };
        ServerSamples { server: server.into(), samples: iops.iter().map(sample).collect() }
    }

    fn work() -> Work {
        Work {
            name: "w".into(),
            pattern: Pattern { writes_percent: 0, random: true },
            block_bytes: 4096,
            depth: 1,
            queues: 1,
            both_processors: false,
            servers: vec![
                samples("sealblk-4096", &[90.0, 40.0], 3),
                samples("sealblk-plain", &[100.0, 50.0], 2),
                samples("qemu-plain-io_uring", &[45.0, 10.0], 1),
                samples("qemu-plain-native", &[30.0, 20.0], 1),
            ],
            again: samples("sealblk-4096", &[99.0, 36.0], 3),
            ratios: Vec::new(),
            noise: noise(&[0.0], 0.05, 0.0, 0.0),
        }
    }

    fn one(server: &str, other: &str, quantity: Quantity) -> Ratio {
        let all = ratios("disk", CipherClass::Vaes512, &work(), &[]);
        let mut found = all.into_iter().filter(|ratio| {
            (ratio.server.as_str(), ratio.other.as_str(), ratio.quantity)
                == (server, other, quantity)
        });
        found.next().unwrap()
    }

    #[test]
    fn the_better_peer_of_each_round_is_compared_with() {
        let ratio = one("sealblk-4096", "qemu-plain", Quantity::Iops);
        assert_eq!(ratio.rounds, [2.0, 2.0]);
        let latency = one("sealblk-4096", "qemu-plain", Quantity::Latency);
        assert!(latency.rounds.iter().all(|ratio| (ratio - 0.5).abs() < 1e-6), "{latency:?}");
    }

    #[test]
    fn a_ratio_is_held_against_its_target() {
        let ratio = one("sealblk-4096", "sealblk-plain", Quantity::Iops);
        assert_eq!(ratio.rounds, [0.9, 0.8]);
        assert_eq!(ratio.target.unwrap().verdict, Verdict::Missed);
        assert_eq!(one("sealblk-4096", "sealblk-plain", Quantity::CpuUs).rounds, [1.0, 1.0]);
    }

    #[test]
    fn who_was_not_measured_is_not_compared() {
        let all = ratios("disk", CipherClass::Vaes512, &work(), &[]);
        assert!(all.iter().all(|ratio| ratio.other != "raw" && ratio.other != "qemu-luks"));
    }

    #[test]
    fn noise_is_how_far_a_server_is_from_itself() {
        let found = noise(&differences(&work()), 0.05, 0.0, 0.0);
        assert!((found.median - 0.1).abs() < 1e-9, "{found:?}");
        assert!(found.noisy);
    }

    #[test]
    fn a_second_queue_is_compared_with_the_first() {
        let (one, mut two) = (work(), Work { queues: 2, ..work() });
        two.servers = vec![samples("sealblk-4096", &[180.0, 60.0], 3)];
        scaling("memory", CipherClass::Vaes512, &one, &mut two, &[]);
        assert_eq!(two.ratios[0].rounds, [2.0, 1.5]);
        assert_eq!(two.ratios[0].quantity, Quantity::Scaling);
    }
}
