//! A rotation's bulk I/O: whole zones, in pieces, several in flight, on a ring and a lane of its own.
//!
//! Contract: belongs to one thread. What was started is finished before its buffer is handed out:
//! buffers of I/O in flight are owned by the mover. Short I/Os are continued; the kernel's requests
//! to try again are heeded, up to a limit.
// UNSAFETY: hands the lane buffers by address.
#![expect(unsafe_code, reason = "a lane takes memory by address")]

use std::io;

use sealblk_ring::{Level, Ring, RingOptions, Token};
use sealblk_volume::{AlignedBuf, Buffer, Lane, LaneDone, LaneIo, LaneOp, Volume};

/// Most I/Os of a rotation in flight.
const IN_FLIGHT_MAX: u32 = 16;

/// How often the kernel may ask to try an I/O again without moving a byte.
const RETRIES_MAX: u8 = 64;

/// How a zone is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gait {
    /// Length of a piece in bytes: a multiple of every block size.
    pub(crate) piece_bytes: usize,
    /// Pieces in flight at most.
    pub(crate) in_flight: u32,
}

impl Gait {
    /// Nobody else is there.
    pub(crate) const FAST: Self = Self { piece_bytes: 512 << 10, in_flight: IN_FLIGHT_MAX };
    /// Beside guests: their requests wait for one short I/O of ours at most.
    pub(crate) const GENTLE: Self = Self { piece_bytes: 128 << 10, in_flight: 1 };
}

/// An I/O failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    /// Where on the volume, in bytes.
    pub(crate) offset_bytes: u64,
    pub(crate) errno: i32,
    pub(crate) write: bool,
}

/// A piece.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Within the zone.
    at: usize,
    len: usize,
    retries: u8,
}

/// A zone on its way.
struct Transfer {
    buf: AlignedBuf,
    /// Where it lies on the volume.
    offset_bytes: u64,
    write: bool,
    gait: Gait,
    /// First byte that no piece has been made for, and the first that none may be made for yet.
    next: usize,
    end: usize,
    in_flight: u32,
    failed: Option<Failed>,
}

impl Transfer {
    fn is_done(&self) -> bool {
        self.in_flight == 0 && (self.next == self.end || self.failed.is_some())
    }
}

/// Names a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Reading ahead.
    In,
    /// Writing.
    Out,
}

/// The bulk I/O of one rotation: one zone in and one zone out at a time.
pub(crate) struct Mover {
    ring: Ring,
    lane: Box<dyn Lane>,
    transfers: [Option<Transfer>; 2],
    /// By id: odd ids go out.
    pieces: Vec<Piece>,
    free: [Vec<u32>; 2],
    done: Vec<LaneDone>,
}

impl Mover {
    /// A mover on the calling thread.
    pub(crate) fn new(volume: &dyn Volume) -> io::Result<Self> {
        let options = RingOptions { entries: 4 * IN_FLIGHT_MAX, best: Level::Deferred };
        let mut ring = Ring::new(options).map_err(io::Error::other)?;
        ring.enable().map_err(io::Error::other)?;
        let lane = volume.open_lane(&mut ring).map_err(io::Error::other)?;
        let ids = |parity| (0..IN_FLIGHT_MAX).map(|n| 2 * n + parity).collect();
        Ok(Self {
            ring,
            lane,
            transfers: [None, None],
            pieces: vec![Piece { at: 0, len: 0, retries: 0 }; 2 * IN_FLIGHT_MAX as usize],
            free: [ids(0), ids(1)],
            done: Vec::new(),
        })
    }

    /// Starts to read `len` bytes at `offset_bytes` into the front of `buf`.
    pub(crate) fn start_read(
        &mut self,
        buf: AlignedBuf,
        offset_bytes: u64,
        len: usize,
        gait: Gait,
    ) {
        self.start(Way::In, buf, offset_bytes, len, gait);
    }

    /// Starts to write the first `len` bytes of `buf` at `offset_bytes`.
    pub(crate) fn start_write(
        &mut self,
        buf: AlignedBuf,
        offset_bytes: u64,
        len: usize,
        gait: Gait,
    ) {
        self.start(Way::Out, buf, offset_bytes, len, gait);
    }

