//! Rotations of a volume's key: how fast on an idle disk, and what a guest feels of one.
//!
//! Each case is one kind of volume on one kind of storage. On an idle volume: the storage copies
//! onto itself, the key rotates, the storage copies again. Under half the load that a disk can bear:
//! the rotation is paused, goes on, is paused again. Ratios are made within a round, and the two
//! turns without a rotation show the noise. Under bursts of writes that hit a rotation at full speed:
//! the longest wait.

mod copy;
mod figures;
mod target;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::target::{Target, rest};
use crate::interrupt;
use crate::load::{Load, Outcome};
use crate::machine::{CLIENT, SERVER, pin};
use crate::results::{HalfLoad, IdleRotation, PacedSample, Parked, RotationCase};
use crate::servers::Materials;
use crate::status::Status;
use crate::store::Class;
use crate::work::{DISK_BYTES, Work};

pub(crate) use self::figures::print;

/// What a class takes, about.
pub(crate) const COST: Duration = Duration::from_secs(130);

/// On storage with blocks of 512 bytes the first is protected by checksums, the second by a journal.
const SECTORS: [u32; 2] = [512, 4096];
const IDLE_ROUNDS: usize = 5;
const LOAD_ROUNDS: usize = 5;
const PARKED_ROUNDS: usize = 3;
const HOTZONES: [u64; 3] = [1 << 20, 4 << 20, 16 << 20];

/// The header before the data, as `sealblk format` makes it.
const DATA_OFFSET: u64 = 16 << 20;

/// Finds out what a disk can bear.
const MOST: Duration = Duration::from_millis(500);
/// In which a rotation finds its pace.
const SETTLING: Duration = Duration::from_millis(500);
const SAMPLE: Duration = Duration::from_secs(1);
/// Slots of the paced client.
const PACED_DEPTH: usize = 128;
const DEPTH: usize = 32;

/// Writes for so long, then leaves the disk alone, so that the rotation is at full speed again.
const BURST: Duration = Duration::from_millis(25);
const SILENCE: Duration = Duration::from_millis(150);

/// All cases of one class; those that were complete before something failed are kept.
pub(crate) fn measure(
    class: Class,
    materials: &Materials,
    status: &mut Status,
    cases: &mut Vec<RotationCase>,
) -> Result<()> {
    for sector_bytes in SECTORS {
        let mut case = RotationCase {
            class: class.name().into(),
            sector_bytes,
            resilience: String::new(),
            idle: Vec::new(),
            most_iops: 0.0,
            half_load: Vec::new(),
            parked: Vec::new(),
            figures: Vec::new(),
        };
        let what = format!("{}, rotations, {sector_bytes}-byte sectors", class.name());
        status.show(&what, "idle");
        idle(class, materials, &mut case).with_context(|| what.clone())?;
        status.show(&what, "half load");
        half_load(class, materials, &mut case).with_context(|| what.clone())?;
        status.show(&what, "bursts");
        parked(class, materials, &mut case).with_context(|| what.clone())?;
        case.figures = figures::of(&case);
        cases.push(case);
        status.advance(COST / SECTORS.len() as u32);
    }
    Ok(())
}

/// Daemon and copier may use all processors.
fn idle(class: Class, materials: &Materials, case: &mut RotationCase) -> Result<()> {
    let all = [CLIENT, SERVER];
    let mut target = Target::start(class, materials, case.sector_bytes, &all)?;
    // Its data, encrypted or not, is what any disk is full of.
    drop(Load::connect(target.socket(), 1, true)?);
    let path = target.store.path()?.to_owned();
    let copied = || -> Result<f64> {
        pin(&all)?;
        let speed = copy::onto_itself(&path, DATA_OFFSET, DISK_BYTES);
        pin(&[CLIENT])?;
        speed
    };
    // Once for nothing: caches, thin blocks.
    copied()?;
    for _ in 0..IDLE_ROUNDS {
        interrupt::check()?;
        let before = copied()?;
        target.begin(&[])?;
        let middle = target.middle()?;
        let after = copied()?;
        case.idle.push(IdleRotation {
            copy_bytes_per_second: [before, after],
            bytes_per_second: middle.bytes_per_second,
            cpu_ns_per_mib: middle.cpu_ns_per_mib,
        });
    }
    case.resilience = target.told()?.resilience;
    Ok(())
}

/// The rotation's thread shares the server's processor with the queue's: the client needs the other.
fn half_load(class: Class, materials: &Materials, case: &mut RotationCase) -> Result<()> {
    let mut target = Target::start(class, materials, case.sector_bytes, &[SERVER])?;
    let mut load = Load::connect(target.socket(), 1, true)?;
    let most = Work::beside_a_rotation(false, DEPTH);
    load.drive(&most, MOST)?;
    case.most_iops = iops(&load.drive(&most, MOST)?);
    let (work, rate) = (Work::beside_a_rotation(false, PACED_DEPTH), case.most_iops / 2.0);
    let mut under_way = false;
    while case.half_load.len() < LOAD_ROUNDS {
        interrupt::check()?;
        if !under_way {
            target.begin(&["--rate", "1M"])?;
            target.order("pause", &[])?;
            target.order("throttle", &["--rate", "none"])?;
        }
        let before = paced(&mut load, &work, rate)?;
        target.order("resume", &[])?;
        load.drive_paced(&work, rate, SETTLING)?;
        let (begin, from) = (Instant::now(), target.told()?.done_bytes);
        let rotating = sample(&load.drive_paced(&work, rate, SAMPLE)?);
        let (told, time) = (target.told()?, begin.elapsed());
        under_way = told.state != "completed";
        if !under_way {
            // It was over before the sample was.
            continue;
        }
        target.order("pause", &[])?;
        let after = paced(&mut load, &work, rate)?;
        let bytes_per_second = (told.done_bytes - from) as f64 / time.as_secs_f64();
        case.half_load.push(HalfLoad { paused: [before, after], rotating, bytes_per_second });
    }
    Ok(())
}

fn parked(class: Class, materials: &Materials, case: &mut RotationCase) -> Result<()> {
    let mut target = Target::start(class, materials, case.sector_bytes, &[SERVER])?;
    let mut load = Load::connect(target.socket(), 1, true)?;
    let work = Work::beside_a_rotation(true, DEPTH);
    for _ in 0..PARKED_ROUNDS {
        for hotzone_bytes in HOTZONES {
            interrupt::check()?;
            target.begin(&["--hotzone", &hotzone_bytes.to_string()])?;
            let mut longest = 0;
            let held_us = loop {
                longest = longest.max(load.drive(&work, BURST)?.max_ns);
                let told = target.told()?;
                if told.state == "completed" {
                    break told.parked_us;
                }
                rest(SILENCE);
            };
            case.parked.push(Parked { hotzone_bytes, held_us, client_us: longest / 1000 });
        }
    }
    Ok(())
}

fn paced(load: &mut Load, work: &Work, rate: f64) -> Result<PacedSample> {
    load.drive_paced(work, rate, SETTLING / 2)?;
    Ok(sample(&load.drive_paced(work, rate, SAMPLE)?))
}

fn iops(outcome: &Outcome) -> f64 {
    outcome.requests as f64 / outcome.elapsed.as_secs_f64()
}

fn sample(outcome: &Outcome) -> PacedSample {
    PacedSample {
        iops: iops(outcome),
        p50_ns: outcome.p50_ns,
        p99_ns: outcome.p99_ns,
        max_ns: outcome.max_ns,
    }
}
