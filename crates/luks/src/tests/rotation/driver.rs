//! A rotation with a guest beside it: what the rotation engine will do, one thing after the other.

use std::ops::Range;
use std::sync::Arc;

use super::super::*;
use super::world::{Guest, Shape, World};
use crate::{
    Armed, Pending, Progress, RecoveryStep, Release, Resume, Rotation, RotationNotes,
    RotationStatus, StageParams, repair,
};

/// Which rules the driver breaks: each must be caught.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Broken {
    /// No flush between area and hot header.
    pub(super) no_barrier: bool,
    /// The header of the last range is committed first, and what ends the rotation afterwards.
    pub(super) upstream_end: bool,
    /// Guests write, and are promised durability, before the header of a journaled range.
    pub(super) early_promise: bool,
    /// The storage tears what it said it keeps whole.
    pub(super) torn_blocks: bool,
}

/// Both volume keys, as unlocking gives them.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) old: Arc<SecretBytes>,
    pub(super) new: Arc<SecretBytes>,
}

pub(super) fn staged(shape: &Shape, image: &[u8]) -> Vec<u8> {
    let mut staged = image.to_vec();
    execute(&mut staged, &stage_plan(shape, image));
    staged
}

pub(super) fn stage_plan(shape: &Shape, mut image: &[u8]) -> Plan {
    let unlocked = unlock(image, OLD).unwrap();
    let (passphrase, new) = (secret(OLD), secret(NEW));
    let params = StageParams {
        passphrase: &passphrase,
        new_passphrase: shape.new_secret.then_some(&new),
        kdf: SlotKdf::default(),
        notes: RotationNotes {
            old_key_id: Some("secret/7".into()),
            new_key_id: shape.new_secret.then(|| "secret/8".into()),
            started_at: 1_700_000_000,
            generation: 3,
        },
    };
    load(image).unwrap().stage_rotation(&mut image, &unlocked, &params, &mut rng(21)).unwrap()
}

pub(super) fn unlock_rotation(mut image: &[u8], passphrase: &str) -> Result<Unlocked, LuksError> {
    load(image)?.unlock_rotation(&mut image, &[&secret(passphrase)], &KdfLimits::default())
}

pub(super) fn keys_of(image: &[u8]) -> Keys {
    let unlocked = unlock_rotation(image, OLD).unwrap();
    Keys { old: unlocked.old.unwrap().1, new: unlocked.key }
}

/// A staged volume and the guest beside it.
pub(super) struct Driver {
    pub(super) shape: Shape,
    pub(super) world: World,
    pub(super) guest: Guest,
    pub(super) broken: Broken,
}

impl Driver {
    pub(super) fn new(shape: Shape, seed: u64) -> Self {
        let image = staged(&shape, &shape.volume());
        Self { shape, world: World::new(image), guest: Guest::new(seed), broken: Broken::default() }
    }

    /// Goes on with a volume, without a guest.
    pub(super) fn over(shape: Shape, world: World) -> Self {
        Self { shape, world, guest: Guest::idle(), broken: Broken::default() }
    }

    fn steps(&mut self, plan: &Plan, specs: &[SegmentSpec], held: &Range<usize>) {
        for step in plan.steps() {
            match step {
                Step::Write { offset_bytes, data } => {
                    self.world.write(*offset_bytes as usize, data, 512);
                }
                Step::Flush => self.world.flush(),
            }
            self.guest.act(&mut self.world, &self.shape, specs, held);
        }
    }

    pub(super) fn begin(&mut self) -> Rotation {
        let mut image = self.world.image.as_slice();
        let unlocked = unlock_rotation(image, OLD).unwrap();
        let pending = load(image)
            .unwrap()
            .start_rotation(&mut image, &unlocked, self.shape.params(), &mut rng(22))
            .unwrap();
        let specs = load(image)
            .unwrap()
            .segments(&unlock(image, OLD).unwrap(), image.len() as u64)
            .unwrap();
        self.steps(pending.plan(), &specs, &(0..0));
        pending.carried_out()
    }

