//! The LUKS1 header's fields and the rules they must obey.

use crate::error::{Flaw, LuksError};
use crate::io::ReadAt;
use crate::material::{self, ENCRYPTION};
use crate::text::{shown, until_nul};
use crate::{af, read_vec};

/// Sector of everything LUKS1 counts.
pub(super) const SECTOR: usize = 512;

/// The header's 592 bytes, in whole sectors.
pub(super) const HEADER_BYTES: usize = 2 * SECTOR;

pub(super) const SLOTS: u32 = 8;

/// `LUKS_KEY_ENABLED`, `LUKS_KEY_DISABLED`.
pub(super) const ACTIVE: u32 = 0x00ac_71f3;
pub(super) const INACTIVE: u32 = 0x0000_dead;

/// Where slot `n` lies in the header, and what lies where in it.
pub(super) const fn slot_at(slot: u32) -> usize {
    208 + 48 * slot as usize
}
pub(super) const SLOT_ITERATIONS: usize = 4;
pub(super) const SLOT_SALT: usize = 8;
pub(super) const SLOT_MATERIAL: usize = 40;
pub(super) const SLOT_STRIPES: usize = 44;

/// A valid LUKS1 header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Luks1 {
    pub(super) raw: [u8; HEADER_BYTES],
    pub(super) cipher_name: String,
    pub(super) cipher_mode: String,
    pub(super) hash: String,
    /// Sectors.
    pub(super) payload_offset: u32,
    pub(super) key_bytes: u32,
    pub(super) digest: [u8; 20],
    pub(super) digest_salt: [u8; 32],
    pub(super) digest_iterations: u32,
    pub(super) slots: [Slot; SLOTS as usize],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) active: bool,
    pub(super) iterations: u32,
    pub(super) salt: [u8; 32],
    /// Sectors.
    pub(super) material_offset: u32,
    pub(super) stripes: u32,
}

impl Luks1 {
    pub(crate) fn load(io: &mut dyn ReadAt) -> Result<Self, LuksError> {
        let mut raw = [0; HEADER_BYTES];
        if io.size_bytes() < HEADER_BYTES as u64 {
            return Err(LuksError::InvalidLuks1(Flaw::new("header", "is cut off")));
        }
        raw.copy_from_slice(&read_vec(io, 0, HEADER_BYTES)?);
        Self::parse(raw).map_err(LuksError::InvalidLuks1)
    }

    pub(super) fn parse(raw: [u8; HEADER_BYTES]) -> Result<Self, Flaw> {
        let text = |name: &str, at: usize| {
            until_nul(&raw[at..at + 32])
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .filter(|text| !text.is_empty())
                .map(String::from)
                .ok_or_else(|| Flaw::new(name, "is no NUL-terminated text"))
        };
        let mut slots = Vec::new();
        for number in 0..SLOTS {
            slots.push(Slot::parse(&raw, number)?);
        }
        let header = Self {
            cipher_name: text("cipherName", 8)?,
            cipher_mode: text("cipherMode", 40)?,
            hash: text("hashSpec", 72)?,
            payload_offset: u32_at(&raw, 104),
            key_bytes: u32_at(&raw, 108),
            digest: array(&raw, 112),
            digest_salt: array(&raw, 132),
            digest_iterations: u32_at(&raw, 164),
            slots: slots.try_into().map_err(|_| Flaw::new("slots", "are not eight"))?,
            raw,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), Flaw> {
        if self.payload_offset == 0 {
            return Err(Flaw::new("payloadOffset", "is 0: detached headers are not supported"));
        }
        if !(16..=512).contains(&self.key_bytes) {
            return Err(Flaw::new("keyBytes", format!("is {}", self.key_bytes)));
        }
        for number in (0..SLOTS).filter(|number| self.slots[*number as usize].active) {
            self.place_flaw(number, |slot| slot.active)?;
        }
        Ok(())
    }

    /// Whether slot `number`'s material lies between header and payload and apart from that of the
    /// slots that `counts` picks.
    pub(super) fn place_flaw(
        &self,
        number: u32,
        counts: impl Fn(&Slot) -> bool,
    ) -> Result<(), Flaw> {
        let slot = &self.slots[number as usize];
        let at = format!("keyslot {number}");
        if slot.stripes != af::STRIPES {
            return Err(Flaw::new(
                at,
                format!("has {} stripes, not {}", slot.stripes, af::STRIPES),
            ));
        }
        let (start, end) = self.material_range(slot);
        if start < HEADER_BYTES as u64 || end > self.payload_bytes() {
            return Err(Flaw::new(
                at,
                format!(
                    "has its material at {start}..{end}, not between header and payload at {}",
                    self.payload_bytes()
                ),
            ));
        }
        for other in (0..SLOTS).filter(|other| *other != number) {
            let other_slot = &self.slots[other as usize];
            let (other_start, other_end) = self.material_range(other_slot);
            if counts(other_slot) && start < other_end && other_start < end {
                return Err(Flaw::new(at, format!("overlaps keyslot {other}")));
            }
        }
        Ok(())
    }

    /// Bytes on the volume.
    pub(super) fn material_range(&self, slot: &Slot) -> (u64, u64) {
        let start = u64::from(slot.material_offset) * SECTOR as u64;
        (start, start + material::material_bytes(self.key_bytes))
    }

    pub(super) fn payload_bytes(&self) -> u64 {
        u64::from(self.payload_offset) * SECTOR as u64
    }

    pub(crate) fn uuid(&self) -> String {
        shown(&self.raw[168..208])
    }

    /// `cipherName-cipherMode`, the name dm-crypt gives it.
    pub(super) fn encryption(&self) -> String {
        format!("{}-{}", self.cipher_name, self.cipher_mode)
    }

    /// Every reason not to serve or change the volume.
    pub(crate) fn refusals(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.encryption() != ENCRYPTION {
            reasons
                .push(format!("cipher {:?} is not allowed, only {ENCRYPTION}", self.encryption()));
        } else if material::algorithm(self.key_bytes).is_none() {
            reasons.push(format!("a volume key of {} bytes, not 32 or 64", self.key_bytes));
        }
        if crate::hash::Hash::from_name(&self.hash).is_none() {
            reasons
                .push(format!("hash {:?} is not supported, only sha1, sha256, sha512", self.hash));
        }
        reasons
    }
}

impl Slot {
    fn parse(raw: &[u8; HEADER_BYTES], number: u32) -> Result<Self, Flaw> {
        let at = slot_at(number);
        let active = match u32_at(raw, at) {
            ACTIVE => true,
            INACTIVE => false,
            other => {
                return Err(Flaw::new(
                    format!("keyslot {number}"),
                    format!("is neither active nor inactive but {other:#010x}"),
                ));
            }
        };
        Ok(Self {
            active,
            iterations: u32_at(raw, at + SLOT_ITERATIONS),
            salt: array(raw, at + SLOT_SALT),
            material_offset: u32_at(raw, at + SLOT_MATERIAL),
            stripes: u32_at(raw, at + SLOT_STRIPES),
        })
    }
}

fn u32_at(raw: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_be_bytes(array(raw, at))
}

fn array<const N: usize>(raw: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&raw[at..at + N]);
    array
}
