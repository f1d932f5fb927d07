//! A LUKS1 header from its parts, and its parts from a LUKS1 header.

use std::sync::Arc;

use sealblk_secret::SecretBytes;

use super::Luks1;
use super::phdr::{
    ACTIVE, HEADER_BYTES, INACTIVE, SLOT_ITERATIONS, SLOT_MATERIAL, SLOT_SALT, SLOT_STRIPES, SLOTS,
    slot_at,
};
use crate::af;
use crate::error::LuksError;
use crate::hash::Hash;
use crate::header::Unlocked;
use crate::io::Random;
use crate::kdf::key_digest;
use crate::luks2::{DIGEST_ITERATIONS, PRIMARY_MAGIC};
use crate::material::ENCRYPTION;

/// What LUKS1 and LUKS2 both say of a volume, in LUKS1's terms.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// The one hash of everything.
    pub(crate) hash: Hash,
    /// Where the data begins.
    pub(crate) payload_sectors: u32,
    /// The field.
    pub(crate) uuid: [u8; 40],
    /// Where each keyslot has its material, in sectors.
    pub(crate) grid: [u32; SLOTS as usize],
    /// Those in use.
    pub(crate) slots: Vec<GridSlot>,
}

/// A keyslot in use.
#[derive(Debug, Clone)]
pub(crate) struct GridSlot {
    pub(crate) number: u32,
    pub(crate) iterations: u32,
    pub(crate) salt: [u8; 32],
}

impl Luks1 {
    pub(super) fn parts(&self) -> Result<Parts, LuksError> {
        let mut uuid = [0; 40];
        uuid.copy_from_slice(&self.raw[168..208]);
        let in_use = (0..SLOTS).filter(|number| self.is_active(*number));
        let slots = in_use.map(|number| {
            let slot = &self.slots[number as usize];
            GridSlot { number, iterations: slot.iterations, salt: slot.salt }
        });
        Ok(Parts {
            hash: self.known_hash()?,
            payload_sectors: self.payload_offset,
            uuid,
            grid: self.slots.map(|slot| slot.material_offset),
            slots: slots.collect(),
        })
    }

    /// The header that `parts` make, with a fresh digest of the key.
    pub(crate) fn assemble(
        parts: &Parts,
        key: &Arc<SecretBytes>,
        random: &mut Random<'_>,
    ) -> Result<Self, LuksError> {
        let mut raw = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
        let (name, mode) = ENCRYPTION.split_once('-').unwrap_or((ENCRYPTION, ""));
        let mut salt = [0; 32];
        random(&mut salt).map_err(LuksError::Random)?;
        let digest = key_digest(parts.hash, key, &salt, DIGEST_ITERATIONS, 20);
        put(0, PRIMARY_MAGIC);
        put(6, &1_u16.to_be_bytes());
        put(8, name.as_bytes());
        put(40, mode.as_bytes());
        put(72, parts.hash.name().as_bytes());
        put(104, &parts.payload_sectors.to_be_bytes());
        put(108, &u32::try_from(key.len()).unwrap_or(0).to_be_bytes());
        put(112, &digest);
        put(132, &salt);
        put(164, &DIGEST_ITERATIONS.to_be_bytes());
        put(168, &parts.uuid);
        for (number, sector) in (0..SLOTS).zip(parts.grid) {
            let at = slot_at(number);
            let slot = parts.slots.iter().find(|slot| slot.number == number);
            put(at, &slot.map_or(INACTIVE, |_| ACTIVE).to_be_bytes());
            if let Some(slot) = slot {
                put(at + SLOT_ITERATIONS, &slot.iterations.to_be_bytes());
                put(at + SLOT_SALT, &slot.salt);
            }
            put(at + SLOT_MATERIAL, &sector.to_be_bytes());
            put(at + SLOT_STRIPES, &af::STRIPES.to_be_bytes());
        }
        let header = Self::parse(raw).map_err(|flaw| {
            LuksError::Refused(vec![format!("the LUKS1 header would be invalid: {flaw}")])
        })?;
        let unlocked = Unlocked { key: Arc::clone(key), slot: 0, digest: 0, old: None };
        header.segments(&unlocked, u64::MAX)?;
        if header.is_volume_key(key)? { Ok(header) } else { Err(LuksError::ForeignKey) }
    }
    /// The bytes on the volume.
    #[cfg(test)]
    pub(crate) fn sectors(&self) -> &[u8] {
        &self.raw
    }
}
