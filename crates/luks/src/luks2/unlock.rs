//! From passphrase to volume key, and from volume key to segments.

use std::sync::Arc;

use sealblk_block::{SECTOR_BYTES, in_one_line};
use sealblk_cipher::SegmentSpec;
use sealblk_secret::SecretBytes;

use super::Luks2;
use super::model::{DigestKind, SegmentKind};
use super::refusal::UsableKeyslot;
use crate::error::{LuksError, Skipped, no_keyslot};
use crate::hash::Hash;
use crate::header::Unlocked;
use crate::io::ReadAt;
use crate::kdf::{Budget, KdfLimits, key_digest};
use crate::material;

impl Luks2 {
    /// Tries keyslots by priority (2, then 1; 0 only when named), or the named one.
    pub(crate) fn unlock(
        &self,
        io: &mut dyn ReadAt,
        passphrase: &SecretBytes,
        slot: Option<u32>,
        limits: &KdfLimits,
    ) -> Result<Unlocked, LuksError> {
        if let Some(slot) = slot.filter(|slot| !self.metadata.keyslots.contains_key(slot)) {
            return Err(LuksError::NoSuchKeyslot(slot));
        }
        let mut budget = Budget::new(limits);
        let mut tried = 0;
        let mut skipped = Vec::new();
        let mut candidates: Vec<u32> = match slot {
            Some(slot) => vec![slot],
            None => self.metadata.keyslots.keys().copied().collect(),
        };
        candidates.sort_by_key(|id| std::cmp::Reverse(self.metadata.keyslots[id].priority));
        for id in candidates {
            let mut skip = |reason: String| skipped.push(Skipped { slot: id, reason });
            let usable = match slot {
                Some(_) => self.usable(id, limits),
                None => self.usable_unnamed(id, limits),
            };
            let affordable = usable.and_then(|usable| {
                budget.spend(usable.kdf, usable.digest_iterations).map(|()| usable)
            });
            let usable = match affordable {
                Ok(usable) => usable,
                Err(reason) => {
                    skip(reason);
                    continue;
                }
            };
            match self.try_slot(io, passphrase, &usable, limits) {
                Ok(key) if self.is_key_of(usable.digest, &key) => {
                    return Ok(Unlocked { key: Arc::new(key), slot: id, digest: usable.digest });
                }
                Ok(_) => tried += 1,
                Err(LuksError::Kdf(reason)) => skip(reason),
                Err(error @ LuksError::Read { .. }) => skip(in_one_line(&error)),
                Err(error) => return Err(error),
            }
        }
        Err(LuksError::NoKeyslotOpens { tried, skipped })
    }

    fn try_slot(
        &self,
        io: &mut dyn ReadAt,
        passphrase: &SecretBytes,
        usable: &UsableKeyslot<'_>,
        limits: &KdfLimits,
    ) -> Result<SecretBytes, LuksError> {
        let slot_key = usable.kdf.derive(passphrase, usable.area_key_bytes as usize, limits)?;
        material::open(io, usable.area_offset, &slot_key, usable.key_bytes, usable.af_hash)
    }

    /// Whether `key` is the key whose digest this is.
    pub(super) fn is_key_of(&self, digest: u32, key: &SecretBytes) -> bool {
        let Some(digest) = self.metadata.digests.get(&digest) else { return false };
        let DigestKind::Pbkdf2 { hash, iterations, salt, digest } = &digest.kind else {
            return false;
        };
        let Some(hash) = Hash::from_name(hash) else { return false };
        let computed = key_digest(hash, key, salt, *iterations, digest.len());
        computed.iter().zip(digest).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
    }

    /// The segments to serve on a volume of `volume_bytes`.
    pub(crate) fn segments(
        &self,
        unlocked: &Unlocked,
        volume_bytes: u64,
    ) -> Result<Vec<SegmentSpec>, LuksError> {
        let refusals = self.refusals();
        if !refusals.is_empty() {
            return Err(LuksError::Refused(refusals));
        }
        let key_bytes = u32::try_from(unlocked.key.expose().len()).unwrap_or(0);
        let algorithm = material::algorithm(key_bytes).ok_or(LuksError::ForeignKey)?;
        // One digest owns all segments, or they would have been refused.
        if self.metadata.digest_of_segment(0) != Some(unlocked.digest) {
            return Err(LuksError::ForeignKey);
        }
        let mut specs = self.placed(volume_bytes)?;
        for spec in &mut specs {
            spec.crypt = Some((algorithm, Arc::clone(&unlocked.key)));
        }
        Ok(specs)
    }

    /// Where the segments lie on a volume of `volume_bytes`; still without a key.
    fn placed(&self, volume_bytes: u64) -> Result<Vec<SegmentSpec>, LuksError> {
        let mut start = 0;
        let mut specs: Vec<SegmentSpec> = Vec::new();
        for (id, segment) in self.metadata.live_segments() {
            let SegmentKind::Crypt { iv_tweak, sector_bytes, .. } = segment.kind else {
                return Err(LuksError::Refused(vec![format!("segment {id}: is not encrypted")]));
            };
            let outside = |problem: &str| LuksError::SegmentOutside {
                segment: id,
                volume_bytes,
                problem: problem.into(),
            };
            let room = volume_bytes
                .checked_sub(segment.offset)
                .ok_or_else(|| outside(&format!("it begins at {}", segment.offset)))?;
            let size = match segment.size {
                Some(size) if size > room => return Err(outside("it reaches past the end")),
                Some(size) => size,
                None => room - room % u64::from(sector_bytes),
            };
            if size == 0 {
                return Err(outside("nothing is left for data"));
            }
            let sectors = size / SECTOR_BYTES;
            let iv_end =
                iv_tweak.checked_add(sectors).ok_or_else(|| outside("its IVs wrap around"))?;
            // Two places with one IV under one key would show which of their blocks are equal.
            let reused = |other: &SegmentSpec| {
                iv_tweak < other.iv_start + other.sectors && other.iv_start < iv_end
            };
            if specs.iter().any(reused) {
                return Err(LuksError::Refused(vec![format!(
                    "segment {id}: uses IVs that another segment uses with the same key"
                )]));
            }
            specs.push(SegmentSpec {
                start,
                sectors,
                volume_start: segment.offset / SECTOR_BYTES,
                iv_start: iv_tweak,
                sector_bytes,
                crypt: None,
            });
            start += sectors;
        }
        Ok(specs)
    }

    /// Why a volume of `volume_bytes` will not be served, refusals included.
    pub(crate) fn obstacles(&self, volume_bytes: u64) -> Vec<String> {
        let mut reasons = self.refusals();
        if reasons.is_empty() {
            reasons.extend(self.placed(volume_bytes).err().map(|error| error.to_string()));
        }
        let limits = KdfLimits::default();
        let unusable = |slot: &u32| {
            let reason = self.usable_unnamed(*slot, &limits).err()?;
            Some(Skipped { slot: *slot, reason })
        };
        let skipped: Vec<_> = self.metadata.keyslots.keys().map_while(unusable).collect();
        if skipped.len() == self.metadata.keyslots.len() {
            reasons.push(no_keyslot(&skipped));
        }
        reasons
    }
}
