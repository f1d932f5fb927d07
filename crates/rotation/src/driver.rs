//! The loop of a rotation: zone after zone, beside the guest, until all data has the new key.
//!
//! ```text
//! prepare(next): watch, read, checksums, new ciphertext      nobody waits for this
//! hold_writes(zone)        (written to since it was read? read and prepare again)
//!   area, flush, hot header             the next zone is watched and read beside it
//! serve_from(old ciphertext)
//!   write the new ciphertext            the next zone's is made beside it
//! publish                  checksums: here
//!   flush, header that says it is done
//! publish                  journal: here
//! ```
//!
//! Contract: blocking, on a thread of its own. Stops and pauses only between two zones. When the
//! storage fails, what is known of the header is dropped; writes to the zone are held while it is
//! recovered from what the header on the volume says, again and again until that works.
//! Invariant: `in_doubt` is the zone for which the header on the volume may say that it is in work;
//! while there is one, no guest writes to it unless its new ciphertext is all written.

mod header;
mod trouble;

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, mem};

use sealblk_block::{Extent, SECTOR_BYTES};
use sealblk_cipher::Implementation;
use sealblk_luks::{
    Finished, Header, Plan, Policy, Progress as Moved, Protection, Protector, Recryptor, Release,
    Rotation, Unlocked, Zone,
};
use sealblk_volume::{AlignedBuf, Uri, Volume};

use crate::ages::Ages;
use crate::controls::{Controls, Meter, Phase, Watch, Wishes};
use crate::error::{RotationError, Trouble};
use crate::gate::Gate;
use crate::lock::{HeaderLock, RotationLock};
use crate::mover::{Gait, Mover, Way};
use crate::pace::{BackOff, Pace, Step};
use crate::recover::convert_back;
use crate::storage::{Reader, flush, random};

/// How often the log gets the position.
const TELL: Duration = Duration::from_secs(60);

/// Longest wait for cryptsetup's lock on the header.
const HEADER_LOCK_WAIT: Duration = Duration::from_secs(1);

/// New ciphertext is made in pieces of this size, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// How a rotation left its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All data has the new key, and nothing of the old one is left.
    Completed,
    /// It was told to stop, between two zones: it can be taken up there.
    Stopped,
    /// The disk is no longer served: it is taken up at the next start.
    Ended,
}

/// What a rotation needs.
pub struct Job<'a> {
    /// The volume.
    pub volume: &'a Arc<dyn Volume>,
    /// Both keys.
    pub unlocked: &'a Unlocked,
    /// Where it is.
    pub rotation: Rotation,
    /// The data path.
    pub gate: &'a mut dyn Gate,
    /// What is wanted.
    pub controls: &'a Controls,
    /// Where it tells how far it is.
    pub watch: &'a Watch,
    /// Where the age of keys goes that LUKS1 has no place for; none: nowhere.
    pub ages: Option<&'a Ages>,
}

/// Rotates until the end, or until it is told to stop. The data path must have the rotation's
/// segments already.
///
/// # Errors
/// What makes no sense to try again: the volume is between two zones and as usable as before.
pub fn run(job: Job<'_>) -> Result<Outcome, RotationError> {
    let Job { volume, unlocked, rotation, gate, controls, watch, ages } = job;
    let _lock = rotation_lock(&**volume)?;
    let mover = Mover::new(&**volume).map_err(RotationError::System)?;
    let mut driver = Driver {
        volume,
        unlocked,
        gate,
        controls,
        watch,
        ages,
        mover,
        meter: Meter::new(Instant::now()),
        spare: Vec::new(),
        ahead: None,
        held: None,
        in_doubt: None,
        back_off: BackOff::default(),
        flush_failed: false,
        failed_flushes: 0,
    };
    driver.failed_flushes = driver.gate.failed_flushes();
    watch.update(|progress| {
        progress.phase = Phase::Running;
        progress.done_bytes = rotation.done_bytes();
        progress.total_bytes = rotation.total_bytes();
        progress.trouble = None;
    });
    let mut next = Some(rotation);
    loop {
        let result = match next.take() {
            Some(rotation) => driver.zones(rotation),
            None => driver.conclude(),
        };
        match result {
            Ok(outcome) => return Ok(outcome),
            Err(Trouble::Ended) => return Ok(Outcome::Ended),
            Err(Trouble::Hopeless(error)) => {
                driver.hopeless(&error);
                return Err(error);
            }
            Err(Trouble::Storage { what, flush }) => match driver.recover(&what, flush)? {
                trouble::Recovered::Rotation(rotation) => next = rotation.map(|rotation| *rotation),
                trouble::Recovered::Left(outcome) => return Ok(outcome),
            },
        }
    }
}

