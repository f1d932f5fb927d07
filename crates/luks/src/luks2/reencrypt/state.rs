//! What a header says about a re-encryption: read and checked, or the reason why we keep off.
//!
//! Contract: the header is valid by [`super::super::rules`], which are cryptsetup's. Here it must
//! also be one that we understand completely: a forged or mangled one must not make us decrypt a
//! range with the wrong key and encrypt the noise. So every live segment has exactly one place, IV
//! and owner that it may have, given the two backup segments; anything else is refused.
//! Backups, sizes and keys are bound by a digest, which needs both keys: [`super::binding`].

use crate::hash::Hash;
use crate::luks2::model::{Area, Keyslot, KeyslotKind, Metadata, Protection, Segment, SegmentKind};
use crate::luks2::rules::{REENCRYPT, SECTOR_SIZES};
use crate::material::ENCRYPTION;

/// The one flavour that we know: v1 had no digest (CVE-2021-4122), v3 shifts data.
pub(super) const REQUIREMENT: &str = "online-reencrypt-v2";

/// Flags of segments (specification section 3.3).
pub(super) const IN_WORK: &str = "in-reencryption";
pub(super) const PREVIOUS: &str = "backup-previous";
pub(super) const FINAL: &str = "backup-final";

pub(super) const MODE: &str = "reencrypt";
pub(super) const DIRECTION: &str = "forward";

/// `LUKS2_REENCRYPT_MAX_HOTZONE_LENGTH`: nobody makes a longer range.
pub(super) const MAX_ZONE_BYTES: u64 = 1 << 30;

/// A re-encryption under way, forward, from one key to another, nothing else changing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reencryption {
    /// The reencrypt keyslot.
    pub(super) slot: u32,
    pub(super) area: Area,
    pub(super) resilience: Resilience,
    pub(super) old: Side,
    pub(super) new: Side,
    /// Where the data lies, in bytes from the start of the volume.
    pub(super) data_offset: u64,
    pub(super) sector_bytes: u32,
    pub(super) state: State,
}

/// Before or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Side {
    pub(super) digest: u32,
    /// The segment that keeps the parameters.
    pub(super) backup: u32,
    /// IV of the first sector of the data.
    pub(super) iv_tweak: u64,
}

/// How the range in work gets over a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resilience {
    /// The area holds a hash of the old ciphertext of each block.
    Checksum { hash: Hash, block_bytes: u32 },
    /// The area holds the old ciphertext.
    Journal,
}

impl Resilience {
    /// As the reencrypt keyslot's area has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Checksum { .. } => "checksum",
            Self::Journal => "journal",
        }
    }

    /// The longest range that the area protects.
    pub(super) fn zone_limit_bytes(self, area: Area) -> u64 {
        let room = match self {
            Self::Checksum { hash, block_bytes } => {
                (area.size / hash.bytes() as u64).saturating_mul(u64::from(block_bytes))
            }
            Self::Journal => area.size,
        };
        room.min(MAX_ZONE_BYTES)
    }
}

/// How far it is. Lengths in bytes, from the start of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Everything below `done` has the new key, everything from there the old one.
    Clean { done: u64 },
    /// Of `len` bytes from `start` nobody knows, without the area, which have which key.
    Crash { start: u64, len: u64, last: bool },
    /// All has the new key, only the header does not say so everywhere yet. Left behind by
    /// cryptsetup, which takes several commits to end; who resumed such a one from its beginning
    /// would encrypt all data twice, with one key lost (facts: defect A).
    Finished,
}

