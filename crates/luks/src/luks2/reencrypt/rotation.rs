//! A rotation in the making: each state gives the plan that leads to the next.
//!
//! Contract: a plan is carried out in order, up to its last step, before [`Pending::carried_out`] is
//! called. When one of its steps fails the state is dropped and the header loaded again; a failed
//! flush is never repeated. Between the plans the caller reads and writes the data:
//!
//! ```text
//! Rotation: zone() ── hold guest writes to it, wait for those in flight, read its ciphertext
//!   arm(old ciphertext) ─ plan: area, flush, hot header
//! Armed: ── write the new ciphertext, wait until it is complete; Release::Written: guests go on
//!   commit() ──────────── plan: flush, header with the new boundary or the final one
//!          ── Release::Committed: guests go on
//! Rotation again, or Finished:
//!   wipe() ────────────── plan: flush, noise over the old keyslots, header without the token
//! ```
//!
//! Stopping is possible in state [`Rotation`] only (and is to drop it).

use std::sync::Arc;

use sealblk_block::SECTOR_BYTES;
use sealblk_cipher::{Implementation, SegmentSpec};
use sealblk_secret::SecretBytes;

use super::super::commit::{Chain, Script};
use super::super::edit::gaps;
use super::super::model::Area;
use super::super::{Luks2, Metadata};
use super::binding::KeyPair;
use super::forms::{self, Form};
use super::recover::Recovery;
use super::recrypt::Recryptor;
use super::resilience::{Release, RotationParams};
use super::state::{Reencryption, Resilience, State};
use super::wipe::wipe;
use crate::error::LuksError;
use crate::header::Unlocked;
use crate::io::{Plan, Random, ReadAt};
use crate::material;

/// A plan, and the state that it leads to.
#[must_use = "a plan does nothing before it is carried out"]
#[derive(Debug)]
pub struct Pending<S> {
    plan: Plan,
    then: S,
}

impl<S> Pending<S> {
    /// What to do.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Every step was done, in order, without an error.
    pub fn carried_out(self) -> S {
        self.then
    }

    pub(super) fn new(plan: Plan, then: S) -> Self {
        Self { plan, then }
    }

    pub(super) fn map<T>(self, f: impl FnOnce(S) -> T) -> Pending<T> {
        Pending { plan: self.plan, then: f(self.then) }
    }
}

/// A range of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zone {
    /// Bytes from the start of the data: as the guest counts.
    pub start_bytes: u64,
    /// Bytes from the start of the volume.
    pub volume_offset_bytes: u64,
    /// Length.
    pub len_bytes: u64,
}

/// Makes what protects ranges: of the old ciphertext alone, so it can be done ahead.
#[derive(Debug, Clone, Copy)]
pub struct Protector {
    area: Area,
    resilience: Resilience,
}

/// What protects one range.
#[derive(Debug)]
pub struct Protection {
    zone: Zone,
    area: Area,
    content: Vec<u8>,
}

impl Protector {
    /// What protects `zone`, whose content is `old_ciphertext`.
    ///
    /// # Errors
    /// [`LuksError::BadParameter`] when `old_ciphertext` is not the zone's length.
    pub fn protect(&self, zone: Zone, old_ciphertext: &[u8]) -> Result<Protection, LuksError> {
        if old_ciphertext.len() as u64 != zone.len_bytes {
            return Err(LuksError::BadParameter(format!(
                "{} bytes of old ciphertext for a zone of {}",
                old_ciphertext.len(),
                zone.len_bytes
            )));
        }
        let content = self.resilience.area_content(self.area, old_ciphertext);
        Ok(Protection { zone, area: self.area, content })
    }
}

/// Where a rotation can be taken up.
#[derive(Debug)]
pub enum Resume {
    /// Between two ranges: serve the volume and go on.
    Clean(Pending<Rotation>),
    /// Within a range: redo it before the volume is served.
    Crash(Box<Recovery>),
    /// All data is done: end it.
    Finished(Pending<Finished>),
}

/// What follows a range.
#[derive(Debug)]
pub enum Progress {
    /// Another one.
    More(Rotation),
    /// Nothing: all data has the new key.
    Done(Finished),
}