    /// One range.
    pub(super) fn zone(&mut self, rotation: Rotation) -> Progress {
        let unit = self.shape.sector_bytes as usize;
        let before = rotation.segments().unwrap();
        let zone = rotation.zone().unwrap();
        let held = (zone.start_bytes as usize / unit)
            ..((zone.start_bytes + zone.len_bytes) as usize / unit);
        self.guest.act(&mut self.world, &self.shape, &before, &held);

        let at = zone.volume_offset_bytes as usize;
        let mut data = self.world.image[at..at + zone.len_bytes as usize].to_vec();
        let mut recryptor = rotation.recryptor(Implementation::Auto).unwrap();
        let pending = rotation.arm(&data).unwrap();
        let plan = if self.broken.no_barrier {
            without_barrier(pending.plan())
        } else {
            pending.plan().clone()
        };
        self.steps(&plan, &before, &held);
        let armed = pending.carried_out();

        recryptor.recrypt(zone.start_bytes, &mut data);
        let tear = if self.shape.is_journal() || self.broken.torn_blocks { 512 } else { unit };
        let half = data.len() / 2 / unit * unit;
        for (from, to) in [(half, data.len()), (0, half)] {
            if from < to {
                self.world.write(at + from, &data[from..to], tear);
                self.guest.act(&mut self.world, &self.shape, &before, &held);
            }
        }
        let early = armed.release() == Release::Written || self.broken.early_promise;
        let (specs, held) = if early {
            let after = armed.segments_after().unwrap();
            // Where it hurts.
            if !self.guest.idle && self.guest.dice.chance(70) {
                let block = held.start + self.guest.dice.below(held.len());
                self.guest.write(&mut self.world, &self.shape, &after, block);
            }
            (after, 0..0)
        } else {
            (before, held)
        };
        self.guest.act(&mut self.world, &self.shape, &specs, &held);
        self.end_zone(armed, &specs, &held)
    }

    fn end_zone(&mut self, armed: Armed, specs: &[SegmentSpec], held: &Range<usize>) -> Progress {
        let pending: Pending<Progress> = armed.commit().unwrap();
        if self.broken.upstream_end && pending.plan().steps().iter().any(says_it_is_over) {
            self.world.flush();
            self.upstream_post(specs);
        }
        self.steps(pending.plan(), specs, held);
        pending.carried_out()
    }

    /// The header that cryptsetup writes first: one segment with the new key, everything else still
    /// there.
    fn upstream_post(&mut self, specs: &[SegmentSpec]) {
        let mut json = json_of(&self.world.image);
        let backups: Vec<Value> = json["segments"]
            .as_object()
            .unwrap()
            .values()
            .filter(|segment| segment["flags"].to_string().contains("backup"))
            .cloned()
            .collect();
        let mut done = backups[1].clone();
        done.as_object_mut().unwrap().shift_remove("flags");
        json["segments"] = serde_json::json!({"0": done, "1": backups[0], "2": backups[1]});
        json["digests"]["0"]["segments"] = serde_json::json!(["1"]);
        json["digests"]["1"]["segments"] = serde_json::json!(["0", "2"]);
        let mut binary = Luks2::load(&mut self.world.image.as_slice()).unwrap().binary;
        // The real end comes after it with a higher number.
        binary.seqid += 1;
        for offset_bytes in [0, 16384] {
            let place = Place { offset_bytes, salt: [7; 64] };
            let copy = binary.image(&place, json.to_string().as_bytes());
            self.world.write(offset_bytes as usize, &copy, 512);
            self.world.flush();
        }
        self.guest.act(&mut self.world, &self.shape, specs, &(0..0));
    }

    /// All ranges, and the wiping at the end.
    pub(super) fn run(&mut self) {
        let mut rotation = self.begin();
        loop {
            match self.zone(rotation) {
                Progress::More(next) => rotation = next,
                Progress::Done(finished) => {
                    let plan = finished.wipe(&mut rng(23)).unwrap();
                    let image = self.world.image.as_slice();
                    let opens = if self.shape.new_secret { NEW } else { OLD };
                    let unlocked = unlock(image, opens).unwrap();
                    let specs =
                        load(image).unwrap().segments(&unlocked, image.len() as u64).unwrap();
                    self.steps(&plan, &specs, &(0..0));
                    return;
                }
            }
        }
    }
}

