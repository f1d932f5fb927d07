//! fio inside a guest: what a virtual machine's user sees of the servers.
//!
//! One guest has every server's disk, so the servers share its conditions; in every round fio
//! measures each of them once, work by work, and the first one twice: that difference is the noise.
//! Contract: servers have processor [`SERVER`], the guest may use both. The guest runs without
//! hardware virtualisation (TCG), so most of the time goes to its emulated processor, and ratios
//! here say little about the servers. Deliberately absent: storage other than files, as the
//! differences between servers would not survive the guest anyway.

mod fio;
pub(crate) mod table;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{Daemon, Guest, GuestBuilder, GuestImage};

use self::fio::{Figures, Job};
use crate::campaign::{Campaign, turns};
use crate::interrupt;
use crate::load::Load;
use crate::machine::{CLIENT, SERVER, pin};
use crate::results::{GuestWork, Spread};
use crate::server::{Timing, explain};
use crate::servers::{Aio, Kind, Materials};
use crate::statistics::per_round;
use crate::status::Status;
use crate::store::{Class, Store};
use crate::work::Work;

/// How [`GuestBuilder`] runs it.
const ACCELERATOR: &str = "tcg";
/// What ratios relate to.
const BASE: Kind = Kind::Plain;
/// Shorter samples would show fio's start: everything takes long in there.
const SHORTEST: Timing =
    Timing { warm_up: Duration::from_millis(250), sample: Duration::from_secs(1) };
/// For the boot, and for fio's answer on top of what it measures. The machine may be busy with other
/// things.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the servers' start and the guest's boot cost, about.
const BOOT_COST: Duration = Duration::from_secs(20);
/// What a start of fio costs, about.
const FIO_COST: Duration = Duration::from_secs(2);
/// Lines of the console that are shown when something fails.
const CONSOLE_LINES: usize = 10;

/// A part of the campaign.
#[derive(Debug)]
struct Plan {
    kinds: Vec<Kind>,
    works: Vec<Work>,
    rounds: usize,
    timing: Timing,
}

impl Plan {
    fn of(campaign: &Campaign) -> Self {
        let (mut kinds, mut works) = (campaign.kinds.clone(), campaign.works.clone());
        kinds.retain(is_measured);
        works.retain(|work| {
            let one_way = matches!(work.pattern.writes_percent, 0 | 100);
            work.pattern.random && one_way && matches!(work.depth, 1 | 32)
        });
        let timing = Timing {
            warm_up: campaign.timing.warm_up.max(SHORTEST.warm_up),
            sample: campaign.timing.sample.max(SHORTEST.sample),
        };
        Self { kinds, works, rounds: campaign.rounds, timing }
    }

    /// Jobs of one round: a server per turn, the first server once more.
    fn jobs(&self, round: usize) -> Vec<Job> {
        let count = self.kinds.len();
        let disk_of = |turn| if turn < count { turn } else { 0 };
        turns(count + 1, round).into_iter().map(|name| Job { name, disk: disk_of(name) }).collect()
    }

    /// What the guest runs.
    fn script(&self) -> String {
        let mut script = String::new();
        for round in 0..self.rounds {
            let jobs = self.jobs(round);
            for work in &self.works {
                let _ = writeln!(script, "{}", fio::command(work, &jobs, self.timing));
            }
        }
        script
    }

    /// One work in one round.
    fn step_cost(&self) -> Duration {
        let turns = u32::try_from(self.kinds.len() + 1).unwrap_or(u32::MAX);
        FIO_COST + (self.timing.warm_up + self.timing.sample) * turns
    }
}

/// With the other sector size and qemu's other aio mode the guest would only take longer.
fn is_measured(kind: &Kind) -> bool {
    let skipped = [
        Kind::Raw,
        Kind::Encrypted(512),
        Kind::QemuPlain(Aio::IoUring),
        Kind::QemuLuks(Aio::IoUring),
    ];
    !skipped.contains(kind)
}

