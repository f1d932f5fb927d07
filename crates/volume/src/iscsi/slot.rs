//! An I/O in the driver's hands, and the commands that carry it out.
//!
//! Contract: a slot belongs to one I/O from its submission until it is given back, and knows
//! everything that is needed to send it once more. Its vectors keep their memory from one I/O to
//! the next.
// UNSAFETY: names memory of the submitter by address.
#![expect(unsafe_code, reason = "copies the submitter's iovecs")]

use std::ptr::null_mut;
use std::time::Instant;

use super::command::{Command, unmap_list};
use super::library::ScsiTask;
use super::unit::{Unit, Unmap};
use crate::{Buffer, LaneOp};

/// Where the I/O is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// No I/O.
    Free,
    /// To be sent when there is a session.
    Queued,
    /// To be sent at `Slot::due`.
    Waiting,
    /// In libiscsi's hands, or the target's.
    Sent,
    /// It has failed, but libiscsi may still have some of its data to send.
    Held(i32),
}

/// Which of its commands it is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The one that it is about.
    Main,
    /// The SYNCHRONIZE CACHE behind a durable write, for units without FUA.
    Sync,
}

/// An I/O.
pub(super) struct Slot {
    pub(super) id: u32,
    pub(super) op: LaneOp,
    pub(super) state: State,
    pub(super) stage: Stage,
    /// Order of submission.
    pub(super) sequence: u64,
    pub(super) submitted: Instant,
    pub(super) sent: Instant,
    pub(super) due: Instant,
    /// Answers that said "not now".
    pub(super) tries: u32,
    /// For a flush: the writes before it, see `Durability::mark`.
    pub(super) mark: u64,
    /// Bytes that are done: of a discard, or of a write whose cache is being flushed.
    pub(super) done_bytes: u64,
    /// Bytes that the command in flight is about.
    pub(super) step_bytes: u64,
    pub(super) task: *mut ScsiTask,
    pieces: Vec<libc::iovec>,
    list: Vec<u8>,
}

impl Slot {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            id: 0,
            op: LaneOp::Flush,
            state: State::Free,
            stage: Stage::Main,
            sequence: 0,
            submitted: now,
            sent: now,
            due: now,
            tries: 0,
            mark: 0,
            done_bytes: 0,
            step_bytes: 0,
            task: null_mut(),
            pieces: Vec::new(),
            list: Vec::new(),
        }
    }

    /// The unit may have lost its cache, and with it a durable write of which only the flush was
    /// missing: the write is done again.
    pub(super) fn forget_sync(&mut self) {
        if self.stage == Stage::Sync {
            (self.stage, self.done_bytes) = (Stage::Main, 0);
        }
    }

    /// Whether its data goes to the target.
    pub(super) fn sends(&self) -> bool {
        matches!(self.op, LaneOp::Write { .. } | LaneOp::Discard { .. })
    }

    /// The next command, with its pieces of memory, which stay until the next call.
    ///
    /// # Safety
    /// The memory that the I/O names is mapped.
    pub(super) unsafe fn command(
        &mut self,
        unit: &Unit,
        size_bytes: u64,
        short_sync: bool,
        zeroes: *mut u8,
    ) -> (Command, *mut libc::iovec, usize) {
        self.pieces.clear();
        let block_bytes = unit.geometry.block_bytes;
        let block = u64::from(block_bytes);
        let command = match (self.op, self.stage) {
            (LaneOp::Flush, _) | (_, Stage::Sync) => {
                self.step_bytes = 0;
                Command::synchronize_cache(short_sync)
            }
            (LaneOp::Read { offset_bytes, buffer }, _) => {
                // A read across the end falls short there; one behind it is the target's to refuse.
                let len = match size_bytes.checked_sub(offset_bytes) {
                    None | Some(0) => buffer.len_bytes(),
                    Some(left) => left.min(buffer.len_bytes().into()) as u32,
                };
                let len = len.min(unit.transfer_max_bytes);
                // SAFETY: the caller's promise.
                unsafe { self.fill(buffer, len) };
                Command::read(offset_bytes / block, len / block_bytes, len)
            }
            (LaneOp::Write { offset_bytes, buffer, durable }, Stage::Main) => {
                let len = buffer.len_bytes().min(unit.transfer_max_bytes);
                // SAFETY: the caller's promise.
                unsafe { self.fill(buffer, len) };
                Command::write(offset_bytes / block, len / block_bytes, len, durable && unit.fua)
            }
            (LaneOp::Discard { offset_bytes, len_bytes }, Stage::Main) => {
                let lba = (offset_bytes + self.done_bytes) / block;
                let blocks_max = match unit.unmap {
                    Unmap::No => 0,
                    Unmap::List { blocks_max } | Unmap::WriteSame { blocks_max } => blocks_max,
                };
                let blocks = ((len_bytes - self.done_bytes) / block).min(blocks_max.into()) as u32;
                self.step_bytes = u64::from(blocks) * block;
                if let Unmap::WriteSame { .. } = unit.unmap {
                    self.piece(zeroes, block_bytes as usize);
                    Command::write_same_unmap(lba, blocks, block_bytes)
                } else {
                    self.list.clear();
                    self.list.extend_from_slice(&unmap_list(lba, blocks));
                    let (list, len) = (self.list.as_mut_ptr(), self.list.len());
                    self.piece(list, len);
                    Command::unmap()
                }
            }
        };
        (command, self.pieces.as_mut_ptr(), self.pieces.len())
    }

    fn piece(&mut self, addr: *mut u8, len: usize) {
        self.pieces.push(libc::iovec { iov_base: addr.cast(), iov_len: len });
    }

    /// Copies the buffer's pieces as far as `len`: libiscsi changes them while it moves data.
    ///
    /// # Safety
    /// The buffer's iovecs are mapped.
    unsafe fn fill(&mut self, buffer: Buffer, len: u32) {
        self.step_bytes = len.into();
        match buffer {
            Buffer::Flat { addr, .. } => self.piece(addr, len as usize),
            Buffer::Vectored { iovecs, count, .. } => {
                let mut left = len as usize;
                for index in 0..count as usize {
                    // SAFETY: the caller vouches for `count` iovecs.
                    let iovec = unsafe { *iovecs.add(index) };
                    let take = iovec.iov_len.min(left);
                    if take > 0 {
                        self.piece(iovec.iov_base.cast(), take);
                    }
                    left -= take;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durable_write_is_done_again_when_its_flush_was_cut_off() {
        let buffer = Buffer::Flat { addr: null_mut(), len_bytes: 512, registered: None };
        let mut slot = Slot::new();
        slot.op = LaneOp::Write { offset_bytes: 0, buffer, durable: true };
        (slot.stage, slot.done_bytes) = (Stage::Sync, 512);
        slot.forget_sync();
        assert_eq!((slot.stage, slot.done_bytes), (Stage::Main, 0));
        // What a discard has done stays done.
        (slot.op, slot.done_bytes) = (LaneOp::Discard { offset_bytes: 0, len_bytes: 1024 }, 512);
        slot.forget_sync();
        assert_eq!(slot.done_bytes, 512);
    }
}
