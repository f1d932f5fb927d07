//! A volume that misbehaves as told, in front of any other.
// UNSAFETY: passes the caller's submit contract on.
#![expect(unsafe_code, reason = "implements Lane::submit")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use sealblk_block::{Geometry, VolumeError};
use sealblk_ring::{Full, Ring, Token, opcode, types};

use crate::{Buffer, Lane, LaneDone, LaneIo, LaneOp, Shape, Volume};

/// What to do with an I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Carry it out.
    Pass,
    /// Carry out its first bytes only (flat buffers; others pass).
    Short(u32),
    /// Fail it with this errno.
    Fail(i32),
    /// Neither: keep it until [`Kept::release`], then carry it out.
    Keep,
}

/// What became of the I/Os that a [`FaultyVolume`] keeps.
#[derive(Debug, Clone)]
pub struct Kept(Arc<OwnedFd>);

impl Kept {
    /// Carries out what is kept; from now on nothing is any more.
    pub fn release(&self) {
        // A counter that is full is readable, too.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// Decides over each I/O, on the thread that submits it.
pub(crate) type Judge = dyn Fn(&LaneOp) -> Verdict + Send + Sync;

/// A volume in front of another whose lanes fail or fall short when the judge says so. Control
/// reads and writes pass.
pub struct FaultyVolume {
    inner: Arc<dyn Volume>,
    judge: Arc<Judge>,
    /// Readable once what is kept goes on.
    released: Result<Kept, i32>,
    shape: Shape,
}

impl FaultyVolume {
    /// Puts a judge in front of `inner`.
    pub fn new(
        inner: Arc<dyn Volume>,
        judge: impl Fn(&LaneOp) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        let released = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map(|event| Kept(Arc::new(event)))
            .map_err(|error| error.raw_os_error());
        let shape = inner.shape();
        Self { inner, judge: Arc::new(judge), released, shape }
    }

    /// The same, which wants its I/O cut otherwise.
    pub fn shaped(self, shape: Shape) -> Self {
        Self { shape, ..self }
    }

    /// Where to let go on what [`Verdict::Keep`] keeps.
    ///
    /// # Errors
    /// The process has no descriptor left for it.
    pub fn kept(&self) -> io::Result<Kept> {
        self.released.clone().map_err(io::Error::from_raw_os_error)
    }
}

impl Volume for FaultyVolume {
    fn uri(&self) -> &str {
        self.inner.uri()
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn measure_size(&self) -> Result<u64, VolumeError> {
        self.inner.measure_size()
    }

    fn grow_to(&self, size_bytes: u64) {
        self.inner.grow_to(size_bytes);
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
        let kept = self.kept().map_err(|error| VolumeError::io(self.uri(), "an eventfd", error))?;
        let inner = self.inner.open_lane(ring)?;
        let judge = self.judge.clone();
        Ok(Box::new(FaultyLane { inner, judge, kept, waiting: Vec::new() }))
    }
}

struct FaultyLane {
    inner: Box<dyn Lane>,
    judge: Arc<Judge>,
    kept: Kept,
    waiting: Vec<LaneIo>,
}

/// Marks a token as an I/O of [`FaultyLane::waiting`].
const KEPT: u64 = 1 << 54;

/// Marks a token as a failure of ours: the errno lies in the bits above the id's 32.
const FAILED: u64 = 1 << 55;

impl Lane for FaultyLane {
    unsafe fn submit(&mut self, ring: &mut Ring, mut io: LaneIo) -> Result<(), Full> {
        match (self.judge)(&io.op) {
            Verdict::Pass => {}
            Verdict::Short(bytes) => shorten(&mut io.op, bytes),
            Verdict::Keep => {
                let token = Token::Lane(KEPT | u64::from(io.id));
                let file = types::Fd(self.kept.0.as_raw_fd());
                let poll = opcode::PollAdd::new(file, libc::POLLIN as u32).build();
                // SAFETY: a poll points to nothing.
                unsafe { ring.push(poll, token) }?;
                self.waiting.push(io);
                return Ok(());
            }
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
        } else if token & KEPT != 0 {
            let id = token as u32;
            let Some(at) = self.waiting.iter().position(|io| io.id == id) else { return };
            let io = self.waiting.swap_remove(at);
            // SAFETY: the submitter keeps the memory mapped until the I/O has come back.
            if unsafe { self.inner.submit(ring, io) }.is_err() {
                done.push(LaneDone { id, result: Err(libc::EAGAIN) });
            }
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
