//! What conversions that were interrupted leave behind a LUKS1 header.
//!
//! Contract: nothing of it counts (R13): sector 0 says LUKS1. But a copy of keyslot 0 would still
//! open when somebody removes keyslot 0, and a LUKS2 header that nobody needs is not to outlive the
//! next ones. Only what is in no use is overwritten, and only after a flush: the header that says so
//! may have been written by somebody who died before he flushed it.

use super::Luks1;
use super::convert::retire;
use super::edit::write_sectors;
use super::phdr::{HEADER_BYTES, SECTOR, SLOTS};
use crate::error::LuksError;
use crate::io::{Plan, Random, ReadAt};
use crate::luks2::{CONVERTED_HEADER_BYTES, SECONDARY_MAGIC};
use crate::read_vec;

/// The sectors by which the remains are told: of the primary's JSON and of the secondary. They are
/// overwritten last, so that an interrupted wipe is found and done again.
const JSON_AT: u64 = 4096;

/// How the JSON of every LUKS2 header begins that we make.
const JSON_START: &[u8] = b"{\"keyslots\":";

/// Appends zeroes over both LUKS2 copies of `hdr_size` bytes, except for the two sectors of the
/// LUKS1 header.
pub(super) fn wipe_luks2(plan: &mut Plan, hdr_size: u64) {
    let sector = SECTOR as u64;
    let mut from = HEADER_BYTES as u64;
    for mark in [JSON_AT, hdr_size] {
        plan.write(from, vec![0; (mark - from) as usize]);
        from = mark + sector;
    }
    plan.write(from, vec![0; (2 * hdr_size - from) as usize]);
    plan.flush();
    for mark in [JSON_AT, hdr_size] {
        plan.write(mark, vec![0; SECTOR]);
    }
    plan.flush();
}

impl Luks1 {
    /// Plans what is left to do; empty when nothing is.
    pub(crate) fn finish_conversion(
        &self,
        io: &mut dyn ReadAt,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_unchanged(io)?;
        let mut plan = Plan::default();
        let copies = self.copies_of_slots(io)?;
        let luks2 = self.has_luks2_remains(io);
        if copies.is_empty() && !luks2 {
            return Ok(plan);
        }
        plan.flush();
        let mut raw = self.raw;
        for slot in &copies {
            let before = raw;
            if self.is_active(*slot) {
                retire(&mut raw, *slot);
            }
            write_sectors(&mut plan, &before, &raw, [0, 1]);
        }
        for slot in &copies {
            let (start, end) = self.material_range(&self.slots[*slot as usize]);
            let mut noise = vec![0; usize::try_from(end - start).unwrap_or(0)];
            random(&mut noise).map_err(LuksError::Random)?;
            plan.write(start, noise);
        }
        plan.flush();
        if luks2 {
            wipe_luks2(&mut plan, CONVERTED_HEADER_BYTES);
        }
        Ok(plan)
    }

    /// Keyslots that hold what another one holds: of keyslot 0 while it is still in use, and what
    /// remains of one that is no longer.
    fn copies_of_slots(&self, io: &mut dyn ReadAt) -> Result<Vec<u32>, LuksError> {
        let mut sectors = Vec::new();
        for number in 0..SLOTS {
            let apart = self.place_flaw(number, |_| true).is_ok();
            let (start, _) = self.material_range(&self.slots[number as usize]);
            // What cannot be read holds no copy that opens, and must not stop who needs it not.
            sectors.push(if apart { read_vec(io, start, SECTOR).ok() } else { None });
        }
        let copy = |slot: &u32| {
            let own = &sectors[*slot as usize];
            let same =
                |other: u32| other != *slot && own.is_some() && sectors[other as usize] == *own;
            if self.is_active(*slot) {
                *slot != 0 && self.is_active(0) && self.is_twin(*slot) && same(0)
            } else {
                (0..SLOTS).any(|other| self.is_active(other) && same(other))
            }
        };
        let mut copies = Vec::new();
        for slot in (0..SLOTS).filter(copy) {
            // One in use goes only if keyslot 0 has every byte of it.
            let mut whole =
                || Ok::<_, LuksError>(self.read_material(io, slot)? == self.read_material(io, 0)?);
            if !self.is_active(slot) || whole()? {
                copies.push(slot);
            }
        }
        Ok(copies)
    }

    /// Whether parts of a LUKS2 header of this volume lie where no keyslot in use does.
    fn has_luks2_remains(&self, io: &mut dyn ReadAt) -> bool {
        let end = 2 * CONVERTED_HEADER_BYTES;
        let in_use = self.slots.iter().filter(|slot| slot.active);
        let first = in_use.map(|slot| self.material_range(slot).0).min();
        if self.payload_bytes() < end || first.is_some_and(|start| start < end) {
            return false;
        }
        let json = read_vec(io, JSON_AT, JSON_START.len()).is_ok_and(|bytes| bytes == JSON_START);
        let secondary = read_vec(io, CONVERTED_HEADER_BYTES, 208).is_ok_and(|bytes| {
            bytes.starts_with(SECONDARY_MAGIC) && bytes[168..208] == self.raw[168..208]
        });
        json || secondary
    }
}
