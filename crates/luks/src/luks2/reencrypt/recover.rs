//! Redoing the range that a crash interrupted, before anybody reads from it.
//!
//! By checksum: a block whose hash is the stored one is still the old one and is re-encrypted; any
//! other has been written already, and is written again as it reads: a flush may have failed before
//! this, and the next one speaks only for what is written again. By journal: the whole range is made anew from the old ciphertext
//! that the area holds. Invariant R9: doing it again after another crash gives the same; the area is
//! not touched before the header that no longer needs it is durable.

use sealblk_cipher::Implementation;

use super::recrypt::Recryptor;
use super::resilience::checksum;
use super::rotation::{Core, Pending, Progress};
use super::state::Resilience;
use crate::error::LuksError;
use crate::io::ReadAt;
use crate::read_vec;

/// The range is redone in pieces of this size, in bytes; a multiple of every block size.
const PIECE_BYTES: u64 = 1 << 20;

/// An interrupted range, redone up to some place.
#[derive(Debug)]
pub struct Recovery {
    core: Core,
    recryptor: Recryptor,
    start: u64,
    len: u64,
    last: bool,
    /// Bytes redone.
    redone: u64,
}

/// What recovery has to do next.
#[derive(Debug)]
pub enum RecoveryStep {
    /// Writes, and more after them.
    Redo(Pending<Recovery>),
    /// The header that says the range is done.
    Commit(Pending<Progress>),
}

impl Recovery {
    pub(super) fn new(core: Core, start: u64, len: u64, last: bool) -> Result<Self, LuksError> {
        let volume_bytes = core.volume_bytes();
        let end = core.found.data_offset.checked_add(start).and_then(|at| at.checked_add(len));
        if end.is_none_or(|end| end > volume_bytes) {
            return Err(LuksError::SegmentOutside {
                segment: u32::from(start > 0),
                volume_bytes,
                problem: "the range in work reaches past the end".into(),
            });
        }
        let recryptor = core.recryptor(Implementation::Auto)?;
        Ok(Self { core, recryptor, start, len, last, redone: 0 })
    }

    /// Reads the next piece and plans what is to be written.
    ///
    /// # Errors
    /// [`LuksError::Read`].
    pub fn step(mut self, io: &mut dyn ReadAt) -> Result<RecoveryStep, LuksError> {
        let mut script = self.core.script();
        // The first of these pays for a header in the cache, the last makes the data durable (R4).
        let ends = self.redone == self.len;
        if self.redone == 0 || ends {
            script.flush();
        }
        if ends {
            let done = self.start + self.len;
            return Ok(RecoveryStep::Commit(self.core.boundary(script, done, self.last)?));
        }
        let piece = PIECE_BYTES.min(self.len - self.redone);
        let at = self.core.found.data_offset + self.start + self.redone;
        script.write(at, self.redo(io, piece)?);
        self.redone += piece;
        Ok(RecoveryStep::Redo(Pending::new(script.finish().0, self)))
    }

    /// The next piece's new ciphertext.
    fn redo(&mut self, io: &mut dyn ReadAt, piece: u64) -> Result<Vec<u8>, LuksError> {
        let len = usize::try_from(piece).unwrap_or(usize::MAX);
        let (area, at) = (self.core.found.area, self.start + self.redone);
        let data = match self.core.found.resilience {
            Resilience::Journal => {
                let mut data = read_vec(io, area.offset + self.redone, len)?;
                self.recryptor.recrypt(at, &mut data);
                data
            }
            Resilience::Checksum { hash, block_bytes } => {
                let sums_at = self.redone / u64::from(block_bytes) * hash.bytes() as u64;
                let sums_len = len / block_bytes as usize * hash.bytes();
                let sums = read_vec(io, area.offset + sums_at, sums_len)?;
                let mut data = read_vec(io, self.core.found.data_offset + at, len)?;
                let (unit, mut place) = (block_bytes as usize, at);
                for (block, sum) in data.chunks_mut(unit).zip(sums.chunks(hash.bytes())) {
                    if checksum(hash, block)[..hash.bytes()] == *sum {
                        self.recryptor.recrypt(place, block);
                    }
                    place += block.len() as u64;
                }
                data
            }
        };
        Ok(data)
    }
}