fn without_barrier(plan: &Plan) -> Plan {
    let mut without = Plan::default();
    let barrier = plan.steps().iter().position(|step| *step == Step::Flush).unwrap();
    for (number, step) in plan.steps().iter().enumerate() {
        match step {
            Step::Flush if number == barrier => {}
            Step::Flush => without.flush(),
            Step::Write { offset_bytes, data } => without.write(*offset_bytes, data.clone()),
        }
    }
    without
}

fn says_it_is_over(step: &Step) -> bool {
    matches!(step, Step::Write { data, .. }
        if data.windows(12).any(|bytes| bytes == b"wipe-pending"))
}

/// What recovery left to go on with.
pub(super) enum Recovered {
    Rotating(Box<Rotation>),
    Single(Vec<SegmentSpec>),
}

impl Recovered {
    pub(super) fn segments(&self) -> Vec<SegmentSpec> {
        match self {
            Self::Rotating(rotation) => rotation.segments().unwrap(),
            Self::Single(specs) => specs.clone(),
        }
    }
}

/// Opens a volume after a crash, as the daemon will: mends the header, redoes a range, cleans up.
pub(super) fn recover(
    world: &mut World,
    shape: &Shape,
    keys: &Keys,
) -> Result<Recovered, LuksError> {
    let apply = |world: &mut World, plan: &Plan| {
        for step in plan.steps() {
            match step {
                Step::Write { offset_bytes, data } => {
                    let at = *offset_bytes as usize;
                    let is_data = at >= shape.data_offset();
                    let whole = is_data && !shape.is_journal();
                    world.write(at, data, if whole { shape.sector_bytes as usize } else { 512 });
                }
                Step::Flush => world.flush(),
            }
        }
    };
    let (_, plan) = repair(&mut world.image.as_slice(), false, &mut rng(31))?;
    apply(world, &plan);
    let header = load(&world.image)?;
    let (old_digest, new_digest) = (0, 1);
    let both = Unlocked {
        key: Arc::clone(&keys.new),
        slot: 1,
        digest: new_digest,
        old: Some((old_digest, Arc::clone(&keys.old))),
    };
    let single = |world: &World, key: &Arc<SecretBytes>, digest| {
        let unlocked = Unlocked { key: Arc::clone(key), slot: 0, digest, old: None };
        let header = load(&world.image)?;
        Ok(Recovered::Single(header.segments(&unlocked, world.image.len() as u64)?))
    };
    match header.rotation_status()? {
        RotationStatus::Staged => single(world, &keys.old, old_digest),
        RotationStatus::None | RotationStatus::ConvertBack => single(world, &keys.new, new_digest),
        RotationStatus::WipePending => {
            let plan = header.clean_up_rotation(&mut world.image.as_slice(), &mut rng(32))?;
            apply(world, &plan);
            single(world, &keys.new, new_digest)
        }
        RotationStatus::Clean { .. } | RotationStatus::Crash { .. } | RotationStatus::Finished => {
            let resume = header.resume_rotation(
                &mut world.image.as_slice(),
                &both,
                shape.params(),
                &mut rng(33),
            )?;
            let progress = match resume {
                Resume::Clean(pending) => {
                    apply(world, pending.plan());
                    return Ok(Recovered::Rotating(Box::new(pending.carried_out())));
                }
                Resume::Finished(pending) => {
                    apply(world, pending.plan());
                    Progress::Done(pending.carried_out())
                }
                Resume::Crash(recovery) => {
                    let mut recovery = *recovery;
                    loop {
                        match recovery.step(&mut world.image.as_slice())? {
                            RecoveryStep::Redo(pending) => {
                                apply(world, pending.plan());
                                recovery = pending.carried_out();
                            }
                            RecoveryStep::Commit(pending) => {
                                apply(world, pending.plan());
                                break pending.carried_out();
                            }
                        }
                    }
                }
            };
            match progress {
                Progress::More(rotation) => Ok(Recovered::Rotating(Box::new(rotation))),
                Progress::Done(finished) => {
                    apply(world, &finished.wipe(&mut rng(34))?);
                    single(world, &keys.new, new_digest)
                }
            }
        }
    }
}
