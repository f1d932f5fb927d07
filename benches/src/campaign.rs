//! The order of measuring: works one after the other, each in rounds in which all servers take
//! their turn; whoever is first in one round is last in the next.

use std::time::Duration;

use anyhow::{Context, Result};
use sealblk_tests::progress;

use crate::load::{Sample, Work};
use crate::servers::{Aio, Kind, Server};
use crate::statistics::{Spread, best, ratios};
use crate::store::Class;

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) sample: Duration,
    pub(crate) full: bool,
}

/// What one server gave for one work, a sample per round.
pub(crate) struct Cell {
    pub(crate) kind: Kind,
    pub(crate) samples: Vec<Sample>,
}

impl Cell {
    fn iops(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.iops).collect()
    }

    /// Spread of a figure over the rounds.
    pub(crate) fn spread(&self, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(&self.samples.iter().map(figure).collect::<Vec<_>>())
    }

    /// Microseconds of the server's processor per request, over all rounds together: ticks of
    /// 10 ms are too coarse for one.
    pub(crate) fn cpu_us(&self) -> f64 {
        let cpu: Duration = self.samples.iter().map(|sample| sample.cpu).sum();
        let requests: usize = self.samples.iter().map(|sample| sample.requests).sum();
        cpu.as_secs_f64() * 1e6 / requests as f64
    }
}

/// All servers with one work.
pub(crate) struct WorkResult {
    pub(crate) work: Work,
    pub(crate) cells: Vec<Cell>,
    /// The first server once more in each round: it differs from itself by the machine's noise.
    pub(crate) again: Cell,
}

impl WorkResult {
    fn iops(&self, kind: Kind) -> Option<Vec<f64>> {
        Some(self.cells.iter().find(|cell| cell.kind == kind)?.iops())
    }

    /// Requests per second over those of another server in the same round, with a name.
    pub(crate) fn ratios(&self) -> Vec<(String, Spread)> {
        let pair = |kind: fn(Aio) -> Kind| {
            Some(best(&self.iops(kind(Aio::IoUring))?, &self.iops(kind(Aio::Native))?))
        };
        let others = [
            ("sealblk --plain", self.iops(Kind::Plain)),
            ("qemu-storage-daemon plain, the better aio", pair(Kind::QemuPlain)),
            ("qemu-storage-daemon LUKS, the better aio", pair(Kind::QemuLuks)),
        ];
        let mut all = Vec::new();
        for cell in self.cells.iter().filter(|cell| matches!(cell.kind, Kind::Encrypted(_))) {
            for (name, other) in &others {
                let spread = other.as_ref().map(|other| ratios(&cell.iops(), other));
                if let Some(spread) = spread.and_then(|ratios| Spread::of(&ratios)) {
                    all.push((format!("{} / {name}", cell.kind.name()), spread));
                }
            }
        }
        all
    }

    /// A/A: the same server against itself.
    pub(crate) fn noise(&self) -> Vec<f64> {
        self.cells
            .first()
            .map(|first| ratios(&self.again.iops(), &first.iops()))
            .unwrap_or_default()
    }
}

/// All works on one kind of storage.
pub(crate) struct ClassResult {
    pub(crate) class: Class,
    pub(crate) works: Vec<WorkResult>,
}

impl ClassResult {
    /// How far the same server differed from itself: the median over all works and rounds of
    /// |ratio - 1|, and the worst.
    pub(crate) fn noise(&self) -> Option<Spread> {
        let all: Vec<f64> = self.works.iter().flat_map(WorkResult::noise).collect();
        Spread::of(&all.iter().map(|ratio| (ratio - 1.0).abs()).collect::<Vec<_>>())
    }
}

/// Measures everything on one kind of storage.
pub(crate) fn measure(class: Class, plan: &Plan) -> Result<ClassResult> {
    let kinds = Kind::all(plan.full);
    let mut servers = Vec::new();
    for &kind in &kinds {
        progress(format!("{} storage: starting {}", class.name(), kind.name()));
        servers.push(Server::start(kind, class)?);
    }
    let mut works = Vec::new();
    for work in Work::all(plan.full) {
        let mut cells: Vec<Cell> =
            kinds.iter().map(|&kind| Cell { kind, samples: Vec::new() }).collect();
        let first = *kinds.first().context("no server")?;
        let mut again = Cell { kind: first, samples: Vec::new() };
        for round in 0..plan.rounds {
            progress(format!(
                "{} storage: {}, round {} of {}",
                class.name(),
                work.name(),
                round + 1,
                plan.rounds
            ));
            // One turn more than servers: the last is the first server's second.
            for turn in turns(servers.len() + 1, round) {
                let (index, cell) = match cells.get_mut(turn) {
                    Some(cell) => (turn, cell),
                    None => (0, &mut again),
                };
                let server = servers.get_mut(index).context("no such server")?;
                cell.samples.push(server.load.sample(&work, plan.sample)?);
            }
        }
        works.push(WorkResult { work, cells, again });
    }
    Ok(ClassResult { class, works })
}

/// 0..count, in every other round backwards.
fn turns(count: usize, round: usize) -> Vec<usize> {
    let forwards = 0..count;
    if round.is_multiple_of(2) { forwards.collect() } else { forwards.rev().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(kind: Kind, iops: &[f64]) -> Cell {
        let sample =
            |&iops| Sample { iops, p50: 1, p99: 2, requests: 1000, cpu: Duration::from_millis(2) };
        Cell { kind, samples: iops.iter().map(sample).collect() }
    }

    fn result() -> WorkResult {
        let cells = vec![
            cell(Kind::Encrypted(4096), &[90.0, 40.0]),
            cell(Kind::Plain, &[100.0, 50.0]),
            cell(Kind::QemuPlain(Aio::IoUring), &[45.0, 10.0]),
            cell(Kind::QemuPlain(Aio::Native), &[30.0, 20.0]),
        ];
        let again = cell(Kind::Encrypted(4096), &[99.0, 36.0]);
        WorkResult { work: Work::all(false)[0], cells, again }
    }

    #[test]
    fn the_better_peer_of_each_round_is_compared_with() {
        let ratios = result().ratios();
        assert_eq!(ratios.len(), 2, "no LUKS peer was measured: {ratios:?}");
        assert_eq!((ratios[0].1.min, ratios[0].1.max), (0.8, 0.9));
        assert_eq!((ratios[1].1.min, ratios[1].1.max), (2.0, 2.0));
    }

    #[test]
    fn noise_is_how_far_a_server_is_from_itself() {
        let noise = ClassResult { class: Class::Disk, works: vec![result()] }.noise().unwrap();
        assert!((noise.median - 0.1).abs() < 1e-9, "{noise:?}");
    }

    #[test]
    fn processor_time_is_over_all_rounds() {
        assert_eq!(cell(Kind::Plain, &[1.0, 1.0]).cpu_us(), 2.0);
    }

    #[test]
    fn every_other_round_goes_backwards() {
        assert_eq!(turns(3, 0), [0, 1, 2]);
        assert_eq!(turns(3, 1), [2, 1, 0]);
    }
}
