//! The targets of issue 5 ("The speed") and of issue 7 ("Measured"), and when one counts as reached.
//!
//! A target is reached when at least four of five rounds say so, missed when at most one of five
//! does, else undecided. A noisy work decides nothing that is nearer to the limit than its noise.

use crate::results::{
    CipherClass, Noise, Quantity, Sample, ServerSamples, Spread, Target, Verdict, Work,
};

/// Megabytes, milliseconds, nanoseconds that an idle server may take.
pub(crate) const RESIDENT_BYTES: u64 = 24 << 20;
pub(crate) const READY_AFTER_KEY_MS: f64 = 50.0;

/// From this part of its processor on a server is limited by it.
const PROCESSOR_BOUND: f64 = 0.9;

/// Issue 7's limits: encrypted over the others, all from below.
fn network(class: &str, work: &Work, other: &str) -> Option<f64> {
    let id = |one: &&ServerSamples| one.server == "qemu-luks";
    match other {
        "sealblk-plain" => Some(0.97),
        "fio-rbd" if class == "rbd" => Some(1.0),
        "qemu-librbd-luks" => Some(1.3),
        "qemu-luks" => {
            let busy = work.servers.iter().find(id)?.spread(Sample::busy)?.median;
            (busy >= PROCESSOR_BOUND).then_some(2.0)
        }
        _ => None,
    }
}

/// The limit for what is compared, where an issue has one; whether it is one from below.
fn limit(
    class: &str,
    cipher: CipherClass,
    work: &Work,
    (server, other): (&str, &str),
    quantity: Quantity,
) -> Option<(f64, bool)> {
    if matches!(class, "rbd" | "iscsi") {
        let ours = server == "sealblk-4096" && quantity == Quantity::Iops;
        return ours.then(|| network(class, work, other)).flatten().map(|limit| (limit, true));
    }
    let by_cipher = |vaes512, vaes256, aes_ni| match cipher {
        CipherClass::Vaes512 => vaes512,
        CipherClass::Vaes256 => vaes256,
        CipherClass::AesNi | CipherClass::None => aes_ni,
    };
    let small = work.pattern.random && work.block_bytes == 4096;
    if quantity == Quantity::Scaling {
        return (small && server == "sealblk-4096").then_some((1.8, true));
    }
    // The two-queue works are there for the scaling alone.
    if work.both_processors {
        return None;
    }
    let deep = small && matches!(work.depth, 32 | 128);
    let any_depth = small && matches!(work.depth, 1 | 32 | 128);
    let sequential = !work.pattern.random && work.block_bytes == 64 << 10;
    match (class, server, other, quantity) {
        ("disk", "sealblk-4096", "sealblk-plain", Quantity::Iops) if any_depth => {
            Some((0.97, true))
        }
        ("disk", "sealblk-4096", "raw", Quantity::Iops) if any_depth => Some((0.95, true)),
        ("memory", "sealblk-4096", "sealblk-plain", Quantity::Iops) if deep => {
            Some((by_cipher(0.88, 0.82, 0.75), true))
        }
        ("memory", "sealblk-4096", "sealblk-plain", Quantity::CpuUs) if deep => {
            Some((by_cipher(0.4, 0.55, 0.9), false))
        }
        ("memory", "sealblk-512", "sealblk-plain", Quantity::CpuUs) if deep => {
            Some((by_cipher(0.8, 1.0, 1.4), false))
        }
        ("memory", "sealblk-4096", "qemu-plain", Quantity::Iops) if small && work.depth == 32 => {
            Some((by_cipher(1.2, 1.1, 1.1), true))
        }
        ("memory", "sealblk-4096", "qemu-luks", Quantity::Iops) if small && work.depth == 32 => {
            Some((by_cipher(4.0, 3.5, 3.5), true))
        }
        ("memory", "sealblk-4096", "qemu-luks", Quantity::Iops) if sequential => Some((8.0, true)),
        (_, "sealblk-4096", "qemu-plain", Quantity::Latency) if small && work.depth == 1 => {
            Some((1.15, false))
        }
        _ => None,
    }
}

/// The target for a figure with a value per round, and what became of it.
pub(crate) fn target(
    class: &str,
    cipher: CipherClass,
    work: &Work,
    servers: (&str, &str),
    quantity: Quantity,
    rounds: &[f64],
) -> Option<Target> {
    let (limit, at_least) = limit(class, cipher, work, servers, quantity)?;
    let verdict = verdict(limit, at_least, rounds, &work.noise);
    Some(Target { limit, at_least, verdict })
}