    fn start(&mut self, way: Way, buf: AlignedBuf, offset_bytes: u64, len: usize, gait: Gait) {
        assert!(self.transfers[way as usize].is_none(), "one zone each way at a time");
        assert!(len <= buf.len(), "the buffer has room for the zone");
        self.transfers[way as usize] = Some(Transfer {
            buf,
            offset_bytes,
            write: way == Way::Out,
            gait,
            next: 0,
            end: len,
            in_flight: 0,
            failed: None,
        });
        self.fill(way);
        self.lane.push_out(&mut self.ring);
        // What the kernel doesn't take now it takes in `wait`.
        let _ = self.ring.submit();
    }

    /// Waits until everything that was started has come back; gives the buffer, and what failed
    /// first.
    pub(crate) fn wait(&mut self, way: Way) -> Option<(AlignedBuf, Result<(), Failed>)> {
        while !self.transfers[way as usize].as_ref()?.is_done() {
            self.fill(way);
            self.lane.push_out(&mut self.ring);
            if let Err(error) = self.ring.submit_and_wait() {
                // Nothing will ever come back, and the kernel may still write to our memory.
                tracing::error!(%error, "io_uring failed");
                std::process::abort();
            }
            self.reap();
        }
        let transfer = self.transfers[way as usize].take()?;
        Some((transfer.buf, transfer.failed.map_or(Ok(()), Err)))
    }

    /// Makes pieces as far as the gait allows.
    fn fill(&mut self, way: Way) {
        while let Some(transfer) = &mut self.transfers[way as usize]
            && transfer.failed.is_none()
            && transfer.next < transfer.end
            && transfer.in_flight < transfer.gait.in_flight
            && let Some(id) = self.free[way as usize].pop()
        {
            let len = transfer.gait.piece_bytes.min(transfer.end - transfer.next);
            self.pieces[id as usize] = Piece { at: transfer.next, len, retries: 0 };
            transfer.next += len;
            transfer.in_flight += 1;
            self.send(id);
        }
    }

    fn send(&mut self, id: u32) {
        let piece = self.pieces[id as usize];
        let Some(transfer) = &mut self.transfers[id as usize & 1] else {
            unreachable!("a piece of no transfer")
        };
        // SAFETY: `at + len` is at most the length that was checked against the buffer's.
        let addr = unsafe { transfer.buf.as_mut_ptr().add(piece.at) };
        let buffer = Buffer::Flat { addr, len_bytes: piece.len as u32, registered: None };
        let offset_bytes = transfer.offset_bytes + piece.at as u64;
        let op = if transfer.write {
            LaneOp::Write { offset_bytes, buffer, durable: false }
        } else {
            LaneOp::Read { offset_bytes, buffer }
        };
        // SAFETY: the transfer owns the buffer and is given out only when no piece is in flight.
        while unsafe { self.lane.submit(&mut self.ring, LaneIo { id, op }) }.is_err() {
            // The ring has room for all our ids; it only has to look.
            self.lane.push_out(&mut self.ring);
            let _ = self.ring.submit();
        }
    }

    fn reap(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        while let Some(completion) = self.ring.reap() {
            if let Token::Lane(token) = completion.token {
                self.lane.complete(&mut self.ring, token, completion.result, &mut done);
            }
            for done in done.drain(..) {
                self.came_back(done);
            }
        }
        self.done = done;
    }

