//! From passphrase to volume key, and from volume key to segments.

use std::sync::Arc;

use sealblk_block::{SECTOR_BYTES, in_one_line};
use sealblk_cipher::SegmentSpec;
use sealblk_secret::SecretBytes;

use super::Luks2;
use super::model::{DigestKind, SegmentKind};
use super::reencrypt::{KeyPair, Reencryption, State};
use super::refusal::UsableKeyslot;
use crate::error::{LuksError, Skipped, no_keyslot};
use crate::hash::Hash;
use crate::header::Unlocked;
use crate::io::ReadAt;
use crate::kdf::{Budget, KdfLimits, key_digest};
use crate::material;

/// What trying keyslots has come to, and what it may still cost.
struct Attempt<'a> {
    limits: &'a KdfLimits,
    budget: Budget,
    tried: u32,
    skipped: Vec<Skipped>,
}

impl<'a> Attempt<'a> {
    fn new(limits: &'a KdfLimits) -> Self {
        Self { limits, budget: Budget::new(limits), tried: 0, skipped: Vec::new() }
    }

    fn failed(&mut self) -> LuksError {
        LuksError::NoKeyslotOpens {
            tried: std::mem::take(&mut self.tried),
            skipped: std::mem::take(&mut self.skipped),
        }
    }
}

impl Luks2 {
    /// Tries keyslots by priority (2, then 1; 0 only when named), or the named one. In the middle
    /// of a re-encryption the passphrase must open both keys.
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
        if matches!(Reencryption::of(&self.metadata), Ok(Some(_))) {
            return match slot {
                None => self.unlock_both(io, &[passphrase], limits),
                Some(_) => Err(LuksError::Refused(self.refusals_to_edit())),
            };
        }
        let mut candidates: Vec<u32> = match slot {
            Some(slot) => vec![slot],
            None => self.metadata.keyslots.keys().copied().collect(),
        };
        candidates.sort_by_key(|id| std::cmp::Reverse(self.metadata.keyslots[id].priority));
        let mut attempt = Attempt::new(limits);
        for id in candidates {
            let usable = match slot {
                Some(_) => self.usable(id, limits),
                None => self.usable_unnamed(id, limits),
            };
            if let Some(key) = self.attempt_slot(io, passphrase, id, usable, &mut attempt)? {
                let digest = self.metadata.digest_of_keyslot(id).unwrap_or(0);
                return Ok(Unlocked { key: Arc::new(key), slot: id, digest, old: None });
            }
        }
        Err(attempt.failed())
    }

    /// Both keys of a rotation that is staged or under way, each with whichever of `passphrases`
    /// opens it; checks that the header's re-encryption is the one begun with them.
    pub(crate) fn unlock_both(
        &self,
        io: &mut dyn ReadAt,
        passphrases: &[&SecretBytes],
        limits: &KdfLimits,
    ) -> Result<Unlocked, LuksError> {
        let refuse = |reason: String| LuksError::Refused(vec![reason]);
        let found = Reencryption::of(&self.metadata).map_err(refuse)?;
        let (old, new) = match &found {
            Some(found) => found.digests(),
            None => self.staged_digests()?,
        };
        let mut attempt = Attempt::new(limits);
        let (slot, key) = self.open_digest(io, passphrases, new, &mut attempt)?;
        // Of a finished one the old key may be gone already.
        let finished = found.as_ref().is_some_and(|found| found.state() == State::Finished);
        let old_key = match self.open_digest(io, passphrases, old, &mut attempt) {
            Ok((_, key)) => Some((old, Arc::new(key))),
            Err(LuksError::NoKeyslotOpens { .. }) if finished => None,
            Err(error) => return Err(error),
        };
        if let (Some(found), Some((_, old))) = (&found, &old_key) {
            self.check_binding(found, &KeyPair { old, new: &key })?;
        }
        Ok(Unlocked { key: Arc::new(key), slot, digest: new, old: old_key })
    }

    /// The key that a digest tells, from any of its keyslots.
    fn open_digest(
        &self,
        io: &mut dyn ReadAt,
        passphrases: &[&SecretBytes],
        digest: u32,
        attempt: &mut Attempt<'_>,
    ) -> Result<(u32, SecretBytes), LuksError> {
        let slots = self.metadata.digests.get(&digest).map_or(&[][..], |digest| &digest.keyslots);
        for id in slots {
            for passphrase in passphrases {
                let usable = self.usable_bound_or_not(*id, attempt.limits);
                if let Some(key) = self.attempt_slot(io, passphrase, *id, usable, attempt)? {
                    return Ok((*id, key));
                }
            }
        }
        Err(attempt.failed())
    }

    /// The key of one keyslot if the passphrase opens it; what speaks against trying is noted.
    fn attempt_slot(
        &self,
        io: &mut dyn ReadAt,
        passphrase: &SecretBytes,
        slot: u32,
        usable: Result<UsableKeyslot<'_>, String>,
        attempt: &mut Attempt<'_>,
    ) -> Result<Option<SecretBytes>, LuksError> {
        let affordable = usable.and_then(|usable| {
            attempt.budget.spend(usable.kdf, usable.digest_iterations).map(|()| usable)
        });
        let mut skip = |reason: String| attempt.skipped.push(Skipped { slot, reason });
        let usable = match affordable {
            Ok(usable) => usable,
            Err(reason) => {
                skip(reason);
                return Ok(None);
            }
        };
        match self.try_slot(io, passphrase, &usable, attempt.limits) {
            Ok(key) if self.is_key_of(usable.digest, &key) => return Ok(Some(key)),
            Ok(_) => attempt.tried += 1,
            Err(LuksError::Kdf(reason)) => skip(reason),
            Err(error @ LuksError::Read { .. }) => skip(in_one_line(&error)),
            Err(error) => return Err(error),
        }
        Ok(None)
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
        let mut specs = self.placed(volume_bytes)?;
        for ((id, _), spec) in self.metadata.live_segments().zip(&mut specs) {
            let digest = self.metadata.digest_of_segment(id).ok_or(LuksError::ForeignKey)?;
            let key = unlocked.key_of(digest).ok_or(LuksError::ForeignKey)?;
            let key_bytes = u32::try_from(key.expose().len()).unwrap_or(0);
            let algorithm = material::algorithm(key_bytes).ok_or(LuksError::ForeignKey)?;
            spec.crypt = Some((algorithm, Arc::clone(key)));
        }
        Ok(specs)
    }

    /// Where the segments lie on a volume of `volume_bytes`; still without a key.
    fn placed(&self, volume_bytes: u64) -> Result<Vec<SegmentSpec>, LuksError> {
        let mut start = 0;
        let mut specs: Vec<SegmentSpec> = Vec::new();
        let mut digests: Vec<Option<u32>> = Vec::new();
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
            let digest = self.metadata.digest_of_segment(id);
            let reused = |(other, key): (&SegmentSpec, &Option<u32>)| {
                *key == digest
                    && iv_tweak < other.iv_start + other.sectors
                    && other.iv_start < iv_end
            };
            if specs.iter().zip(&digests).any(reused) {
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
            digests.push(digest);
            start += sectors;
        }
        Ok(specs)
    }

    /// Why a volume of `volume_bytes` will not be served, refusals included. That a re-encryption was
    /// interrupted is none: it is recovered first.
    pub(crate) fn obstacles(&self, volume_bytes: u64) -> Vec<String> {
        let mut reasons = self.refusals_of_any_kind();
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
