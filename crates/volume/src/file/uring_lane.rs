//! Data I/O on a file descriptor: one entry per I/O, nothing kept here.
// UNSAFETY: entries point to the caller's memory.
#![expect(unsafe_code, reason = "submits entries that carry the caller's pointers")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, RWF_DSYNC};
use sealblk_ring::{Entry, FileSlot, Full, Ring, Token, on_file, opcode, types};

use crate::{Buffer, Lane, LaneDone, LaneIo, LaneOp};

/// A file as one thread sees it.
pub(super) struct UringLane {
    /// Keeps the descriptor open, and with it the claim on the volume, as long as I/O is possible.
    _file: Arc<OwnedFd>,
    slot: FileSlot,
    /// A claim that isn't on the file itself, and its place in the ring: there it stays until the
    /// kernel has finished the ring's I/O, also when this process is killed.
    claim: Option<(Arc<OwnedFd>, FileSlot)>,
}

impl UringLane {
    pub(super) fn new(file: Arc<OwnedFd>, claim: Option<Arc<OwnedFd>>, ring: &mut Ring) -> Self {
        let slot = ring.add_file(file.as_fd());
        let claim = claim.map(|claim| {
            let slot = ring.add_file(claim.as_fd());
            (claim, slot)
        });
        Self { _file: file, slot, claim }
    }

    fn entry(&self, op: LaneOp) -> Entry {
        match op {
            LaneOp::Read { offset_bytes, buffer } => match buffer {
                Buffer::Flat { addr, len_bytes, registered: Some(index) } => {
                    on_file!(self.slot, |file| {
                        opcode::ReadFixed::new(file, addr, len_bytes, index)
                            .offset(offset_bytes)
                            .build()
                    })
                }
                Buffer::Flat { addr, len_bytes, registered: None } => {
                    on_file!(self.slot, |file| {
                        opcode::Read::new(file, addr, len_bytes).offset(offset_bytes).build()
                    })
                }
                Buffer::Vectored { iovecs, count, .. } => on_file!(self.slot, |file| {
                    opcode::Readv::new(file, iovecs, count).offset(offset_bytes).build()
                }),
            },
            LaneOp::Write { offset_bytes, buffer, durable } => {
                let flags = if durable { RWF_DSYNC } else { 0 };
                match buffer {
                    Buffer::Flat { addr, len_bytes, registered: Some(index) } => {
                        on_file!(self.slot, |file| {
                            opcode::WriteFixed::new(file, addr, len_bytes, index)
                                .offset(offset_bytes)
                                .rw_flags(flags)
                                .build()
                        })
                    }
                    Buffer::Flat { addr, len_bytes, registered: None } => {
                        on_file!(self.slot, |file| {
                            opcode::Write::new(file, addr, len_bytes)
                                .offset(offset_bytes)
                                .rw_flags(flags)
                                .build()
                        })
                    }
                    Buffer::Vectored { iovecs, count, .. } => on_file!(self.slot, |file| {
                        opcode::Writev::new(file, iovecs, count)
                            .offset(offset_bytes)
                            .rw_flags(flags)
                            .build()
                    }),
                }
            }
            LaneOp::Flush => on_file!(self.slot, |file| {
                opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build()
            }),
            LaneOp::Discard { offset_bytes, len_bytes } => on_file!(self.slot, |file| {
                opcode::Fallocate::new(file, len_bytes)
                    .offset(offset_bytes)
                    .mode(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
                    .build()
            }),
        }
    }
}

impl Lane for UringLane {
    unsafe fn submit(&mut self, ring: &mut Ring, io: LaneIo) -> Result<(), Full> {
        let entry = self.entry(io.op);
        // SAFETY: the entry points to the memory that the I/O names, and the caller keeps it until
        // the I/O has come back.
        unsafe { ring.push(entry, Token::Lane(u64::from(io.id))) }
    }

    fn complete(&mut self, _ring: &mut Ring, token: u64, result: i32, done: &mut Vec<LaneDone>) {
        let result = u32::try_from(result).map_err(|_| errno(-result));
        // The token is the id of an I/O that `submit` took: it has 32 bits.
        done.push(LaneDone { id: token as u32, result });
    }

    fn close(&mut self, ring: &mut Ring) {
        ring.remove_file(self.slot);
        if let Some((_, slot)) = self.claim.take() {
            ring.remove_file(slot);
        }
    }
}

/// A block device says EBADE when another initiator has reserved it (`BLK_STS_RESV_CONFLICT`): to
/// try again until that one lets go would put our writes over its data.
fn errno(errno: i32) -> i32 {
    if errno == libc::EBADE { crate::FENCED } else { errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_device_is_lost_and_not_held() {
        assert_eq!(errno(libc::EBADE), crate::FENCED);
        assert_eq!(errno(libc::EIO), libc::EIO);
    }
}
