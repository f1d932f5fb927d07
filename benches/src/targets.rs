//! Issue 5's targets ("The speed"), and when one counts as reached.
//!
//! A target is reached when at least four of five rounds say so, missed when at most one of five
//! does, else undecided. A noisy work decides nothing that is nearer to the limit than its noise.

use crate::results::{CipherClass, Noise, Quantity, Spread, Target, Verdict, Work};

/// Megabytes, milliseconds, nanoseconds that an idle server may take.
pub(crate) const RESIDENT_BYTES: u64 = 24 << 20;
pub(crate) const READY_AFTER_KEY_MS: f64 = 50.0;

/// The limit for what is compared, where issue 5 has one; whether it is one from below.
fn limit(
    class: &str,
    cipher: CipherClass,
    work: &Work,
    (server, other): (&str, &str),
    quantity: Quantity,
) -> Option<(f64, bool)> {
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
    use crate::results::{Pattern, ServerSamples};

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
