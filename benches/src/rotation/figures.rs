//! What follows from the rounds of a case, what issue 6 asks for, and the lines that show it.

use crate::compare::noise;
use crate::report::{line, target};
use crate::results::{
    HalfLoad, IdleRotation, PacedSample, RotationCase, RotationFigure, Spread, Target,
};
use crate::targets::verdict;

/// From here on two turns that should be alike differ too much.
const NOISE_LIMIT: f64 = 0.05;

/// Issue 6, "Measured": rotation over copying; requests per second and p99 over those without.
const IDLE_AT_LEAST: f64 = 0.80;
const IOPS_AT_LEAST: f64 = 0.90;
const P99_AT_MOST: f64 = 1.5;

/// All figures of a case.
pub(super) fn of(case: &RotationCase) -> Vec<RotationFigure> {
    let mut all = Vec::new();
    let idle = |make: fn(&IdleRotation) -> f64| case.idle.iter().map(make).collect::<Vec<_>>();
    let copies = idle(|one| ratio(one.copy_bytes_per_second));
    let speed = idle(|one| one.bytes_per_second / mean(one.copy_bytes_per_second));
    all.extend(figure(
        "idle: rotation / copy onto itself",
        &speed,
        &copies,
        Some((IDLE_AT_LEAST, true)),
    ));
    all.extend(figure("idle: rotation, MiB/s", &idle(|one| mib(one.bytes_per_second)), &[], None));
    let copy = idle(|one| mib(mean(one.copy_bytes_per_second)));
    all.extend(figure("idle: copy onto itself, MiB/s", &copy, &[], None));
    let cpu = idle(|one| one.cpu_ns_per_mib / 1e6);
    all.extend(figure("idle: processor, ms/MiB", &cpu, &[], None));

    let rounds = &case.half_load;
    let mut half = |name: &str, what: fn(&PacedSample) -> f64, limit| {
        let off = |round: &HalfLoad| round.paused.map(|one| what(&one));
        let values: Vec<f64> =
            rounds.iter().map(|round| what(&round.rotating) / mean(off(round))).collect();
        let again: Vec<f64> = rounds.iter().map(|round| ratio(off(round))).collect();
        all.extend(figure(name, &values, &again, limit));
    };
    half("half load: requests/s, with / without", |one| one.iops, Some((IOPS_AT_LEAST, true)));
    half("half load: p99, with / without", |one| one.p99_ns as f64, Some((P99_AT_MOST, false)));
    half("half load: p50, with / without", |one| one.p50_ns as f64, None);
    let beside: Vec<f64> = rounds.iter().map(|round| mib(round.bytes_per_second)).collect();
    all.extend(figure("half load: rotation, MiB/s", &beside, &[], None));

    let mut hotzones: Vec<u64> = case.parked.iter().map(|one| one.hotzone_bytes).collect();
    hotzones.dedup();
    hotzones.sort_unstable();
    hotzones.dedup();
    for hotzone in hotzones {
        let of = |what: fn(&crate::results::Parked) -> u64| {
            let here = case.parked.iter().filter(|one| one.hotzone_bytes == hotzone);
            here.map(|one| what(one) as f64 / 1e3).collect::<Vec<_>>()
        };
        let size = hotzone >> 20;
        let name = format!("hotzone {size} MiB: longest hold of writes, ms");
        all.extend(figure(&name, &of(|one| one.held_us), &[], None));
        let name = format!("hotzone {size} MiB: longest request of a client, ms");
        all.extend(figure(&name, &of(|one| one.client_us), &[], None));
    }
    all
}

/// None without rounds. `again`: ratios of what should be alike.
fn figure(
    name: &str,
    rounds: &[f64],
    again: &[f64],
    limit: Option<(f64, bool)>,
) -> Option<RotationFigure> {
    let value = Spread::of(rounds)?;
    let differences: Vec<f64> = again.iter().map(|ratio| (ratio - 1.0).abs()).collect();
    let noise = noise(&differences, NOISE_LIMIT, 0.0, 0.0);
    let target = limit.map(|(limit, at_least)| {
        let verdict = verdict(limit, at_least, rounds, &noise);
        Target { limit, at_least, verdict }
    });
    let noise = (!again.is_empty()).then_some(noise.median);
    Some(RotationFigure { name: name.into(), value, noise, target })
}

fn mean([one, other]: [f64; 2]) -> f64 {
    f64::midpoint(one, other)
}

fn ratio([one, other]: [f64; 2]) -> f64 {
    other / one
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// The table for the terminal.
pub(crate) fn print(cases: &[RotationCase]) {
    for case in cases {
        line(format!(
            "\n=== Rotation of the key on {} storage, {}-byte sectors, protected by {}; the disk bears \
             {:.0} requests/s",
            case.class, case.sector_bytes, case.resilience, case.most_iops
        ));
        for figure in &case.figures {
            let Spread { median, min, max } = figure.value;
            let value = format!("{median:.2} ({min:.2}..{max:.2})");
            let noise = figure
                .noise
                .map_or_else(String::new, |noise| format!("A/A {:.1} %", noise * 100.0));
            let target = figure.target.as_ref().map(target).unwrap_or_default();
            line(format!("    {:<48} {value:<28} {noise:<12}{target}", figure.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Parked, Verdict};

    fn paced(iops: f64, p99_ns: u64) -> PacedSample {
        PacedSample { iops, p50_ns: 100, p99_ns, max_ns: p99_ns }
    }

    fn case() -> RotationCase {
        RotationCase {
            class: "disk".into(),
            sector_bytes: 512,
            resilience: "checksum".into(),
            idle: vec![IdleRotation {
                copy_bytes_per_second: [100.0, 100.0],
                bytes_per_second: 90.0,
                cpu_ns_per_mib: 1e6,
            }],
            most_iops: 2000.0,
            half_load: vec![HalfLoad {
                paused: [paced(1000.0, 100), paced(1000.0, 100)],
                rotating: paced(800.0, 140),
                bytes_per_second: 1.0,
            }],
            parked: vec![Parked { hotzone_bytes: 4 << 20, held_us: 1500, client_us: 2500 }],
            figures: Vec::new(),
        }
    }

    fn found(name: &str) -> RotationFigure {
        of(&case()).into_iter().find(|figure| figure.name.starts_with(name)).unwrap()
    }

    #[test]
    fn a_rotation_is_held_against_what_is_asked() {
        let of = |name| found(name).target.unwrap().verdict;
        assert_eq!(of("idle: rotation / copy"), Verdict::Ok);
        assert_eq!(of("half load: requests/s"), Verdict::Missed);
        assert_eq!(of("half load: p99"), Verdict::Ok);
    }

    #[test]
    fn waits_are_told_for_each_hotzone_in_milliseconds() {
        assert_eq!(found("hotzone 4 MiB: longest hold").value.median, 1.5);
        assert_eq!(found("hotzone 4 MiB: longest request").value.median, 2.5);
    }

    #[test]
    fn what_was_not_measured_has_no_figure() {
        let nothing = RotationCase { idle: vec![], half_load: vec![], parked: vec![], ..case() };
        assert_eq!(of(&nothing), []);
    }
}
