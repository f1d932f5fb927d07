//! Every crash point of a rotation with a guest beside it.
//!
//! Model: what was written since the last flush is on the disk in any combination; a power cut tears
//! a write at the units that the storage does not keep whole. Of later writes to the same place the
//! later one wins, whether or not the earlier one had arrived. For each epoch between two flushes
//! all combinations of whole writes are tried, and for each write a set of tears with a choice of
//! what the others did; what is beyond that is drawn by lot, and the seed printed. Each state is
//! recovered, and each block compared with what the guest may see.

use std::collections::HashSet;

use super::super::*;
use super::driver::{
    Broken, Driver, Keys, Recovered, keys_of, recover, stage_plan, staged, unlock_rotation,
};
use super::world::{Dice, History, Op, Shape, World};
use crate::RotationStatus;

/// Writes of an epoch up to which all combinations are tried.
const ALL_COMBINATIONS: usize = 6;

/// What a power cut left of one write.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    Whole,
    Absent,
    /// Units `from..to` arrived.
    Run(usize, usize),
    /// Every unit whose number has this remainder by two.
    Comb(usize),
    /// Units drawn by lot.
    Lot(u64),
}

#[derive(Clone, Copy)]
struct Write<'a> {
    at: usize,
    data: &'a [u8],
    unit: usize,
}

impl Write<'_> {
    fn units(&self) -> usize {
        self.data.len() / self.unit
    }

    fn apply(&self, fate: &Fate, image: &mut [u8]) {
        let mut dice = Dice::new(if let Fate::Lot(seed) = fate { *seed } else { 0 });
        for number in 0..self.units() {
            let arrived = match fate {
                Fate::Whole => true,
                Fate::Absent => false,
                Fate::Run(from, to) => (*from..*to).contains(&number),
                Fate::Comb(remainder) => number % 2 == *remainder,
                Fate::Lot(_) => dice.chance(50),
            };
            if arrived {
                let within = number * self.unit..(number + 1) * self.unit;
                image[self.at + within.start..self.at + within.end]
                    .copy_from_slice(&self.data[within]);
            }
        }
    }
}

/// The combinations that are tried for an epoch.
fn fates(writes: &[Write<'_>], dice: &mut Dice, lots: usize) -> Vec<Vec<Fate>> {
    let n = writes.len();
    let mut all = Vec::new();
    let whole = |bits: usize| -> Vec<Fate> {
        (0..n).map(|i| if bits >> i & 1 == 1 { Fate::Whole } else { Fate::Absent }).collect()
    };
    if n <= ALL_COMBINATIONS {
        all.extend((0..1 << n).map(whole));
    } else {
        let full = (1_usize << n) - 1;
        all.extend([whole(0), whole(full)]);
        all.extend((0..n).flat_map(|i| [whole(1 << i), whole(full ^ (1 << i))]));
        all.extend((0..64).map(|_| whole(dice.below(full + 1))));
    }
    for (number, write) in writes.iter().enumerate() {
        let units = write.units();
        if units < 2 {
            continue;
        }
        let mut torn = vec![Fate::Comb(0), Fate::Comb(1)];
        // The first unit of a header is its checksum, the next ones up to the eighth are padding.
        for cut in [1, 2, units / 2, units.saturating_sub(1), 9, 10, 12] {
            if (1..units).contains(&cut) {
                torn.extend([Fate::Run(0, cut), Fate::Run(cut, units)]);
            }
        }
        for _ in 0..2 {
            let cut = 1 + dice.below(units - 1);
            torn.extend([Fate::Run(0, cut), Fate::Run(cut, units)]);
        }
        torn.extend((0..lots).map(|_| Fate::Lot(dice.below(1 << 30) as u64)));
        for fate in torn {
            let full = (1_usize << n) - 1;
            for others in [0, full, dice.below(full + 1)] {
                let mut combination = whole(others);
                combination[number] = fate.clone();
                all.push(combination);
            }
        }
    }
    // Several torn at once.
    for _ in 0..lots * 3 {
        let each = writes.iter().map(|write| match dice.below(4) {
            0 => Fate::Whole,
            1 => Fate::Absent,
            _ if write.units() > 1 => Fate::Lot(dice.below(1 << 30) as u64),
            _ => Fate::Whole,
        });
        all.push(each.collect());
    }
    all
}

/// Distinct crash states of a log, passed to `check` with what the guest may see.
pub(super) fn crash_states(
    base: &[u8],
    log: &[Op],
    dice: &mut Dice,
    lots: usize,
    mut check: impl FnMut(Vec<u8>, &History, &str),
) -> usize {
    let mut durable = base.to_vec();
    let mut count = 0;
    let mut from = 0;
    let mut epoch = 0;
    while from < log.len() {
        let len = log[from..].iter().position(|op| matches!(op, Op::Flush));
        let to = len.map_or(log.len(), |len| from + len);
        let writes: Vec<Write<'_>> = log[from..to]
            .iter()
            .filter_map(|op| match op {
                Op::Write { at, data, unit } => Some(Write { at: *at, data, unit: *unit }),
                _ => None,
            })
            .collect();
        let history = History::after(&log[..to]);
        let mut seen = HashSet::new();
        for combination in fates(&writes, dice, lots) {
            let mut state = durable.clone();
            writes.iter().zip(&combination).for_each(|(write, fate)| write.apply(fate, &mut state));
            let touched: Vec<&[u8]> =
                writes.iter().map(|write| &state[write.at..write.at + write.data.len()]).collect();
            if seen.insert(crate::hash::sha256(&touched)) {
                count += 1;
                check(state, &history, &format!("epoch {epoch} {combination:?}"));
            }
        }
        writes.iter().for_each(|write| write.apply(&Fate::Whole, &mut durable));
        from = to + 1;
        epoch += 1;
    }
    count
}

/// How recovery is tried.
pub(super) struct Trial<'a> {
    pub(super) shape: &'a Shape,
    pub(super) keys: &'a Keys,
}

