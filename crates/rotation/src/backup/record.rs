//! What a backup says of itself, behind the header area: cryptsetup ignores it.
//!
//! In a block of its own, so that the area stays what `cryptsetup luksHeaderBackup` would have
//! written: [`MARK`], JSON, zeroes. While data moves the magics of both header copies are
//! [`UNMAGIC`] instead of `LUKS\xba\xbe` and `SKUL\xba\xbe`: no tool takes it for a header then.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hex;

/// Length of the block.
const RECORD_BYTES: usize = 4096;

const MARK: &[u8] = b"sealblk header backup\n";

const PRIMARY_MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const SECONDARY_MAGIC: &[u8; 6] = b"SKUL\xba\xbe";
const UNMAGIC: &[u8; 6] = b"MOVING";

/// Whether it may be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// No data has moved since.
    True,
    /// Data has moved, or is about to.
    Moving,
}

/// What there is to know about a copy of a header area.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) state: State,
    pub(super) uuid: String,
    pub(super) luks_version: u8,
    /// LUKS2: which header it was.
    pub(super) seqid: Option<u64>,
    /// LUKS2: where the second copy is.
    pub(super) second_copy_bytes: Option<u64>,
    /// Of the area, as it was on the volume.
    pub(super) sha256: String,
}

impl Record {
    /// The record at the end of a file, and the area as it was on the volume. None where the one is
    /// not there or the other not whole.
    pub(super) fn of(file: &[u8]) -> Option<(Self, Vec<u8>)> {
        let (area, block) = file.split_at_checked(file.len().checked_sub(RECORD_BYTES)?)?;
        let json = block.strip_prefix(MARK)?;
        let end = json.iter().position(|&byte| byte == 0)?;
        let record: Self = serde_json::from_slice(&json[..end]).ok()?;
        let mut area = area.to_vec();
        if record.state == State::Moving {
            record.put_magics(&mut area, [PRIMARY_MAGIC, SECONDARY_MAGIC]);
        }
        (hex(&Sha256::digest(&area)) == record.sha256).then_some((record, area))
    }

    /// The file.
    pub(super) fn append_to(&self, mut area: Vec<u8>) -> Vec<u8> {
        if self.state == State::Moving {
            self.put_magics(&mut area, [UNMAGIC, UNMAGIC]);
        }
        let end = area.len() + RECORD_BYTES;
        area.extend_from_slice(MARK);
        // Plain data: it can always be written as JSON.
        area.extend(serde_json::to_vec(self).unwrap_or_default());
        area.resize(end, 0);
        area
    }

    fn put_magics(&self, area: &mut [u8], magics: [&[u8; 6]; 2]) {
        let second = self.second_copy_bytes.and_then(|at| usize::try_from(at).ok());
        for (at, magic) in [Some(0), second].into_iter().zip(magics) {
            let place = at.and_then(|at| area.get_mut(at..at.checked_add(magic.len())?));
            if let Some(place) = place {
                place.copy_from_slice(magic);
            }
        }
    }
}