/// What all states have in common: the header as it was committed last.
#[derive(Debug)]
pub(super) struct Core {
    hdr_size: u64,
    chain: Chain,
    metadata: Metadata,
    pub(super) found: Reencryption,
    old: Arc<SecretBytes>,
    new: Arc<SecretBytes>,
    params: RotationParams,
    /// Length of the data in bytes.
    end: u64,
}

impl Core {
    fn new(
        header: &Luks2,
        metadata: Metadata,
        chain: Chain,
        unlocked: &Unlocked,
        params: RotationParams,
    ) -> Result<Self, LuksError> {
        let found = forms::understood(&metadata)?;
        let Some((_, old)) = &unlocked.old else {
            return Err(LuksError::ForeignKey);
        };
        let end = data_bytes(&found, &params)?;
        Ok(Self {
            hdr_size: header.binary.hdr_size,
            chain,
            metadata,
            found,
            old: Arc::clone(old),
            new: Arc::clone(&unlocked.key),
            params,
            end,
        })
    }

    pub(super) fn volume_bytes(&self) -> u64 {
        self.params.volume_bytes
    }

    fn keys(&self) -> KeyPair<'_> {
        KeyPair { old: &self.old, new: &self.new }
    }

    pub(super) fn script(&self) -> Script {
        Script::new(self.chain.clone())
    }

    /// Commits other live segments.
    fn move_on(mut self, mut script: Script, form: Form) -> Result<Pending<Self>, LuksError> {
        self.metadata = forms::moved_on(&self.metadata, self.hdr_size, &self.found, form)?;
        self.found = forms::understood(&self.metadata)?;
        script.commit(&self.metadata)?;
        let (plan, chain) = script.finish();
        self.chain = chain;
        Ok(Pending::new(plan, self))
    }

    /// Commits that everything below `done` has the new key; R5: when that is all, the final header
    /// in the same commit.
    pub(super) fn boundary(
        self,
        mut script: Script,
        done: u64,
        last: bool,
    ) -> Result<Pending<Progress>, LuksError> {
        if !last && done < self.end {
            let form = Form::Clean { done };
            return Ok(self.move_on(script, form)?.map(|core| Progress::More(Rotation(core))));
        }
        let metadata = forms::ended(&self.metadata, self.hdr_size, &self.found)?;
        script.commit(&metadata)?;
        let (plan, chain) = script.finish();
        let finished = Finished { hdr_size: self.hdr_size, chain, metadata };
        Ok(Pending::new(plan, Progress::Done(finished)))
    }

    /// The zone that begins at `start`, unless nothing is left.
    fn zone(&self, start: u64) -> Option<Zone> {
        self.zone_of(start, self.params.zone_bytes)
    }

    fn zone_of(&self, start: u64, zone_bytes: u64) -> Option<Zone> {
        let unit = u64::from(self.params.unit_bytes(self.found.sector_bytes));
        let limit = self.found.resilience.zone_limit_bytes(self.found.area);
        let longest = zone_bytes.min(limit) / unit * unit;
        let len_bytes = longest.min(self.end.checked_sub(start)?);
        (len_bytes > 0).then_some(Zone {
            start_bytes: start,
            volume_offset_bytes: self.found.data_offset + start,
            len_bytes,
        })
    }

    /// Every header to come must fit: what doesn't is to be known before the first range.
    fn check_room_ahead(&self) -> Result<(), LuksError> {
        let unit = u64::from(self.params.unit_bytes(self.found.sector_bytes));
        let (start, len) = (self.end.saturating_sub(2 * unit), unit);
        if start > 0 {
            let form = Form::Hot { start, len, last: false };
            Chain::check_room(&forms::moved_on(&self.metadata, self.hdr_size, &self.found, form)?)?;
        }
        Chain::check_room(&forms::ended(&self.metadata, self.hdr_size, &self.found)?)
    }

    pub(super) fn recryptor(&self, which: Implementation) -> Result<Recryptor, LuksError> {
        Recryptor::new(&self.found, &self.old, &self.new, which)
    }

    fn segments(&self, boundary: u64) -> Result<Vec<SegmentSpec>, LuksError> {
        let spec = |start: u64, end: u64, iv: u64, key: &Arc<SecretBytes>| {
            let bytes = u32::try_from(key.len()).unwrap_or(0);
            let algorithm = material::algorithm(bytes).ok_or(LuksError::ForeignKey)?;
            Ok::<_, LuksError>(SegmentSpec {
                start: start / SECTOR_BYTES,
                sectors: (end - start) / SECTOR_BYTES,
                volume_start: (self.found.data_offset + start) / SECTOR_BYTES,
                iv_start: iv + start / SECTOR_BYTES,
                sector_bytes: self.found.sector_bytes,
                crypt: Some((algorithm, Arc::clone(key))),
            })
        };
        let boundary = boundary.min(self.end);
        let mut specs = Vec::new();
        if boundary > 0 {
            specs.push(spec(0, boundary, self.found.new.iv_tweak, &self.new)?);
        }
        if boundary < self.end {
            specs.push(spec(boundary, self.end, self.found.old.iv_tweak, &self.old)?);
        }
        Ok(specs)
    }
}