impl Trial<'_> {
    /// Recovers a state; gives what it left, and everything that it wrote.
    pub(super) fn recovered(
        &self,
        state: Vec<u8>,
        history: &History,
    ) -> Result<(World, Recovered), String> {
        let mut world = World::new(state);
        let recovered = recover(&mut world, self.shape, self.keys)
            .map_err(|error| sealblk_block::in_one_line(&error))?;
        history.check(self.shape, &plaintext(&world.image, &recovered.segments()))?;
        Ok((world, recovered))
    }
}

/// How a run of crash states went.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) states: usize,
    pub(super) failures: Vec<String>,
}

/// One rotation with all its crash states, and for a few of them the crash states of their recovery
/// and the rest of the rotation.
pub(super) fn crash_everywhere(shape: Shape, broken: Broken, seed: u64, lots: usize) -> Outcome {
    let mut driver = Driver::new(shape, seed);
    driver.broken = broken;
    let keys = keys_of(&driver.world.image);
    driver.run();
    let trial = Trial { shape: &shape, keys: &keys };
    let mut dice = Dice::new(seed ^ 0xdead);
    let mut closer = Dice::new(seed ^ 0xbeef);
    let mut outcome = Outcome::default();
    let World { base, log, .. } = &driver.world;
    let mut nested = 0;
    outcome.states = crash_states(base, log, &mut dice, lots, |state, history, name| {
        match trial.recovered(state, history) {
            Err(failure) => outcome.failures.push(format!("{name}: {failure}")),
            Ok((world, recovered)) if broken == Broken::default() => {
                if let Err(failure) = super::age::fits(&shape, &world.image) {
                    outcome.failures.push(format!("{name}: {failure}"));
                }
                if !closer.chance(3) {
                    return;
                }
                if let Err(failure) = again(&trial, &world, history, seed, &mut nested) {
                    outcome.failures.push(format!("{name}, then in recovery {failure}"));
                }
                if let Err(failure) = to_the_end(&trial, world, recovered, history) {
                    outcome.failures.push(format!("{name}, then to the end: {failure}"));
                }
            }
            Ok(_) => {}
        }
    });
    outcome.states += nested;
    outcome
}

/// Crashes within a recovery.
fn again(
    trial: &Trial<'_>,
    world: &World,
    history: &History,
    seed: u64,
    nested: &mut usize,
) -> Result<(), String> {
    let mut failure = None;
    let mut dice = Dice::new(seed ^ 0xfeed);
    *nested += crash_states(&world.base, &world.log, &mut dice, 0, |state, _, name| {
        if let Err(why) = trial.recovered(state, history) {
            failure.get_or_insert(format!("{name}: {why}"));
        }
    });
    failure.map_or(Ok(()), Err)
}

/// The rest of the rotation, without a guest.
fn to_the_end(
    trial: &Trial<'_>,
    world: World,
    recovered: Recovered,
    history: &History,
) -> Result<(), String> {
    let Recovered::Rotating(rotation) = recovered else { return Ok(()) };
    let mut rotation = *rotation;
    let mut driver = Driver::over(*trial.shape, world);
    while let crate::Progress::More(next) = driver.zone(rotation) {
        rotation = next;
    }
    trial.recovered(driver.world.image, history).map(drop)
}

/// Rotations whose crash states are tried, and how thoroughly. `make crash` asks for more.
pub(super) fn rounds() -> (u64, usize) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    (
        number("SEALBLK_CRASH_ROUNDS").unwrap_or(1),
        number("SEALBLK_CRASH_LOTS").unwrap_or(2) as usize,
    )
}

