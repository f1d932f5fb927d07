//! LUKS1 to LUKS2 and back, in place, between two single sectors that say which of them counts.
//!
//! Contract: the data stays where it is, under the same key; keyslots keep their passphrases. Sector
//! 0 is the switch (docs/on-disk.md, R10): LUKS1's while its version field says 1, however much of
//! LUKS2 lies behind it; LUKS2's afterwards, and then one of the two copies is whole. The headers of
//! LUKS2 take the place of keyslot 0's material, so that keyslot moves to a free one before (R11).
//! Needs of the storage what every LUKS1 change needs: sectors of 512 bytes are written whole.
//!
//! ```text
//! to LUKS2:  F  W copy of keyslot 0's material  F  W sectors 1, 0: it is in use  F
//!            W sector 0: keyslot 0 is not  F
//!            W secondary, JSON of the primary, noise over the rest of keyslot 0  F
//!            W sector 0 of the primary: THE SWITCH  F  W the rest of its first 4096 bytes  F
//! to LUKS1:  F  W sector 1 (the primary's checksum is wrong now, the secondary counts)  F
//!            W sector 0: THE SWITCH  F  W zeroes over what is left of LUKS2  F, marks last  F
//! ```

use std::ops::Range;

use super::Luks1;
use super::edit::write_sectors;
use super::phdr::{ACTIVE, HEADER_BYTES, INACTIVE, SECTOR, SLOT_MATERIAL, SLOTS, slot_at};
use super::remains::wipe_luks2;
use crate::error::LuksError;
use crate::header::{Luks2Stay, Unlocked};
use crate::io::{Plan, Random, ReadAt};
use crate::luks2::{self, CONVERTED_HEADER_BYTES, HEADER_SIZES, SECONDARY_MAGIC};
use crate::read_vec;

/// LUKS2 areas begin at multiples of this.
const ALIGN: u64 = 4096;

/// Where the JSON of the primary begins.
const JSON_AT: usize = 4096;

impl Luks1 {
    /// Plans the conversion.
    pub(crate) fn convert_to_luks2(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        stay: Luks2Stay,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_unchanged(io)?;
        if !self.is_volume_key(&unlocked.key)? {
            return Err(LuksError::ForeignKey);
        }
        for slot in (1..SLOTS).filter(|slot| self.is_active(*slot)) {
            self.check_luks2_place(slot).map_err(|reason| LuksError::Refused(vec![reason]))?;
        }
        self.check_no_other_luks2(io)?;
        let mut plan = Plan::default();
        // Who wrote what we read may have died before he flushed it.
        plan.flush();
        let moved =
            if self.is_active(0) { self.move_first_slot(io, &mut plan)? } else { self.clone() };
        let remember = stay == Luks2Stay::UntilRotated;
        let [primary, secondary] =
            luks2::from_luks1(&moved.parts()?, &unlocked.key, remember, random)?;

        plan.write(CONVERTED_HEADER_BYTES, secondary);
        plan.write(JSON_AT as u64, primary[JSON_AT..].to_vec());
        let rest = moved.rest_of_first_slot();
        if !rest.is_empty() {
            let mut noise = vec![0; usize::try_from(rest.end - rest.start).unwrap_or(0)];
            random(&mut noise).map_err(LuksError::Random)?;
            plan.write(rest.start, noise);
        }
        plan.flush();
        plan.write(0, primary[..SECTOR].to_vec());
        plan.flush();
        plan.write(SECTOR as u64, primary[SECTOR..JSON_AT].to_vec());
        plan.flush();
        Ok(plan)
    }

    /// What the LUKS2 headers leave of keyslot 0's material, if that lies apart from all in use.
    fn rest_of_first_slot(&self) -> Range<u64> {
        let (start, end) = self.material_range(&self.slots[0]);
        match self.place_flaw(0, |slot| slot.active) {
            Ok(()) => start.max(2 * CONVERTED_HEADER_BYTES)..end,
            Err(_) => 0..0,
        }
    }

    /// Whether LUKS2 could name the material of `slot`, which is in use, where it is.
    fn check_luks2_place(&self, slot: u32) -> Result<(), String> {
        let (start, end) = self.material_range(&self.slots[slot as usize]);
        let end = end.next_multiple_of(ALIGN);
        let overlaps = |other: u32| {
            let (from, to) = self.material_range(&self.slots[other as usize]);
            self.is_active(other)
                && other != slot
                && start < to.next_multiple_of(ALIGN)
                && from < end
        };
        if start < 2 * CONVERTED_HEADER_BYTES
            || !start.is_multiple_of(ALIGN)
            || end > self.payload_bytes()
            || (1..SLOTS).any(overlaps)
        {
            return Err(format!(
                "keyslot {slot} has its material at {start}, where it cannot be while the volume is \
                 LUKS2: remove it and add it again with another tool"
            ));
        }
        Ok(())
    }