    fn came_back(&mut self, done: LaneDone) {
        let way = done.id as usize & 1;
        let piece = &mut self.pieces[done.id as usize];
        let Some(transfer) = &mut self.transfers[way] else { return };
        let errno = match done.result {
            Ok(bytes) if bytes as usize == piece.len => None,
            // The volume ended early.
            Ok(0) => Some(libc::EIO),
            Ok(bytes) => {
                piece.at += bytes as usize;
                piece.len -= bytes as usize;
                piece.retries = 0;
                return self.send(done.id);
            }
            Err(libc::EINTR | libc::EAGAIN) if piece.retries < RETRIES_MAX => {
                piece.retries += 1;
                return self.send(done.id);
            }
            Err(errno) => Some(errno),
        };
        transfer.in_flight -= 1;
        self.free[way].push(done.id);
        if let Some(errno) = errno
            && transfer.failed.is_none()
        {
            let offset_bytes = transfer.offset_bytes + piece.at as u64;
            transfer.failed = Some(Failed { offset_bytes, errno, write: transfer.write });
        }
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        // The kernel may be writing to the buffers still.
        for way in [Way::In, Way::Out] {
            if let Some(transfer) = &mut self.transfers[way as usize] {
                transfer.end = transfer.next;
            }
            let _ = self.wait(way);
        }
        self.lane.close(&mut self.ring);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sealblk_volume::{FaultyVolume, MemoryVolume, Verdict};

    use super::*;

    fn memory(bytes: usize) -> Arc<dyn Volume> {
        let volume = MemoryVolume::new(bytes as u64, 512).unwrap();
        let pattern: Vec<u8> = (0..bytes).map(|at| (at >> 9) as u8 ^ (at >> 17) as u8).collect();
        volume.write_at(0, &pattern).unwrap();
        Arc::new(volume)
    }

    fn content(volume: &dyn Volume, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        volume.read_at(offset, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn zones_come_in_and_go_out_at_the_same_time_in_any_gait() {
        let volume = memory(8 << 20);
        let before = content(&*volume, 0, 8 << 20);
        for gait in [Gait::FAST, Gait::GENTLE, Gait { piece_bytes: 512, in_flight: 3 }] {
            let mut mover = Mover::new(&*volume).unwrap();
            let len = 1_000_448;
            let mut out = AlignedBuf::new(1 << 20).unwrap();
            out.as_mut_slice().fill(7);
            mover.start_read(AlignedBuf::new(1 << 20).unwrap(), 512, len, gait);
            mover.start_write(out, 4 << 20, len, gait);
            let (_, written) = mover.wait(Way::Out).unwrap();
            let (buf, read) = mover.wait(Way::In).unwrap();
            assert_eq!((written, read), (Ok(()), Ok(())));
            assert!(buf.as_slice()[..len] == before[512..512 + len]);
            assert!(content(&*volume, 4 << 20, len).iter().all(|byte| *byte == 7));
            let after = (4 << 20) + len;
            assert!(content(&*volume, after as u64, 4096) == before[after..after + 4096]);
            assert!(mover.wait(Way::In).is_none());
        }
    }

    #[test]
    fn short_io_goes_on_where_it_ended() {
        let inner = memory(4 << 20);
        let short = FaultyVolume::new(inner.clone(), |_| Verdict::Short(1536));
        let mut mover = Mover::new(&short).unwrap();
        mover.start_read(AlignedBuf::new(1 << 20).unwrap(), 0, 1 << 20, Gait::FAST);
        let (buf, result) = mover.wait(Way::In).unwrap();
        assert_eq!(result, Ok(()));
        assert!(buf.as_slice() == content(&*inner, 0, 1 << 20));
    }

    #[test]
    fn a_failure_names_its_place_and_is_told_once_all_is_back() {
        let at = 3 << 19;
        let broken = FaultyVolume::new(memory(4 << 20), move |op| match op {
            LaneOp::Write { offset_bytes, .. } if *offset_bytes == at => {
                Verdict::Fail(libc::ENOSPC)
            }
            LaneOp::Read { .. } => Verdict::Short(0),
            _ => Verdict::Pass,
        });
        let mut mover = Mover::new(&broken).unwrap();
        mover.start_write(AlignedBuf::new(2 << 20).unwrap(), 1 << 20, 2 << 20, Gait::FAST);
        let (_, result) = mover.wait(Way::Out).unwrap();
        assert_eq!(result, Err(Failed { offset_bytes: at, errno: libc::ENOSPC, write: true }));
        mover.start_read(AlignedBuf::new(4096).unwrap(), 0, 4096, Gait::FAST);
        let (_, result) = mover.wait(Way::In).unwrap();
        assert_eq!(result.unwrap_err().errno, libc::EIO, "the volume ends there");
        // Dropped with a read in flight: waits for it.
        mover.start_read(AlignedBuf::new(1 << 20).unwrap(), 0, 1 << 20, Gait::GENTLE);
    }
}
