//! What protects the range in work: which kind, how long a range, and what goes into the area.
//!
//! A block that a crash leaves must be the old or the new one, never a mixture: that is what
//! checksums can tell. Storage that tears blocks gets a journal (invariant R6).

use super::super::model::Area;
use super::state::Resilience;
use crate::hash::Hash;

/// What the caller knows of the volume and wants of the rotation. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotationParams {
    /// Size of the volume, header included.
    pub volume_bytes: u64,
    /// The volume's logical block: every write consists of whole ones.
    pub block_bytes: u32,
    /// What a power cut leaves whole: an aligned piece of this size is written altogether or not at
    /// all. 0 when nobody knows, which means a journal.
    pub atomic_write_bytes: u32,
    /// The longest range to be in work at a time. It may be shorter.
    pub zone_bytes: u64,
}

/// When guests may write into the range in work again (invariant R7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// When its new ciphertext has been written and completed; it need not be durable.
    Written,
    /// When the plan that ends it has been carried out: a crash before that puts the range back.
    Committed,
}

/// Checksums are kept of blocks up to this size, which LUKS2 knows as sector sizes.
const MAX_CHECKSUM_BLOCK: u32 = 4096;

/// cryptsetup's default; a collision would have to be found within one rotation.
const HASH: Hash = Hash::Sha256;

/// Areas are written in whole pieces of this size where there is room.
const AREA_UNIT: u64 = 4096;

impl RotationParams {
    /// The unit of everything: whole encryption sectors and whole blocks of the volume. Guests write
    /// no smaller pieces.
    pub(super) fn unit_bytes(&self, sector_bytes: u32) -> u32 {
        self.block_bytes.max(sector_bytes)
    }

    pub(super) fn resilience(&self, sector_bytes: u32) -> Resilience {
        let block_bytes = self.unit_bytes(sector_bytes);
        if block_bytes <= MAX_CHECKSUM_BLOCK && self.atomic_write_bytes >= block_bytes {
            Resilience::Checksum { hash: HASH, block_bytes }
        } else {
            Resilience::Journal
        }
    }
}

impl Resilience {
    pub(super) fn release(self) -> Release {
        match self {
            Self::Checksum { .. } => Release::Written,
            Self::Journal => Release::Committed,
        }
    }

    /// What the area holds while `old_ciphertext` is in work.
    pub(super) fn area_content(self, area: Area, old_ciphertext: &[u8]) -> Vec<u8> {
        let mut content = match self {
            Self::Checksum { hash, block_bytes } => {
                let blocks = old_ciphertext.chunks(block_bytes as usize);
                let mut sums = Vec::with_capacity(blocks.len() * hash.bytes());
                for block in blocks {
                    sums.extend_from_slice(&checksum(hash, block)[..hash.bytes()]);
                }
                sums
            }
            Self::Journal => old_ciphertext.to_vec(),
        };
        let padded = (content.len() as u64).next_multiple_of(AREA_UNIT).min(area.size);
        content.resize(usize::try_from(padded).unwrap_or(content.len()), 0);
        content
    }
}

/// The first `hash.bytes()` bytes are the checksum.
pub(super) fn checksum(hash: Hash, block: &[u8]) -> [u8; 64] {
    let mut sum = [0; 64];
    hash.digest_into(&[block], &mut sum[..hash.bytes()]);
    sum
}
