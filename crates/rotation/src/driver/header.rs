//! Plans for the header, carried out by a rotation: as [`carry_out`](crate::carry_out) does it, but
//! long writes (a journal holds a whole zone) go as zones go, in pieces of which several are in flight.
//!
//! Contract: no zone is on its way out. Each step has ended before the next begins.

use sealblk_luks::{Plan, Step};

use super::Driver;
use crate::error::Trouble;
use crate::mover::{Gait, Way};
use crate::storage::write_header;

/// Writes above this size, in bytes, are worth a copy to a zone's buffer.
const LONG_BYTES: usize = 1 << 20;

impl Driver<'_> {
    pub(super) fn carry_out(&mut self, plan: &Plan) -> Result<(), Trouble> {
        for step in plan.steps() {
            match step {
                Step::Write { offset_bytes, data } if self.is_long(*offset_bytes, data) => {
                    self.write_long(*offset_bytes, data)?;
                }
                Step::Write { offset_bytes, data } => {
                    write_header(&**self.volume, *offset_bytes, data)?;
                }
                Step::Flush => self.flush()?,
            }
        }
        Ok(())
    }

    fn is_long(&self, offset_bytes: u64, data: &[u8]) -> bool {
        let block = u64::from(self.volume.geometry().block_bytes);
        let whole = [offset_bytes, data.len() as u64].iter().all(|at| at.is_multiple_of(block));
        whole && data.len() > LONG_BYTES
    }

    fn write_long(&mut self, offset_bytes: u64, data: &[u8]) -> Result<(), Trouble> {
        let mut buf = self.buffer(data.len())?;
        buf.as_mut_slice()[..data.len()].copy_from_slice(data);
        self.mover.start_write(buf, offset_bytes, data.len(), Gait::FAST);
        if let Some((buf, written)) = self.mover.wait(Way::Out) {
            self.spare.push(buf);
            written?;
        }
        Ok(())
    }
}