/// What came of a target, given a value of each round.
pub(crate) fn verdict(limit: f64, at_least: bool, rounds: &[f64], noise: &Noise) -> Verdict {
    let Some(spread) = Spread::of(rounds) else { return Verdict::Undecided };
    if noise.noisy && (spread.median / limit - 1.0).abs() <= noise.median {
        return Verdict::Undecided;
    }
    let meets = |value: &&f64| if at_least { **value >= limit } else { **value <= limit };
    let (met, all) = (rounds.iter().filter(meets).count(), rounds.len());
    if met * 5 >= all * 4 {
        Verdict::Ok
    } else if met * 5 <= all {
        Verdict::Missed
    } else {
        Verdict::Undecided
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{CpuNs, Pattern};

    fn noise(median: f64) -> Noise {
        Noise { median, worst: median, noisy: median > 0.05, steal: 0.0, foreign: 0.0 }
    }

    fn work(depth: usize) -> Work {
        Work {
            name: String::new(),
            pattern: Pattern { writes_percent: 0, random: true },
            block_bytes: 4096,
            depth,
            queues: 1,
            both_processors: false,
            servers: Vec::new(),
            again: ServerSamples { server: String::new(), samples: Vec::new() },
            ratios: Vec::new(),
            noise: noise(0.01),
        }
    }

    #[test]
    fn limits_depend_on_the_processor_and_on_the_class() {
        let of = |class, cipher, depth| {
            let servers = ("sealblk-4096", "sealblk-plain");
            limit(class, cipher, &work(depth), servers, Quantity::Iops)
        };
        assert_eq!(of("memory", CipherClass::Vaes512, 32), Some((0.88, true)));
        assert_eq!(of("memory", CipherClass::AesNi, 128), Some((0.75, true)));
        assert_eq!(of("memory", CipherClass::Vaes512, 1), None);
        assert_eq!(of("disk", CipherClass::Vaes512, 1), Some((0.97, true)));
        assert_eq!(of("zram", CipherClass::Vaes512, 32), None);
    }

    #[test]
    fn qemu_s_luks_counts_where_it_has_all_of_its_processor() {
        let of = |busy_us: u64| {
            let sample = Sample {
                iops: 1000.0,
                p50_ns: 0,
                p99_ns: 0,
                p999_ns: 0,
                requests: 500,
                cpu: CpuNs { server: busy_us * 500_000, ..CpuNs::default() },
            };
            let mut work = work(32);
            work.servers =
                vec![ServerSamples { server: "qemu-luks".into(), samples: vec![sample] }];
            let servers = ("sealblk-4096", "qemu-luks");
            limit("iscsi", CipherClass::Vaes256, &work, servers, Quantity::Iops)
        };
        assert_eq!(of(950), Some((2.0, true)));
        assert_eq!(of(800), None);
    }

    #[test]
    fn what_issue_7_asks_for() {
        let of = |class, other, quantity| {
            limit(class, CipherClass::Vaes256, &work(1), ("sealblk-4096", other), quantity)
        };
        assert_eq!(of("rbd", "fio-rbd", Quantity::Iops), Some((1.0, true)));
        assert_eq!(of("rbd", "qemu-librbd-luks", Quantity::Iops), Some((1.3, true)));
        assert_eq!(of("iscsi", "sealblk-plain", Quantity::Iops), Some((0.97, true)));
        assert_eq!(of("iscsi", "sealblk-plain", Quantity::CpuUs), None);
        assert_eq!(of("rbd", "qemu-plain", Quantity::Latency), None);
    }

    #[test]
    fn most_rounds_decide() {
        let of = |rounds: &[f64]| verdict(0.9, true, rounds, &noise(0.01));
        assert_eq!(of(&[0.95, 0.91, 0.92, 0.99, 0.89]), Verdict::Ok);
        assert_eq!(of(&[0.85, 0.81, 0.82, 0.89, 0.91]), Verdict::Missed);
        assert_eq!(of(&[0.95, 0.91, 0.89, 0.88, 0.87]), Verdict::Undecided);
        assert_eq!(of(&[]), Verdict::Undecided);
        assert_eq!(verdict(0.5, false, &[0.4, 0.3], &noise(0.01)), Verdict::Ok);
    }

    #[test]
    fn noise_decides_nothing_near_the_limit() {
        assert_eq!(verdict(0.9, true, &[0.95; 5], &noise(0.1)), Verdict::Undecided);
        assert_eq!(verdict(0.9, true, &[1.2; 5], &noise(0.1)), Verdict::Ok);
    }
}