/// cryptsetup's lock on the re-encryption. None where there are no such locks.
fn rotation_lock(volume: &dyn Volume) -> Result<Option<RotationLock>, RotationError> {
    if Uri::parse(volume.uri()).is_err() {
        return Ok(None);
    }
    let header = Header::load(&mut Reader(volume), &Policy::default())?;
    match RotationLock::take(&header.uuid()) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(RotationError::Refused(
            "another program (cryptsetup?) drives the volume's re-encryption".into(),
        )),
        Err(error) => {
            tracing::warn!(%error, "cryptsetup on this host can't be kept from the rotation: its \
                lock directory is not for us");
            Ok(None)
        }
    }
}

/// A zone that was read, with all that could be made of it in advance.
struct Prepared {
    zone: Zone,
    old: AlignedBuf,
    new: AlignedBuf,
    protection: Protection,
}

/// The zone whose writes are held.
struct Held {
    since: Instant,
    /// Its old ciphertext, once it is known.
    old: Option<Arc<AlignedBuf>>,
    /// Reads are served from it.
    served: bool,
}

struct Driver<'a> {
    volume: &'a Arc<dyn Volume>,
    unlocked: &'a Unlocked,
    gate: &'a mut dyn Gate,
    controls: &'a Controls,
    watch: &'a Watch,
    ages: Option<&'a Ages>,
    mover: Mover,
    meter: Meter,
    /// Buffers that are not in use.
    spare: Vec<AlignedBuf>,
    /// The zone that is being read ahead; the buffer for its new ciphertext.
    ahead: Option<(Zone, AlignedBuf)>,
    held: Option<Held>,
    in_doubt: Option<Extent>,
    /// Begins anew with each zone that was moved.
    back_off: BackOff,
    /// Flushes of guests that had failed when we looked last.
    failed_flushes: u64,
    /// A flush failed: nothing is known of what was written before it.
    flush_failed: bool,
}