/// Length of the data: whole units.
fn data_bytes(found: &Reencryption, params: &RotationParams) -> Result<u64, LuksError> {
    let unit = u64::from(params.unit_bytes(found.sector_bytes));
    let outside = |problem: String| LuksError::SegmentOutside {
        segment: 0,
        volume_bytes: params.volume_bytes,
        problem,
    };
    let whole = unit.is_power_of_two() && found.data_offset.is_multiple_of(unit);
    if !whole {
        let problem = format!("its offset {} is no multiple of {unit}", found.data_offset);
        return Err(outside(problem));
    }
    match params.volume_bytes.checked_sub(found.data_offset).map(|room| room / unit * unit) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(outside("nothing is left for data".into())),
    }
}

/// Between two ranges: state CLEAN.
#[derive(Debug)]
pub struct Rotation(Core);

impl Rotation {
    /// Bytes that have the new key already.
    pub fn done_bytes(&self) -> u64 {
        match self.0.found.state() {
            State::Clean { done } => done,
            State::Crash { .. } | State::Finished => 0,
        }
    }

    /// Bytes of data altogether.
    pub fn total_bytes(&self) -> u64 {
        self.0.end
    }

    /// Which key owns what, for a key map.
    ///
    /// # Errors
    /// None that a checked header could cause.
    pub fn segments(&self) -> Result<Vec<SegmentSpec>, LuksError> {
        self.0.segments(self.done_bytes())
    }

    /// The volume has another size now. Before [`Self::zone`], and before a guest learns of it.
    ///
    /// # Errors
    /// [`LuksError::SegmentOutside`] when the data no longer fits.
    pub fn resized(&mut self, volume_bytes: u64) -> Result<(), LuksError> {
        let params = RotationParams { volume_bytes, ..self.0.params };
        let end = data_bytes(&self.0.found, &params)?;
        if end <= self.done_bytes() {
            return Err(LuksError::Rotation("the volume shrank".into()));
        }
        (self.0.params, self.0.end) = (params, end);
        Ok(())
    }

    /// How long a range is in work at most, from now on; at least one unit.
    pub fn set_zone_bytes(&mut self, zone_bytes: u64) {
        let unit = u64::from(self.0.params.unit_bytes(self.0.found.sector_bytes));
        self.0.params.zone_bytes = zone_bytes.max(unit);
    }

    /// What is next.
    ///
    /// # Errors
    /// [`LuksError::Rotation`] when there is nothing: the volume has shrunk.
    pub fn zone(&self) -> Result<Zone, LuksError> {
        let start = self.done_bytes();
        self.0.zone(start).ok_or_else(|| LuksError::Rotation("nothing is left to be done".into()))
    }

    /// The range after `zone`, of this length at most; none after the last.
    pub fn zone_after(&self, zone: Zone, zone_bytes: u64) -> Option<Zone> {
        let unit = self.0.params.unit_bytes(self.0.found.sector_bytes);
        self.0.zone_of(zone.start_bytes + zone.len_bytes, zone_bytes.max(unit.into()))
    }

