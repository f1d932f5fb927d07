//! From passphrase to volume key, and from volume key to segments.

use std::sync::Arc;

use sealblk_block::SECTOR_BYTES;
use sealblk_cipher::SegmentSpec;
use sealblk_secret::SecretBytes;

use super::Luks2;
use super::model::{DigestKind, SegmentKind};
use super::refusal::UsableKeyslot;
use crate::error::{LuksError, Skipped};
use crate::hash::Hash;
use crate::header::Unlocked;
use crate::io::ReadAt;
use crate::kdf::{KdfLimits, check_iterations, key_digest};
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
        let mut tried = 0;
        let mut skipped = Vec::new();
        let mut candidates: Vec<u32> = match slot {
            Some(slot) => vec![slot],
            None => self.metadata.keyslots.keys().copied().collect(),
        };
        candidates.sort_by_key(|id| std::cmp::Reverse(self.metadata.keyslots[id].priority));
        for id in candidates {
            let mut skip = |reason: String| skipped.push(Skipped { slot: id, reason });
            if slot.is_none() && self.metadata.keyslots[&id].priority == 0 {
                skip("has priority 0: used only when named".into());
                continue;
            }
            let usable = match self.usable(id) {
                Ok(usable) => usable,
                Err(reason) => {
                    skip(reason);
                    continue;
                }
            };
            let digest = match self.digest_for(id, limits) {
                Ok(digest) => digest,
                Err(reason) => {
                    skip(reason);
                    continue;
                }
            };
            if let Err(reason) = usable.kdf.check(limits) {
                skip(reason);
                continue;
            }
            match self.try_slot(io, passphrase, &usable, limits) {
                Ok(key) if self.is_key_of(digest, &key) => {
                    return Ok(Unlocked { key: Arc::new(key), slot: id, digest });
                }
                Ok(_) => tried += 1,
                Err(LuksError::Kdf(reason)) => skip(reason),
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

    /// The digest a keyslot's key is told by; the reason when the key is not that of the data.
    fn digest_for(&self, slot: u32, limits: &KdfLimits) -> Result<u32, String> {
        let digest = self.metadata.digest_of_keyslot(slot).ok_or("is in no digest")?;
        if self.metadata.digest_of_segment(0) != Some(digest) {
            return Err("holds a key that is not the volume's (unbound)".into());
        }
        match &self.metadata.digests[&digest].kind {
            DigestKind::Pbkdf2 { hash, iterations, .. } => {
                Hash::from_name(hash)
                    .ok_or_else(|| format!("its digest has the unknown hash {hash:?}"))?;
                check_iterations(*iterations, limits).map_err(|r| format!("its digest: {r}"))?;
                Ok(digest)
            }
            DigestKind::Unknown(kind) => Err(format!("its digest has the unknown type {kind:?}")),
        }
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
        let mut start = 0;
        let mut specs: Vec<SegmentSpec> = Vec::new();
        for (id, segment) in self.metadata.live_segments() {
            let SegmentKind::Crypt { iv_tweak, sector_bytes, .. } = segment.kind else {
                return Err(LuksError::ForeignKey);
            };
            if self.metadata.digest_of_segment(id) != Some(unlocked.digest) {
                return Err(LuksError::ForeignKey);
            }
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
                crypt: Some((algorithm, Arc::clone(&unlocked.key))),
            });
            start += sectors;
        }
        Ok(specs)
    }
}