/// How long [`measure`] takes, about.
pub(crate) fn cost(campaign: &Campaign) -> Duration {
    let plan = Plan::of(campaign);
    let steps = u32::try_from(plan.rounds * plan.works.len()).unwrap_or(u32::MAX);
    BOOT_COST + plan.step_cost() * steps
}

/// Measures the campaign's servers, or those of them that [`is_measured`].
pub(crate) fn measure(
    campaign: &Campaign,
    materials: &Materials,
    status: &mut Status,
) -> Result<Vec<GuestWork>> {
    let plan = Plan::of(campaign);
    ensure!(!plan.kinds.is_empty(), "no server is left to measure inside a guest");
    ensure!(!plan.works.is_empty(), "no work is left to measure inside a guest");
    ensure!(plan.kinds.len() <= fio::MOST_DISKS, "too many servers for one guest");
    let mut disks = Vec::new();
    for kind in &plan.kinds {
        status.show("guest: starting the servers", &kind.name());
        disks.push(Disk::start(kind, materials).with_context(|| kind.name())?);
    }
    let mut builder = GuestBuilder::new(GuestImage::WithFio, &plan.script());
    for disk in &disks {
        builder = builder.disk(disk.daemon.socket(), 1);
    }
    status.show("guest: boots", "");
    // QEMU hands completions from its main loop to the guest's processor: on one processor, the two
    // wait for each other's time slices.
    pin(&[CLIENT, SERVER])?;
    let guest = builder.start();
    pin(&[CLIENT])?;
    let mut guest = guest?;
    let samples = run(&plan, &mut guest, status)
        .map_err(|error| error.context(format!("the guest's console ends:\n{}", tail(&guest))))
        .map_err(|error| {
            let dead = disks.iter_mut().find_map(|disk| {
                disk.daemon.must_run().is_err().then_some((&disk.kind, &mut disk.daemon))
            });
            match dead {
                Some((kind, daemon)) => explain(error, daemon).context(kind.name()),
                None => error,
            }
        })?;
    Ok(plan
        .works
        .iter()
        .zip(&samples)
        .flat_map(|(work, turns)| plan.figures(work, turns))
        .collect())
}

/// A server with the disk of the guest; dropped in this order.
struct Disk {
    kind: Kind,
    daemon: Daemon,
    _store: Store,
}

impl Disk {
    /// Makes the storage, starts the server, fills the disk through it: nobody reads holes.
    fn start(kind: &Kind, materials: &Materials) -> Result<Self> {
        let store = Store::new(Class::Disk, |image| materials.make_image(kind, image))?;
        let launch = materials.launch(kind, &store, 1)?.context("not a server")?;
        pin(&[SERVER])?;
        let daemon = launch.start();
        pin(&[CLIENT])?;
        let mut daemon = daemon?;
        let filled = Load::connect(daemon.socket(), 1, true);
        drop(filled.map_err(|error| explain(error, &mut daemon))?);
        Ok(Self { kind: kind.clone(), daemon, _store: store })
    }
}

/// Per work and turn, a sample of each round.
type Samples = Vec<Vec<Vec<Figures>>>;

fn run(plan: &Plan, guest: &mut Guest, status: &mut Status) -> Result<Samples> {
    guest.wait_for("GUEST-UP", PATIENCE)?;
    status.advance(BOOT_COST);
    let turns = plan.kinds.len() + 1;
    let mut samples = vec![vec![Vec::new(); turns]; plan.works.len()];
    for round in 0..plan.rounds {
        for (work, samples) in plan.works.iter().zip(&mut samples) {
            let detail = format!("round {} of {}", round + 1, plan.rounds);
            status.show(&format!("guest: {}", work.name()), &detail);
            for _ in 0..turns {
                interrupt::check()?;
                // fio answers when it has been through all disks.
                let line = guest.wait_for(fio::ANSWER, PATIENCE + plan.step_cost())?;
                let (name, figures) = Figures::parse(&line, work)?;
                samples.get_mut(name).context("fio names a job that we never gave")?.push(figures);
            }
            status.advance(plan.step_cost());
        }
    }
    guest.succeed(PATIENCE)?;
    Ok(samples)
}