impl Reencryption {
    /// `None` when the header has no re-encryption.
    ///
    /// # Errors
    /// Why this build cannot handle it.
    pub(crate) fn of(metadata: &Metadata) -> Result<Option<Self>, String> {
        let mut flags = metadata.config.requirements.iter().filter(|r| r.starts_with(REENCRYPT));
        let Some(flag) = flags.next() else {
            return Ok(None);
        };
        if flag != REQUIREMENT {
            return Err(format!("it is of the kind {flag:?}, and only {REQUIREMENT:?} is known"));
        }
        let (slot, area, resilience) = keyslot(metadata)?;
        let (old, new) = (side(metadata, PREVIOUS)?, side(metadata, FINAL)?);
        if old.digest == new.digest {
            return Err("backup-previous and backup-final have the same key".into());
        }
        let backup = |side: Side| &metadata.segments[&side.backup];
        let (previous, last) = (backup(old), backup(new));
        if previous.offset != last.offset {
            return Err("it moves the data".into());
        }
        let (from, to) = (sector_bytes(previous), sector_bytes(last));
        if from != to {
            return Err(format!("it changes the encryption sector from {from:?} to {to:?} bytes"));
        }
        let sector_bytes = from.ok_or("its backup segments are not encrypted")?;
        let mut found = Self {
            slot,
            area,
            resilience,
            old,
            new,
            data_offset: previous.offset,
            sector_bytes,
            state: State::Finished,
        };
        found.state = found.read_state(metadata)?;
        Ok(Some(found))
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Of the old and of the new key.
    pub(crate) fn digests(&self) -> (u32, u32) {
        (self.old.digest, self.new.digest)
    }

    /// Walks over the live segments: new, in work, old, each of them optional.
    fn read_state(&self, metadata: &Metadata) -> Result<State, String> {
        let mut live = metadata.live_segments().peekable();
        let mut done = 0;
        if let Some((id, segment)) = live.next_if(|(id, s)| {
            s.flags.is_empty() && metadata.digest_of_segment(*id) == Some(self.new.digest)
        }) {
            self.check_place(id, segment, 0, self.new)?;
            if live.peek().is_none() {
                return Ok(State::Finished);
            }
            done = segment.size.ok_or_else(|| format!("segment {id} has no size of its own"))?;
        }
        let mut hot = None;
        if let Some((id, segment)) = live.next_if(|(_, s)| s.flags == [IN_WORK]) {
            self.check_place(id, segment, done, self.new)?;
            let mut owners = metadata.digests_of_segment(id);
            owners.sort_unstable_by_key(|digest| *digest == self.new.digest);
            if owners != [self.old.digest, self.new.digest] {
                return Err(format!("segment {id}, in work, is not owned by both keys"));
            }
            let len = segment.size.ok_or_else(|| format!("segment {id}, in work, has no size"))?;
            self.check_zone(id, len)?;
            hot = Some(len);
        }
        let tail = done.checked_add(hot.unwrap_or(0)).ok_or("its segments overflow")?;
        let rest = live.next();
        if let Some((id, segment)) = rest {
            if !segment.flags.is_empty() {
                return Err(format!("segment {id} has the flags {:?}", segment.flags));
            }
            if metadata.digest_of_segment(id) != Some(self.old.digest) {
                return Err(format!("segment {id} is not owned by the old key alone"));
            }
            self.check_place(id, segment, tail, self.old)?;
            if segment.size.is_some() {
                return Err(format!(
                    "segment {id} has a fixed size, so that data would be left out"
                ));
            }
        }
        if let Some((id, _)) = live.next() {
            return Err(format!("segment {id} is one too many"));
        }
        match (hot, rest) {
            (Some(len), rest) => Ok(State::Crash { start: done, len, last: rest.is_none() }),
            (None, Some(_)) => Ok(State::Clean { done }),
            (None, None) => Err("no segment maps the data".into()),
        }
    }

    /// Each live segment has one place and one IV that it may have.
    fn check_place(&self, id: u32, segment: &Segment, at: u64, side: Side) -> Result<(), String> {
        let SegmentKind::Crypt { iv_tweak, ref encryption, sector_bytes, integrity } = segment.kind
        else {
            return Err(format!("segment {id} is not encrypted"));
        };
        if encryption != ENCRYPTION || integrity || sector_bytes != self.sector_bytes {
            return Err(format!("segment {id} is encrypted in another way than the backups say"));
        }
        if self.data_offset.checked_add(at) != Some(segment.offset) {
            return Err(format!("segment {id} does not begin where the one before ends"));
        }
        if side.iv_tweak.checked_add(at / 512) != Some(iv_tweak) {
            return Err(format!("segment {id} has not the IV that belongs to its place"));
        }
        Ok(())
    }

    fn check_zone(&self, id: u32, len: u64) -> Result<(), String> {
        let limit = self.resilience.zone_limit_bytes(self.area);
        if len > limit {
            return Err(format!(
                "segment {id}, in work, has {len} bytes; the area protects {limit}"
            ));
        }
        if let Resilience::Checksum { block_bytes, .. } = self.resilience
            && !len.is_multiple_of(u64::from(block_bytes))
        {
            return Err(format!("segment {id}, in work, cuts a block of {block_bytes} bytes"));
        }
        Ok(())
    }
}

/// The reencrypt keyslot; the rules see to it that there is exactly one.
fn keyslot(metadata: &Metadata) -> Result<(u32, Area, Resilience), String> {
    let only = metadata.keyslots.iter().find_map(|(id, keyslot)| match keyslot {
        Keyslot { kind: KeyslotKind::Reencrypt { mode, direction, protection }, area, .. } => {
            Some((*id, mode, direction, protection, area))
        }
        _ => None,
    });
    let Some((id, mode, direction, protection, Some(area))) = only else {
        return Err("it has no reencrypt keyslot with an area".into());
    };
    if mode != MODE {
        return Err(format!("its mode is {mode:?}, and only {MODE:?} is known"));
    }
    if direction != DIRECTION {
        return Err(format!("its direction is {direction:?}, and only {DIRECTION:?} is known"));
    }
    let resilience = match protection {
        Protection::Checksum { hash, block_bytes } => {
            if !SECTOR_SIZES.contains(block_bytes) {
                return Err(format!("it has checksums of blocks of {block_bytes} bytes"));
            }
            let hash = Hash::from_name(hash)
                .ok_or_else(|| format!("its checksums have the unknown hash {hash:?}"))?;
            Resilience::Checksum { hash, block_bytes: *block_bytes }
        }
        Protection::Journal => Resilience::Journal,
        Protection::Other(kind) => {
            return Err(format!("its area is of type {kind:?}, not \"checksum\" or \"journal\""));
        }
    };
    Ok((id, *area, resilience))
}

/// The backup segment with this flag, if we know all about it.
fn side(metadata: &Metadata, flag: &str) -> Result<Side, String> {
    let mut backups = metadata.segments.iter().filter(|(_, segment)| segment.has_flag(flag));
    let (Some((id, segment)), None) = (backups.next(), backups.next()) else {
        return Err(format!("it has not exactly one {flag} segment"));
    };
    if segment.flags.len() != 1 {
        return Err(format!("its {flag} segment has the flags {:?}", segment.flags));
    }
    let SegmentKind::Crypt { iv_tweak, ref encryption, sector_bytes, integrity } = segment.kind
    else {
        return Err(format!("its {flag} segment is not encrypted"));
    };
    if encryption != ENCRYPTION || integrity {
        return Err(format!("its {flag} segment is encrypted with {encryption:?} or has tags"));
    }
    if segment.size.is_some() {
        return Err(format!("its {flag} segment has a fixed size"));
    }
    if !iv_tweak.is_multiple_of(u64::from(sector_bytes) / 512) {
        return Err(format!("its {flag} segment has an IV within an encryption sector"));
    }
    let digest = metadata
        .digest_of_segment(*id)
        .ok_or_else(|| format!("its {flag} segment is not owned by exactly one digest"))?;
    Ok(Side { digest, backup: *id, iv_tweak })
}

fn sector_bytes(segment: &Segment) -> Option<u32> {
    match segment.kind {
        SegmentKind::Crypt { sector_bytes, .. } => Some(sector_bytes),
        _ => None,
    }
}
