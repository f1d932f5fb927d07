//! LUKS1: from passphrase to volume key and segment.

use std::sync::Arc;

use sealblk_block::in_one_line;
use sealblk_cipher::SegmentSpec;
use sealblk_secret::SecretBytes;

use super::Luks1;
use super::phdr::{SECTOR, SLOTS, Slot};
use crate::error::{LuksError, Skipped, no_keyslot};
use crate::hash::Hash;
use crate::header::Unlocked;
use crate::io::ReadAt;
use crate::kdf::{Budget, Kdf, KdfLimits, check_iterations, key_digest};
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
        self.check_digest(limits).map_err(LuksError::Kdf)?;
        let mut budget = Budget::new(limits);
        let mut tried = 0;
        let mut skipped = Vec::new();
        let active = (0..SLOTS).filter(|id| self.is_active(*id));
        for id in active.filter(|id| slot.is_none_or(|slot| slot == *id)) {
            let mut skip = |reason: String| skipped.push(Skipped { slot: id, reason });
            let kdf = self.kdf(&self.slots[id as usize]);
            let checked = kdf.check(limits);
            if let Err(reason) = checked.and_then(|()| budget.spend(&kdf, self.digest_iterations)) {
                skip(reason);
                continue;
            }
            match self.try_slot(io, passphrase, id, limits) {
                Ok(key) if self.is_volume_key(&key)? => {
                    return Ok(Unlocked { key: Arc::new(key), slot: id, digest: 0, old: None });
                }
                Ok(_) => tried += 1,
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
        id: u32,
        limits: &KdfLimits,
    ) -> Result<SecretBytes, LuksError> {
        let slot = &self.slots[id as usize];
        let slot_key = self.kdf(slot).derive(passphrase, self.key_bytes as usize, limits)?;
        let (offset_bytes, _) = self.material_range(slot);
        material::open(io, offset_bytes, &slot_key, self.key_bytes, self.known_hash()?)
    }

    pub(super) fn check_digest(&self, limits: &KdfLimits) -> Result<(), String> {
        check_iterations(self.digest_iterations, limits)
            .map_err(|reason| format!("volume key digest: {reason}"))
    }

    /// Why a volume of `volume_bytes` will not be served, refusals included.
    pub(crate) fn obstacles(&self, volume_bytes: u64) -> Vec<String> {
        let limits = KdfLimits::default();
        let mut reasons = self.refusals();
        reasons.extend(self.check_digest(&limits).err());
        reasons.extend(self.data_sectors(volume_bytes).err().map(|error| error.to_string()));
        let active: Vec<_> = (0..SLOTS).filter(|id| self.is_active(*id)).collect();
        let unusable = |id: &u32| {
            let reason = self.kdf(&self.slots[*id as usize]).check(&limits).err()?;
            Some(Skipped { slot: *id, reason })
        };
        let skipped: Vec<_> = active.iter().map_while(unusable).collect();
        if skipped.len() == active.len() {
            reasons.push(no_keyslot(&skipped));
        }
        reasons
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
        Ok(vec![SegmentSpec {
            start: 0,
            sectors: self.data_sectors(volume_bytes)?,
            volume_start: u64::from(self.payload_offset),
            iv_start: 0,
            sector_bytes: SECTOR as u32,
            crypt: Some((algorithm, Arc::clone(&unlocked.key))),
        }])
    }

    /// From the payload to the end of the volume.
    fn data_sectors(&self, volume_bytes: u64) -> Result<u64, LuksError> {
        match volume_bytes.saturating_sub(self.payload_bytes()) / SECTOR as u64 {
            0 => Err(LuksError::SegmentOutside {
                segment: 0,
                volume_bytes,
                problem: format!("its data begins at {}", self.payload_bytes()),
            }),
            sectors => Ok(sectors),
        }
    }
}