    /// With a damaged primary the secondary is looked for at every place where one may be: one of
    /// earlier times, where the conversion does not overwrite it, would make that ambiguous.
    fn check_no_other_luks2(&self, io: &mut dyn ReadAt) -> Result<(), LuksError> {
        let rest = self.rest_of_first_slot();
        let overwritten = |at: u64| at == CONVERTED_HEADER_BYTES || rest.contains(&at);
        for offset in HEADER_SIZES.into_iter().filter(|offset| !overwritten(*offset)) {
            if offset + 8 <= io.size_bytes() && read_vec(io, offset, 6)? == SECONDARY_MAGIC {
                return Err(LuksError::Refused(vec![format!(
                    "a LUKS2 header of earlier times lies at {offset}: as LUKS2 the volume could \
                     not be told from that one after a crash"
                )]));
            }
        }
        Ok(())
    }

    /// Appends the move of keyslot 0 to a free one: the same passphrase, salt and iterations, and
    /// the same material byte for byte, whose encryption counts sectors from its own beginning.
    fn move_first_slot(&self, io: &mut dyn ReadAt, plan: &mut Plan) -> Result<Self, LuksError> {
        let material = self.read_material(io, 0)?;
        let mut twin = None;
        for slot in (1..SLOTS).filter(|slot| self.is_twin(*slot)) {
            if self.read_material(io, slot)? == material {
                twin = Some(slot);
            }
        }
        let mut raw = self.raw;
        if twin.is_none() {
            let fits = |slot: &u32| {
                !self.is_active(*slot)
                    && self.place_flaw(*slot, |_| true).is_ok()
                    && self.check_luks2_place(*slot).is_ok()
            };
            let to = (1..SLOTS).find(fits).ok_or_else(|| {
                LuksError::NoRoom(
                    "LUKS2 beside its keyslots: keyslot 0 lies where the LUKS2 headers go, and no \
                     other is free to take its place. Remove one that is not needed"
                        .into(),
                )
            })?;
            plan.write(self.material_range(&self.slots[to as usize]).0, material);
            plan.flush();
            let (from, at) = (slot_at(0), slot_at(to));
            raw.copy_within(from + 4..from + SLOT_MATERIAL, at + 4);
            raw[at..at + 4].copy_from_slice(&ACTIVE.to_be_bytes());
            write_sectors(plan, &self.raw, &raw, [1, 0]);
        }
        let before = raw;
        retire(&mut raw, 0);
        write_sectors(plan, &before, &raw, [0, 1]);
        Self::parse(raw).map_err(LuksError::InvalidLuks1)
    }

    /// Whether `slot` is in use and opens as keyslot 0 does, as far as the header says.
    pub(super) fn is_twin(&self, slot: u32) -> bool {
        let (first, slot) = (&self.slots[0], &self.slots[slot as usize]);
        slot.active && (slot.iterations, slot.salt) == (first.iterations, first.salt)
    }

    pub(super) fn read_material(
        &self,
        io: &mut dyn ReadAt,
        slot: u32,
    ) -> Result<Vec<u8>, LuksError> {
        let (start, end) = self.material_range(&self.slots[slot as usize]);
        read_vec(io, start, usize::try_from(end - start).unwrap_or(0))
    }

    /// Plans this header over the two LUKS2 copies of `hdr_size` bytes that say the same.
    pub(crate) fn plan_over_luks2(&self, hdr_size: u64) -> Result<Plan, LuksError> {
        let in_use = self.slots.iter().filter(|slot| slot.active);
        if in_use.map(|slot| self.material_range(slot).0).any(|start| start < 2 * hdr_size) {
            return Err(LuksError::Refused(vec!["a keyslot lies under the LUKS2 header".into()]));
        }
        let mut plan = Plan::default();
        plan.flush();
        for sector in [1, 0] {
            let bytes = &self.raw[sector * SECTOR..(sector + 1) * SECTOR];
            plan.write((sector * SECTOR) as u64, bytes.to_vec());
            plan.flush();
        }
        wipe_luks2(&mut plan, hdr_size);
        Ok(plan)
    }
}

/// Takes a keyslot out of use.
pub(super) fn retire(raw: &mut [u8; HEADER_BYTES], slot: u32) {
    let at = slot_at(slot);
    raw[at..at + 4].copy_from_slice(&INACTIVE.to_be_bytes());
    raw[at + 4..at + SLOT_MATERIAL].fill(0);
}