    /// The ciphers that turn old ciphertext into new.
    ///
    /// # Errors
    /// [`LuksError::Cipher`].
    pub fn recryptor(&self, which: Implementation) -> Result<Recryptor, LuksError> {
        self.0.recryptor(which)
    }

    /// Plans the protection of [`Self::zone`] and the header that says it is in work. Until the plan
    /// begins no guest write to the zone may be in flight, and none may come after its old
    /// ciphertext was read.
    ///
    /// # Errors
    /// [`LuksError::BadParameter`] when `old_ciphertext` is not the zone's length.
    pub fn arm(self, old_ciphertext: &[u8]) -> Result<Pending<Armed>, LuksError> {
        let protection = self.protector().protect(self.zone()?, old_ciphertext)?;
        self.arm_with(protection)
    }

    /// Makes what protects a range; it may be made before the range's turn comes.
    pub fn protector(&self) -> Protector {
        Protector { area: self.0.found.area, resilience: self.0.found.resilience }
    }

    /// How a range in work is protected: `checksum` or `journal`.
    pub fn resilience(&self) -> &'static str {
        self.0.found.resilience.name()
    }

    /// As [`Self::arm`], with what [`Self::protector`] has made of the range's old ciphertext. It must
    /// still be what lies there.
    ///
    /// # Errors
    /// [`LuksError::BadParameter`] when it was made for another range.
    pub fn arm_with(self, protection: Protection) -> Result<Pending<Armed>, LuksError> {
        let Protection { zone, area, content } = protection;
        let core = self.0;
        let next = core.zone_of(
            match core.found.state() {
                State::Clean { done } => done,
                State::Crash { .. } | State::Finished => core.end,
            },
            zone.len_bytes,
        );
        if next != Some(zone) || area != core.found.area {
            return Err(LuksError::BadParameter(format!(
                "the protection of the range at {} is not for the one that is next",
                zone.start_bytes
            )));
        }
        let last = zone.start_bytes + zone.len_bytes >= core.end;
        let mut script = core.script();
        script.write(area.offset, content);
        // R3: the area is durable before a header relies on it.
        script.flush();
        let form = Form::Hot { start: zone.start_bytes, len: zone.len_bytes, last };
        Ok(core.move_on(script, form)?.map(|core| Armed { core, zone, last }))
    }
}

/// Within a range: state CRASH, as whoever loads the header now would see it.
#[derive(Debug)]
pub struct Armed {
    core: Core,
    zone: Zone,
    last: bool,
}

impl Armed {
    /// The range in work.
    pub fn zone(&self) -> Zone {
        self.zone
    }

    /// When guests may write into it again.
    pub fn release(&self) -> Release {
        self.core.found.resilience.release()
    }

    /// Which key owns what as soon as the zone's new ciphertext is written.
    ///
    /// # Errors
    /// None that a checked header could cause.
    pub fn segments_after(&self) -> Result<Vec<SegmentSpec>, LuksError> {
        self.core.segments(self.zone.start_bytes + self.zone.len_bytes)
    }

    /// Plans the header that says the range is done. All of its new ciphertext has been written, and
    /// those writes have completed.
    ///
    /// # Errors
    /// [`LuksError::NoRoom`].
    pub fn commit(self) -> Result<Pending<Progress>, LuksError> {
        let mut script = self.core.script();
        // R4: the data is durable before a header says that it is new.
        script.flush();
        let done = self.zone.start_bytes + self.zone.len_bytes;
        self.core.boundary(script, done, self.last)
    }
}

/// All data has the new key, and the header names nothing of the old one.
#[derive(Debug)]
pub struct Finished {
    hdr_size: u64,
    chain: Chain,
    metadata: Metadata,
}

impl Finished {
    /// Plans the destruction of the old key's material. Only when this is done the old secret may
    /// be retired.
    ///
    /// # Errors
    /// [`LuksError::Random`].
    pub fn wipe(self, random: &mut Random<'_>) -> Result<Plan, LuksError> {
        wipe(Script::new(self.chain), &self.metadata, self.hdr_size, random)
    }
}

