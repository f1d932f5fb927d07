//! LUKS1: from passphrase to volume key and segment.

use std::sync::Arc;

use sealblk_cipher::SegmentSpec;
use sealblk_secret::SecretBytes;

use super::Luks1;
use super::phdr::{SECTOR, SLOTS, Slot};
use crate::error::{LuksError, Skipped};
use crate::hash::Hash;
use crate::header::Unlocked;
use crate::io::ReadAt;
use crate::kdf::{Kdf, KdfLimits, check_iterations, key_digest};
use crate::material;

impl Luks1 {
    /// Tries the active keyslots in order, or the named one.
    pub(crate) fn unlock(
        &self,
        io: &mut dyn ReadAt,
        passphrase: &SecretBytes,
        slot: Option<u32>,
        limits: &KdfLimits,
    ) -> Result<Unlocked, LuksError> {
        if let Some(slot) = slot.filter(|slot| !self.is_active(*slot)) {
            return Err(LuksError::NoSuchKeyslot(slot));
        }
        check_iterations(self.digest_iterations, limits)
            .map_err(|reason| LuksError::Kdf(format!("volume key digest: {reason}")))?;
        let mut tried = 0;
        let mut skipped = Vec::new();
        let active = (0..SLOTS).filter(|id| self.is_active(*id));
        for id in active.filter(|id| slot.is_none_or(|slot| slot == *id)) {
            let kdf = self.kdf(&self.slots[id as usize]);
            if let Err(reason) = kdf.check(limits) {
                skipped.push(Skipped { slot: id, reason });
                continue;
            }
            let slot_key = kdf.derive(passphrase, self.key_bytes as usize, limits)?;
            let (offset_bytes, _) = self.material_range(&self.slots[id as usize]);
            let key =
                material::open(io, offset_bytes, &slot_key, self.key_bytes, self.known_hash()?)?;
            if self.is_volume_key(&key)? {
                return Ok(Unlocked { key: Arc::new(key), slot: id, digest: 0 });
            }
            tried += 1;
        }
        Err(LuksError::NoKeyslotOpens { tried, skipped })
    }

    pub(super) fn is_active(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|slot| slot.active)
    }

    pub(super) fn known_hash(&self) -> Result<Hash, LuksError> {
        Hash::from_name(&self.hash).ok_or_else(|| LuksError::Refused(self.refusals()))
    }

    pub(super) fn kdf(&self, slot: &Slot) -> Kdf {
        Kdf::Pbkdf2 {
            hash: self.hash.clone(),
            iterations: slot.iterations,
            salt: slot.salt.to_vec(),
        }
    }

    pub(super) fn is_volume_key(&self, key: &SecretBytes) -> Result<bool, LuksError> {
        let digest = key_digest(
            self.known_hash()?,
            key,
            &self.digest_salt,
            self.digest_iterations,
            self.digest.len(),
        );
        let differing = digest.iter().zip(&self.digest).fold(0, |acc, (a, b)| acc | (a ^ b));
        Ok(differing == 0)
    }

    /// One segment: from the payload to the end of the volume, in sectors of 512 bytes.
    pub(crate) fn segments(
        &self,
        unlocked: &Unlocked,
        volume_bytes: u64,
    ) -> Result<Vec<SegmentSpec>, LuksError> {
        let refusals = self.refusals();
        if !refusals.is_empty() {
            return Err(LuksError::Refused(refusals));
        }
        let algorithm = material::algorithm(self.key_bytes)
            .filter(|algorithm| algorithm.key_bytes() == unlocked.key.expose().len())
            .ok_or(LuksError::ForeignKey)?;
        let sectors = volume_bytes.saturating_sub(self.payload_bytes()) / SECTOR as u64;
        if sectors == 0 {
            return Err(LuksError::SegmentOutside {
                segment: 0,
                volume_bytes,
                problem: format!("its data begins at {}", self.payload_bytes()),
            });
        }
        Ok(vec![SegmentSpec {
            start: 0,
            sectors,
            volume_start: u64::from(self.payload_offset),
            iv_start: 0,
            sector_bytes: SECTOR as u32,
            crypt: Some((algorithm, Arc::clone(&unlocked.key))),
        }])
    }
}
