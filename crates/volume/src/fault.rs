//! A volume that misbehaves as told, in front of any other.
// UNSAFETY: passes the caller's submit contract on.
#![expect(unsafe_code, reason = "implements Lane::submit")]

use std::sync::Arc;

use sealblk_block::{Geometry, VolumeError};
use sealblk_ring::{Full, Ring, Token, opcode};

use crate::{Buffer, Lane, LaneDone, LaneIo, LaneOp, Volume};

/// What to do with an I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Carry it out.
    Pass,
    /// Carry out its first bytes only (flat buffers; others pass).
    Short(u32),
    /// Fail it with this errno.
    Fail(i32),
}

/// Decides over each I/O, on the thread that submits it.
pub(crate) type Judge = dyn Fn(&LaneOp) -> Verdict + Send + Sync;

/// A volume in front of another whose lanes fail or fall short when the judge says so. Control
/// reads and writes pass.
pub struct FaultyVolume {
    inner: Arc<dyn Volume>,
    judge: Arc<Judge>,
}

impl FaultyVolume {
    /// Puts a judge in front of `inner`.
    pub fn new(
        inner: Arc<dyn Volume>,
        judge: impl Fn(&LaneOp) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        Self { inner, judge: Arc::new(judge) }
    }
}

impl Volume for FaultyVolume {
    fn uri(&self) -> &str {
        self.inner.uri()
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.inner.read_at(offset_bytes, buf)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.inner.write_at(offset_bytes, data)
    }

    fn flush(&self) -> Result<(), VolumeError> {
        self.inner.flush()
    }

    fn open_lane(&self, ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError> {
        let inner = self.inner.open_lane(ring)?;
        Ok(Box::new(FaultyLane { inner, judge: self.judge.clone() }))
    }
}

struct FaultyLane {
    inner: Box<dyn Lane>,
    judge: Arc<Judge>,
}

/// Marks a token as a failure of ours: the errno lies in the bits above the id's 32.
const FAILED: u64 = 1 << 55;

impl Lane for FaultyLane {
    unsafe fn submit(&mut self, ring: &mut Ring, mut io: LaneIo) -> Result<(), Full> {
        match (self.judge)(&io.op) {
            Verdict::Pass => {}
            Verdict::Short(bytes) => shorten(&mut io.op, bytes),
            Verdict::Fail(errno) => {
                let token = Token::Lane(FAILED | (errno as u64) << 32 | u64::from(io.id));
                // SAFETY: a no-op points to nothing.
                return unsafe { ring.push(opcode::Nop::new().build(), token) };
            }
        }
        // SAFETY: the caller's promise; a shorter I/O touches less of the same memory.
        unsafe { self.inner.submit(ring, io) }
    }

    fn push_out(&mut self, ring: &mut Ring) {
        self.inner.push_out(ring);
    }

    fn complete(&mut self, ring: &mut Ring, token: u64, result: i32, done: &mut Vec<LaneDone>) {
        if token & FAILED != 0 {
            let errno = ((token & !FAILED) >> 32) as i32;
            done.push(LaneDone { id: token as u32, result: Err(errno) });
        } else {
            self.inner.complete(ring, token, result, done);
        }
    }

    fn close(&mut self, ring: &mut Ring) {
        self.inner.close(ring);
    }
}

fn shorten(op: &mut LaneOp, bytes: u32) {
    if let LaneOp::Read { buffer, .. } | LaneOp::Write { buffer, .. } = op
        && let Buffer::Flat { len_bytes, .. } = buffer
    {
        *len_bytes = bytes.min(*len_bytes);
    }
}