impl Luks2 {
    /// Plans the header with which a staged rotation begins: everything in one commit.
    pub(crate) fn start_rotation(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        params: RotationParams,
        random: &mut Random<'_>,
    ) -> Result<Pending<Rotation>, LuksError> {
        self.check_unchanged(io)?;
        self.check_copies()?;
        let digests = self.staged_digests()?;
        let Some((old_digest, old)) = &unlocked.old else {
            return Err(LuksError::ForeignKey);
        };
        if digests != (*old_digest, unlocked.digest)
            || !self.is_key_of(digests.0, old)
            || !self.is_key_of(digests.1, &unlocked.key)
        {
            return Err(LuksError::ForeignKey);
        }
        let hdr_size = self.binary.hdr_size;
        let area = gaps(&self.metadata, hdr_size).into_iter().max_by_key(|gap| gap.size);
        let area = area.ok_or_else(|| {
            LuksError::NoRoom("what a re-encryption notes beside the keyslots".into())
        })?;
        let sector_bytes = self.sector_bytes_of_data()?;
        let resilience = params.resilience(sector_bytes);
        let keys = KeyPair { old, new: &unlocked.key };
        let metadata =
            forms::begun(&self.metadata, hdr_size, digests, area, resilience, &keys, random)?;
        let mut script = self.script(random)?;
        script.commit(&metadata)?;
        let (plan, chain) = script.finish();
        let core = Core::new(self, metadata, chain, unlocked, params)?;
        core.check_room_ahead()?;
        let rotation = Rotation(core);
        rotation.zone()?;
        Ok(Pending::new(plan, rotation))
    }

    /// Takes up a rotation that is under way, whoever began it.
    pub(crate) fn resume_rotation(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        params: RotationParams,
        random: &mut Random<'_>,
    ) -> Result<Resume, LuksError> {
        self.check_unchanged(io)?;
        self.check_copies()?;
        let found = forms::understood(&self.metadata)?;
        let chain = Chain::of(self, random)?;
        if found.state() == State::Finished {
            if !self.is_key_of(found.digests().1, &unlocked.key) {
                return Err(LuksError::ForeignKey);
            }
            let hdr_size = self.binary.hdr_size;
            let metadata = forms::ended(&self.metadata, hdr_size, &found)?;
            let mut script = Script::new(chain);
            script.commit(&metadata)?;
            let (plan, chain) = script.finish();
            return Ok(Resume::Finished(Pending::new(
                plan,
                Finished { hdr_size, chain, metadata },
            )));
        }
        let Some((_, old)) = &unlocked.old else {
            return Err(LuksError::ForeignKey);
        };
        self.check_binding(&found, &KeyPair { old, new: &unlocked.key })?;
        let core = Core::new(self, self.metadata.clone(), chain, unlocked, params)?;
        match found.state() {
            State::Crash { start, len, last } => {
                Ok(Resume::Crash(Box::new(Recovery::new(core, start, len, last)?)))
            }
            State::Clean { .. } | State::Finished => {
                core.with_our_protection(random).map(Resume::Clean)
            }
        }
    }

    fn sector_bytes_of_data(&self) -> Result<u32, LuksError> {
        match self.metadata.segments.get(&0).map(|segment| &segment.kind) {
            Some(super::super::model::SegmentKind::Crypt { sector_bytes, .. }) => Ok(*sector_bytes),
            _ => Err(LuksError::Rotation("the data is not encrypted".into())),
        }
    }
}

impl Core {
    /// Goes on with the protection that we would choose: another program may have begun with
    /// another, or the storage may be another by now. At least what the cache shows is made durable.
    fn with_our_protection(
        mut self,
        random: &mut Random<'_>,
    ) -> Result<Pending<Rotation>, LuksError> {
        let resilience = self.params.resilience(self.found.sector_bytes);
        let mut script = self.script();
        script.flush();
        if resilience != self.found.resilience {
            let keys = self.keys();
            self.metadata = forms::protected_by(
                &self.metadata,
                self.hdr_size,
                &self.found,
                resilience,
                &keys,
                random,
            )?;
            self.found = forms::understood(&self.metadata)?;
            script.commit(&self.metadata)?;
        }
        let (plan, chain) = script.finish();
        self.chain = chain;
        self.check_room_ahead()?;
        let rotation = Rotation(self);
        rotation.zone()?;
        Ok(Pending::new(plan, rotation))
    }
}