fn survives(shape: Shape, name: &str, least: usize) {
    let (rounds, lots) = rounds();
    for round in 0..rounds {
        let seed = 1000 + round;
        let outcome = crash_everywhere(shape, Broken::default(), seed, lots);
        println!("{name}: seed {seed}: {} crash states", outcome.states);
        assert!(
            outcome.failures.is_empty(),
            "{name}, seed {seed}: {} of {} crash states are lost: {:#?}",
            outcome.failures.len(),
            outcome.states,
            &outcome.failures[..outcome.failures.len().min(5)]
        );
        assert!(outcome.states >= least, "{name}: only {} states", outcome.states);
    }
}

#[test]
fn a_rotation_with_checksums_of_512_byte_sectors_survives_every_crash() {
    survives(Shape::new(512, false), "checksum 512", 1000);
}

#[test]
fn a_rotation_with_checksums_of_4096_byte_sectors_survives_every_crash() {
    survives(Shape::new(4096, false), "checksum 4096", 1000);
}

#[test]
fn a_rotation_with_a_journal_of_512_byte_sectors_survives_every_crash() {
    survives(Shape::new(512, true), "journal 512", 1000);
}

#[test]
fn a_rotation_with_a_journal_of_4096_byte_sectors_survives_every_crash() {
    survives(Shape::new(4096, true), "journal 4096", 1000);
}

#[test]
fn a_rotation_that_changes_the_secret_too_survives_every_crash() {
    survives(Shape { new_secret: true, ..Shape::new(4096, false) }, "new secret", 1000);
}

/// Staging, and taking it back: the volume opens as before, or with both keys.
#[test]
fn staging_and_abandoning_survive_every_crash() {
    for new_secret in [false, true] {
        let shape = Shape { new_secret, ..Shape::new(512, false) };
        let before = shape.volume();
        let unlocked = unlock(&before, OLD).unwrap();
        let staged = staged(&shape, &before);
        let abandon =
            load(&staged).unwrap().abandon_rotation(&mut staged.as_slice(), &mut rng(1)).unwrap();
        let stage = stage_plan(&shape, &before);
        for (name, base, plan) in [("stage", &before, stage), ("abandon", &staged, abandon)] {
            let mut world = World::new(base.clone());
            plan.steps().iter().for_each(|step| match step {
                Step::Write { offset_bytes, data } => {
                    world.write(*offset_bytes as usize, data, 512);
                }
                Step::Flush => world.flush(),
            });
            let mut dice = Dice::new(3);
            let states = crash_states(base, &world.log, &mut dice, 1, |state, _, at| {
                let (_, plan) = crate::repair(&mut state.as_slice(), false, &mut rng(1)).unwrap();
                let mut state = state;
                execute(&mut state, &plan);
                let opened = unlock(&state, OLD).unwrap_or_else(|e| panic!("{name} {at}: {e}"));
                assert!(opened.key.ct_eq(unlocked.key.expose()), "{name} {at}");
                let status = load(&state).unwrap().rotation_status().unwrap();
                if status == RotationStatus::Staged {
                    for passphrase in if new_secret { &[OLD, NEW][..] } else { &[OLD] } {
                        unlock_rotation(&state, passphrase)
                            .unwrap_or_else(|e| panic!("{name} {at} {passphrase}: {e}"));
                    }
                } else {
                    assert_eq!(status, RotationStatus::None, "{name} {at}");
                }
            });
            assert!(states >= 30, "{name}: only {states} states");
        }
    }
}

/// Each rule, when it is broken, loses data that this simulation sees.
#[test]
fn the_negative_controls_are_caught() {
    let blocks_that_tear = Shape { atomic_bytes: 4096, ..Shape::new(4096, false) };
    let no_barrier = Broken { no_barrier: true, ..Broken::default() };
    let early_promise = Broken { early_promise: true, ..Broken::default() };
    let torn_blocks = Broken { torn_blocks: true, ..Broken::default() };
    for (name, shape, broken) in [
        ("no barrier, checksum", Shape::new(512, false), no_barrier),
        ("no barrier, journal", Shape::new(512, true), no_barrier),
        ("early promise, journal", Shape::new(4096, true), early_promise),
        ("torn blocks, checksum", blocks_that_tear, torn_blocks),
    ] {
        let outcome = crash_everywhere(shape, broken, 1000, 0);
        let (bad, states) = (outcome.failures.len(), outcome.states);
        println!("control {name}: {bad} of {states} crash states are lost");
        assert!(bad > 0, "{name}: nothing was lost in {states} crash states");
    }
}
