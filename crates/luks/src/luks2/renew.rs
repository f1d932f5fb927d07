//! Writing again what lies before the data, as it reads.
//!
//! After a flush that failed, storage may go on to show what it has not kept and never will (Linux
//! takes the pages of a failed write for clean), and the next flush succeeds. Only what is written
//! again does that flush speak for. Every byte gets the value that it has, so a tear harms nothing
//! that was durable; one copy is durable at any time (R1), and the two are written apart.

use super::Luks2;
use crate::error::LuksError;
use crate::io::{Plan, ReadAt};
use crate::read_vec;

/// Areas are written in pieces of this size, in bytes.
const PIECE_BYTES: u64 = 1 << 20;

impl Luks2 {
    /// Plans it: the areas, flush, one copy, flush, the other, flush.
    pub(crate) fn renew(&self, io: &mut dyn ReadAt) -> Result<Plan, LuksError> {
        let hdr_size = self.binary.hdr_size;
        let mut plan = Plan::default();
        let mut again = |plan: &mut Plan, start: u64, len: u64| {
            let mut at = 0;
            while at < len {
                let piece = (len - at).min(PIECE_BYTES);
                let bytes = read_vec(io, start + at, usize::try_from(piece).unwrap_or(0))?;
                plan.write(start + at, bytes);
                at += piece;
            }
            plan.flush();
            Ok::<_, LuksError>(())
        };
        again(&mut plan, 2 * hdr_size, self.metadata.config.keyslots_size)?;
        for copy in &self.copies {
            again(&mut plan, copy.offset_bytes(), hdr_size)?;
        }
        Ok(plan)
    }
}
