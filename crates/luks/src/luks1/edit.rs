//! Adding and removing LUKS1 keyslots.
//!
//! Order: material before the header that names it, and wiped after. Within the header the sector
//! that holds a slot's state is written last when adding and first when removing: slot 6 straddles
//! the two sectors of the header, and must not be active with half of its salt.

use sealblk_secret::SecretBytes;

use super::Luks1;
use super::phdr::{ACTIVE, INACTIVE, SECTOR, SLOT_ITERATIONS, SLOT_SALT, SLOTS, slot_at};
use crate::error::LuksError;
use crate::header::Unlocked;
use crate::io::{Plan, Random, ReadAt};
use crate::kdf::{Kdf, KdfLimits, SlotKdf};
use crate::luks2::NewKeyslot;
use crate::material;

impl Luks1 {
    /// Plans a keyslot for the unlocked key; gives its number.
    pub(crate) fn add_keyslot(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        passphrase: &SecretBytes,
        new: &NewKeyslot,
        random: &mut Random<'_>,
    ) -> Result<(u32, Plan), LuksError> {
        self.check_unchanged(io)?;
        if !self.is_volume_key(&unlocked.key)? {
            return Err(LuksError::ForeignKey);
        }
        let iterations = match new.kdf {
            SlotKdf::Pbkdf2Sha256 { iterations } if new.token.is_none() => iterations,
            _ => {
                return Err(LuksError::BadParameter(
                    "LUKS1 knows neither Argon2 nor tokens: use pbkdf2 without a token".into(),
                ));
            }
        };
        new.kdf.check_minimum()?;
        let fits = |slot: &u32| self.place_flaw(*slot, |_| true).is_ok();
        let slot = match new.slot {
            Some(slot) if slot >= SLOTS => {
                return Err(LuksError::BadParameter("LUKS1 keyslots go from 0 to 7".into()));
            }
            Some(slot) if self.is_active(slot) => return Err(LuksError::KeyslotInUse(slot)),
            Some(slot) if !fits(&slot) => {
                return Err(LuksError::NoRoom(format!("the material of keyslot {slot}")));
            }
            Some(slot) => slot,
            None => (0..SLOTS)
                .find(|slot| !self.is_active(*slot) && fits(slot))
                .ok_or_else(|| LuksError::NoRoom("another keyslot".into()))?,
        };

        let mut salt = [0; 32];
        random(&mut salt).map_err(LuksError::Random)?;
        // LUKS1 has one hash for everything: the header's, whatever the caller's default says.
        let kdf = Kdf::Pbkdf2 { hash: self.hash.clone(), iterations, salt: salt.to_vec() };
        let slot_key = kdf.derive(passphrase, self.key_bytes as usize, &KdfLimits::default())?;
        let data = material::seal(&unlocked.key, &slot_key, self.known_hash()?, random)?;

        let mut after = self.raw;
        let at = slot_at(slot);
        after[at..at + 4].copy_from_slice(&ACTIVE.to_be_bytes());
        after[at + SLOT_ITERATIONS..at + SLOT_ITERATIONS + 4]
            .copy_from_slice(&iterations.to_be_bytes());
        after[at + SLOT_SALT..at + SLOT_SALT + 32].copy_from_slice(&salt);

        let mut plan = Plan::default();
        plan.write(self.material_range(&self.slots[slot as usize]).0, data);
        plan.flush();
        write_sectors(&mut plan, &self.raw, &after, [1, 0]);
        Ok((slot, plan))
    }

    /// Plans the removal of a keyslot.
    pub(crate) fn remove_keyslot(
        &self,
        io: &mut dyn ReadAt,
        slot: u32,
        force: bool,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_unchanged(io)?;
        if !self.is_active(slot) {
            return Err(LuksError::NoSuchKeyslot(slot));
        }
        let limits = KdfLimits::default();
        let opens = |id: &u32| {
            self.is_active(*id)
                && self.check_digest(&limits).is_ok()
                && self.kdf(&self.slots[*id as usize]).check(&limits).is_ok()
        };
        if !force && !(0..SLOTS).filter(|id| *id != slot).any(|id| opens(&id)) {
            return Err(LuksError::LastKeyslot(slot));
        }
        let mut after = self.raw;
        let at = slot_at(slot);
        after[at..at + 4].copy_from_slice(&INACTIVE.to_be_bytes());
        after[at + SLOT_ITERATIONS..at + SLOT_SALT + 32].fill(0);

        let mut plan = Plan::default();
        write_sectors(&mut plan, &self.raw, &after, [0, 1]);
        let (start, end) = self.material_range(&self.slots[slot as usize]);
        let mut noise = vec![0; usize::try_from(end - start).unwrap_or(0)];
        random(&mut noise).map_err(LuksError::Random)?;
        plan.write(start, noise);
        plan.flush();
        Ok(plan)
    }

    /// There is no sequence number: compare, lest another's change be undone.
    pub(super) fn check_unchanged(&self, io: &mut dyn ReadAt) -> Result<(), LuksError> {
        if Self::load(io)? == *self { Ok(()) } else { Err(LuksError::Changed) }
    }
}

/// The sectors of the header that change, each durable before the next.
pub(super) fn write_sectors(plan: &mut Plan, before: &[u8], after: &[u8], order: [usize; 2]) {
    for sector in order {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        if after[range.clone()] != before[range.clone()] {
            plan.write(range.start as u64, after[range].to_vec());
            plan.flush();
        }
    }
}