fn tail(guest: &Guest) -> String {
    let console = guest.console();
    let lines: Vec<&str> = console.lines().collect();
    lines.get(lines.len().saturating_sub(CONSOLE_LINES)..).unwrap_or_default().join("\n")
}

impl Plan {
    /// One work's results, from a sample per round for each turn.
    fn figures(&self, work: &Work, turns: &[Vec<Figures>]) -> Vec<GuestWork> {
        let iops = |samples: &[Figures]| samples.iter().map(|one| one.iops).collect::<Vec<_>>();
        let base = self.kinds.iter().position(|kind| *kind == BASE);
        let base = base.and_then(|turn| turns.get(turn)).map(|samples| iops(samples));
        let first = self.kinds.first().map(|kind| format!("{} again", kind.id()));
        let names = self.kinds.iter().map(Kind::id).chain(first);
        let one = |(server, samples): (String, &Vec<Figures>)| {
            let spread =
                |of: fn(&Figures) -> f64| Spread::of(&samples.iter().map(of).collect::<Vec<_>>());
            let over_plain = base.as_ref().filter(|_| server != BASE.id()).and_then(|base| {
                Spread::of(&per_round(&iops(samples), base, |one, base| one / base))
            });
            Some(GuestWork {
                work: work.name(),
                server,
                iops: spread(|one| one.iops)?,
                p50_ns: spread(|one| one.p50_ns)?,
                p99_ns: spread(|one| one.p99_ns)?,
                over_plain,
                accelerator: ACCELERATOR.into(),
            })
        };
        names.zip(turns).filter_map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kinds: Vec<Kind>, rounds: usize) -> Plan {
        let works = Work::all(false).into_iter().take(1).collect();
        Plan { kinds, works, rounds, timing: SHORTEST }
    }

    fn sample(iops: f64) -> Figures {
        Figures { iops, p50_ns: 1e9 / iops, p99_ns: 2e9 / iops }
    }

    #[test]
    fn every_server_has_a_turn_in_every_round_and_the_first_has_two() {
        let plan = plan(vec![Kind::Encrypted(4096), Kind::Plain], 2);
        let disks = |round| plan.jobs(round).iter().map(|job| job.disk).collect::<Vec<_>>();
        assert_eq!((disks(0), disks(1)), (vec![0, 1, 0], vec![0, 1, 0]));
        let names = |round| plan.jobs(round).iter().map(|job| job.name).collect::<Vec<_>>();
        assert_eq!((names(0), names(1)), (vec![0, 1, 2], vec![2, 1, 0]));
        assert_eq!(plan.script().lines().count(), 2);
    }

    #[test]
    fn ratios_are_those_within_a_round() {
        let plan = plan(vec![Kind::Encrypted(4096), Kind::Plain], 3);
        let turns = [[90.0, 45.0, 200.0], [100.0, 90.0, 400.0], [100.0, 45.0, 200.0]]
            .map(|samples| samples.map(sample).to_vec());
        let figures = plan.figures(&plan.works[0], &turns);
        let servers: Vec<&str> = figures.iter().map(|one| one.server.as_str()).collect();
        assert_eq!(servers, ["sealblk-4096", "sealblk-plain", "sealblk-4096 again"]);
        // Medians of all rounds would give 90 / 100.
        assert_eq!(figures[0].over_plain, Some(Spread { median: 0.5, min: 0.5, max: 0.9 }));
        assert_eq!(figures[1].over_plain, None);
        assert_eq!(figures[0].iops, Spread { median: 90.0, min: 45.0, max: 200.0 });
        assert_eq!(figures[1].p99_ns.median, 2e7);
    }

    #[test]
    fn the_other_aio_mode_and_no_server_stay_outside() {
        let mut kinds = Kind::known();
        kinds.retain(is_measured);
        let ids: Vec<String> = kinds.iter().map(Kind::id).collect();
        let wanted = ["sealblk-4096", "sealblk-plain", "qemu-plain-native", "qemu-luks-native"];
        assert_eq!(ids[..4], wanted);
        assert_eq!(ids[4..], ["textbook-4096"]);
    }
}