impl Driver<'_> {
    /// Moves zones until there are no more.
    fn zones(&mut self, mut rotation: Rotation) -> Result<Outcome, Trouble> {
        let mut recryptor = rotation.recryptor(Implementation::Auto)?;
        let protector = rotation.protector();
        let mut pace = Pace::new();
        let mut step = Pace::first(&self.controls.wishes());
        let mut prepared = None;
        let mut told = Instant::now();
        // What guests did before the rotation is none of its business.
        let _ = self.gate.load();
        loop {
            let begun = Instant::now();
            let wishes = self.between_zones(step.rest)?;
            if wishes.stop {
                self.give_up_reading();
                self.flush()?;
                return Ok(Outcome::Stopped);
            }
            let work = Instant::now();
            rotation.set_zone_bytes(step.zone_bytes);
            let this = match prepared.take() {
                Some(prepared) => prepared,
                None => {
                    self.start_reading(rotation.zone()?, &step)?;
                    self.finish_reading(&protector, &mut recryptor)?
                }
            };
            rotation.set_zone_bytes(this.zone.len_bytes);
            let (moved, zone) = (this.zone.len_bytes, this.zone);
            let (progress, next) = self.zone(rotation, this, &step, &protector, &mut recryptor)?;
            let now = Instant::now();
            let rate = self.meter.count(moved, now);
            self.back_off = BackOff::default();
            self.watch.update(|progress| {
                progress.trouble = None;
                progress.done_bytes = zone.start_bytes + moved;
                progress.zone_bytes = moved;
                progress.rate_bytes = rate;
            });
            if now.saturating_duration_since(told) >= TELL {
                // For who has lost both header copies: see docs/operations.md.
                told = now;
                tracing::info!(done_bytes = zone.start_bytes + moved, rate, "rotating");
            }
            match progress {
                Moved::More(more) => rotation = more,
                Moved::Done(finished) => {
                    self.give_up_reading();
                    return self.finish(finished);
                }
            }
            prepared = next;
            let load = self.gate.load();
            let (worked, since) = (now - work, now - begun);
            step = pace.next(&self.controls.wishes(), moved, worked, since, &load);
        }
    }

    /// Rests as the pace and the operator want.
    fn between_zones(&mut self, rest: Duration) -> Result<Wishes, Trouble> {
        let mut wishes = self.controls.wishes();
        if !rest.is_zero() && !wishes.stop && !wishes.pause {
            self.watch.update(|progress| progress.phase = Phase::Throttled);
            wishes = self.controls.rest(rest);
        }
        if wishes.pause && !wishes.stop {
            self.flush()?;
            self.watch.update(|progress| {
                (progress.phase, progress.rate_bytes) = (Phase::Paused, 0);
            });
            while wishes.pause && !wishes.stop {
                wishes = self.controls.wait();
            }
        }
        self.watch.update(|progress| progress.phase = Phase::Running);
        Ok(wishes)
    }

    /// One zone; gives what follows, with the next zone if it was prepared meanwhile.
    fn zone(
        &mut self,
        rotation: Rotation,
        mut this: Prepared,
        step: &Step,
        protector: &Protector,
        recryptor: &mut Recryptor,
    ) -> Result<(Moved, Option<Prepared>), Trouble> {
        let (zone, extent) = (this.zone, extent(this.zone));
        let since = Instant::now();
        let dirty = self.gate.hold_writes(extent)?;
        self.held = Some(Held { since, old: None, served: false });
        if dirty {
            // Nobody writes to it any more: what is read now stays true.
            let Prepared { old, new, .. } = this;
            self.spare.extend([old, new]);
            self.read(zone, Gait::FAST)?;
            this = self.finish_reading(protector, recryptor)?;
        }
        let Prepared { old, new, protection, .. } = this;
        let old = Arc::new(old);
        if let Some(held) = &mut self.held {
            held.old = Some(old.clone());
        }
        let ahead = rotation.zone_after(zone, step.zone_bytes).filter(|_| !step.gentle);
        if let Some(zone) = ahead {
            self.start_reading(zone, step)?;
        }
        let pending = rotation.arm_with(protection)?;
        self.in_doubt = Some(extent);
        self.header(pending.plan())?;
        let armed = pending.carried_out();
        self.serve_from_memory()?;

        let len = usize::try_from(zone.len_bytes).unwrap_or(usize::MAX);
        let gait = gait(step);
        self.mover.start_write(new, zone.volume_offset_bytes, len, gait);
        let mut next = None;
        if ahead.is_some() {
            next = Some(self.finish_reading(protector, recryptor)?);
        }
        let written = self.mover.wait(Way::Out);
        if let Some((new, result)) = written {
            self.spare.push(new);
            result?;
        }
        let after = armed.segments_after()?;
        let released = armed.release();
        if released == Release::Written {
            self.release(&after)?;
        }
        let pending = armed.commit()?;
        self.header(pending.plan())?;
        self.in_doubt = None;
        if released == Release::Committed {
            self.release(&after)?;
        }
        if let Ok(old) = Arc::try_unwrap(old) {
            self.spare.push(old);
        }
        Ok((pending.carried_out(), next))
    }

    /// Watches a zone and starts to read it.
    fn start_reading(&mut self, zone: Zone, step: &Step) -> Result<(), Trouble> {
        self.gate.watch(extent(zone))?;
        self.read(zone, gait(step))
    }

    fn read(&mut self, zone: Zone, gait: Gait) -> Result<(), Trouble> {
        let len = usize::try_from(zone.len_bytes).unwrap_or(usize::MAX);
        let (old, new) = (self.buffer(len)?, self.buffer(len)?);
        self.mover.start_read(old, zone.volume_offset_bytes, len, gait);
        self.ahead = Some((zone, new));
        Ok(())
    }

    /// Waits for the zone that is being read, and makes of it what can be made.
    fn finish_reading(
        &mut self,
        protector: &Protector,
        recryptor: &mut Recryptor,
    ) -> Result<Prepared, Trouble> {
        let (Some((zone, mut new)), Some((old, read))) =
            (self.ahead.take(), self.mover.wait(Way::In))
        else {
            return Err(Trouble::Hopeless(RotationError::Refused(
                "a defect: no zone is read".into(),
            )));
        };
        if let Err(failed) = read {
            self.spare.extend([old, new]);
            return Err(failed.into());
        }
        let len = usize::try_from(zone.len_bytes).unwrap_or(usize::MAX);
        let (ciphertext, target) = (&old.as_slice()[..len], &mut new.as_mut_slice()[..len]);
        let protection = protector.protect(zone, ciphertext)?;
        let mut at = zone.start_bytes;
        for (from, to) in ciphertext.chunks(PIECE_BYTES).zip(target.chunks_mut(PIECE_BYTES)) {
            // While it is in the processor's cache.
            to.copy_from_slice(from);
            recryptor.recrypt(at, to);
            at += from.len() as u64;
        }
        Ok(Prepared { zone, old, new, protection })
    }

    /// What is being read ahead is not needed.
    fn give_up_reading(&mut self) {
        if let Some((old, _)) = self.mover.wait(Way::In) {
            self.spare.push(old);
        }
        if let Some((_, new)) = self.ahead.take() {
            self.spare.push(new);
        }
    }

    fn buffer(&mut self, len: usize) -> Result<AlignedBuf, Trouble> {
        if let Some(index) = self.spare.iter().position(|buf| buf.len() >= len) {
            return Ok(self.spare.swap_remove(index));
        }
        // Those that are too short would never be used again.
        self.spare.clear();
        AlignedBuf::new(len).map_err(|error| Trouble::Hopeless(RotationError::System(error)))
    }

    /// Reads of the zone are served from its old ciphertext, if we have it.
    fn serve_from_memory(&mut self) -> Result<(), Trouble> {
        if let Some(held) = &mut self.held
            && let Some(old) = held.old.take()
            && !held.served
        {
            self.gate.serve_from(&old)?;
            held.served = true;
        }
        Ok(())
    }

    /// The data path goes on with these segments.
    fn release(&mut self, segments: &[sealblk_cipher::SegmentSpec]) -> Result<(), Trouble> {
        self.gate.publish(segments)?;
        if let Some(held) = self.held.take() {
            let time = held.since.elapsed();
            self.watch.update(|progress| progress.held_max = progress.held_max.max(time));
        }
        Ok(())
    }

    /// Carries out a header's plan, with cryptsetup's lock where there is one to be had.
    fn header(&mut self, plan: &Plan) -> Result<(), Trouble> {
        let _lock = self.header_lock();
        self.carry_out(plan)?;
        let failed = self.gate.failed_flushes();
        if mem::replace(&mut self.failed_flushes, failed) != failed {
            let what = "flushing: a guest's flush failed, and with it perhaps what we wrote".into();
            return Err(Trouble::Storage { what, flush: true });
        }
        Ok(())
    }

    /// cryptsetup's lock on the header, if it is to be had soon: guests may be waiting. (While a
    /// rotation stands cryptsetup itself changes nothing but by the lock on the rotation.)
    fn header_lock(&self) -> Option<HeaderLock> {
        HeaderLock::take_within(self.volume.uri(), HEADER_LOCK_WAIT).ok()
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        flush(&**self.volume)
    }

    /// All data has the new key: destroys what is left of the old one.
    fn finish(&mut self, finished: Finished) -> Result<Outcome, Trouble> {
        self.header(&finished.wipe(&mut random)?)?;
        {
            let _lock = self.header_lock();
            convert_back(&**self.volume, self.unlocked, self.ages)?;
        }
        self.watch.update(|progress| {
            progress.phase = Phase::Done;
            progress.trouble = None;
        });
        Ok(Outcome::Completed)
    }
}

/// In guest sectors.
fn extent(zone: Zone) -> Extent {
    Extent::new(zone.start_bytes / SECTOR_BYTES, zone.len_bytes / SECTOR_BYTES)
}

fn gait(step: &Step) -> Gait {
    if step.gentle { Gait::GENTLE } else { Gait::FAST }
}
