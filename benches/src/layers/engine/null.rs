//! A volume that moves nothing: every I/O completes at once, through the ring like any other.
//!
//! What is left when requests go to it is our own cost: virtqueue, engine, cipher, and one pass
//! through io_uring. Reads leave in the buffer what was there.
// UNSAFETY: the lane's interface is about raw memory, of which this one touches none.
#![expect(unsafe_code, reason = "the submit contract is about raw memory")]

use sealblk_block::{Geometry, VolumeError};
use sealblk_ring::{Full, Ring, Token, opcode};
use sealblk_volume::{Lane, LaneDone, LaneIo, LaneOp, Volume};

/// A volume of so many bytes with blocks of so many bytes.
#[derive(Debug)]
pub(crate) struct NullVolume {
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
}

impl Volume for NullVolume {
    fn uri(&self) -> &str {
        "null"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            block_bytes: self.block_bytes,
            physical_block_bytes: 4096,
            atomic_write_bytes: 4096,
            discard: false,
            read_only: false,
        }
    }

    fn read_at(&self, _offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _offset_bytes: u64, _data: &[u8]) -> Result<(), VolumeError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }

    fn open_lane(&self, _ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError> {
        Ok(Box::new(NullLane::default()))
    }
}

#[derive(Default)]
struct NullLane {
    /// Bytes asked for, by I/O id.
    lengths: Vec<u32>,
}

impl Lane for NullLane {
    unsafe fn submit(&mut self, ring: &mut Ring, io: LaneIo) -> Result<(), Full> {
        // SAFETY: a no-op points to nothing.
        unsafe { ring.push(opcode::Nop::new().build(), Token::Lane(u64::from(io.id))) }?;
        let len_bytes = match io.op {
            LaneOp::Read { buffer, .. } | LaneOp::Write { buffer, .. } => buffer.len_bytes(),
            LaneOp::Flush | LaneOp::Discard { .. } => 0,
        };
        let index = io.id as usize;
        if self.lengths.len() <= index {
            self.lengths.resize(index + 1, 0);
        }
        if let Some(length) = self.lengths.get_mut(index) {
            *length = len_bytes;
        }
        Ok(())
    }

    fn complete(&mut self, _ring: &mut Ring, token: u64, _result: i32, done: &mut Vec<LaneDone>) {
        let moved = self.lengths.get(token as usize).copied().unwrap_or(0);
        done.push(LaneDone { id: token as u32, result: Ok(moved) });
    }

    fn close(&mut self, _ring: &mut Ring) {}
}
